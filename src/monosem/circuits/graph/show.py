"""A graph as text: what makes each target, and the most influential features with what makes them."""

from __future__ import annotations

from monosem.circuits.graph.core import OWN, GraphCore


def name_of(graph: GraphCore, number: int) -> str:
    """A node in words, its label where there is one."""
    nodes = graph.nodes
    kind, hook, position = str(nodes.kind[number]), str(nodes.hook[number]), int(nodes.position[number])
    word = f" at {position} {graph.words[position]!r}" if 0 <= position < len(graph.words) else ""
    if kind == "feature":
        label = graph.labels.get((hook, int(nodes.latent[number])))
        return f"{hook} #{int(nodes.latent[number])}{word}" + (f": {label}" if label else "")
    if kind == "target":
        return graph.targets[number - graph.n_sources]["label"]
    if kind in ("token", "position"):
        return f"{kind}{word}"
    if kind in ("beginning", "remainder"):
        return {"beginning": "beginning of the text", "remainder": "features left out"}[kind]
    if kind == "bias" and hook == OWN:
        return "bias of its own"
    return f"{kind} {hook}{word}"


def as_text(graph: GraphCore, most: int = 8) -> str:
    """The table of the command line."""
    n = graph.n_sources
    active = graph.settings.get("active_features", graph.n_features)
    lines = [
        f"{graph.n_features:,} of {active:,} active features, {n:,} sources, {len(graph.values):,} edges; "
        f"replacement {graph.replacement_score:.2f}, completeness {graph.completeness_score:.2f}"
    ]
    for number in range(n, len(graph.nodes)):
        target = graph.targets[number - n]
        chance = "" if target["probability"] is None else f" ({target['probability']:.1%})"
        lines.append(f"\n{target['label']!r}{chance} = {target['value']:+.3f}")
        lines += [f"  {value:+8.3f}  {name_of(graph, source)}" for source, value in graph.sources_of(number, most)]
    best = graph.top(most)
    if best:
        lines.append("\nmost influential features")
    for number in best:
        lines.append(f"  {graph.influence[number]:.3f}  {name_of(graph, number)}")
        strongest = ", ".join(f"{name_of(graph, s)} {v:+.2f}" for s, v in graph.sources_of(number, 3))
        lines.append(f"         from {strongest}")
    return "\n".join(lines)
