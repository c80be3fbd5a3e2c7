"""The JSON that the API gives and takes, as docs/explorer_api.md describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.text import well_formed

Words = Annotated[str, BeforeValidator(lambda words: well_formed(words) if isinstance(words, str) else words)]
"""Text that came as JSON: lone surrogates are read as U+FFFD."""


class Problem(TypedDict):
    """Every answer that is no success."""

    error: str


class Abilities(TypedDict):
    """None: yes. Otherwise why not."""

    prompt: str | None
    map: str | None
    notes: str | None
    context: str | None


class Images(TypedDict):
    """How positions lie on the images of a store: special ones first, then patches row by row."""

    rows: int
    columns: int
    special: list[str]
    classes: list[str] | None


class Sources(TypedDict):
    """The sources that a dictionary predicts and reads, where they are several."""

    predicts: list[str]
    reads: list[str]


class Missing(TypedDict):
    """A path that could not be opened, and what to do."""

    path: str
    words: str


class MeasuredColumn(TypedDict):
    """A metric of the SAE or of a control, with its 95 % interval."""

    name: str
    value: float
    low: float | None
    high: float | None


class Summary(TypedDict):
    """A dictionary in a line."""

    name: str
    path: str
    model: str | None
    hook: str | None
    architecture: str
    n_latents: int
    d_in: int
    tokens: int
    alive: int
    dead: int
    can: Abilities
    images: Images | None
    things: str
    sources: Sources | None
    figures: list[MeasuredColumn]


class Site(TypedDict):
    """All dictionaries."""

    monosem_version: str
    static: bool
    dictionaries: list[Summary]
    missing: list[Missing]


class Metric(TypedDict):
    """A metric of the SAE and of its controls."""

    key: str
    label: str
    columns: list[MeasuredColumn]


class Evaluation(TypedDict):
    """What evaluation.json says."""

    facts: dict[str, Any]
    metrics: list[Metric]


class ColumnHistogram(TypedDict):
    """Latents by the value of a column."""

    column: str
    log: bool
    edges: list[float]
    counts: list[int]
    total: int
    left_out: int


class Column(TypedDict):
    """A column of the table, and its extent."""

    name: str
    kind: Literal["number", "text"]
    min: float | None
    max: float | None


class Text(TypedDict):
    """A text (or images) that was read, and how many positions of it."""

    text: str
    tokens: int


class ListCount(TypedDict):
    """A list of the notes."""

    name: str
    count: int


class Dictionary(Summary):
    """Everything on a dictionary's first page."""

    texts: list[Text]
    context_length: int
    prepend_bos: bool
    special_texts: list[str]
    settings: dict[str, Any]
    evaluation: Evaluation | None
    rate_histogram: ColumnHistogram
    columns: list[Column]
    lists: list[ListCount]
    notable: list[int]


class Said(TypedDict):
    """What a latent means in a line, who says so, and how well it did: its score, or the mean of several."""

    text: str
    explainer: str
    side: Literal["input", "output"]
    value: float | None
    low: float | None
    high: float | None


class Score(TypedDict):
    """How an explanation did in a test, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    judge: str | None
    details: dict[str, float]


class Explanation(Said):
    """The same, and all that is known of it."""

    sure: float | None
    scores: list[Score]
    failure: str | None


class Named(TypedDict):
    """A latent and how to call it; the piece are characters of the name, at which it fires."""

    latent: int
    explanation: Said | None
    name: str | None
    name_piece: list[int] | None
    label: str | None
    rate: float


class Row(Named):
    """A row of the table."""

    clarity: float | None
    count: int
    mean: float | None
    deviation: float | None
    max: float | None
    top_token: int | None
    top_token_text: str | None
    top_token_share: float | None
    peak_token: int | None
    peak_token_text: str | None
    decoder_norm: float
    nearest: int | None
    nearest_cosine: float | None
    encoder_cosine: float | None
    output_score: float | None
    confidence_change: float | None
    partner: int | None
    partner_lift: float | None
    logit_mean: float | None
    logit_deviation: float | None
    logit_skew: float | None
    logit_kurtosis: float | None
    promoted_text: str | None
    suppressed_text: str | None
    starred: bool


class Page(TypedDict):
    """Some rows of the table."""

    total: int
    offset: int
    rows: list[Row]


class WordEvidence(TypedDict):
    """How reliably a latent fires on a word; low and high: 95 % interval of the recall, itself where it was counted."""

    text: str
    occurrences: int
    fires: int
    recall: float
    low: float
    high: float
    strength: float
    share: float


class SearchPassage(TypedDict):
    """Some tokens that show what was asked for."""

    texts: list[str]
    activations: list[float]
    peak: int


class FiredOn(TypedDict):
    """A latent that fires on a word."""

    latent: int
    score: float
    word: WordEvidence
    passage: SearchPassage


class FoundRow(Row):
    """A row that a search has found."""

    score: float
    how: str
    why: str | None
    word: WordEvidence | None
    passage: SearchPassage | None


class Group(TypedDict):
    """All that were found one way; the kind of search that lists them, in pages."""

    how: str
    total: int
    kind: str | None


class Found(TypedDict):
    """What a search has found, in order."""

    query: str
    kind: str
    groups: list[Group]
    results: list[FoundRow]
    words: str | None


class FoundIn(TypedDict):
    """What a search has found in one of several dictionaries, or why it cannot look there."""

    name: str
    found: Found | None
    error: str | None


class FoundEverywhere(TypedDict):
    """What a search has found in all dictionaries."""

    query: str
    kind: str
    dictionaries: list[FoundIn]


class Other(Named):
    """A neighbour (cosine) or a latent that fires on the same tokens (share, lift)."""

    cosine: float | None
    share: float | None
    lift: float | None


class Match(Named):
    """The best match in another dictionary."""

    dictionary: str
    cosine: float
    caution: str | None


class Example(TypedDict):
    """A passage around a token."""

    activation: float
    weight: float
    texts: list[str]
    activations: list[float]
    peak: int
    document: int
    position: int
    text: str
    context: int
    before: list[str]
    after: list[str]
    passage: int
    start: int
    label: str | None


class Note(TypedDict):
    """What people say of a feature."""

    latent: int
    label: str | None
    comment: str | None
    starred: bool
    lists: list[str]
    changed: str | None


class Notes(TypedDict):
    """All notes of a dictionary, as a file."""

    format: Literal["monosem notes"]
    format_version: Literal[1]
    dictionary: str
    name: str
    notes: list[Note]
    lists: list[ListCount]


class Histogram(TypedDict):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]


class TokenWeight(TypedDict):
    """A token and its logit weight."""

    token: int
    text: str
    weight: float


class FiringToken(TypedDict):
    """A token that a latent fires on."""

    token: int
    text: str
    share: float
    recall: float
    low: float
    high: float


class SourcePart(TypedDict):
    """What a latent has of one of several sources."""

    source: str
    norm: float
    share: float
    cosines: list[float | None]
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]


class Interval(TypedDict):
    """A range of activations; examples are indices into `samples`."""

    low: float
    high: float
    count: int
    share: float
    examples: list[int]


class Moments(TypedDict):
    """Of the logit weights over the vocabulary."""

    mean: float
    deviation: float
    skew: float
    kurtosis: float


class Feature(TypedDict):
    """Everything on a feature's page."""

    dictionary: str
    latent: int
    n_latents: int
    n_tokens: int
    name: str | None
    name_piece: list[int] | None
    clarity: float | None
    note: Note
    explanations: list[Explanation]
    count: int
    rate: float
    mean: float | None
    deviation: float | None
    max: float | None
    decoder_norm: float
    encoder_cosine: float | None
    output_score: float | None
    confidence_change: float | None
    histogram: Histogram
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    logits: Moments | None
    firing_tokens: list[FiringToken]
    counted: bool
    counted_tokens: int
    neighbours: list[Other]
    cofiring: list[Other]
    top: list[Example]
    samples: list[Example]
    intervals: list[Interval]
    near_misses: list[Example]
    silent: list[Example]
    matches: list[Match] | None
    parts: list[SourcePart]
    reads: str | None


class Preview(Named):
    """What hovering over a feature shows."""

    max: float | None
    passages: list[Example]


class Code(TypedDict):
    """A piece of Python."""

    code: str


class Context(TypedDict):
    """A whole context as the model saw it."""

    texts: list[str]
    activations: list[float]
    document: list[int | None]
    position: list[int | None]


class Ablated(TypedDict):
    """What ablating a feature does to each token of a context."""

    effects: list[float | None]
    """Change of the token's log-likelihood, in nats; None for the first, which nothing predicts."""
    document: list[int | None]
    position: list[int | None]


class Totals(TypedDict):
    """What features add to the logit of a next token, by all that they do."""

    target: Target
    totals: dict[str, float]
    """By latent: logit of the target relative to the mean logit, as it is less with the latent ablated."""


class Map(TypedDict):
    """Features as points."""

    method: str
    kept: float
    points: int
    total: int
    latents: list[int]
    x: list[float]
    y: list[float]
    rates: list[float]
    names: list[str]


class PromptToken(TypedDict):
    """A token, and (latent, activation, rarity) of each feature on it, strongest first."""

    token: int
    text: str
    special: bool
    features: list[tuple[int, float, float]]


class PromptFeature(Named):
    """A feature of a prompt."""

    max: float | None
    effect: float | None


class Target(TypedDict):
    """A token."""

    token: int
    text: str


class TokenChance(Target):
    """A token and its probability."""

    probability: float


class Prompt(TypedDict):
    """A text through model and dictionary."""

    text: str
    tokens: list[PromptToken]
    truncated: int
    features: dict[str, PromptFeature]
    next: list[TokenChance]
    target: Target | None
    refused: str | None
    choices: list[Target]


class ModelState(TypedDict):
    """Whether the model is loaded."""

    state: Literal["none", "idle", "loading", "ready", "failed"]
    words: str
    chat: bool | None
    """Whether it has a template for conversations; None while it is not loaded."""


Kind = Literal["matched", "split", "merged", "missing"]


class Side(TypedDict):
    """One dictionary's latents beside another's."""

    dictionary: str
    other: str
    counts: dict[str, int]
    too_rare: int
    mean: float
    histogram: Histogram
    latents: list[int]
    matches: list[int]
    similarities: list[float]
    kinds: list[Kind]
    names: list[str]
    match_names: list[str]


class Comparison(TypedDict):
    """Two dictionaries."""

    a: str
    b: str
    by: Literal["decoder", "activations"]
    method: str
    caution: str | None
    threshold: float
    sides: tuple[Side, Side]


class Imported(TypedDict):
    """How many notes were taken in."""

    imported: int


# What the server takes ------------------------------------------------------------------------------------------------


class Question(BaseModel):
    """A prompt."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(min_length=1, max_length=100_000)
    top: int = Field(default=32, ge=1, le=128)
    """Features to give per token, the strongest."""
    target: Words | None = Field(default=None, max_length=200)
    """A next token, to rank features by their direct effect on it."""
    latents: list[int] | None = Field(default=None, max_length=1000)
    """Only these features, off or on; None: the strongest of all."""


class AskedTotal(BaseModel):
    """A prompt, a next token, and the features whose total effects are wanted."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(min_length=1, max_length=100_000)
    target: Words = Field(min_length=1, max_length=200)
    latents: list[int] = Field(min_length=1, max_length=256)


class NoteChange(BaseModel):
    """What changes in a note; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    label: Words | None = Field(default=None, max_length=500)
    comment: Words | None = Field(default=None, max_length=20_000)
    starred: bool | None = None
    lists: list[Annotated[Words, Field(max_length=200)]] | None = Field(default=None, max_length=100)
    """Names of the lists that it is on."""


class KeptNote(NoteChange):
    """A note of a file of notes."""

    latent: int = Field(ge=0, strict=True)
    changed: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\dT[\d:.]{5,15}(Z|[+-]\d\d:\d\d)$")


class NoteFile(BaseModel):
    """Exported notes."""

    format: Literal["monosem notes"]
    format_version: Literal[1]
    dictionary: str
    notes: list[dict[str, Any]] = Field(max_length=1_000_000)


# Ratings --------------------------------------------------------------------------------------------------------------


class ToRate(TypedDict):
    """A feature to rate: passages (the strongest, then random ones) and explanations whose authors are not told."""

    rater: str
    done: int
    total: int
    latent: int | None
    max: float | None
    options: list[str]
    passages: list[Example]


class RatingGiven(BaseModel):
    """What somebody says of a feature: which of the options fits, None if none does; whether it fires on one thing."""

    model_config = ConfigDict(extra="forbid")

    rater: Words = Field(min_length=1, max_length=100)
    latent: int = Field(ge=0)
    choice: int | None
    monosemantic: Literal["yes", "no", "unsure"]


class Share(TypedDict):
    """Some of several, with the 95 % interval (Wilson)."""

    hits: int
    n: int
    share: float
    low: float
    high: float


class ExplainerRated(TypedDict):
    """How often an explainer's text was chosen where it was shown; the mean automatic score on the same features."""

    explainer: str
    chosen: Share
    score: float | None
    scored: int


class Agreement(TypedDict):
    """Of pairs of raters of one feature, how many said the same, and how many would by chance."""

    of: str
    same: Share
    chance: float


class Rated(TypedDict):
    """What all ratings say together."""

    file: str
    raters: list[str]
    ratings: int
    explainers: list[ExplainerRated]
    none: Share
    monosemantic: Share
    agreement: list[Agreement]
