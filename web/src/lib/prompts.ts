/** The features of a prompt, or of two, as the lines of a matrix. */

import type { Column } from './align'
import { num, percent, short, signed } from './format'
import type { Prompt, PromptFeature } from './types'

export type Order = 'activation' | 'rarity' | 'direct' | 'total' | 'difference'

export interface Line {
  feature: PromptFeature
  /** Activation at every token of the first prompt, and of the second. */
  a: number[]
  b: number[]
  /** Rarity of its firing at every token. */
  rareA: number[]
  rareB: number[]
  /** Strongest activation: at the chosen token, or anywhere. */
  most: number
  rarity: number
  /** Straight on the target's logit at the last token; of two prompts, of the second less of the first. */
  effect: number
  /** On it by all that the feature does anywhere in the text; null where that was not computed. */
  total: number | null
  /** Of two prompts: second less first, as a share of the maximum, at the aligned token where it is largest. */
  difference: number
  /** The column where it is. */
  at: number
  /** What full shading stands for. */
  max: number
}

/** All lines, their figures those of one column, or the largest of all columns. */
export function gather(first: Prompt, second: Prompt | null, columns: Column[], chosen: number | null): Line[] {
  const lines = new Map<number, Line>()
  const read = (prompt: Prompt, values: 'a' | 'b', rarities: 'rareA' | 'rareB') =>
    prompt.tokens.forEach((token, i) => {
      for (const [latent, activation, rarity] of token.features) {
        let line = lines.get(latent)
        if (!line) {
          const zeros = (of: Prompt | null) => new Array<number>(of?.tokens.length ?? 0).fill(0)
          line = { feature: prompt.features[latent], a: zeros(first), b: zeros(second), rareA: zeros(first), rareB: zeros(second), most: 0, rarity: 0, effect: 0, total: null, difference: 0, at: 0, max: 1 }
          lines.set(latent, line)
        }
        line[values][i] = activation
        line[rarities][i] = rarity
      }
    })
  read(first, 'a', 'rareA')
  if (second) read(second, 'b', 'rareB')
  const found = [...lines.values()]
  for (const line of found) figures(line, second !== null, columns, chosen)
  return chosen === null ? found : found.filter((line) => line.most > 0)
}

function figures(line: Line, two: boolean, columns: Column[], chosen: number | null): void {
  line.max = Math.max(line.feature.max ?? 0, ...line.a, ...line.b)
  columns.forEach((column, i) => {
    if (chosen !== null && i !== chosen) return
    const [a, b] = at(line, column)
    line.most = Math.max(line.most, a, b)
    line.rarity = Math.max(line.rarity, column.a === null ? 0 : line.rareA[column.a], column.b === null ? 0 : line.rareB[column.b])
    if (Math.abs(b - a) / line.max > Math.abs(line.difference) || i === chosen) {
      line.difference = (b - a) / line.max
      line.at = i
    }
  })
  const last = (values: number[]) => (line.feature.effect ?? 0) * (values.at(-1) ?? 0)
  line.effect = two ? last(line.b) - last(line.a) : last(line.a)
}

/** Its activation at a column's tokens. */
export function at(line: Line, column: Column): [number, number] {
  return [column.a === null ? 0 : line.a[column.a], column.b === null ? 0 : line.b[column.b]]
}

/** The same lines with what their features add to the next token by all that they do. */
export function withTotals(lines: Line[], totals: Record<string, number> | null): Line[] {
  return totals ? lines.map((line) => ({ ...line, total: totals[line.feature.latent] ?? null })) : lines
}

export function sorted(lines: Line[], order: Order): Line[] {
  const value = (line: Line): number =>
    order === 'rarity' ? line.rarity
    : order === 'direct' ? Math.abs(line.effect)
    : order === 'total' ? (line.total === null ? -1 : Math.abs(line.total))
    : order === 'difference' ? Math.abs(line.difference)
    : line.most
  return [...lines].sort((x, y) => value(y) - value(x))
}

/** Rarity in words: how many tokens there are to one on which it fires so strongly. */
export function rare(rarity: number): string {
  return `rarity ${num(rarity)}: so strong on 1 token in ${short(10 ** rarity)}`
}

/** A difference as a share of the feature's maximum. */
export function share(difference: number): string {
  return difference ? signed(difference * 100) : '0'
}

/** What a line says of a column: the same quantities, in the same units, as its row. */
export function words(line: Line, column: Column, two: boolean): string[] {
  const [a, b] = at(line, column)
  const one = (value: number) => (value > 0 ? `activation ${num(value)}, ${percent(value / line.max)} % of its maximum` : 'off')
  if (!two) return a > 0 ? [one(a), rare(line.rareA[column.a ?? 0])] : ['off']
  const side = (which: string, index: number | null, value: number) => `${which}: ${index === null ? 'no token here' : one(value)}`
  return [side('first', column.a, a), side('second', column.b, b), `difference ${share((b - a) / line.max)} % of its maximum`]
}
