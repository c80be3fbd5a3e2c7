/** The one tooltip of the page: lines of text beside the pointer, or a feature's passages beside its link. */

import type { Preview } from './types'

interface Tip {
  /** Where its left edge and its top would be; `above`: its bottom, where there is no room below. */
  left: number
  top: number
  above: number
  lines: string[]
  feature: { name: string; preview: Preview } | null
}

let current = $state.raw<Tip | null>(null)

export const tip = {
  get current(): Tip | null {
    return current
  },
  show({ clientX: x, clientY: y }: MouseEvent, ...lines: string[]): void {
    current = { left: x + 12, top: y + 18, above: y - 10, lines, feature: null }
  },
  preview(beside: DOMRect, name: string, preview: Preview): void {
    current = { left: beside.left, top: beside.bottom + 6, above: beside.top - 6, lines: [], feature: { name, preview } }
  },
  hide(): void {
    current = null
  },
}
