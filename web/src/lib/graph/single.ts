/** One graph that stands in the page itself: an HTML file that needs nothing else. */

import { FileSource } from '../files'
import type { GraphView, Preview } from '../types'

interface Inside {
  view: GraphView
  /** What is known of features, by "HOOK/LATENT". */
  previews: Record<string, Preview>
}

export class SingleGraph extends FileSource {
  private readonly inside: Inside = JSON.parse(document.getElementById('graph')?.textContent ?? '{}')

  override graph(): Promise<GraphView> {
    return Promise.resolve(this.inside.view)
  }

  override site() {
    return Promise.resolve({ monosem_version: '', static: true, dictionaries: [], missing: [] })
  }

  /** Names of dictionaries are hook points here. */
  override previews(name: string, latents: number[]): Promise<Preview[]> {
    return Promise.resolve(latents.flatMap((latent) => this.inside.previews[`${name}/${latent}`] ?? []))
  }

  override saveGroups(): Promise<unknown> {
    return Promise.reject(new Error('this file stays as it is. `monosem explore` keeps groups.'))
  }
}
