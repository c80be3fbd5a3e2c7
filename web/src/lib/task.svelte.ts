/** A value that is asked for and arrives later. The last one stays in sight until its successor is there. */

export class Task<T> {
  value = $state.raw<T | null>(null)
  error = $state<string | null>(null)
  busy = $state(false)
  private latest = 0

  async run(ask: () => Promise<T>, keep = true): Promise<T | null> {
    const mine = ++this.latest
    this.busy = true
    if (!keep) this.value = null
    try {
      const value = await ask()
      if (mine !== this.latest) return null
      this.value = value
      this.error = null
      return value
    } catch (error) {
      if (mine !== this.latest) return null
      this.error = error instanceof Error ? error.message : String(error)
      this.value = null
      return null
    } finally {
      if (mine === this.latest) this.busy = false
    }
  }
}
