/** Light, dark, or as the system has it; and how passages are laid out. Remembered in this browser. */

type Theme = 'auto' | 'light' | 'dark'
export type Layout = 'aligned' | 'prose'

function read(key: string): string | null {
  try {
    return localStorage.getItem(key)
  } catch {
    return null
  }
}

function write(key: string, value: string): void {
  try {
    localStorage.setItem(key, value)
  } catch {
    // A browser that keeps nothing: the choice holds until the page is left.
  }
}

const dark = window.matchMedia('(prefers-color-scheme: dark)')
let theme = $state<Theme>((read('monosem.theme') as Theme) ?? 'auto')
let system = $state(dark.matches)
let layout = $state<Layout>(read('monosem.layout') === 'prose' ? 'prose' : 'aligned')

function apply(): void {
  document.documentElement.dataset.theme = look.dark ? 'dark' : 'light'
}

export const look = {
  get dark(): boolean {
    return theme === 'dark' || (theme === 'auto' && system)
  },
  toggle(): void {
    const next = look.dark ? 'light' : 'dark'
    theme = (next === 'dark') === system ? 'auto' : next
    write('monosem.theme', theme)
    apply()
  },
  get layout(): Layout {
    return layout
  },
  set layout(value: Layout) {
    layout = value
    write('monosem.layout', value)
  },
}

dark.addEventListener('change', (event) => {
  system = event.matches
  apply()
})
apply()
