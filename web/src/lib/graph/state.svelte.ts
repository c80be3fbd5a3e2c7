/** What a person has chosen on a graph: filter, search, selection, pins, groups, changes. */

import { api } from '../api'
import { Task } from '../task.svelte'
import type { GraphGroup, GraphMeasured, GraphNode, GraphView } from '../types'
import { kept, matching, shown } from './view'

const WAIT = 250

export class GraphState {
  view = $state.raw<GraphView>(undefined as unknown as GraphView)
  /** Nodes are shown until they hold this share of the influence. */
  share = $state(0.8)
  query = $state('')
  selected = $state<string | null>(null)
  pinned = $state.raw(new Set<string>())
  groups = $state.raw<GraphGroup[]>([])
  folded = $state(false)
  changes = $state.raw(new Map<string, number>())
  words = $state<string | null>(null)
  finding = $state(false)
  measured = new Task<GraphMeasured>()
  private timer = 0

  constructor(
    readonly name: string,
    view: GraphView,
  ) {
    this.view = view
    this.groups = view.groups
    this.folded = view.groups.length > 0
  }

  graph = $derived.by(() => shown(this.view, this.share, this.pinned, this.groups, this.folded))
  /** Names of the groups of which a node is shown. */
  seen = $derived.by(() => {
    const keep = kept(this.view, this.share, this.pinned)
    const ids = new Set(this.view.nodes.filter((_, i) => keep[i]).map((node) => node.id))
    return new Set(this.groups.filter((group) => group.nodes.some((id) => ids.has(id))).map((group) => group.name))
  })
  found = $derived(matching(this.graph, this.view.words, this.query))

  get node(): GraphNode | null {
    const at = this.selected === null ? undefined : this.graph.index.get(this.selected)
    return at === undefined ? null : this.graph.nodes[at]
  }

  pin(id: string): void {
    const next = new Set(this.pinned)
    if (!next.delete(id)) next.add(id)
    this.pinned = next
  }

  /** The nodes that a node stands for: itself, or a group's. */
  members(id: string): string[] {
    return this.groups.find((group) => `group:${group.name}` === id)?.nodes ?? [id]
  }

  /** The next node that the search has found. */
  next(): void {
    const ids = [...this.found].map((i) => this.graph.nodes[i].id)
    if (ids.length) this.selected = ids[(ids.indexOf(this.selected ?? '') + 1) % ids.length]
  }

  // Groups ------------------------------------------------------------------------------------------------------------

  make(name: string): void {
    const ids = [...this.pinned].flatMap((id) => this.members(id))
    const rest = this.groups.map((group) => ({ ...group, nodes: group.nodes.filter((id) => !ids.includes(id)) }))
    this.pinned = new Set()
    this.folded = true
    this.keep([...rest.filter((group) => group.nodes.length), { name: this.free(name), nodes: ids }])
  }

  rename(group: GraphGroup, name: string): void {
    if (name.trim() && name !== group.name) this.keep(this.groups.map((each) => (each === group ? { ...each, name: this.free(name.trim()) } : each)))
  }

  remove(group: GraphGroup): void {
    this.keep(this.groups.filter((each) => each !== group))
  }

  async find(): Promise<void> {
    this.finding = true
    try {
      const found = await api.findGroups(this.name, this.view.id)
      this.words = found.length ? null : 'No nodes of this graph are made alike and make alike.'
      if (found.length) {
        this.folded = true
        this.groups = found
        await this.save()
      }
    } catch (error) {
      this.words = error instanceof Error ? error.message : String(error)
    } finally {
      this.finding = false
    }
  }

  private free(name: string): string {
    let [free, n] = [name, 2]
    while (this.groups.some((group) => group.name === free)) free = `${name} ${n++}`
    return free
  }

  private keep(groups: GraphGroup[]): void {
    this.groups = groups
    this.selected = null
    this.save()
  }

  private async save(): Promise<void> {
    try {
      await api.saveGroups(this.name, this.view.id, this.groups)
      this.words = null
    } catch (error) {
      this.words = `Not kept: ${error instanceof Error ? error.message : String(error)}`
    }
  }

  // Changes -----------------------------------------------------------------------------------------------------------

  /** Multiply the activation of a node, or of each of a group; null leaves it as it is. */
  change(id: string, factor: number | null): void {
    const next = new Map(this.changes)
    if (factor === null) next.delete(id)
    else next.set(id, factor)
    this.changes = next
    clearTimeout(this.timer)
    if (!next.size || this.view.closed) return
    this.timer = window.setTimeout(() => {
      const changes = [...next].map(([each, by]) => ({ nodes: this.members(each), factor: by }))
      this.measured.run(() => api.changeGraph(this.name, this.view.id, changes))
    }, WAIT)
  }
}
