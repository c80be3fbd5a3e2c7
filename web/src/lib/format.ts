/** Numbers as they are shown: three significant digits, thousands apart, a true minus sign. */

const MINUS = '\u2212'
/** What is left of sums that come to nothing. */
const NOTHING = 1e-10

export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US')
}

export function num(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return '–'
  const size = Math.abs(value)
  if (size < NOTHING) return '0'
  let text: string
  if (size >= 1000) text = count(size)
  else if (size < 0.0001) text = size.toExponential(1)
  else text = Number(size.toPrecision(3)) === Math.round(size) && size >= 100 ? String(Math.round(size)) : fixed(size)
  return value < 0 ? MINUS + text : text
}

function fixed(size: number): string {
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(size)))
  return size.toFixed(decimals)
}

export function signed(value: number | null | undefined): string {
  return value === null || value === undefined || value < 0 ? num(value) : '+' + num(value)
}

/** A share as a percentage, without the sign of the unit: 0.0031 is "0.310". */
export function percent(share: number | null | undefined): string {
  return share === null || share === undefined ? '–' : num(share * 100)
}

/** A large count in words: 498046 is "498 k", 1048576 "1.05 M". */
export function short(value: number): string {
  if (value >= 1e9) return num(value / 1e9) + ' G'
  if (value >= 1e6) return num(value / 1e6) + ' M'
  if (value >= 1e4) return num(value / 1e3) + ' k'
  return count(value)
}

/** "1 token", "2 tokens". */
export function plural(n: number, one: string, many = one + 's'): string {
  return `${count(n)} ${n === 1 ? one : many}`
}

/** Ticks of an axis between two values: powers of ten (and 2, 5 of them where there is room), or round steps. */
export function ticks(low: number, high: number, log: boolean, most: number): number[] {
  if (!(high > low)) return [low]
  if (log) {
    const first = Math.floor(Math.log10(low))
    const last = Math.ceil(Math.log10(high))
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const found: number[] = []
      for (let power = first; power <= last; power++)
        for (const step of steps) {
          const value = step * 10 ** power
          if (value >= low * 0.9999 && value <= high * 1.0001) found.push(value)
        }
      if (found.length <= most && found.length > 1) return found
      if (steps.length === 1 && found.length > 1) {
        const every = Math.ceil(found.length / most)
        return found.filter((_, index) => index % every === 0)
      }
    }
  }
  const rough = (high - low) / most
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough) ?? rough
  const found: number[] = []
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)))
  return found
}

export function tick(value: number): string {
  const size = Math.abs(value)
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(0).replace('e-', 'e' + MINUS).replace('e+', 'e')
  return Number(value.toPrecision(6)).toLocaleString('en-US', { maximumFractionDigits: 6 }).replace('-', MINUS)
}

/** A time as the reader's clock has it. */
export function when(time: string | null): string {
  return time ? new Date(time).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' }) : ''
}
