/** Tokens as honest text: what cannot be seen gets a sign, characters of several tokens stand together. */

export interface Unit {
  text: string
  activation: number
  effect: number
  first: number
  last: number
}

/** Tokens joined where a character spans several of them; such a unit has its strongest token's activation. */
export function units(texts: string[], activations: number[], effects: number[] = []): Unit[] {
  const found: Unit[] = []
  let first = -1
  let activation = 0
  let effect = 0
  for (let i = 0; i < texts.length; i++) {
    if (first < 0) first = i
    activation = Math.max(activation, activations[i] ?? 0)
    if (Math.abs(effects[i] ?? 0) > Math.abs(effect)) effect = effects[i]
    if (texts[i] === '' && i < texts.length - 1) continue
    found.push({ text: texts[i] === '' ? '\uFFFD' : texts[i], activation, effect, first, last: i })
    first = -1
    activation = 0
    effect = 0
  }
  return found
}

export interface Piece {
  text: string
  /** Words for what the sign stands for, if the piece is a sign. */
  sign: string | null
  newline: boolean
}

// Controls, broken bytes, soft hyphen, invisible and direction-changing characters, and spaces that are not a plain space.
const INVISIBLE =
  /[\u0000-\u001F\u007F-\u00A0\u00AD\u034F\u061C\u115F\u1160\u180B-\u180E\u2000-\u200F\u2028-\u202F\u205F-\u206F\u3000\uFE00-\uFE0F\uFEFF\uFFF9-\uFFFD]|[\u{E0000}-\u{E0FFF}]|[\uD800-\uDFFF]/gu
// Joiners and variation selectors shape scripts and emoji: between visible characters they stay.
const SHAPING = /[\u200C\u200D\uFE00-\uFE0F]/u

export function pieces(text: string): Piece[] {
  const found: Piece[] = []
  let end = 0
  for (const match of text.matchAll(INVISIBLE)) {
    if (SHAPING.test(match[0]) && match.index > 0) continue
    if (match.index > end) found.push(plain(text.slice(end, match.index)))
    found.push(sign(match[0]))
    end = match.index + match[0].length
  }
  if (end < text.length) found.push(plain(text.slice(end)))
  return found
}

function plain(text: string): Piece {
  return { text, sign: null, newline: false }
}

function sign(character: string): Piece {
  const code = character.codePointAt(0) ?? 0
  if (character === '\n') return { text: '↵', sign: 'newline', newline: true }
  if (character === '\t') return { text: '⇥', sign: 'tab', newline: false }
  if (character === '\r') return { text: '␍', sign: 'carriage return', newline: false }
  if (character === '\uFFFD') return { text: '�', sign: 'bytes that are no UTF-8', newline: false }
  if (character === '\u00A0') return { text: '⍽', sign: 'no-break space', newline: false }
  const hex = code.toString(16).toUpperCase()
  if (code < 0x100) return { text: `\\x${hex.padStart(2, '0')}`, sign: 'control character', newline: false }
  return { text: `U+${hex.padStart(4, '0')}`, sign: 'invisible character', newline: false }
}

/** Text for a tooltip or an accessible name: one line, nothing invisible. */
export function visible(text: string): string {
  return pieces(text)
    .map((piece) => piece.text)
    .join('')
}

const RIGHT_TO_LEFT = /[\u0590-\u08FF\uFB1D-\uFDFF\uFE70-\uFEFC]|[\u{10800}-\u{10FFF}]|[\u{1E800}-\u{1EFFF}]/u

/** Whether text holds a right-to-left script: then it is not cut and aligned at its peak. */
export function rightToLeft(texts: string[]): boolean {
  return texts.some((text) => RIGHT_TO_LEFT.test(text))
}

/** Shade of a token: linear in activation / maximum, from 8 % up, so that a weak firing is still seen. */
export function shade(activation: number, max: number | null): number {
  if (!(activation > 0)) return 0
  return 0.08 + 0.92 * Math.min(1, max && max > 0 ? activation / max : 1)
}

const LEAST_EFFECT = 0.02
const FULL_EFFECT = 1

/** An effect in nats, or 0 where it is too small to be worth a mark. */
export function noticed(effect: number): number {
  return Math.abs(effect) < LEAST_EFFECT ? 0 : effect
}

/** How strongly an effect is underlined: fully from one nat on. */
export function line(effect: number): number {
  return effect ? 0.2 + 0.8 * Math.min(1, Math.abs(effect) / FULL_EFFECT) : 0
}

const SPECIAL = /^(<\|.*\|>|<\/?[a-z_]+>|\[[A-Z]+\])$/

/** Whether a token looks like a special one, such as <|endoftext|>: it is shown dim. */
export function special(text: string): boolean {
  return SPECIAL.test(text)
}
