/** Answers of the OpenAI protocol that come piece by piece (server-sent events). */

export interface Piece {
  text: string
  finish: string | null
  features: { position: number; token: string; generated: boolean; features: [latent: number, activation: number][] }[]
  /** At the end: what each intervention has done. */
  reports: string[]
}

/** The pieces of an answer; the server stops writing when the signal aborts. */
export async function* pieces(address: string, body: unknown, signal: AbortSignal): AsyncGenerator<Piece> {
  for await (const event of parts(address, body, signal, '\n\n')) {
    const data = event.replace(/^data: /, '')
    if (data === '[DONE]') return
    const chunk = JSON.parse(data)
    if (chunk.error) throw new Error(words(chunk) ?? 'The server has failed.')
    const choice = chunk.choices[0]
    if (choice) yield { text: choice.text ?? choice.delta?.content ?? '', finish: choice.finish_reason, features: choice.features ?? [], reports: choice.interventions ?? [] }
  }
  throw new Error(BROKEN)
}

/** An answer in lines of JSON. */
export async function* lines<T>(address: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  for await (const line of parts(address, body, signal, '\n')) yield JSON.parse(line)
}

const BROKEN = 'The server has stopped writing. Is it still running?'

/** What comes between separators, as it comes. */
async function* parts(address: string, body: unknown, signal: AbortSignal, separator: string): AsyncGenerator<string> {
  const response = await fetch(address, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal })
  if (!response.ok || !response.body) throw new Error(words(await response.json().catch(() => null)) ?? `${response.status} ${response.statusText}`)
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    const found = (rest + value).split(separator)
    rest = found.pop() ?? ''
    yield* found
  }
}

function words(body: { error?: string | { message?: string } } | null): string | null {
  return typeof body?.error === 'string' ? body.error : (body?.error?.message ?? null)
}
