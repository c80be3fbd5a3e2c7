/** Whether passages show what ablating their feature does; where it cannot be had, that is said once for all of them. */

export class Ablating {
  on = $state(false)
  error = $state<string | null>(null)

  toggle(): void {
    this.on = !this.on
    this.error = null
  }

  fail(words: string): void {
    this.on = false
    this.error = words
  }
}
