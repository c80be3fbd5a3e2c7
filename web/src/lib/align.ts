/** Two prompts token by token: what is the same stands in one column, what differs stands beside it. */

import type { Prompt } from './types'

/** A token of the first prompt and of the second; null where there is none. */
export interface Column {
  a: number | null
  b: number | null
  same: boolean
}

export function align(first: Prompt, second: Prompt | null): Column[] {
  if (!second) return first.tokens.map((_, i) => ({ a: i, b: null, same: true }))
  const columns: Column[] = []
  let [a, b] = [0, 0]
  const between = (stopA: number, stopB: number) => {
    while (a < stopA || b < stopB) columns.push({ a: a < stopA ? a++ : null, b: b < stopB ? b++ : null, same: false })
  }
  for (const [i, j] of common(first.tokens.map((each) => each.token), second.tokens.map((each) => each.token))) {
    between(i, j)
    columns.push({ a: a++, b: b++, same: true })
  }
  between(first.tokens.length, second.tokens.length)
  return columns
}

/** The longest common subsequence, as pairs of indices. */
function common(a: number[], b: number[]): [number, number][] {
  const width = b.length + 1
  const longest = new Uint16Array((a.length + 1) * width) // from i and j on
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1 : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1])
  const pairs: [number, number][] = []
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) pairs.push([i++, j++])
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++
    else j++
  }
  return pairs
}

/** Whether each token is in a word that is not whole in the other prompt. A word begins at a space or a sign. */
export function changed(texts: string[], same: boolean[]): boolean[] {
  const found = same.map((each) => !each)
  for (let first = 0; first < texts.length; ) {
    let stop = first + 1
    while (stop < texts.length && /^[\p{L}\p{N}]|^$/u.test(texts[stop])) stop++
    if (found.slice(first, stop).some(Boolean)) found.fill(true, first, stop)
    first = stop
  }
  return found
}
