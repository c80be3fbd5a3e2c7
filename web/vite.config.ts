import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig, type Plugin } from 'vite'

/** One classic script in place of modules, which a page opened from a file may not load. */
const classic: Plugin = {
  name: 'classic',
  enforce: 'post',
  transformIndexHtml: { order: 'post', handler: (html, { bundle }) => (bundle ? html.replace('type="module" crossorigin', 'defer').replace(' crossorigin', '') : html) },
}

// Addresses of assets are relative to <base>, so that the same build serves the server and a static site.
// Nothing is inlined: the server's Content-Security-Policy allows only files of its own.
export default defineConfig({
  base: './',
  plugins: [svelte(), classic],
  build: {
    outDir: '../src/monosem/explorer/page',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    rollupOptions: { output: { format: 'iife' } },
  },
  server: { proxy: { '/api': 'http://127.0.0.1:8321' } },
})
