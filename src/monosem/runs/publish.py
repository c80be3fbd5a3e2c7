"""A folder to upload to the Hugging Face hub: an SAE in the files of several libraries, and its card."""

from __future__ import annotations

from pathlib import Path

from monosem.errors import ConfigError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.report import LABELS
from monosem.evaluation.saebench import write_saebench
from monosem.files import write_text
from monosem.interop.export import WRITERS, Format, export_sae
from monosem.sae import SAE

LIBRARIES = 3
"""In whose files it is written, ours among them."""
ORDER: tuple[Format, ...] = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer", "gemma_scope")
LOADS = {
    "monosem": 'import monosem as ms\n\nsae = ms.load_sae("{repo}/monosem")',
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{repo}", "saelens")',
    "sparsify": 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_hub("{repo}", hookpoint="sparsify")',
    "dictionary_learning": "from huggingface_hub import snapshot_download\n"
    "from dictionary_learning.utils import load_dictionary\n\n"
    'sae, config = load_dictionary(snapshot_download("{repo}") + "/dictionary_learning", device="cpu")',
    "circuit_tracer": "from circuit_tracer.utils.hf_utils import load_transcoder_from_hub\n\n"
    'transcoders, config = load_transcoder_from_hub("{repo}/circuit_tracer")  # with the other layers beside it',
    "gemma_scope": "import numpy as np\nfrom huggingface_hub import hf_hub_download\n\n"
    'parameters = np.load(hf_hub_download("{repo}", "gemma_scope/params.npz"))',
}


def publish(sae: SAE, folder: str | Path, repo: str, report: EvaluationReport | None = None) -> Path:
    """Write a folder to upload: `monosem/` and the files of up to two other libraries that can hold it, and README.md.

    Nothing is sent; README.md's last lines say how.

    Args:
        sae: the SAE.
        folder: new or empty.
        repo: what the repository will be called, "owner/name".
        report: its held-out evaluation, whose figures the card then has with their intervals.

    Raises:
        ConfigError: the folder holds something, or the name is none.
        FileError: it cannot be written.
    """
    folder = Path(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"a repository is called owner/name, got {repo!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something already: choose a new folder")
    held = ["monosem", *_held(sae)]
    for name in held:
        export_sae(sae, folder / name, name, fold=True)  # type: ignore[arg-type]
    if report is not None:
        report.save(folder / "evaluation.json")
        write_saebench(report, folder / "saebench.json", repo.partition("/")[2], repo)
    write_text(folder / "README.md", card(sae, repo, held, report))
    return folder


def _held(sae: SAE) -> list[Format]:
    """The other libraries whose files can hold it exactly, or with transforms moved into the weights."""
    found: list[Format] = []
    for name in ORDER:
        try:
            WRITERS[name](sae, True)
        except ConfigError:
            continue
        found.append(name)
    return found[: LIBRARIES - 1]


def card(sae: SAE, repo: str, held: list[str], report: EvaluationReport | None = None) -> str:
    """The card, as Markdown with what the hub reads in its head."""
    known = sae.metadata
    head = ["---", "library_name: monosem", "tags:", "- sparse-autoencoder", "- mechanistic-interpretability"]
    head += [f"- {name}" for name in held if name in ("saelens", "sparsify")]
    if known.model and "/" in known.model and not Path(known.model).exists():
        head += [f"base_model: {known.model}"]
    parts = ["\n".join([*head, "---"]), f"# {repo.partition('/')[2]}", _facts(sae)]
    if report is not None:
        parts.append(_figures(report))
    parts.append("## Load it")
    for name in held:
        parts.append(f"{name}:\n\n```python\n{LOADS[name].format(repo=repo)}\n```")
    parts.append(
        "Only in `monosem/` are its input transform and its decoder's units as in training; in the other folders the "
        "transform is in the weights, which changes codes by no more than rounding."
        if sae.transform.kind != "none"
        else "All folders give the same codes and reconstructions."
    )
    parts.append(
        f"## Where this comes from\n\nTrained and written by monosem. To upload this folder: `hf upload {repo} .`"
    )
    return "\n\n".join(parts) + "\n"


def _facts(sae: SAE) -> str:
    known = sae.metadata
    where = known.hook or " + ".join(known.hooks or []) or "not known"
    facts = {
        "Architecture": sae.architecture + "".join(f", {k} = {v}" for k, v in sae.settings.items() if k == "k"),
        "Latents": f"{sae.n_latents:,}",
        "Width": f"{sae.d_in:,}",
        "Model": known.model or " + ".join(known.models or []) or "none (ready vectors)",
        "Hook point": where,
        "Predicts": known.target_hook or " + ".join(known.target_hooks or []),
        "Trained on": known.text or known.images or known.vectors or "",
        "Rows trained on": f"{known.tokens_trained:,}" if known.tokens_trained else "",
        "Context length": "" if known.context_length is None else f"{known.context_length:,}",
        "Contexts begin with BOS": "" if known.prepend_bos is None else "yes" if known.prepend_bos else "no",
        "Left out": f"rows above {known.max_norm_ratio:g} times the median norm" if known.max_norm_ratio else "",
    }
    rows = [f"| {name} | {fact} |" for name, fact in facts.items() if fact]
    return "\n".join(["| | |", "|---|---|", *rows])


def _figures(report: EvaluationReport) -> str:
    lines = ["## Figures", "", "On held-out text, with 95 % intervals.", "", "| | value | interval |", "|---|---|---|"]
    for name, label in LABELS.items():
        if name in report.metrics:
            one = report[name]
            span = "" if one.low is None or one.high is None else f"{one.low:.4g} to {one.high:.4g}"
            lines.append(f"| {label} | {one.value:.4g} | {span} |")
    things, data = report.facts.get("things", "tokens"), report.facts.get("data", "")
    lines += ["", f"Measured on {report.facts.get('rows', 0):,} {things} of {data}."]
    return "\n".join(lines)
