/** The page's data: from the server that it came from, from the files of a static export beside it, or from the page itself. */

import { FileSource } from './files'
import { SingleGraph } from './graph/single'
import { isSingle, isStatic } from './router.svelte'
import { ServerSource } from './server'
import type { Source } from './source'

export const api: Source = isSingle ? new SingleGraph() : isStatic ? new FileSource() : new ServerSource()
