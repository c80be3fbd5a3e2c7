/** The settings of the playground. They stand in the address: an address is a saved setting. */

export type Kind = 'add' | 'set' | 'scale' | 'ablate'
export const KINDS: Record<Kind, string> = {
  add: 'add to its activation',
  set: 'set its activation to',
  scale: 'multiply its activation by',
  ablate: 'set its activation to zero',
}
export type Phase = '' | 'prompt' | 'generated'

export interface Change {
  latent: number
  kind: Kind
  amount: number
}

export interface Settings {
  /** The text to go on with, or what the user says in a chat, turn by turn. */
  turns: string[]
  chat: boolean
  changes: Change[]
  phase: Phase
  temperature: number
  seed: number
  tokens: number
  /** The feature whose doses are shown, and the words by which their effect is told; none: those that it promotes. */
  dose: number | null
  words: string
}

export const MOST_TOKENS = 1000

function number(text: string | null, otherwise: number, low: number, high: number): number {
  const value = text === null || text.trim() === '' ? NaN : Number(text)
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise
}

export function read(params: URLSearchParams): Settings {
  const changes: Change[] = []
  for (const each of params.getAll('f')) {
    const [latent, kind = 'add', amount = '0'] = each.split(':')
    if (/^\d+$/.test(latent) && kind in KINDS && Number.isFinite(Number(amount)) && !changes.some((other) => other.latent === Number(latent)))
      changes.push({ latent: Number(latent), kind: kind as Kind, amount: Number(amount) })
  }
  const phase = params.get('where') ?? ''
  return {
    turns: params.getAll('q').filter(Boolean),
    chat: params.get('chat') === '1',
    changes,
    phase: phase === 'prompt' || phase === 'generated' ? phase : '',
    temperature: number(params.get('t'), 0.7, 0, 2),
    seed: Math.round(number(params.get('seed'), 0, 0, 2 ** 31 - 1)),
    tokens: Math.round(number(params.get('n'), 60, 1, MOST_TOKENS)),
    dose: /^\d+$/.test(params.get('dose') ?? '') ? Number(params.get('dose')) : null,
    words: params.get('words') ?? '',
  }
}

export function write(settings: Settings): URLSearchParams {
  const params = new URLSearchParams()
  for (const each of settings.turns) params.append('q', each)
  if (settings.chat) params.set('chat', '1')
  for (const each of settings.changes) params.append('f', each.kind === 'ablate' ? `${each.latent}:ablate` : `${each.latent}:${each.kind}:${each.amount}`)
  if (settings.phase) params.set('where', settings.phase)
  params.set('t', String(settings.temperature))
  params.set('seed', String(settings.seed))
  params.set('n', String(settings.tokens))
  if (settings.dose !== null) params.set('dose', String(settings.dose))
  if (settings.words) params.set('words', settings.words)
  return params
}

/** The changes as the server takes them. */
export function interventions(settings: Settings): unknown[] {
  const where = settings.phase ? { where: { phase: settings.phase } } : {}
  return settings.changes.filter(acts).map(({ latent, kind, amount }) => {
    const latents = [latent]
    if (kind === 'ablate') return { edit: 'Ablate', latents, ...where }
    if (kind === 'set') return { edit: 'Set', latents, to: amount, ...where }
    if (kind === 'scale') return { edit: 'Scale', latents, by: amount, ...where }
    return { edit: 'Add', latents, amount, ...where }
  })
}

/** Whether a change can change anything. */
export function acts({ kind, amount }: Change): boolean {
  return kind === 'add' ? amount !== 0 : kind === 'scale' ? amount !== 1 : true
}

/** The ends of a slider and its step, for a feature of this largest activation. */
export function range(kind: Kind, max: number | null): { low: number; high: number; step: number } {
  if (kind === 'scale') return { low: -2, high: 4, step: 0.1 }
  const most = max && max > 0 ? max : 10
  const step = 10 ** Math.floor(Math.log10(most / 20))
  const high = Math.ceil((2 * most) / step) * step
  return { low: kind === 'add' ? -high : 0, high, step }
}

export interface Saved {
  title: string
  query: string
}

const key = (name: string) => `monosem.play.${name}`

/** Settings saved in this browser. */
export function saved(name: string): Saved[] {
  try {
    return JSON.parse(localStorage.getItem(key(name)) ?? '[]')
  } catch {
    return []
  }
}

export function keep(name: string, all: Saved[]): boolean {
  try {
    localStorage.setItem(key(name), JSON.stringify(all))
    return true
  } catch {
    return false
  }
}
