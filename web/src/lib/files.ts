/** A static site as a source: the table is loaded once, then filtered, sorted and searched in the page. */

import { chunk } from './chunks'
import { remember, type Source } from './source'
import type { Piece } from './stream'
import type * as t from './types'

const ROWS_PER_FILE = 1024
const FEATURES_PER_FILE = 32
const METAS_PER_FILE = 64
/** As in features/search.py. */
const OFTEN_ENOUGH = 30

/** An example as the file of its feature has it: where its window stands in the passages, in place of its texts. */
type Placed = Omit<t.Example, 'texts' | 'before' | 'after' | 'text' | 'context'> & { length: number }

interface Passages {
  first: number
  /** Tokens to show before and after a window. */
  room: number
  passages: { text: string; context: number; texts: string[] }[]
}

interface Features {
  first: number
  /** Number of the file of passages that they stand in. */
  passages: number
  features: t.Feature[]
}

/** A latent that fires on a word. */
type FiredOn = Pick<t.Result, 'latent' | 'score' | 'word' | 'passage'>

/** Which kind of search lists all that are found in a way. */
const ALL_OF: Record<string, string | null> = { number: null, label: 'notes', 'fires on': 'word', named: 'token', 'fires on token': 'token' }
const KINDS = ['top', 'samples', 'near_misses', 'silent'] as const

export class FileSource implements Source {
  private readonly files = remember<unknown>(120)
  private readonly tables = remember<t.Row[]>(2)

  private read<T>(file: string): Promise<T> {
    return this.files(file, () => chunk(file)) as Promise<T>
  }

  private absent(what: string): Error {
    return new Error(`${what} needs a running server: \`monosem explore\`. This is a static site.`)
  }

  site(): Promise<t.Site> {
    return this.read('dictionaries')
  }

  dictionary(name: string): Promise<t.Dictionary> {
    return this.read(`d/${name}/index`)
  }

  private rows(name: string): Promise<t.Row[]> {
    return this.tables(name, async () => {
      const { n_latents } = await this.dictionary(name)
      const parts = Array.from({ length: Math.ceil(n_latents / ROWS_PER_FILE) }, (_, part) => part)
      const files = await Promise.all(
        parts.map((part) => chunk<{ first: number; rows: t.Row[] }>(`d/${name}/table/${part}`)),
      )
      return files.flatMap((file) => file.rows)
    })
  }

  private async filtered(name: string, query: URLSearchParams): Promise<t.Row[]> {
    if (query.get('where')) throw this.absent('A condition in SQL')
    let rows = await this.rows(name)
    for (const range of query.getAll('range')) {
      const [column, low, high] = range.split(',')
      const least = low === '' ? -Infinity : Number(low)
      const most = high === '' ? Infinity : Number(high)
      rows = rows.filter((row) => {
        const value = row[column as keyof t.Row]
        return typeof value === 'number' && value >= least && value <= most
      })
    }
    const contains = query.get('contains')?.toLowerCase()
    if (contains)
      rows = rows.filter((row) =>
        [row.label, row.explanation?.text ?? null, row.name, row.top_token_text, row.promoted_text].some((text) => text?.toLowerCase().includes(contains)),
      )
    const latents = query.get('latents')
    if (latents) {
      const wanted = new Set(latents.split(',').map(Number))
      rows = rows.filter((row) => wanted.has(row.latent))
    }
    const list = query.get('list')
    if (list) {
      const notes = await this.notes(name)
      const wanted = new Set(notes.notes.filter((note) => note.lists.includes(list)).map((note) => note.latent))
      rows = rows.filter((row) => wanted.has(row.latent))
    }
    if (query.get('starred') === 'true') rows = rows.filter((row) => row.starred)
    if (query.get('labelled') === 'true') rows = rows.filter((row) => row.label)
    if (query.get('dead') === 'false') rows = rows.filter((row) => row.count > 0)
    return rows
  }

  async table(name: string, query: URLSearchParams): Promise<t.Page> {
    const rows = await this.filtered(name, query)
    const sort = query.get('sort') ?? 'latent'
    const down = sort.startsWith('-')
    const column = (down ? sort.slice(1) : sort) as keyof t.Row
    const seldom = (row: t.Row) => Number(column === 'clarity' && down && row.count < OFTEN_ENOUGH)
    const sorted = column === 'latent' && !down ? rows : [...rows].sort((a, b) => seldom(a) - seldom(b) || order(a[column], b[column], down))
    const offset = Number(query.get('offset') ?? 0)
    return { total: rows.length, offset, rows: sorted.slice(offset, offset + Number(query.get('limit') ?? 50)) }
  }

  async histogram(name: string, query: URLSearchParams): Promise<t.ColumnHistogram> {
    const column = query.get('column') ?? 'rate'
    const log = query.get('log') === 'true'
    const bins = Number(query.get('bins') ?? 40)
    const rows = await this.filtered(name, query)
    const values = rows
      .map((row) => row[column as keyof t.Row])
      .filter((value): value is number => typeof value === 'number' && (!log || value > 0))
      .map((value) => (log ? Math.log(value) : value))
    let low = Infinity
    let high = -Infinity
    for (const value of values) {
      low = Math.min(low, value)
      high = Math.max(high, value)
    }
    const left_out = rows.length - values.length
    if (!values.length) return { column, log, edges: [], counts: [], total: rows.length, left_out }
    if (high === low) high = low + (Math.abs(low) || 1) * 1e-3
    const step = (high - low) / bins
    const counts = new Array<number>(bins).fill(0)
    for (const value of values) counts[Math.min(bins - 1, Math.floor((value - low) / step))]++
    const edges = Array.from({ length: bins + 1 }, (_, i) => (log ? Math.exp(low + i * step) : low + i * step))
    return { column, log, edges, counts, total: rows.length, left_out }
  }

  map(name: string): Promise<t.FeatureMap> {
    return this.read(`d/${name}/map`)
  }

  async feature(name: string, latent: number): Promise<t.Feature> {
    const part = Math.floor(latent / FEATURES_PER_FILE)
    const file = await this.read<Features>(`d/${name}/f/${part}`)
    const feature = file.features.find((each) => each.latent === latent)
    if (!feature) throw new Error(`Feature ${latent} is not in this static site of ${name}.`)
    const placed = KINDS.some((kind) => feature[kind].some((example) => !example.texts))
    return placed ? whole(feature, await this.read<Passages>(`d/${name}/passages/${file.passages}`)) : feature
  }

  async matches(name: string, latent: number): Promise<t.Match[]> {
    return (await this.feature(name, latent)).matches ?? []
  }

  logits(): Promise<{ edges: number[]; counts: number[] }> {
    return Promise.reject(this.absent('The logit histogram'))
  }

  python = null
  html = null

  previews(name: string, latents: number[]): Promise<t.Preview[]> {
    return Promise.all(
      latents.map(async (latent) => {
        const { name: word, note, rate, max, top, explanations } = await this.feature(name, latent)
        return { latent, explanation: explanations[0] ?? null, name: word, label: note.label, rate, max, passages: top.slice(0, 3) }
      }),
    )
  }

  context(): Promise<t.Context> {
    return Promise.reject(this.absent('The whole context'))
  }

  image(name: string, number: number): string {
    return `data/d/${encodeURIComponent(name)}/image/${number}.png`
  }

  madeImage(name: string, latent: number): string {
    return `data/d/${encodeURIComponent(name)}/made/${latent}.png`
  }

  async searchEverywhere(query: string, kind: string): Promise<t.FoundEverywhere> {
    const { dictionaries } = await this.site()
    const found = await Promise.all(dictionaries.map(async ({ name }) => ({ name, found: await this.search(name, query, kind, 12), error: null })))
    return { query, kind, dictionaries: found }
  }

  async search(name: string, query: string, kind: string, limit = 50, offset = 0): Promise<t.Found> {
    const wanted = query.trim().toLowerCase()
    const rows = await this.rows(name)
    if (kind === 'text') return { query, kind, groups: [], results: [], words: this.absent('Search by activating text').message }
    if (kind === 'similar') {
      const feature = await this.feature(name, Number(query))
      const results = feature.neighbours.map((other) => ({ ...rows[other.latent], score: other.cosine ?? 0, how: 'similar', why: null, word: null, passage: null }))
      return { query, kind, groups: [{ how: 'similar', total: results.length, kind: 'similar' }], results, words: null }
    }
    const same = (text: string | null) => text?.trim().toLowerCase() === wanted
    const found = new Map<number, t.Result>()
    const add = (row: t.Row | undefined, score: number, how: string) => {
      if (row && !found.has(row.latent)) found.set(row.latent, { ...row, score, how, why: null, word: null, passage: null })
    }
    if (kind === 'all' && /^\d+$/.test(wanted)) add(rows[Number(wanted)], 1, 'number')
    if (kind === 'all' || kind === 'notes' || kind === 'words')
      for (const row of rows) if (row.label?.toLowerCase().includes(wanted)) add(row, 1, 'label')
    if (kind === 'all' || kind === 'word')
      for (const { latent, ...fired } of await this.firedOn(name, query)) if (!found.has(latent)) found.set(latent, { ...rows[latent], ...fired, how: 'fires on', why: null })
    if (kind === 'all' || kind === 'token') {
      const named = rows.filter((row) => same(row.name))
      named.sort((a, b) => (b.clarity ?? 0) - (a.clarity ?? 0))
      for (const row of named) add(row, row.clarity ?? 0, 'named')
    }
    if (kind === 'all' || kind === 'token') {
      const firing = rows.filter((row) => same(row.top_token_text) || same(row.peak_token_text))
      firing.sort((a, b) => (b.top_token_share ?? 0) - (a.top_token_share ?? 0))
      for (const row of firing) add(row, row.top_token_share ?? 0, 'fires on token')
    }
    if (kind === 'all' || kind === 'meaning') {
      const worth = (row: t.Row) => row.explanation?.value ?? 0
      const explained = rows.filter((row) => row.explanation?.text.toLowerCase().includes(wanted))
      for (const row of explained.sort((a, b) => worth(b) - worth(a))) add(row, worth(row), 'meaning')
    }
    for (const how of ['promotes', 'suppresses'] as const)
      if (['all', 'token', how].includes(kind))
        for (const row of rows) if (same(how === 'promotes' ? row.promoted_text : row.suppressed_text)) add(row, 0, how)
    const every = wanted ? [...found.values()] : []
    const totals = new Map<string, number>()
    for (const { how } of every) totals.set(how, (totals.get(how) ?? 0) + 1)
    const groups = [...totals].map(([how, total]) => ({ how, total, kind: how in ALL_OF ? ALL_OF[how] : how }))
    const most = Math.ceil(limit / 4)
    const taken = new Map<string, number>()
    const some = every.filter(({ how }) => taken.set(how, (taken.get(how) ?? 0) + 1).get(how)! <= most)
    const results = kind === 'all' ? some.slice(0, limit) : every.slice(offset, offset + limit)
    const words = kind === 'all' || kind === 'words' ? 'A static site looks in labels, names, explanations, and the words and tokens that features fire on, promote and suppress; not in passages.' : null
    return { query, kind, groups, results, words }
  }

  /** The latents that fire on a word, or on every one of several by that on which they do so least; best first. */
  private async firedOn(name: string, query: string): Promise<FiredOn[]> {
    const words = query.trim().toLowerCase().split(/\s+/).filter(Boolean)
    const each = await Promise.all(words.map((word) => this.firedOnOne(name, word)))
    if (each.length === 1) return each[0]
    const least = new Map<number, FiredOn>()
    for (const fired of each[0] ?? []) {
      const all = each.map((found) => found.find(({ latent }) => latent === fired.latent))
      if (all.every((one) => one !== undefined)) least.set(fired.latent, all.reduce((a, b) => (b.score < a.score ? b : a)))
    }
    return [...least.values()].sort((a, b) => b.score - a.score)
  }

  private async firedOnOne(name: string, word: string): Promise<FiredOn[]> {
    const { first } = await this.read<{ first: string[] }>(`d/${name}/words/index`)
    const part = first.findLastIndex((start) => start <= word)
    if (part < 0) return []
    const file = await this.read<Record<string, FiredOn[]>>(`d/${name}/words/${part}`)
    return Object.hasOwn(file, word) ? file[word] : []
  }

  prompt(): Promise<t.Prompt> {
    return Promise.reject(this.absent('A prompt'))
  }

  effects(): Promise<t.Ablated> {
    return Promise.reject(this.absent('The effect of an ablation'))
  }

  totals(): Promise<t.Totals> {
    return Promise.reject(this.absent('The effect of an ablation'))
  }

  diagnose(): Promise<t.Diagnosis> {
    return Promise.reject(this.absent('The prompt doctor'))
  }

  avoid(): Promise<t.Avoidance> {
    return Promise.reject(this.absent('The prompt doctor'))
  }

  async *doses(): AsyncGenerator<t.DoseLine> {
    throw this.absent('The playground')
  }

  metas(name: string): Promise<t.MetaLatents> {
    return chunk(`d/${name}/meta/index`)
  }

  async meta(name: string, number: number): Promise<t.MetaLatent> {
    const found = (await chunk<t.MetaLatent[]>(`d/${name}/meta/${Math.floor(number / METAS_PER_FILE)}`))[number % METAS_PER_FILE]
    if (!found) throw new Error(`There is no meta-latent ${number} in ${name}.`)
    return found
  }

  heads(): Promise<t.HeadsView> {
    return Promise.reject(this.absent('A look at heads'))
  }

  head(): Promise<t.HeadView> {
    return Promise.reject(this.absent('A look at heads'))
  }

  headOn(): Promise<t.HeadPattern> {
    return Promise.reject(this.absent('A look at heads'))
  }

  tokenSets(): Promise<t.TokenSetsView> {
    return Promise.reject(this.absent('A look at token sets'))
  }

  setFeatures(): Promise<t.SetFeatures> {
    return Promise.reject(this.absent('A look at token sets'))
  }

  ownSets(): Promise<t.OwnSets> {
    return Promise.reject(this.absent('A look at token sets'))
  }

  rewards(): Promise<t.Rewards> {
    return Promise.reject(this.absent('A reward'))
  }

  model(): Promise<t.ModelState> {
    return Promise.resolve({ state: 'none', words: this.absent('The model').message, chat: null, writes: null })
  }

  async *complete(): AsyncGenerator<Piece> {
    throw this.absent('The playground')
  }

  chat = (): AsyncGenerator<Piece> => this.complete()

  async compare(a: string, b: string): Promise<t.Comparison> {
    const names = (await this.site()).dictionaries.map((each) => each.name)
    if (names.indexOf(a) <= names.indexOf(b)) return this.read(`compare/${a}/${b}`)
    const other = await this.read<t.Comparison>(`compare/${b}/${a}`)
    return { ...other, a, b, sides: [other.sides[1], other.sides[0]] }
  }

  notes(name: string): Promise<t.Notes> {
    return this.read(`d/${name}/notes`)
  }

  putNote(): Promise<t.Note> {
    return Promise.reject(this.absent('A note'))
  }

  toRate(): Promise<t.ToRate> {
    return Promise.reject(this.absent('Rating'))
  }

  rate(): Promise<t.ToRate> {
    return Promise.reject(this.absent('Rating'))
  }

  rated(): Promise<t.Rated> {
    return Promise.reject(this.absent('Rating'))
  }

  guessRound(): Promise<t.GuessRound> {
    return Promise.reject(this.absent('The game'))
  }

  guess(): Promise<t.GuessScore> {
    return Promise.reject(this.absent('The game'))
  }

  importNotes(): Promise<number> {
    return Promise.reject(this.absent('Import'))
  }

  graphs(): Promise<t.Graphs> {
    return Promise.reject(this.absent('The list of graphs'))
  }

  graph(): Promise<t.GraphView> {
    return Promise.reject(this.absent('A graph'))
  }

  trace(): Promise<{ id: string }> {
    return Promise.reject(this.absent('Tracing'))
  }

  findGroups(): Promise<t.GraphGroup[]> {
    return Promise.reject(this.absent('Finding groups'))
  }

  saveGroups(): Promise<unknown> {
    return Promise.reject(this.absent('Keeping groups'))
  }

  changeGraph(): Promise<t.GraphMeasured> {
    return Promise.reject(this.absent('A change'))
  }

  edgeHeads(): Promise<t.GraphEdgeHead[]> {
    return Promise.reject(this.absent('The heads of an edge'))
  }

  graphFile = null
}

/** A feature with the texts of its examples. */
function whole(feature: t.Feature, { first, room, passages }: Passages): t.Feature {
  const read = (example: t.Example | (t.Example & Placed)): t.Example => {
    if (!('length' in example)) return example
    const { text, context, texts } = passages[example.passage - first]
    const [start, stop] = [example.start, example.start + example.length]
    return { ...example, text, context, texts: texts.slice(start, stop), before: texts.slice(Math.max(0, start - room), start), after: texts.slice(stop, stop + room) }
  }
  return { ...feature, ...Object.fromEntries(KINDS.map((kind) => [kind, feature[kind].map(read)])) }
}

/** Order of two values of a column; nothing comes last either way. */
function order(a: t.Row[keyof t.Row], b: t.Row[keyof t.Row], down: boolean): number {
  if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1
  const less = typeof a === 'string' && typeof b === 'string' ? a.localeCompare(b) : Number(a) - Number(b)
  return down ? -less : less
}
