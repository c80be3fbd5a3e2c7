/** Any link to a feature, on any page, shows what it leads to while the pointer or the focus is on it. */

import { api } from './api'
import { featureOf } from './router.svelte'
import { tip } from './tip.svelte'

const PATIENCE = 160
/** The tooltip's id, by which the link is described. */
export const TIP = 'tip'

let on: HTMLAnchorElement | null = null
let timer = 0

function enter(event: Event): void {
  const link = event.target instanceof Element ? event.target.closest('a') : null
  if (link === on) return
  leave()
  const feature = link && featureOf(link)
  if (!feature) return
  on = link
  timer = window.setTimeout(async () => {
    const [preview] = await api.previews(feature.name, [feature.latent]).catch(() => [])
    if (on !== link || !preview || !link.isConnected) return
    tip.preview(link.getBoundingClientRect(), feature.name, preview)
    link.setAttribute('aria-describedby', TIP)
  }, PATIENCE)
}

function leave(): void {
  clearTimeout(timer)
  if (!on) return
  on.removeAttribute('aria-describedby')
  on = null
  // Not at once: a link that is taken away while the page is drawn loses its focus there and then.
  queueMicrotask(() => tip.current?.feature && tip.hide())
}

export function watch(): void {
  document.addEventListener('mouseover', enter)
  document.addEventListener('focusin', enter)
  document.addEventListener('focusout', leave)
  document.addEventListener('click', leave)
  document.documentElement.addEventListener('mouseleave', leave)
  window.addEventListener('keydown', (event) => event.key === 'Escape' && leave(), true)
  window.addEventListener('scroll', leave, { passive: true })
}
