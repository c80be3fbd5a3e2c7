/** What searches find, and how it is shown. */

import type { Example, Found, FoundPassage, Result } from './types'

/** Kinds of search: name, words for it, what it does. */
export const KINDS: [string, string, string][] = [
  ['all', 'everything', 'a word, a token, words of a passage, a label or a number'],
  ['meaning', 'a meaning', '“negation”, “names of countries”: in explanations and names, and by the kinds of words it fires on'],
  ['word', 'a word it fires on', 'the most reliable first: how many of its occurrences, how strongly'],
  ['token', 'a token', 'named so, fires on, promotes or suppresses this token'],
  ['promotes', 'a token it promotes', 'raises its logit most'],
  ['suppresses', 'a token it suppresses', 'lowers its logit most'],
  ['words', 'words in passages', 'the passages hold all of these words'],
  ['notes', 'notes', 'label, comment or list'],
  ['text', 'a text it fires on', 'runs the model on the text: the most unusual firings first'],
  ['similar', 'similar to', 'the number of a feature'],
]

/** Heads of the ways in which features are found. */
export const HEADS: Record<string, string> = {
  'fires on': 'fires on this word',
  'fires on token': 'fires on this token',
  passages: 'in its passages',
  meaning: 'by meaning',
  'activating text': 'fires on this text',
}

/** What a score is; of weights it comes in tens of deviations. */
export const SCORES: Record<string, string> = {
  named: 'clarity: of its strong firings, the share that its name holds for',
  'fires on': 'reliability × strength there',
  'fires on token': 'share of its firings that are there',
  promotes: 'logit weight, in deviations',
  suppresses: 'logit weight, in deviations',
  passages: 'share of its passages, most where it is at the peak',
  'activating text': 'rarity: minus log10 of how often it fires so strongly',
  meaning: 'how much tells that it is meant, 0 to 1',
  similar: 'cosine of decoder rows',
}

export const scoreOf = (each: Result): number => (each.how === 'promotes' || each.how === 'suppresses' ? 10 * each.score : each.score)

export interface ShownGroup {
  how: string
  total: number
  kind: string | null
  results: Result[]
  /** Place of its first result among all that are shown. */
  first: number
}

/** Results by how they were found, in the answer's order; a way whose results all stand under another has none. */
export function groupsOf(found: Found): ShownGroup[] {
  let first = 0
  return found.groups.map((group) => {
    const results = found.results.filter((each) => each.how === group.how)
    first += results.length
    return { ...group, results, first: first - results.length }
  })
}

const BEFORE = 9
const AFTER = 12

/** A part of a passage around its peak; a word that was asked for stays in sight, also where it stands long before. */
export function shownPassage(example: Example | undefined, query: string): FoundPassage | null {
  if (!example) return null
  const wanted = query.toLowerCase().split(/\s+/)[0]
  const at = example.texts.slice(0, example.peak).join('').toLowerCase().lastIndexOf(wanted)
  let [before, first] = [0, 0]
  while (at >= 0 && before + example.texts[first].length <= at) before += example.texts[first++].length
  const from = Math.max(0, Math.min(example.peak - BEFORE, at >= 0 ? first : example.peak))
  const to = example.peak + AFTER
  return { texts: example.texts.slice(from, to), activations: example.activations.slice(from, to), peak: example.peak - from }
}
