/** The page's data: from the server that it came from, or from the files of a static export beside it. */

import { FileSource } from './files'
import { isStatic } from './router.svelte'
import { ServerSource } from './server'
import type { Source } from './source'

export const api: Source = isStatic ? new FileSource() : new ServerSource()
