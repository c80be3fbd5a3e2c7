/** The one tooltip of the page: lines of text beside the pointer. */

interface Tip {
  x: number
  y: number
  lines: string[]
}

let current = $state.raw<Tip | null>(null)

export const tip = {
  get current(): Tip | null {
    return current
  },
  show(event: MouseEvent, ...lines: string[]): void {
    current = { x: event.clientX, y: event.clientY, lines }
  },
  hide(): void {
    current = null
  },
}
