"""monosem steer"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from monosem.interventions.beside import Beside


def steer(
    model: Annotated[str, typer.Argument(help="The model: 'bundled', a folder, a GGUF file, a Hugging Face id.")],
    prompt: Annotated[str, typer.Option(help="The text to go on with.")],
    feature: Annotated[
        list[str], typer.Option(metavar="N=AMOUNT", help="What is done with a feature; may be repeated.")
    ],
    sae: Annotated[str, typer.Option(help="The SAE: a run folder, a file, a published name (`monosem saes`).")],
    where: Annotated[
        Literal["everywhere", "prompt", "generated"], typer.Option(help="Steer at all tokens, or at some of them.")
    ] = "everywhere",
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is said by the user of a chat.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens, at most.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Both texts are drawn with it.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="The text ends before this; may be repeated.")] = None,
    hook: Annotated[str | None, typer.Option(help="The hook point of the SAE, where its files do not say it.")] = None,
) -> None:
    r"""Continue a text with features changed, beside what the model writes by itself.

    What is done with the activation of feature 12 (`monosem top RUN`, the explorer's search and its feature pages tell
    which number is what):

        --feature 12=+3     add 3 to it, also where it is off
        --feature 12=-3     take 3 away
        --feature 12=3      set it to 3
        --feature 12=*3     multiply it by 3; it does nothing where the feature is off
        --feature 12=off    set it to 0: ablate it
        --feature 12=+3 --feature 40=off    both

    Amounts are in the SAE's own units, those of `max` in `monosem top`: to add once or twice the largest activation is
    a strong push. What the SAE does not explain of an activation stays as it is.

        monosem steer bundled --sae runs/demo --feature 365=+6 --prompt "The king said"
        monosem steer HuggingFaceTB/SmolLM2-135M-Instruct --sae runs/smollm2 --chat \
                --feature 633=+8 --where generated --prompt "Tell me about the sea."

    Both texts stand side by side: the beginning that they share is dim, `|` shows where they part, and words that the
    other does not have are bold. Below: what each edit did; how far activations are moved, as a share of their length;
    and fluency, the perplexity of each continuation by the model as it is, and the share of its runs of four tokens
    that repeat. A steered text whose perplexity is many times that of the plain one has been pushed too hard; lower the
    amount. `--where generated` leaves the prompt alone.

    In Python: `ms.generate(model, prompt, edits=[ms.Add(sae, 12, 3.0)])`. For any client of the OpenAI protocol:
    `monosem serve`. With sliders: the playground of `monosem explore`.
    """
    from monosem.cli.console import console
    from monosem.interop.load import load_sae
    from monosem.interventions import Where
    from monosem.interventions.beside import beside
    from monosem.interventions.spoken import spoken_edit
    from monosem.models import load_model
    from monosem.work import doing, job

    dictionary = load_sae(sae)
    condition = None if where == "everywhere" else Where(phase=where)
    edits = [spoken_edit(words, dictionary, condition, hook) for words in feature]
    with job(), doing(f"loading {model}"):
        subject = load_model(model)
    with job(), doing("writing"):
        done = beside(
            subject,
            [{"role": "user", "content": prompt}] if chat else prompt,
            edits,
            max_new_tokens=tokens,
            temperature=temperature,
            top_k=0,
            seed=seed,
            stop=stop or (),
        )
    _print(console(), done)


def _print(out: object, done: Beside) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(out, Console)
    plain, steered = marked(done.plain.text, done.steered.text)
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("plain", ratio=1, header_style="dim", overflow="fold")
    table.add_column("steered", ratio=1, header_style="dim", overflow="fold")
    table.add_row(plain, steered)
    out.print(table)
    out.print()
    for words in done.steered.said():
        out.print(words, soft_wrap=True, markup=False)
    moved = ", ".join(f"{share:.0%} of their length at {hook}" for hook, share in done.strength.items())
    out.print(f"activations are moved by {moved}, where they are", soft_wrap=True)
    one, other = done.fluency
    out.print(f"perplexity {one.perplexity:.3g} plain, {other.perplexity:.3g} steered (by the model as it is)")
    out.print(f"repetition {one.repetition:.0%} plain, {other.repetition:.0%} steered (of runs of four tokens)")
    if done.plain.text == done.steered.text:
        out.print("The two texts are the same: a larger amount, or another feature.")


def marked(plain: str, steered: str) -> tuple[Text, Text]:
    """Two texts with what differs marked: the shared beginning dim, `|` where they part, words of one alone bold."""
    import difflib
    import re

    from rich.text import Text

    a, b = (re.findall(r"\s*\S+|\s+", text) for text in (plain, steered))
    common = next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    texts = Text("".join(a[:common]), style="dim"), Text("".join(b[:common]), style="dim")
    if common == len(a) == len(b):
        return texts
    for text in texts:
        text.append(" |", style="default")
    rest = difflib.SequenceMatcher(None, a[common:], b[common:], autojunk=False)
    for kind, a0, a1, b0, b1 in rest.get_opcodes():
        style = "not dim" if kind == "equal" else "bold not dim"
        texts[0].append("".join(a[common:][a0:a1]), style=style)
        texts[1].append("".join(b[common:][b0:b1]), style=style)
    return texts
