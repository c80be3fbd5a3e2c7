/** What is typed into the field for SQL: a condition, and how to sort what it leaves. */

export interface Asked {
  where: string
  /** A column, with "-" before it downwards; null where nothing is said. */
  sort: string | null
  /** Rows on a page; null where nothing is said. */
  limit: number | null
}

const START = /^\s*(?:select\s+\*\s+from\s+features\b\s*)?(?:where\b\s*)?/i
const LIMIT = /(?:^|\s+)limit\s+(\d+)\s*$/i
const ORDER = /(?:^|\s+)order\s+by\s+"?(\w+)"?(?:\s+(asc|desc))?(?:\s+nulls\s+(?:first|last))?\s*$/i

/** Takes `order by COLUMN desc limit 10` from the end of a condition, and `select * from features where` from its beginning. */
export function parse(text: string): Asked {
  let where = text.replace(START, '').replace(/;\s*$/, '')
  const limit = LIMIT.exec(where)
  if (limit) where = where.slice(0, limit.index)
  const order = ORDER.exec(where)
  if (order) where = where.slice(0, order.index)
  return {
    where: where.trim(),
    sort: order ? (order[2]?.toLowerCase() === 'desc' ? '-' : '') + order[1] : null,
    limit: limit ? Math.max(1, Math.min(500, Number(limit[1]))) : null,
  }
}

/** The word that is being typed before the caret, or null within a quoted text. */
export function wordBefore(text: string, caret: number): string | null {
  const before = text.slice(0, caret)
  if ((before.match(/'/g)?.length ?? 0) % 2) return null
  return /[A-Za-z_]\w*$/.exec(before)?.[0] ?? null
}
