/** What the API gives; docs/explorer_api.md is the contract. */

export interface Site {
  monosem_version: string
  static: boolean
  dictionaries: Summary[]
  /** Paths given that could not be opened, and what to do. */
  missing: { path: string; words: string }[]
}

export interface Abilities {
  prompt: string | null
  map: string | null
  notes: string | null
  context: string | null
  rewards: string | null
}

export interface Summary {
  name: string
  path: string
  model: string | null
  hook: string | null
  architecture: string
  n_latents: number
  d_in: number
  tokens: number
  alive: number
  dead: number
  can: Abilities
  /** How positions lie on the images of a dictionary of images; null for text. */
  images: Images | null
  /** What latents fire on: "tokens", "patches" of images, "rows" of ready vectors. */
  things: string
  /** Names of the sources of a crosscoder or cross-layer transcoder; null for others. */
  sources: { predicts: string[]; reads: string[] } | null
  /** Of the evaluation, as far as it has them: "l0", "fvu", "loss_recovered_mean", "loss_recovered_zero". */
  figures: Measured[]
}

/** A figure with its 95 % interval. */
export interface Measured {
  name: string
  /** Null where it is not defined. */
  value: number | null
  low: number | null
  high: number | null
}

export interface Images {
  rows: number
  columns: number
  /** Names of the positions before the patches: class token, registers. */
  special: string[]
  classes: string[] | null
}

export interface Evaluation {
  facts: Record<string, string | number>
  metrics: Metric[]
}

export interface Metric {
  key: string
  label: string
  /** Its family: Reconstruction, Behaviour, Dictionary, Usefulness, Ground truth. */
  group: string
  formula: string
  unit: string
  /** Where better is. */
  direction: 'up' | 'down' | 'none'
  /** Why it has no interval, or what else to know of it. */
  note: string
  columns: Measured[]
}

export interface ColumnHistogram {
  column: string
  log: boolean
  edges: number[]
  counts: number[]
  total: number
  left_out: number
}

export interface Column {
  name: string
  kind: 'number' | 'text'
  min: number | null
  max: number | null
}

export interface ListCount {
  name: string
  count: number
}

export interface Dictionary extends Summary {
  texts: { text: string; tokens: number }[]
  context_length: number
  prepend_bos: boolean
  special_texts: string[]
  settings: Record<string, unknown>
  evaluation: Evaluation | null
  rate_histogram: ColumnHistogram
  columns: Column[]
  lists: ListCount[]
  notable: number[]
}

/** What a latent means in a line, who says so, and its score, or the mean of several. */
export interface Said {
  text: string
  explainer: string
  side: 'input' | 'output'
  value: number | null
  /** 95 % interval where it is one score. */
  low: number | null
  high: number | null
}

export interface Explanation extends Said {
  sure: number | null
  scores: { name: string; value: number; low: number; high: number; n: number; judge: string | null; details: Record<string, number> }[]
  failure: string | null
}

/** A latent and how to call it. */
export interface Named {
  latent: number
  /** The best of its explanations. */
  explanation: Said | null
  /** Null where it has no clear one. */
  name: string | null
  /** Characters of the name that are the piece it fires on. */
  name_piece?: [number, number] | null
  label: string | null
  rate: number
}

export interface Row extends Named {
  /** Of its strong firings, by weight, the share that its name holds for; 0 without a name. */
  clarity: number | null
  count: number
  mean: number | null
  deviation: number | null
  max: number | null
  top_token_text: string | null
  top_token_share: number | null
  peak_token_text: string | null
  decoder_norm: number
  nearest: number | null
  nearest_cosine: number | null
  encoder_cosine: number | null
  /** Steering worth, where it was measured: by how much the probability of what it promotes rises when it is raised. */
  output_score?: number | null
  /** By how much that of the likeliest token changes then. */
  confidence_change?: number | null
  partner: number | null
  partner_lift: number | null
  logit_mean: number | null
  logit_deviation: number | null
  logit_skew: number | null
  logit_kurtosis: number | null
  promoted_text: string | null
  suppressed_text: string | null
  starred: boolean
}

export interface Page {
  total: number
  offset: number
  rows: Row[]
}

export interface TokenWeight {
  token: number
  text: string
  weight: number
}

export interface Other extends Named {
  cosine: number | null
  share: number | null
  lift: number | null
}

export interface Match extends Named {
  dictionary: string
  cosine: number
  /** Why a close match may be none of features: both began with the same weights. */
  caution: string | null
}

export interface Example {
  activation: number
  weight: number
  texts: string[]
  activations: number[]
  peak: number
  document: number
  position: number
  text: string
  context: number
  before: string[]
  after: string[]
  /** Where the window begins in the store's table of passages. */
  passage: number
  start: number
  /** Class of the image, if it has one. */
  label: string | null
  /** What ablating the feature does to each token's log-likelihood, in nats; comes with interventions. */
  effects?: number[]
}

export interface Note {
  latent: number
  label: string | null
  comment: string | null
  starred: boolean
  lists: string[]
  changed: string | null
}

export interface Interval {
  low: number
  high: number
  count: number
  share: number
  examples: number[]
}

/** What a latent has of one of several sources. */
export interface SourcePart {
  source: string
  norm: number
  share: number
  /** With its decoder rows for all sources; null where one writes nothing. */
  cosines: (number | null)[]
  promoted: TokenWeight[]
  suppressed: TokenWeight[]
}

export interface Feature {
  dictionary: string
  latent: number
  n_latents: number
  n_tokens: number
  name: string | null
  name_piece?: [number, number] | null
  clarity: number | null
  note: Note
  /** Of every explainer, the best first. */
  explanations: Explanation[]
  count: number
  rate: number
  mean: number | null
  deviation: number | null
  max: number | null
  decoder_norm: number
  encoder_cosine: number | null
  /** Steering worth, where it was measured: by how much the probability of what it promotes rises when it is raised. */
  output_score?: number | null
  /** By how much that of the likeliest token changes then. */
  confidence_change?: number | null
  histogram: { edges: number[]; counts: number[] }
  promoted: TokenWeight[]
  suppressed: TokenWeight[]
  logits: { mean: number; deviation: number; skew: number; kurtosis: number } | null
  /** low and high: 95 % interval of the share, itself where it was counted. */
  firing_tokens: { token: number; text: string; share: number; recall: number; low?: number; high?: number }[]
  /** Whether they were counted on all tokens, or else estimated. */
  counted?: boolean
  counted_tokens?: number
  neighbours: Other[]
  cofiring: Other[]
  top: Example[]
  samples: Example[]
  intervals: Interval[]
  near_misses: Example[]
  silent: Example[]
  matches: Match[] | null
  parts: SourcePart[]
  /** The layer that a latent of a cross-layer transcoder reads. */
  reads: string | null
  made_of?: MadeOf | null
  /** Of the image made for it, where there is one. */
  made_image?: MadeImage | null
}

/** What a feature does on the image made for it, and at most on others. */
export interface MadeImage {
  activation: number
  activations: number[]
  peak: number
  /** On the image that the optimisation began at. */
  start: number
  /** On images made in the same way for random directions. */
  random: number
  natural: number | null
  n_natural: number
  n_random: number
}

export interface Weighted extends Named {
  weight: number
}

export interface MetaPart {
  meta: number
  weight: number
  count: number
  others: Weighted[]
}

/** What a latent is made of; the cosine is that of its decoder row with what its meta-latents make. */
export interface MadeOf {
  cosine: number
  parts: MetaPart[]
}

export interface MetaLatent {
  meta: number
  count: number
  latents: Weighted[]
}

export interface MetaLatents {
  latents: number
  each: number
  explained: { rows: string; trained: Measured; held_out: Measured }[]
  metas: MetaLatent[]
}

export interface Preview extends Named {
  max: number | null
  passages: Example[]
}

export interface Context {
  texts: string[]
  activations: number[]
  document: (number | null)[]
  position: (number | null)[]
}

export interface FeatureMap {
  method: string
  /** Share of the features' 5 nearest that are among their 50 nearest on the map. */
  kept: number
  points: number
  total: number
  latents: number[]
  x: number[]
  y: number[]
  rates: number[]
  names: (string | null)[]
}

/** How reliably a feature fires on a word. */
export interface WordEvidence {
  text: string
  occurrences: number
  fires: number
  recall: number
  /** 95 % interval of the recall; both are the recall where all was counted. */
  low: number
  high: number
  /** Mean activation there over the feature's maximum. */
  strength: number
  /** Of the feature's firings, how many are on this word. */
  share: number
}

/** Tokens that show what was asked for. */
export interface FoundPassage {
  texts: string[]
  activations: number[]
  peak: number
}

export interface Result extends Row {
  score: number
  how: string
  /** Of a search by meaning: why it is there. */
  why: string | null
  word: WordEvidence | null
  passage: FoundPassage | null
}

export interface Found {
  query: string
  kind: string
  /** What to say beside the results. */
  words: string | null
  /** How many were found each way; `kind`: the search that lists them all. */
  groups: { how: string; total: number; kind: string | null }[]
  results: Result[]
}

export interface FoundEverywhere {
  query: string
  kind: string
  dictionaries: { name: string; found: Found | null; error: string | null }[]
}

/** What ablating a feature does to each token of a context. */
export interface Ablated {
  /** Change of the token's log-likelihood, in nats; null for the first. */
  effects: (number | null)[]
  document: (number | null)[]
  position: (number | null)[]
}

export interface Totals {
  target: Target
  /** By feature: what it adds to the target's logit, relative to the mean, by all that it does. */
  totals: Record<string, number>
}

export interface PromptFeature extends Named {
  max: number | null
  effect: number | null
}

export interface PromptToken {
  token: number
  text: string
  special: boolean
  features: [latent: number, activation: number, rarity: number][]
}

export interface Question {
  text: string
  /** Features per token, the strongest. */
  top?: number
  target?: string
  /** Only these features. */
  latents?: number[]
}

export interface Target {
  token: number
  text: string
}

export interface Prompt {
  text: string
  tokens: PromptToken[]
  truncated: number
  features: Record<string, PromptFeature>
  next: { token: number; text: string; probability: number }[]
  target: Target | null
  /** Why the target asked for is none. */
  refused: string | null
  /** Other tokens that may be meant. */
  choices: Target[]
}

export interface ModelState {
  state: 'none' | 'idle' | 'loading' | 'ready' | 'failed'
  words: string
  /** Whether it has a template for conversations; null while it is not loaded. */
  chat: boolean | null
  /** Whether it predicts the next token; null while it is not loaded. */
  writes: boolean | null
}

/** A feature, and its largest activation where it was harvested. */
export interface Known extends Named {
  max: number | null
}

/** A feature that fires more often in a text than it does elsewhere. */
export interface Unusual {
  latent: number
  fires: number
  /** Tokens that the SAE has read. */
  read: number
  /** Its firing rate elsewhere. */
  baseline: number
  /** -log10 of the probability that it fires so often, or oftener, at that rate. */
  surprise: number
  strongest: number
  peak: number
  /** Of the text's own tokens. */
  by_token: [token: number, activation: number][]
}

export interface Diagnosed {
  texts: string[]
  unusual: Unusual[]
}

export interface Diagnosis {
  prompt: Diagnosed
  answers: Diagnosed[]
  features: Record<string, Known>
}

export interface Avoidance {
  /** Of the features, over the prompt; 0: they never fire. */
  activation: number
  /** The prompt in pieces; of words, their share of what triggers the features. */
  words: { text: string; share: number | null }[]
  candidates: Candidate[]
}

export interface Candidate {
  prompt: string
  edit: string
  /** Share of the activation that is gone. */
  lowered: number
  /** Of all other features: 1 less the cosine. */
  changed: number
}

/** What one strength does, a mean over the texts. */
export interface Dose {
  strength: number
  /** In the typical length of activations there. */
  length: number
  effect: number
  surprise: number
  perplexity: number
  repetition: number
  text: string
  fluent: boolean
}

/** A line of an answer about doses: first what is to come, then every dose. */
export type DoseLine = { words: string[]; strengths: number[] } | { dose: Dose; knee: number } | { error: string }

export interface Rewarded {
  texts: string[]
  /** The answer's first token. */
  first: number
  reward: number
  /** The part of the reward that goes away without all features. */
  features: number
}

export interface RewardFeature extends Known {
  parts: [number, number]
  by_token: [[token: number, activation: number, part: number][], [token: number, activation: number, part: number][]]
}

export interface Rewards {
  model: string
  answers: [Rewarded, Rewarded]
  features: RewardFeature[]
  total: number
}

export type Kind = 'matched' | 'split' | 'merged' | 'missing'

export interface Side {
  dictionary: string
  other: string
  counts: Record<Kind, number>
  /** Fired too rarely in the tokens compared: left out of the rest. */
  too_rare: number
  mean: number
  histogram: { edges: number[]; counts: number[] }
  latents: number[]
  matches: number[]
  similarities: number[]
  kinds: Kind[]
  names: (string | null)[]
  match_names: (string | null)[]
}

export interface Comparison {
  a: string
  b: string
  by: 'decoder' | 'activations'
  method: string
  caution: string | null
  threshold: number
  sides: [Side, Side]
}

export interface Notes {
  format: 'monosem notes'
  format_version: 1
  dictionary: string
  name: string
  notes: Note[]
  lists: ListCount[]
}

/** A feature to rate: passages (the strongest, then random ones) and explanations whose authors are not told. */
export interface ToRate {
  rater: string
  done: number
  total: number
  /** Null at the end. */
  latent: number | null
  max: number | null
  options: string[]
  passages: Example[]
}

/** Some of several, with the 95 % interval. */
export interface Share {
  hits: number
  n: number
  share: number
  low: number
  high: number
}

export interface Rated {
  file: string
  raters: string[]
  ratings: number
  explainers: { explainer: string; chosen: Share; score: number | null; scored: number }[]
  none: Share
  monosemantic: Share
  /** Of pairs of raters of one feature, how many said the same, and how many would by chance. */
  agreement: { of: string; same: Share; chance: number }[]
}

/** A round of the game: where a feature fires, and on which of some others it may. */
export interface GuessRound {
  seed: number
  round: number
  rounds: number
  chance: number
  max: number | null
  shown: Example[]
  /** With neither activations nor labels. */
  options: Example[]
}

/** The last round played, solved, and the score of all so far. */
export interface GuessScore {
  right: number
  machine: number
  feature: Named
  options: Example[]
  you: Share
  by_machine: Share
  /** How the machine guesses, in words. */
  machine_is: string
  chance: number
  /** Of so many right guesses or more by chance. */
  p: number
}

// Attribution graphs -------------------------------------------------------------------------------------------------

/** A graph that stands beside a dictionary, in a line. */
export interface GraphSummary {
  id: string
  prompt: string
  words: string[]
  model: string | null
  targets: string[]
  nodes: number
  features: number
  replacement_score: number | null
  completeness_score: number | null
  groups: number
}

export interface Graphs {
  graphs: GraphSummary[]
  /** Null: a prompt can be traced; otherwise why not. */
  closed: string | null
  /** Graphs that cannot be opened, and why. */
  missing: { id: string; words: string }[]
}

export type GraphKind = 'feature' | 'error' | 'token' | 'position' | 'bias' | 'beginning' | 'remainder' | 'target' | 'group'

export interface GraphNode {
  id: string
  kind: GraphKind
  hook: string | null
  /** -1: embeddings. */
  layer: number
  /** Null: of no one position. */
  position: number | null
  latent: number | null
  activation: number | null
  /** What share of all influence on the targets passes through it. */
  influence: number
  /** Share of the influence of all nodes that is held by those at least as influential as this. */
  rank: number
  label: string | null
  /** Of a target: its value and its probability. */
  value: number | null
  probability: number | null
}

export interface GraphGroup {
  name: string
  nodes: string[]
}

export interface GraphView {
  id: string
  prompt: string
  words: string[]
  model: string | null
  nodes: GraphNode[]
  /** Indexes into nodes, and what the source adds to the target's value; strongest first. */
  edges: { source: number[]; target: number[]; value: number[] }
  groups: GraphGroup[]
  /** Of the whole graph; held: what share of the influence the shown nodes hold. */
  all: { nodes: number; edges: number; held: number }
  /** Of edges of which it was kept: the heads that they pass. */
  heads: { source: string; target: string; heads: GraphEdgeHead[] }[]
  replacement_score: number | null
  completeness_score: number | null
  /** By hook: the dictionary, and under which name this server shows it, if it does. */
  dictionaries: Record<string, { kind: string; n_latents: number | null; shown: string | null }>
  /** Null: its nodes can be changed and the model measured; otherwise why not. */
  closed: string | null
}

/** What of an edge passes a head; the positions from which and to which it brings most of that. */
export interface GraphEdgeHead {
  layer: number
  head: number
  value: number
  reads: number
  writes: number
}

/** Nodes whose activations are multiplied. */
export interface GraphChange {
  nodes: string[]
  factor: number
}

export interface GraphMeasured {
  targets: { label: string; before: number; direct: number; predicted: number | null; measured: number }[]
  words: string | null
}

// Attention heads ----------------------------------------------------------------------------------------------------

export interface HeadScore {
  name: string
  meaning: string
  /** By layer and head; null where nothing could be measured. */
  value: (number | null)[][]
  low: (number | null)[][]
  high: (number | null)[][]
  chance: number | null
}

export interface HeadsView {
  model: string
  why_not: string | null
  /** Null until somebody asks for it. */
  measured: { documents: number; tokens: number; scores: HeadScore[] } | null
}

export interface Beside {
  layer: number
  head: number
  kind: 'query' | 'key' | 'value' | 'like_qk' | 'like_ov'
  score: number
}

export interface HeadFeature extends Named {
  strength: number
}

export interface HeadExample {
  texts: string[]
  query: number
  key: number
  /** Of the query, to each token up to it. */
  attention: number[]
}

export interface HeadView {
  layer: number
  head: number
  examples: HeadExample[]
  reads: Beside[]
  read_by: Beside[]
  alike: Beside[]
  chance: number
  queries: HeadFeature[]
  keys: HeadFeature[]
  values: HeadFeature[]
  writes: HeadFeature[]
}

export interface HeadPair {
  query: Named | null
  query_is: string
  key: Named | null
  key_is: string
  value: number
}

export interface HeadPattern {
  texts: string[]
  /** Of each query, to each key up to it. */
  pattern: number[][]
  query: number
  promoted: { text: string; logit: number }[]
  suppressed: { text: string; logit: number }[]
  written: HeadFeature[]
  look: { key: number; score: number; pairs: HeadPair[]; rest: number } | null
}

// Token sets -----------------------------------------------------------------------------------------------------------

export type FeatureClass = 'prediction' | 'suppression' | 'partition' | 'none'

export interface SetScore {
  set: string
  /** From -1, all of its tokens suppressed most, to 1, all promoted most. */
  score: number
  q: number
  z: number
  q_directions: number
}

/** Null until all have been tested. */
export interface OwnSets {
  found: { feature_class: FeatureClass; sets: SetScore[] } | null
}

export interface TestedSet {
  name: string
  tokens: number
  examples: string[]
  promoted: number
  suppressed: number
}

export interface TokenSetsView {
  model: string
  why_not: string | null
  /** Null until somebody asks for it. */
  tested: {
    n_tokens: number
    called: number
    sets: TestedSet[]
    left_out: number
    classes: { name: FeatureClass; count: number; share: number; chance: number }[]
  } | null
  /** How far a test is that is under way, in words. */
  testing: string | null
}

export interface SetFeatures {
  total: number
  features: (Named & { score: SetScore | null })[]
}
