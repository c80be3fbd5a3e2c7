/** Where the nodes of a graph stand: a column for each token of the prompt, a row for each place of the model. */

import type { GraphNode } from '../types'

export interface Line {
  /** Top and height of a row. */
  y: number
  height: number
  name: string
}

export interface Column {
  x: number
  width: number
  position: number | null
}

export interface Layout {
  x: Float32Array
  y: Float32Array
  rows: Line[]
  columns: Column[]
  height: number
}

const PITCH = 12
const MARGIN = { left: 78, right: 14, top: 10 }
const LEAST_ROW = 34
const AMPLE_ROW = 64
/** Pixels that a graph of few rows fills. */
const FILLED = 460
const SITES = ['embed', 'pos_embed', 'resid_pre', 'attn_q', 'attn_k', 'attn_v', 'attn_z', 'attn_out', 'resid_mid', 'mlp_in', 'mlp_mid', 'mlp_out', 'resid_post', 'final_norm']

/** The row of a node, and its place among rows from the bottom. */
function rowOf(node: GraphNode): [string, number] {
  if (node.kind === 'target') return ['targets', 1e9]
  if (node.kind === 'token' || node.kind === 'position' || (node.layer < 0 && node.kind !== 'group')) return ['tokens', -1]
  if (node.kind === 'bias' || node.kind === 'beginning' || node.kind === 'remainder') return ['tokens', -1]
  const site = node.hook?.split('.')[0] ?? ''
  const place = SITES.indexOf(site)
  return [node.hook ?? `layer ${node.layer}`, node.layer * 100 + (place < 0 ? 50 : place)]
}

/** Nodes of no one position stand in a column of their own, at the left. */
export function place(nodes: GraphNode[], width: number, positions: number): Layout {
  const rows = new Map<string, { order: number; cells: Map<number, number[]> }>()
  const most = new Map<number, number>()
  nodes.forEach((node, i) => {
    const [name, order] = rowOf(node)
    const row = rows.get(name) ?? { order, cells: new Map() }
    rows.set(name, row)
    const column = node.position ?? -1
    const cell = row.cells.get(column) ?? []
    row.cells.set(column, cell)
    cell.push(i)
    most.set(column, Math.max(most.get(column) ?? 0, cell.length))
  })
  const room = Math.max(60, width - MARGIN.left - MARGIN.right)
  const wanted = Array.from({ length: positions }, (_, position) => position)
  if (most.has(-1)) wanted.unshift(-1)
  // Columns with more nodes are wider, but a column with one keeps room for its word.
  const weight = wanted.map((column) => 1 + Math.sqrt(most.get(column) ?? 0))
  const total = weight.reduce((sum, each) => sum + each, 0)
  let x = MARGIN.left
  const columns = wanted.map((column, k) => {
    const wide = (room * weight[k]) / total
    x += wide
    return { x: x - wide, width: wide, position: column < 0 ? null : column }
  })
  const index = new Map(wanted.map((column, k) => [column, k]))
  const placed: Layout = { x: new Float32Array(nodes.length), y: new Float32Array(nodes.length), rows: [], columns, height: 0 }
  let y = MARGIN.top
  const least = Math.max(LEAST_ROW, Math.min(AMPLE_ROW, FILLED / rows.size))
  for (const [name, row] of [...rows].sort((a, b) => b[1].order - a[1].order)) {
    const cells = [...row.cells].map(([column, members]) => {
      const { x: left, width: wide } = columns[index.get(column) ?? 0]
      const across = Math.max(1, Math.min(members.length, Math.floor((wide - 4) / PITCH)))
      return { members, left, wide, across, lines: Math.ceil(members.length / across) }
    })
    const lines = Math.max(...cells.map((cell) => cell.lines))
    const height = Math.max(least, lines * PITCH + 16)
    for (const { members, left, wide, across, lines: own } of cells) {
      members.forEach((node, k) => {
        const line = Math.floor(k / across)
        const here = Math.min(across, members.length - line * across)
        placed.x[node] = left + wide / 2 + ((k % across) - (here - 1) / 2) * Math.min(PITCH, wide / here)
        placed.y[node] = y + height / 2 + (line - (own - 1) / 2) * PITCH
      })
    }
    placed.rows.push({ y, height, name })
    y += height
  }
  placed.height = y
  return placed
}
