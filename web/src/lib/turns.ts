/** Work of which one piece runs at a time, so that a page of passages asks for one ablation after another. */

let last: Promise<unknown> = Promise.resolve()

export function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const mine = last.then(work, work)
  last = mine.catch(() => null)
  return mine
}
