/** What the nodes of a graph are called. */

import { visible } from '../tokens'
import type { GraphNode } from '../types'

const WORDS: Record<string, string> = {
  error: 'not explained',
  position: 'position',
  bias: 'biases',
  beginning: 'beginning of text',
  remainder: 'what is left',
}

/** In a few words, without its place. */
export function nodeName(node: GraphNode, words: string[]): string {
  if (node.label) return node.kind === 'token' || node.kind === 'target' ? `“${visible(node.label)}”` : visible(node.label)
  if (node.kind === 'feature') return `f/${node.latent}`
  const word = node.position === null ? '' : visible(words[node.position] ?? '')
  if (node.kind === 'token') return `“${word}”`
  return WORDS[node.kind] ?? node.kind
}

/** Where it is: hook, and token with its number. */
export function nodePlace(node: GraphNode, words: string[]): string {
  const hook = node.kind === 'token' || node.kind === 'target' ? '' : (node.hook ?? '')
  const at = node.position === null || node.kind === 'target' ? '' : `${node.kind === 'token' ? '' : `“${visible(words[node.position] ?? '')}” `}#${node.position}`
  return [hook, at].filter(Boolean).join(' at ')
}
