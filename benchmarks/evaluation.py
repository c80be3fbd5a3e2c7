"""The core suite on the bundled model against its bars: time and memory of one SAE, and of ten beside one.

    python benchmarks/evaluation.py [--tokens 200000] [--loss-tokens 50000]

Each evaluation is a process of its own, so that its peak memory is its own. Processor seconds stand beside: they
say the same on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

ONE, MEMORY, TEN = 120.0, 2.0, 4.0
"""Bars: seconds, GiB, and ten SAEs over one."""


def measure(n: int, tokens: int, loss_tokens: int) -> dict[str, Any]:
    """Evaluate so many SAEs of one place, of equal size, in this process."""
    import monosem as ms

    model = ms.load_model("bundled")
    sae = ms.load_sae("tests/data/demo_sae")
    for tensor in (*sae.parameters(), *sae.buffers()):
        tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data
    began, worked = time.perf_counter(), time.process_time()
    saes = sae if n == 1 else {f"SAE {number}": sae for number in range(1, n + 1)}
    report = ms.evaluate(saes, model, tokens=tokens, loss_tokens=loss_tokens, progress=False)
    return {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - worked,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "metrics": len(report.metrics),
        "fvu": report["fvu"].value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--loss-tokens", type=int, default=50_000)
    parser.add_argument("--saes", type=int, help="measure so many in this process, and print JSON")
    given = parser.parse_args()
    if given.saes:
        print(json.dumps(measure(given.saes, given.tokens, given.loss_tokens)))
        return
    found: dict[int, dict[str, Any]] = {}
    for n in (1, 10):
        command = [sys.executable, __file__, "--saes", str(n)]
        command += ["--tokens", str(given.tokens), "--loss-tokens", str(given.loss_tokens)]
        found[n] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        print(f"{n} SAEs: {found[n]['seconds']:.0f} s, {found[n]['processor']:.0f} processor seconds", flush=True)
    one, ten = found[1], found[10]
    ratio = ten["seconds"] / one["seconds"]
    print(f"\n| core suite, {given.tokens:,} tokens, behaviour on {given.loss_tokens:,} | measured | bar | |")
    print("|---|---|---|---|")
    for words, value, bar, unit in (
        (f"one SAE, four controls, {one['metrics']} metrics", one["seconds"], ONE, " s"),
        ("its peak memory", one["gib"], MEMORY, " GiB"),
        ("ten SAEs of one hook over one", ratio, TEN, ""),
        ("likewise, processor seconds", ten["processor"] / one["processor"], TEN, ""),
    ):
        print(f"| {words} | {value:.2f}{unit} | <= {bar:g}{unit} | {'met' if value <= bar else 'NOT met'} |")
    print(f"\nPeak memory of ten: {ten['gib']:.2f} GiB.")


if __name__ == "__main__":
    main()
