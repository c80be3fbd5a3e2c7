import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

// Addresses of assets are relative to <base>, so that the same build serves the server and a static export.
// Nothing is inlined: the server's Content-Security-Policy allows only files of its own.
export default defineConfig({
  base: './',
  plugins: [svelte()],
  build: {
    outDir: '../src/monosem/explorer/page',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { '/api': 'http://127.0.0.1:8321' } },
})
