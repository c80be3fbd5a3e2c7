/** What features are called. */

/** A name before, in and after its piece, which counts characters as Python does: by code point. */
export function split(name: string, piece: [number, number] | null | undefined): [string, string, string] {
  if (!piece) return [name, '', '']
  const characters = Array.from(name)
  const part = (from: number, to?: number) => characters.slice(from, to).join('')
  return [part(0, piece[0]), part(...piece), part(piece[1])]
}

/** A feature in words alone, where nothing can be marked: its label, its name, or its number. */
export function called(feature: { latent: number; name: string | null; label?: string | null }): string {
  return feature.label ?? feature.name ?? `f/${feature.latent}`
}

/** Its number, with what it is called behind it if it is called anything. */
export function titled(feature: Parameters<typeof called>[0]): string {
  const [number, words] = [`f/${feature.latent}`, called(feature)]
  return words === number ? number : `${number} “${words}”`
}
