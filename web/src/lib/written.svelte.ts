/** A text, or a conversation, that the server writes while it is read. */

import { api } from './api'
import type { Settings } from './play'
import type { Piece } from './stream'

export interface Turn {
  asked: string
  /** One a token; empty where a character is not whole yet. */
  texts: string[]
  /** Of each token, once it was read: activation by feature. */
  found: Map<number, number>[]
  finish: string | null
}

export class Written {
  turns = $state.raw<Turn[]>([])
  reports = $state.raw<string[]>([])
  busy = $state(false)
  error = $state<string | null>(null)
  private control: AbortController | null = null
  private done = ''

  /** Write anew, unless just this was written already. */
  async run(name: string, settings: Settings, interventions: unknown[], latents: number[]): Promise<void> {
    const { turns, chat, temperature, seed, tokens } = settings
    const wanted = JSON.stringify([name, turns, chat, temperature, seed, tokens, interventions, latents])
    if (wanted === this.done) return
    this.stop()
    this.done = wanted
    const control = (this.control = new AbortController())
    this.busy = true
    this.error = null
    this.reports = []
    this.turns = []
    const request = {
      model: name,
      temperature,
      seed,
      max_tokens: tokens,
      stream: true,
      interventions,
      ...(latents.length ? { features: { latents } } : {}),
    }
    const said: { role: string; content: string }[] = []
    try {
      for (const asked of turns) {
        this.turns = [...this.turns, { asked, texts: [], found: [], finish: null }]
        said.push({ role: 'user', content: asked })
        const answer = chat ? api.chat({ ...request, messages: said }, control.signal) : api.complete({ ...request, prompt: asked }, control.signal)
        for await (const piece of answer) {
          if (control !== this.control) return
          this.take(piece)
        }
        said.push({ role: 'assistant', content: this.turns.at(-1)!.texts.join('') })
        if (!chat) break
      }
    } catch (error) {
      if (control !== this.control || control.signal.aborted) return
      this.done = ''
      this.error = error instanceof Error ? error.message : String(error)
    } finally {
      if (control === this.control) this.busy = false
    }
  }

  private take(piece: Piece): void {
    const turn = this.turns.at(-1)!
    const texts = piece.finish && !piece.text ? turn.texts : [...turn.texts, piece.text]
    const found = [...turn.found]
    for (const each of piece.features) if (each.generated) found.push(new Map(each.features))
    this.turns = [...this.turns.slice(0, -1), { ...turn, texts, found, finish: piece.finish }]
    if (piece.reports.length) this.reports = piece.reports
  }

  /** As if nothing had been written. */
  clear(): void {
    this.stop()
    this.turns = []
    this.reports = []
    this.error = null
  }

  stop(): void {
    this.control?.abort()
    this.control = null
    this.busy = false
    this.done = ''
  }
}
