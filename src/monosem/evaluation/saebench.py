"""An evaluation as a result of SAEBench: the JSON of its "core" evaluation, which its tools and Neuronpedia read."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from monosem.evaluation.definitions import DEFINITIONS
from monosem.evaluation.report import EvaluationReport
from monosem.files import write_json

NOT_MEASURED = -1.0
"""What SAEBench writes for what it did not measure."""
MEASURED = {  # theirs, by category, and ours
    ("model_behavior_preservation", "kl_div_with_sae"): "kl",
    ("model_performance_preservation", "ce_loss_score"): "loss_recovered_zero",
    ("model_performance_preservation", "ce_loss_with_sae"): "ce",
    ("reconstruction_quality", "explained_variance"): "explained_variance",
    ("reconstruction_quality", "cossim"): "cosine",
    ("shrinkage", "l2_ratio"): "norm_ratio",
    ("shrinkage", "relative_reconstruction_bias"): "relative_bias",
    ("sparsity", "l0"): "l0",
    ("misc_metrics", "average_max_encoder_cosine_sim"): "encoder_max_cosine",
    ("misc_metrics", "average_max_decoder_cosine_sim"): "decoder_max_cosine",
}
CATEGORIES = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        *("ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"),
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": (
        *("freq_over_1_percent", "freq_over_10_percent"),
        *("normalized_freq_over_1_percent", "normalized_freq_over_10_percent"),
        *("average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim", "frac_alive"),
    ),
}


def saebench_result(report: EvaluationReport, name: str, release: str = "monosem") -> dict[str, Any]:
    """The result as SAEBench has it; what was not measured, or quite otherwise than there, is -1 and listed by name.

    Its intervals and all other metrics, which SAEBench has no place for, are under `eval_result_unstructured`, with
    what differs of those that have. Its MSE is divided by the number of tokens of a batch, and is left out for that.

    Args:
        report: of `ms.evaluate`.
        name: of the SAE.
        release: of the collection that it belongs to.
    """
    facts, metrics = report.facts, {key: dict.fromkeys(names, NOT_MEASURED) for key, names in CATEGORIES.items()}
    for (category, theirs), ours in MEASURED.items():
        if ours in report.metrics:
            metrics[category][theirs] = float(report[ours].value)
    behaviour, losses = (metrics[f"model_{which}_preservation"] for which in ("behavior", "performance"))
    if "kl_zero" in facts and "kl" in report.metrics:
        zero = float(facts["kl_zero"])
        behaviour |= {"kl_div_with_ablation": zero, "kl_div_score": (zero - report["kl"].value) / zero}
    for theirs, ours in (("ce_loss_with_ablation", "ce_zero"), ("ce_loss_without_sae", "ce_clean")):
        losses[theirs] = float(facts.get(ours, NOT_MEASURED))
    metrics["token_stats"] = {
        "total_tokens_eval_reconstruction": int(facts.get("predictions", NOT_MEASURED)),
        "total_tokens_eval_sparsity_variance": int(facts.get("rows", NOT_MEASURED)),
    }
    metrics["misc_metrics"] |= _frequencies(report.firing_rates)
    missing = [f"{key}.{name}" for key, own in metrics.items() for name, value in own.items() if value == NOT_MEASURED]
    differs = {theirs: DEFINITIONS[ours].differs for (_, theirs), ours in MEASURED.items() if ours in report.metrics}
    intervals = {key: [one.value, one.low, one.high] for key, one in report.metrics.items()}
    return {
        "eval_type_id": "core",
        "eval_config": {
            "model_name": str(facts.get("model", "")),
            "dataset": str(facts.get("data", "")),
            "compute_kl": "kl" in report.metrics,
            "compute_ce_loss": "ce" in report.metrics,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
        },
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": "measured by monosem",
        "sae_lens_id": name,
        "sae_lens_release_id": release,
        "sae_lens_version": None,
        "sae_cfg_dict": None,
        "eval_result_unstructured": {
            "intervals_95_percent": intervals,
            "not_measured": missing,
            "differs": {theirs: how for theirs, how in differs.items() if how},
        },
    }


def _frequencies(rates: np.ndarray) -> dict[str, float]:
    """How many latents are on often, and which share of all firings is theirs."""
    total = float(rates.sum())
    found = {"frac_alive": float((rates > 0).mean())}
    for name, limit in (("1", 0.01), ("10", 0.1)):
        found[f"freq_over_{name}_percent"] = float((rates > limit).mean())
        found[f"normalized_freq_over_{name}_percent"] = float(rates[rates > limit].sum()) / total if total else 0.0
    return found


def write_saebench(report: EvaluationReport, path: str | Path, name: str, release: str = "monosem") -> Path:
    """Write `saebench_result` into a file, as SAEBench names them: NAME_eval_results.json in a folder.

    Raises:
        FileError: it cannot be written.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / f"{release}_{name}_eval_results.json".replace("/", "_")
    write_json(file, saebench_result(report, name, release), indent=2)
    return file
