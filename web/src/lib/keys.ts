/** Keys. A view says what its keys do; in a field they type. */

export type Keys = Record<string, (event: KeyboardEvent) => void>

const layers: Keys[] = []

/** Adds keys until the returned function is called; later ones go before earlier ones. */
export function listen(keys: Keys): () => void {
  layers.push(keys)
  return () => {
    layers.splice(layers.indexOf(keys), 1)
  }
}

function typing(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
}

window.addEventListener('keydown', (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || event.defaultPrevented) return
  if (typing(event.target)) {
    if (event.key === 'Escape') (event.target as HTMLElement).blur()
    return
  }
  if (document.querySelector('dialog[open]')) return
  for (const keys of [...layers].reverse()) {
    const act = keys[event.key]
    if (act) {
      event.preventDefault()
      act(event)
      return
    }
  }
})
