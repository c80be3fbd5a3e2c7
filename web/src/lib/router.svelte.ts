/** Addresses. On the server they are paths (/d/demo/f/123); in a static export they stand behind "#". */

const kind = document.querySelector<HTMLMetaElement>('meta[name="monosem"]')?.content
/** One graph in one file. */
export const isSingle = kind === 'graph'
export const isStatic = isSingle || kind === 'static'

export interface Route {
  path: string
  parts: string[]
  params: URLSearchParams
}

function parse(): Route {
  const address = isStatic ? location.hash.slice(1) || '/' : location.pathname + location.search
  const [path, query = ''] = address.split(/\?(.*)/s)
  const parts = path.split('/').filter(Boolean).map(decode)
  return { path, parts, params: new URLSearchParams(query) }
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

let current = $state.raw<Route>(parse())

export const router = {
  get route(): Route {
    return current
  },
}

/** The address of a view, to be put into a link. */
export function href(path: string): string {
  return isStatic ? `${location.pathname}${location.search}#${path}` : path
}

export function address(name: string, ...parts: (string | number)[]): string {
  return ['/d', encodeURIComponent(name), ...parts].join('/')
}

/** The feature that a link leads to, if it leads to one. */
export function featureOf(link: HTMLAnchorElement): { name: string; latent: number } | null {
  if (link.origin !== location.origin) return null
  const found = /^\/d\/([^/]+)\/f\/(\d+)/.exec(isStatic ? link.hash.slice(1) : link.pathname)
  return found && { name: decode(found[1]), latent: Number(found[2]) }
}

export function withParams(path: string, params: URLSearchParams | Record<string, string>): string {
  const query = new URLSearchParams(params).toString()
  return query ? `${path}?${query}` : path
}

export function go(path: string, replace = false): void {
  history[replace ? 'replaceState' : 'pushState'](null, '', href(path))
  const before = current.path
  current = parse()
  if (!replace && current.path !== before) window.scrollTo(0, 0)
}

function follow(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return
  const link = event.target instanceof Element ? event.target.closest('a') : null
  if (!link || link.target || link.hasAttribute('download') || link.origin !== location.origin) return
  if (isStatic) {
    if (link.pathname !== location.pathname || !link.hash.startsWith('#/')) return
    event.preventDefault()
    go(link.hash.slice(1))
  } else {
    if (link.pathname.startsWith('/api/')) return
    event.preventDefault()
    go(link.pathname + link.search)
  }
}

document.addEventListener('click', follow)
window.addEventListener('popstate', () => (current = parse()))
window.addEventListener('hashchange', () => (current = parse()))
