/** Where the page's data comes from: the server's API, or the files of a static export. One interface for both. */

import { isStatic } from './router.svelte'
import { FileSource } from './files'
import type {
  ColumnHistogram,
  Comparison,
  Context,
  Dictionary,
  Example,
  Feature,
  FeatureMap,
  Found,
  Match,
  ModelState,
  Note,
  Notes,
  Page,
  Preview,
  Prompt,
  Site,
} from './types'

export interface Source {
  site(): Promise<Site>
  dictionary(name: string): Promise<Dictionary>
  /** Parameters are those of the table in docs/explorer_api.md; the page's own address carries the same. */
  table(name: string, query: URLSearchParams): Promise<Page>
  histogram(name: string, query: URLSearchParams): Promise<ColumnHistogram>
  map(name: string): Promise<FeatureMap>
  feature(name: string, latent: number): Promise<Feature>
  matches(name: string, latent: number): Promise<Match[]>
  python(name: string, latent: number): Promise<string>
  previews(name: string, latents: number[]): Promise<Preview[]>
  context(name: string, example: Example, latent: number): Promise<Context>
  /** Address of an image. */
  image(name: string, number: number): string
  search(name: string, query: string, kind: string): Promise<Found>
  prompt(name: string, text: string, target: string): Promise<Prompt>
  model(name: string, load: boolean): Promise<ModelState>
  compare(a: string, b: string, threshold: number, by: string): Promise<Comparison>
  notes(name: string): Promise<Notes>
  putNote(name: string, latent: number, change: Partial<Note>): Promise<Note>
  importNotes(name: string, notes: unknown): Promise<number>
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

function send<T>(address: string, method: string, body: unknown): Promise<T> {
  return json(address, { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
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

class ServerSource implements Source {
  private readonly features = remember<Feature>(200)
  private readonly maps = remember<FeatureMap>(4)
  private readonly hovers = remember<Preview[]>(400)
  private readonly sites = remember<Site>(1)

  private base(name: string): string {
    return `api/d/${encodeURIComponent(name)}`
  }

  site(): Promise<Site> {
    return this.sites('', () => json('api/dictionaries'))
  }

  dictionary(name: string): Promise<Dictionary> {
    return json(this.base(name))
  }

  table(name: string, query: URLSearchParams): Promise<Page> {
    return json(`${this.base(name)}/features?${query}`)
  }

  histogram(name: string, query: URLSearchParams): Promise<ColumnHistogram> {
    return json(`${this.base(name)}/histogram?${query}`)
  }

  map(name: string): Promise<FeatureMap> {
    return this.maps(name, () => json(`${this.base(name)}/map`))
  }

  feature(name: string, latent: number): Promise<Feature> {
    return this.features(`${name}/${latent}`, () => json(`${this.base(name)}/f/${latent}`))
  }

  matches(name: string, latent: number): Promise<Match[]> {
    return json(`${this.base(name)}/f/${latent}/matches`)
  }

  async python(name: string, latent: number): Promise<string> {
    return (await json<{ code: string }>(`${this.base(name)}/f/${latent}/python`)).code
  }

  previews(name: string, latents: number[]): Promise<Preview[]> {
    return this.hovers(`${name}/${latents}`, () => json(`${this.base(name)}/previews?latents=${latents}`))
  }

  context(name: string, example: Example, latent: number): Promise<Context> {
    const query = new URLSearchParams({ text: example.text, context: String(example.context), latent: String(latent) })
    return json(`${this.base(name)}/context?${query}`)
  }

  image(name: string, number: number): string {
    return `${this.base(name)}/image/${number}`
  }

  search(name: string, query: string, kind: string): Promise<Found> {
    return json(`${this.base(name)}/search?${new URLSearchParams({ q: query, kind })}`)
  }

  prompt(name: string, text: string, target: string): Promise<Prompt> {
    return send(`${this.base(name)}/prompt`, 'POST', target ? { text, target } : { text })
  }

  model(name: string, load: boolean): Promise<ModelState> {
    return load ? send(`${this.base(name)}/model`, 'POST', {}) : json(`${this.base(name)}/model`)
  }

  compare(a: string, b: string, threshold: number, by: string): Promise<Comparison> {
    const query = new URLSearchParams({ a, b, threshold: String(threshold) })
    if (by) query.set('by', by)
    return json(`api/compare?${query}`)
  }

  notes(name: string): Promise<Notes> {
    return json(`${this.base(name)}/notes`)
  }

  async putNote(name: string, latent: number, change: Partial<Note>): Promise<Note> {
    const note = await send<Note>(`${this.base(name)}/notes/${latent}`, 'PUT', change)
    const feature = await this.feature(name, latent).catch(() => null)
    if (feature) feature.note = note
    return note
  }

  async importNotes(name: string, notes: unknown): Promise<number> {
    return (await send<{ imported: number }>(`${this.base(name)}/notes`, 'POST', notes)).imported
  }
}

export const api: Source = isStatic ? new FileSource() : new ServerSource()
