"""From a run.yaml to a folder that explains itself: train, evaluate, harvest features, draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monosem.activations import activations, reopened
from monosem.data import Images, read_documents
from monosem.data.image_files import images_of
from monosem.errors import ConfigError
from monosem.evaluation import EvaluationReport, evaluate
from monosem.features import FeatureStore, HarvestObserver, harvest, new_harvest, write_store
from monosem.models import SubjectModel, load_model
from monosem.runs.config import EvaluationConfig, RunConfig, SAEConfig
from monosem.runs.figures import write_figures
from monosem.runs.folder import README, Run
from monosem.sae import SAE
from monosem.training import train

HELD_OUT = "bundled:held_out"


def demo_config(output: str) -> RunConfig:
    """A TopK SAE on the middle of the bundled model: minutes on a laptop."""
    return RunConfig.model_validate({"output": output, "sae": SAEConfig.model_validate({"n_latents": 4096, "k": 24})})


def run_training(config: RunConfig, progress: bool = True) -> tuple[Run, SubjectModel]:
    """Train as described, into the folder named; goes on where an earlier call of the same description stopped.

    Raises:
        ConfigError: the folder holds another run, or the description does not fit the model.
    """
    folder = Path(config.output)
    _refuse_another(folder, config)
    model = load_model(config.model)
    options = config.activations.model_dump() | {"images": config.images}
    sae = config.sae.build(model.width(config.hook))
    source = activations(model, config.hook, config.text, **options)
    config.write(folder / "run.yaml")
    (folder / "README.md").write_text(README.format(path=config.output))
    train(sae, source, tokens=config.tokens, config=config.training, path=folder, progress=progress)
    return Run(folder), model


def require_held_out_text(config: RunConfig) -> None:
    """Say before training what evaluation would only say after it.

    Raises:
        ConfigError: the run trains on a text or images of its own and names none to evaluate on.
        FileError: what to evaluate on is missing or cannot be read.
    """
    if config.images is not None:
        if config.evaluation.images is None:
            raise ConfigError(
                f"evaluation.images: the run trains on {config.images}: name held-out images "
                "(--set evaluation.images=...), or leave the evaluation out (--no-evaluation)"
            )
        images_of(config.evaluation.images)
    elif config.evaluation.text is not None:
        read_documents(config.evaluation.text)
    elif config.text.partition(":")[0] != "bundled":
        raise ConfigError(
            f"evaluation.text: the run trains on {config.text}: name a held-out text "
            "(--set evaluation.text=...), or leave the evaluation out (--no-evaluation)"
        )


def run_evaluation(
    run: Run, model: SubjectModel | None = None, config: EvaluationConfig | None = None, progress: bool = True
) -> EvaluationReport:
    """Evaluate a trained run in one pass: `evaluation.json`, `features/`, `figures/`."""
    config = config or run.config.evaluation
    sae = run.sae()
    model = model or load_model(run.config.model)
    hook = model.hook_point(sae.metadata.hook or run.config.hook).name
    images = _opened(sae, model, hook, config.images)
    features = new_harvest(sae, model, hook, config.images or config.text or HELD_OUT, images=images)
    report = evaluate(
        sae,
        model,
        text=config.text,
        images=images,
        tokens=config.tokens,
        loss_tokens=config.loss_tokens,
        observers=[HarvestObserver(features, sae)],
        progress=progress,
    )
    report.save(run.path / "evaluation.json")
    write_store(features, run.path / "features", sae, model, images)
    write_figures(run.path / "figures", run.history(), report)
    return report


def run_harvest(
    run: Run,
    text: str | None = None,
    tokens: int = 1_000_000,
    keep_state: bool = False,
    progress: bool = True,
    images: str | None = None,
) -> FeatureStore:
    """Harvest a run's features into `features/`; the text, or images, are those of its evaluation if not given."""
    own = run.config.evaluation
    images = images or (own.images if text is None else None)
    if run.config.images is not None and images is None:
        raise ConfigError(f"{run.path} has been trained on images and names none to evaluate on: give --images")
    data: dict[str, Any] = {"images": images} if images else {"text": text or own.text or HELD_OUT}
    sae, path = run.sae(), run.path / "features"
    model, hook = load_model(run.config.model), sae.metadata.hook or run.config.hook
    return harvest(sae, path, model, hook, tokens=tokens, keep_state=keep_state, progress=progress, **data)


def _opened(sae: SAE, model: SubjectModel, hook: str, images: str | None) -> Images | None:
    if images is None:
        return None
    reader, _ = reopened(sae.metadata, model, hook, images=images)
    return reader if isinstance(reader, Images) else None


def _refuse_another(folder: Path, config: RunConfig) -> None:
    """Going on is for the same description alone (where to write and how to evaluate may differ)."""
    if not (folder / "run.yaml").is_file():
        return
    free = {"output", "evaluation"}
    old = RunConfig.read(folder / "run.yaml").model_dump(exclude=free)
    new = config.model_dump(exclude=free)
    differing = [key for key in new if old[key] != new[key]]
    if differing:
        raise ConfigError(
            f"{folder} holds a run with another {', '.join(differing)}: choose another folder (--set output=...), "
            "or delete that one"
        )
