/** Explanations in words: who says so, and how well it did. */

import { num } from './format'
import type { Said } from './types'

/** "rules · 0.82 (0.78 – 0.86)": of several scores their mean; "not scored" without any. */
export function source(said: Said): string {
  const { value, low, high } = said
  const score = value === null ? 'not scored' : low === null || high === null ? num(value) : `${num(value)} (${num(low)} – ${num(high)})`
  return `${said.explainer}${said.side === 'output' ? ', of what it does' : ''} · ${score}`
}

/** Without the asterisks around what a feature reads or writes. */
export function plain(text: string): string {
  return text.replace(/\*([^*\n]+)\*/g, '$1')
}
