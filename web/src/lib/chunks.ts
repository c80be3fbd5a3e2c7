/** Data of a static site: scripts that hand their value over. A page opened from a file may load these, and may fetch nothing. */

type Handed = (name: string, packed: string) => void

declare global {
  interface Window {
    monosem_data?: Handed
  }
}

const handed = new Map<string, string>()

/** The value of `data/NAME.js`: JSON, gzip, base64. */
export async function chunk<T>(name: string): Promise<T> {
  window.monosem_data ??= (name, packed) => handed.set(name, packed)
  if (typeof DecompressionStream === 'undefined') throw new Error('This browser is too old for a static site: it cannot unpack gzip. Take one of 2023 or later.')
  await load(`data/${name.split('/').map(encodeURIComponent).join('/')}.js`)
  const packed = handed.get(name)
  handed.delete(name)
  if (packed === undefined) throw new Error(`data/${name}.js is damaged: export the site again.`)
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0))
  return await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).json()
}

function load(address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const script = document.createElement('script')
    script.onload = () => {
      script.remove()
      resolve()
    }
    script.onerror = () => reject(new Error(`${address} is not in this static site: it was moved without it, or not exported.`))
    script.src = address
    document.head.append(script)
  })
}
