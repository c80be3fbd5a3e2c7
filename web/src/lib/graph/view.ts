/** A graph as it is shown: fewer nodes by influence, groups folded into one node each, edges of a node. */

import type { GraphGroup, GraphNode, GraphView } from '../types'

export interface Edge {
  source: number
  target: number
  value: number
  /** Value over the sum of absolute values that come into the target, among what is shown. */
  share: number
}

export interface Shown {
  nodes: GraphNode[]
  edges: Edge[]
  into: Edge[][]
  out: Edge[][]
  index: Map<string, number>
}

const ALWAYS = new Set(['target', 'token'])
const SAFE = 1e-12

/** Nodes that hold the given share of influence; targets, tokens and pinned nodes stay. */
export function kept(view: GraphView, share: number, pinned: Set<string>): boolean[] {
  return view.nodes.map((node) => node.rank <= share || ALWAYS.has(node.kind) || pinned.has(node.id))
}

/** What is drawn. Edges of a group are the sums of its members' edges to and from what is outside. */
export function shown(view: GraphView, share: number, pinned: Set<string>, groups: GraphGroup[], folded: boolean): Shown {
  const keep = kept(view, share, pinned)
  const at = new Map(view.nodes.map((node, i) => [node.id, i]))
  const of = new Map<number, number>()
  const nodes: GraphNode[] = []
  if (folded)
    for (const group of groups) {
      const members = group.nodes.map((id) => at.get(id)).filter((i): i is number => i !== undefined && keep[i] && !of.has(i))
      if (!members.length) continue
      for (const i of members) of.set(i, nodes.length)
      nodes.push(together(group.name, members.map((i) => view.nodes[i])))
    }
  view.nodes.forEach((node, i) => {
    if (!keep[i] || of.has(i)) return
    of.set(i, nodes.length)
    nodes.push(node)
  })
  const sums = new Map<number, Edge>()
  const { source, target, value } = view.edges
  for (let k = 0; k < value.length; k++) {
    const [s, t] = [of.get(source[k]), of.get(target[k])]
    if (s === undefined || t === undefined || s === t) continue
    const key = s * nodes.length + t
    const known = sums.get(key)
    if (known) known.value += value[k]
    else sums.set(key, { source: s, target: t, value: value[k], share: 0 })
  }
  const edges = [...sums.values()]
  const into: Edge[][] = nodes.map(() => [])
  const out: Edge[][] = nodes.map(() => [])
  for (const edge of edges) {
    into[edge.target].push(edge)
    out[edge.source].push(edge)
  }
  const strong = (a: Edge, b: Edge) => Math.abs(b.value) - Math.abs(a.value)
  for (const each of into) {
    const total = each.reduce((sum, edge) => sum + Math.abs(edge.value), SAFE)
    for (const edge of each) edge.share = edge.value / total
    each.sort(strong)
  }
  for (const each of out) each.sort((a, b) => Math.abs(b.share * nodes[b.target].influence) - Math.abs(a.share * nodes[a.target].influence))
  return { nodes, edges, into, out, index: new Map(nodes.map((node, i) => [node.id, i])) }
}

function together(name: string, members: GraphNode[]): GraphNode {
  const first = members.reduce((a, b) => (b.influence > a.influence ? b : a))
  return {
    ...first,
    id: `group:${name}`,
    kind: 'group',
    latent: null,
    activation: null,
    label: name,
    influence: members.reduce((sum, each) => sum + each.influence, 0),
    rank: Math.min(...members.map((each) => each.rank)),
  }
}

/** How much of what reaches the targets an edge carries. */
export function carried(graph: Shown, edge: Edge): number {
  const target = graph.nodes[edge.target]
  return Math.abs(edge.share) * (target.kind === 'target' ? (target.probability ?? 1) : target.influence)
}

/** The edges that carry most. */
export function strongest(graph: Shown, most: number): Edge[] {
  return [...graph.edges].sort((a, b) => carried(graph, b) - carried(graph, a)).slice(0, most)
}

/** Numbers of nodes whose label, word, hook or latent holds the words. */
export function matching(graph: Shown, words: string[], query: string): Set<number> {
  const wanted = query.trim().toLowerCase()
  const found = new Set<number>()
  if (!wanted) return found
  graph.nodes.forEach((node, i) => {
    const word = node.kind === 'token' || node.kind === 'target' ? (node.label ?? words[node.position ?? -1] ?? '') : (node.label ?? '')
    if (word.toLowerCase().includes(wanted) || String(node.latent) === wanted || node.hook === wanted || node.kind === wanted) found.add(i)
  })
  return found
}

/** The nearest node in a direction, for the arrow keys: near in it counts more than far aside. */
export function beside(x: Float32Array, y: Float32Array, from: number, dx: number, dy: number): number {
  let [best, least] = [from, Infinity]
  for (let i = 0; i < x.length; i++) {
    const [ahead, aside] = dx ? [(x[i] - x[from]) * dx, Math.abs(y[i] - y[from])] : [(y[i] - y[from]) * dy, Math.abs(x[i] - x[from])]
    if (i === from || ahead < 1) continue
    const cost = ahead + aside * (dx ? 6 : 2.5)
    if (cost < least) [best, least] = [i, cost]
  }
  return best
}
