/** The model behind a dictionary, loaded while the reader types. */

import { api } from './api'
import type { Task } from './task.svelte'
import type { ModelState } from './types'

const PAUSE = 500

export async function load(name: string, model: Task<ModelState>): Promise<void> {
  await model.run(() => api.model(name, true))
  while (model.value?.state === 'loading') {
    await new Promise((resolve) => setTimeout(resolve, PAUSE))
    await model.run(() => api.model(name, false))
  }
}
