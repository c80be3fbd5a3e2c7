/** The list that a feature was opened from: previous and next go along it, page after page. */

import { api } from './api'

interface Trail {
  name: string
  what: string
  latents: number[]
  /** Gives the latents after those known, or none. */
  more: (() => Promise<number[]>) | null
}

let trail: Trail | null = null

export function follow(name: string, what: string, latents: number[], more: Trail['more'] = null): void {
  trail = { name, what, latents: [...latents], more }
}

/** Follows a table under its query, from the rows of one page on. */
export function followTable(name: string, query: URLSearchParams, offset: number, latents: number[], total: number): void {
  const next = new URLSearchParams(query)
  follow(name, `${total.toLocaleString('en-US')} features of the table`, latents, async () => {
    const known = trail?.latents.length ?? 0
    next.set('offset', String(offset + known))
    return (await api.table(name, next)).rows.map((row) => row.latent)
  })
}

export function place(name: string, latent: number): { what: string; index: number } | null {
  const index = trail?.name === name ? trail.latents.indexOf(latent) : -1
  return trail && index >= 0 ? { what: trail.what, index } : null
}

/** The latent one step along the list, or by number where it is in none; null at an end. */
export async function step(name: string, latent: number, by: 1 | -1, n_latents: number): Promise<number | null> {
  const at = place(name, latent)
  if (!trail || !at) {
    const next = latent + by
    return next >= 0 && next < n_latents ? next : null
  }
  const next = at.index + by
  if (next >= trail.latents.length && trail.more) {
    const more = await trail.more()
    if (more.length) trail.latents.push(...more)
    else trail.more = null
  }
  return trail.latents[next] ?? null
}
