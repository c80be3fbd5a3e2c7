/** The server's API as a source. */

import { lines, pieces, type Piece } from './stream'
import { json, remember, send, type Source } from './source'
import type * as t from './types'

export class ServerSource implements Source {
  private readonly features = remember<t.Feature>(200)
  private readonly ownHeads = remember<t.HeadView>(60)
  private readonly maps = remember<t.FeatureMap>(4)
  private readonly hovers = remember<t.Preview[]>(400)
  private readonly sites = remember<t.Site>(1)

  private base(name: string): string {
    return `api/d/${encodeURIComponent(name)}`
  }

  site(): Promise<t.Site> {
    return this.sites('', () => json('api/dictionaries'))
  }

  dictionary(name: string): Promise<t.Dictionary> {
    return json(this.base(name))
  }

  table(name: string, query: URLSearchParams): Promise<t.Page> {
    return json(`${this.base(name)}/features?${query}`)
  }

  histogram(name: string, query: URLSearchParams): Promise<t.ColumnHistogram> {
    return json(`${this.base(name)}/histogram?${query}`)
  }

  map(name: string): Promise<t.FeatureMap> {
    return this.maps(name, () => json(`${this.base(name)}/map`))
  }

  feature(name: string, latent: number): Promise<t.Feature> {
    return this.features(`${name}/${latent}`, () => json(`${this.base(name)}/f/${latent}`))
  }

  matches(name: string, latent: number): Promise<t.Match[]> {
    return json(`${this.base(name)}/f/${latent}/matches`)
  }

  logits(name: string, latent: number): Promise<{ edges: number[]; counts: number[] }> {
    return json(`${this.base(name)}/f/${latent}/logits`)
  }

  python = async (name: string, latent: number): Promise<string> => (await json<{ code: string }>(`${this.base(name)}/f/${latent}/python`)).code

  html = (name: string, latent: number): string => `${this.base(name)}/f/${latent}/html`

  previews(name: string, latents: number[], words = ''): Promise<t.Preview[]> {
    const query = `latents=${latents}${words ? `&words=${encodeURIComponent(words)}` : ''}`
    return this.hovers(`${name}/${query}`, () => json(`${this.base(name)}/previews?${query}`))
  }

  context(name: string, example: t.Example, latent: number): Promise<t.Context> {
    const query = new URLSearchParams({ text: example.text, context: String(example.context), latent: String(latent) })
    return json(`${this.base(name)}/context?${query}`)
  }

  effects(name: string, example: t.Example, latent: number): Promise<t.Ablated> {
    const query = new URLSearchParams({ text: example.text, context: String(example.context) })
    return json(`${this.base(name)}/f/${latent}/effects?${query}`)
  }

  totals(name: string, text: string, target: string, latents: number[]): Promise<t.Totals> {
    return send(`${this.base(name)}/total`, 'POST', { text, target, latents })
  }

  image(name: string, number: number): string {
    return `${this.base(name)}/image/${number}`
  }

  madeImage(name: string, latent: number): string {
    return `${this.base(name)}/f/${latent}/image`
  }

  search(name: string, query: string, kind: string, limit = 50, offset = 0): Promise<t.Found> {
    return json(`${this.base(name)}/search?${new URLSearchParams({ q: query, kind, limit: String(limit), offset: String(offset) })}`)
  }

  searchEverywhere(query: string, kind: string): Promise<t.FoundEverywhere> {
    return json(`api/search?${new URLSearchParams({ q: query, kind })}`)
  }

  prompt(name: string, question: t.Question): Promise<t.Prompt> {
    return send(`${this.base(name)}/prompt`, 'POST', question)
  }

  diagnose(name: string, asked: object): Promise<t.Diagnosis> {
    return send(`${this.base(name)}/diagnose`, 'POST', asked)
  }

  avoid(name: string, prompt: string, latents: number[]): Promise<t.Avoidance> {
    return send(`${this.base(name)}/avoid`, 'POST', { prompt, latents })
  }

  doses(name: string, latent: number, asked: object, signal: AbortSignal): AsyncGenerator<t.DoseLine> {
    return lines(`${this.base(name)}/f/${latent}/doses`, asked, signal)
  }

  rewards(name: string, asked: object): Promise<t.Rewards> {
    return send(`${this.base(name)}/rewards`, 'POST', asked)
  }

  metas(name: string): Promise<t.MetaLatents> {
    return json(`${this.base(name)}/meta`)
  }

  meta(name: string, number: number): Promise<t.MetaLatent> {
    return json(`${this.base(name)}/meta/${number}`)
  }

  heads(name: string, measure: boolean): Promise<t.HeadsView> {
    return measure ? send(`${this.base(name)}/heads`, 'POST', {}) : json(`${this.base(name)}/heads`)
  }

  head(name: string, layer: number, head: number): Promise<t.HeadView> {
    return this.ownHeads(`${name}/${layer}.${head}`, () => json(`${this.base(name)}/heads/${layer}/${head}`))
  }

  headOn(name: string, layer: number, head: number, asked: object): Promise<t.HeadPattern> {
    return send(`${this.base(name)}/heads/${layer}/${head}/prompt`, 'POST', asked)
  }

  tokenSets(name: string, test: boolean): Promise<t.TokenSetsView> {
    return test ? send(`${this.base(name)}/token-sets`, 'POST', {}) : json(`${this.base(name)}/token-sets`)
  }

  setFeatures(name: string, of: { set: string; suppressed: boolean } | { class: string }): Promise<t.SetFeatures> {
    const query = new URLSearchParams(Object.entries(of).map(([key, value]) => [key, String(value)]))
    return json(`${this.base(name)}/token-sets/features?${query}`)
  }

  ownSets(name: string, latent: number): Promise<t.OwnSets> {
    return json(`${this.base(name)}/f/${latent}/token-sets`)
  }

  model(name: string, load: boolean): Promise<t.ModelState> {
    return load ? send(`${this.base(name)}/model`, 'POST', {}) : json(`${this.base(name)}/model`)
  }

  complete(request: object, signal: AbortSignal): AsyncGenerator<Piece> {
    return pieces('v1/completions', request, signal)
  }

  chat(request: object, signal: AbortSignal): AsyncGenerator<Piece> {
    return pieces('v1/chat/completions', request, signal)
  }

  compare(a: string, b: string, threshold: number, by: string): Promise<t.Comparison> {
    const query = new URLSearchParams({ a, b, threshold: String(threshold) })
    if (by) query.set('by', by)
    return json(`api/compare?${query}`)
  }

  notes(name: string): Promise<t.Notes> {
    return json(`${this.base(name)}/notes`)
  }

  async putNote(name: string, latent: number, change: Partial<t.Note>): Promise<t.Note> {
    const note = await send<t.Note>(`${this.base(name)}/notes/${latent}`, 'PUT', change)
    const feature = await this.feature(name, latent).catch(() => null)
    if (feature) feature.note = note
    return note
  }

  toRate(name: string, rater: string): Promise<t.ToRate> {
    return json(`${this.base(name)}/rating?${new URLSearchParams({ rater })}`)
  }

  rate(name: string, given: { rater: string; latent: number; choice: number | null; monosemantic: string }): Promise<t.ToRate> {
    return send(`${this.base(name)}/rating`, 'POST', given)
  }

  rated(name: string): Promise<t.Rated> {
    return json(`${this.base(name)}/rating/results`)
  }

  guessRound(name: string, seed: number, round: number): Promise<t.GuessRound> {
    return json(`${this.base(name)}/guess?${new URLSearchParams({ seed: String(seed), round: String(round) })}`)
  }

  guess(name: string, given: { seed: number; choices: number[] }): Promise<t.GuessScore> {
    return send(`${this.base(name)}/guess`, 'POST', given)
  }

  async importNotes(name: string, notes: unknown): Promise<number> {
    return (await send<{ imported: number }>(`${this.base(name)}/notes`, 'POST', notes)).imported
  }

  private graphBase(name: string, id: string): string {
    return `${this.base(name)}/graphs/${encodeURIComponent(id)}`
  }

  graphs(name: string): Promise<t.Graphs> {
    return json(`${this.base(name)}/graphs`)
  }

  graph(name: string, id: string): Promise<t.GraphView> {
    return json(this.graphBase(name, id))
  }

  trace(name: string, text: string, target: string | null): Promise<{ id: string }> {
    return send(`${this.base(name)}/graphs`, 'POST', { text, target })
  }

  async findGroups(name: string, id: string): Promise<t.GraphGroup[]> {
    return (await json<{ groups: t.GraphGroup[] }>(`${this.graphBase(name, id)}/groups`)).groups
  }

  saveGroups(name: string, id: string, groups: t.GraphGroup[]): Promise<unknown> {
    return send(`${this.graphBase(name, id)}/groups`, 'PUT', { groups })
  }

  changeGraph(name: string, id: string, changes: t.GraphChange[]): Promise<t.GraphMeasured> {
    return send(`${this.graphBase(name, id)}/change`, 'POST', { changes })
  }

  async edgeHeads(name: string, id: string, source: string, target: string): Promise<t.GraphEdgeHead[]> {
    return (await json<{ heads: t.GraphEdgeHead[] }>(`${this.graphBase(name, id)}/edge?${new URLSearchParams({ source, target })}`)).heads
  }

  graphFile = (name: string, id: string, kind: 'html' | 'json'): string => `${this.graphBase(name, id)}/${kind}`
}
