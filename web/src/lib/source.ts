/** Where the page's data comes from, as the server's API or the files of a static export give it. */

import type { Piece } from './stream'
import type * as t from './types'

export interface Source {
  site(): Promise<t.Site>
  dictionary(name: string): Promise<t.Dictionary>
  /** Parameters are those of the table in docs/explorer_api.md; the page's own address carries the same. */
  table(name: string, query: URLSearchParams): Promise<t.Page>
  histogram(name: string, query: URLSearchParams): Promise<t.ColumnHistogram>
  map(name: string): Promise<t.FeatureMap>
  feature(name: string, latent: number): Promise<t.Feature>
  matches(name: string, latent: number): Promise<t.Match[]>
  /** Tokens of the vocabulary by the feature's logit weight. */
  logits(name: string, latent: number): Promise<{ edges: number[]; counts: number[] }>
  /** Python that opens it; null where there is nothing that Python could open. */
  python: ((name: string, latent: number) => Promise<string>) | null
  /** Address of the feature as one HTML file; null where nobody makes it. */
  html: ((name: string, latent: number) => string) | null
  /** With words: their passages before others; a static export has the strongest alone. */
  previews(name: string, latents: number[], words?: string): Promise<t.Preview[]>
  context(name: string, example: t.Example, latent: number): Promise<t.Context>
  /** What ablating the feature does to each token of an example's context. */
  effects(name: string, example: t.Example, latent: number): Promise<t.Ablated>
  /** What features add to a next token's logit by all that they do. */
  totals(name: string, text: string, target: string, latents: number[]): Promise<t.Totals>
  /** Address of an image. */
  image(name: string, number: number): string
  /** Address of the image made for a feature. */
  madeImage(name: string, latent: number): string
  search(name: string, query: string, kind: string, limit?: number, offset?: number): Promise<t.Found>
  /** In every dictionary. */
  searchEverywhere(query: string, kind: string): Promise<t.FoundEverywhere>
  prompt(name: string, question: t.Question): Promise<t.Prompt>
  /** What is unusual in a prompt and answers to it. */
  diagnose(name: string, asked: { prompt: string; chat: boolean; answers: string[]; top?: number }): Promise<t.Diagnosis>
  /** Which words trigger features, and edits by which they fire less. */
  avoid(name: string, prompt: string, latents: number[]): Promise<t.Avoidance>
  /** Effect and fluency of texts steered with a feature, dose by dose. */
  doses(name: string, latent: number, asked: object, signal: AbortSignal): AsyncGenerator<t.DoseLine>
  rewards(name: string, asked: { prompt: string; answers: [string, string]; chat: boolean }): Promise<t.Rewards>
  /** What the heads of the model do; with `measure`, measured if it has not been. */
  heads(name: string, measure: boolean): Promise<t.HeadsView>
  /** What latents are made of: all meta-latents, or one. */
  metas(name: string): Promise<t.MetaLatents>
  meta(name: string, number: number): Promise<t.MetaLatent>
  head(name: string, layer: number, head: number): Promise<t.HeadView>
  headOn(name: string, layer: number, head: number, asked: { text: string; query?: number; key?: number }): Promise<t.HeadPattern>
  /** Sets of tokens against all features; with `test`, tested if they have not been. */
  tokenSets(name: string, test: boolean): Promise<t.TokenSetsView>
  /** The features of a set, or of a class. */
  setFeatures(name: string, of: { set: string; suppressed: boolean } | { class: string }): Promise<t.SetFeatures>
  ownSets(name: string, latent: number): Promise<t.OwnSets>
  model(name: string, load: boolean): Promise<t.ModelState>
  /** Go on with a text, or answer a conversation, piece by piece, by the OpenAI protocol (docs/serving.md). */
  complete(request: object, signal: AbortSignal): AsyncGenerator<Piece>
  chat(request: object, signal: AbortSignal): AsyncGenerator<Piece>
  compare(a: string, b: string, threshold: number, by: string): Promise<t.Comparison>
  notes(name: string): Promise<t.Notes>
  putNote(name: string, latent: number, change: Partial<t.Note>): Promise<t.Note>
  /** The next feature that somebody has to rate. */
  toRate(name: string, rater: string): Promise<t.ToRate>
  rate(name: string, given: { rater: string; latent: number; choice: number | null; monosemantic: string }): Promise<t.ToRate>
  rated(name: string): Promise<t.Rated>
  /** A round of the game, and the last of the rounds played, solved. */
  guessRound(name: string, seed: number, round: number): Promise<t.GuessRound>
  guess(name: string, given: { seed: number; choices: number[] }): Promise<t.GuessScore>
  importNotes(name: string, notes: unknown): Promise<number>
  /** Attribution graphs that stand beside a dictionary. */
  graphs(name: string): Promise<t.Graphs>
  graph(name: string, id: string): Promise<t.GraphView>
  /** Trace a prompt, to its likeliest next tokens or to one; the graph is kept. */
  trace(name: string, text: string, target: string | null): Promise<{ id: string }>
  findGroups(name: string, id: string): Promise<t.GraphGroup[]>
  saveGroups(name: string, id: string, groups: t.GraphGroup[]): Promise<unknown>
  changeGraph(name: string, id: string, changes: t.GraphChange[]): Promise<t.GraphMeasured>
  edgeHeads(name: string, id: string, source: string, target: string): Promise<t.GraphEdgeHead[]>
  /** Address of a graph as a file; null where nobody makes it. */
  graphFile: ((name: string, id: string, kind: 'html' | 'json') => string) | null
}

/** Fetches JSON; a failure becomes an Error with the server's own words. */
export async function json<T>(address: string, init?: RequestInit): Promise<T> {
  let response: Response
  try {
    response = await fetch(address, init)
  } catch {
    throw new Error('The server does not answer. Is `monosem explore` still running?')
  }
  if (response.ok && (response.headers.get('content-type') ?? 'application/json').includes('json')) return await response.json()
  const body = await response.json().catch(() => null)
  throw new Error(body?.error ?? `${address}: ${response.status} ${response.statusText}`)
}

/** Bytes up to which a browser goes on sending when the page is left. */
const OUTLIVES = 60_000

export function send<T>(address: string, method: string, given: unknown): Promise<T> {
  const body = JSON.stringify(given)
  const keepalive = method === 'PUT' && body.length < OUTLIVES
  return json(address, { method, headers: { 'Content-Type': 'application/json' }, body, keepalive })
}

/** Keeps the latest answers of a function by their key, and shares those under way. */
export function remember<T>(size: number): (key: string, ask: () => Promise<T>) => Promise<T> {
  const kept = new Map<string, Promise<T>>()
  return (key, ask) => {
    const answer = kept.get(key) ?? ask()
    kept.delete(key)
    kept.set(key, answer)
    answer.catch(() => kept.delete(key))
    if (kept.size > size) kept.delete(kept.keys().next().value as string)
    return answer
  }
}
