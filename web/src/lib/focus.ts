/** Puts the cursor into a field when it appears, whatever had it; the attribute `autofocus` does so only while nothing has. */
export function focused(field: HTMLElement, wanted: boolean): void {
  if (wanted) field.focus()
}
