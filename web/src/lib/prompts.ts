/** The features of a prompt, or of two, as the lines of a matrix. */

import type { Prompt, PromptFeature } from './types'

export type Order = 'activation' | 'rarity' | 'effect' | 'difference'

export interface Line {
  feature: PromptFeature
  /** Activation at every token of the first prompt, and of the second. */
  a: number[]
  b: number[]
  most: number
  rarity: number
  /** On the target's logit at the last token of the first prompt. */
  effect: number
  difference: number
  /** What full shading stands for. */
  max: number
}

export function gather(first: Prompt, second: Prompt | null, order: Order, token: number | null): Line[] {
  const lines = new Map<number, Line>()
  read(first, 'a', lines, first, second)
  if (second) read(second, 'b', lines, first, second)
  const found = [...lines.values()].filter((line) => token === null || line.a[token] > 0)
  for (const line of found) {
    const [most, least] = [peak(line.a), peak(line.b)]
    line.most = Math.max(most, least)
    line.max = Math.max(line.feature.max ?? 0, line.most)
    line.difference = (most - least) / line.max
    line.effect = (line.feature.effect ?? 0) * (line.a.at(-1) ?? 0)
    if (token !== null) {
      const own = first.tokens[token].features.find(([latent]) => latent === line.feature.latent)
      if (own) line.rarity = own[2]
    }
  }
  const value = (line: Line): number =>
    order === 'rarity' ? line.rarity
    : order === 'effect' ? Math.abs(line.effect)
    : order === 'difference' ? Math.abs(line.difference)
    : token !== null ? line.a[token]
    : line.most
  return found.sort((x, y) => value(y) - value(x))
}

function peak(values: number[]): number {
  return values.reduce((most, value) => Math.max(most, value), 0)
}

function read(prompt: Prompt, which: 'a' | 'b', lines: Map<number, Line>, first: Prompt, second: Prompt | null): void {
  prompt.tokens.forEach((token, i) => {
    for (const [latent, activation, rarity] of token.features) {
      let line = lines.get(latent)
      if (!line) {
        const zeros = (of: Prompt | null) => new Array<number>(of?.tokens.length ?? 0).fill(0)
        line = { feature: prompt.features[latent], a: zeros(first), b: zeros(second), most: 0, rarity: 0, effect: 0, difference: 0, max: 1 }
        lines.set(latent, line)
      }
      line[which][i] = activation
      line.rarity = Math.max(line.rarity, rarity)
    }
  })
}
