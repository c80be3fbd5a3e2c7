"""From a run.yaml to a folder that explains itself: train, evaluate, harvest features, draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from monosem.activations import (
    FILLING,
    ActivationSource,
    HookSource,
    PlantedActivations,
    StoredActivations,
    activations,
    read_vectors,
    reopened,
    store_activations,
)
from monosem.activations import Mapping as Places
from monosem.data import read_documents
from monosem.data.image_files import images_of
from monosem.errors import ConfigError
from monosem.evaluation import EVALUATING, LOSSES, EvaluationReport, evaluate
from monosem.evaluation.paired import save_draws
from monosem.explain import explain, known_latents, require_words
from monosem.features import (
    Explanations,
    FeatureStore,
    HarvestObserver,
    harvest,
    merge_at_first,
    new_harvest,
    write_store,
)
from monosem.files import write_text
from monosem.models import ModelSet, SubjectModel, default_device, load_model
from monosem.ranks import by_itself, everyone, first_alone_in
from monosem.runs.config import EvaluationConfig, RunConfig, SAEConfig
from monosem.runs.figures import write_figures
from monosem.runs.folder import README, README_SEVERAL, Run
from monosem.runs.results import Results
from monosem.runs.several import describe_each
from monosem.runs.storing import known_by_name, open_store
from monosem.sae import SAE, CrossLayerTranscoder, Transcoder
from monosem.synthetic import is_world, world
from monosem.training import train_together
from monosem.work import as_job, doing, job

HELD_OUT = "bundled:held_out"
KEPT, KEEP_MINUTES = "evaluation.state", 2.0
"""What an evaluation that was stopped goes on from, and the time between saves of it."""

DRAWN_ROWS, SHOWN_SEED = 65_536, 4_000_037
"""Rows of a synthetic world that its feature store is of, at most; they are drawn for it alone."""

Model = SubjectModel | ModelSet


def demo_config(output: str) -> RunConfig:
    """A TopK SAE on the middle of the bundled model: minutes on a laptop."""
    return RunConfig.model_validate({"output": output, "sae": SAEConfig.model_validate({"n_latents": 4096, "k": 24})})


def run_training(
    config: RunConfig,
    progress: bool = True,
    evaluated: bool = False,
    accept: Callable[[ActivationSource], None] | None = None,
) -> tuple[Run, Model | None]:
    """Train as described, into the folder named; goes on where an earlier call of the same description stopped.

    One pass over the model feeds all dictionaries of the description. Each ends as if it had been described alone.

    Args:
        config: the description.
        progress: show a live line.
        evaluated: whether an evaluation will follow, for the time left.
        accept: looks at the activations before work starts, and raises where they will not do.

    Returns:
        The run, and the model that it was trained on, if it was loaded.

    Raises:
        ConfigError: the folder holds another run, or the description does not fit the model.
        FileError: another process is writing into the folder, or it cannot be written.
    """
    folder = Path(config.output)
    with job(progress and everyone().first) as shown, first_alone_in(folder):
        if not config.several:
            config.sae.check()
        with doing("loading the model"):
            shapes = known_by_name(config)
            model = shapes or open_model(config)
        each = describe_each(config, model.hook_points if model else ())
        _refuse_another(folder, config, each)
        with doing("opening the data"):
            whole = _open_source(config, model, list(each.values()))
            if accept is not None:
                accept(whole)
        sources = {name: _view(whole, one) for name, one in each.items()}
        losses = {name: one.loss.build(model) for name, one in each.items() if isinstance(model, Model)}
        saes = {name: _build(one, sources[name]) for name, one in each.items()}
        if evaluated:
            shown.expect(EVALUATING, len(each) * config.evaluation.tokens, like=FILLING)
            shown.expect(LOSSES, len(each) * config.evaluation.loss_tokens if model else 0, like=FILLING, weight=6)
        train_together(
            saes,
            sources,
            tokens={name: one.tokens for name, one in each.items()},
            loss=losses,
            config={name: one.training for name, one in each.items()},
            path=folder,
            progress=progress,
            prepare=lambda: _describe(folder, config, each),
        )
    return Run(folder), None if shapes else model


def run_store(config: RunConfig, progress: bool = True, **options: Any) -> StoredActivations:
    """Write the activations that a run reads into its store; goes on where an earlier call stopped.

    Args:
        config: the description; `store` names the folder.
        progress: show a live line.
        **options: `dtype`, `shard_rows`, `window_shards` of `store_activations`.

    Raises:
        ConfigError: no folder is named, the run reads ready vectors, or the folder holds other activations.
        FileError: the disk is full, or another process is writing into the folder.
    """
    if config.store is None:
        raise ConfigError("store: name the folder to write into, such as --set store=activations")
    with job(progress and everyone().first):
        with doing("loading the model"):
            model = open_model(config)
        if model is None:
            raise ConfigError(f"the run reads ready vectors ({config.vectors}): there is nothing to store")
        each = list(describe_each(config, model.hook_points).values())
        hooks = hooks_of(each, model)
        data: dict[str, Any] = {"text": config.text} if config.images is None else {"images": config.images}
        own = config.activations.model_dump(exclude={"buffer_tokens", "by_context"})
        return store_activations(
            model, hooks, path=config.store, tokens=longest(each), progress=progress, **data, **own, **options
        )


def _describe(folder: Path, config: RunConfig, each: Mapping[str, RunConfig]) -> None:
    """Write what the run is."""
    for name, one in each.items():
        one.write(folder / name / "run.yaml")
        write_text(folder / name / "README.md", README.format(path=one.output))
    if config.several:
        config.write(folder / "run.yaml")
        write_text(folder / "README.md", README_SEVERAL.format(path=config.output))


def open_model(config: RunConfig) -> Model | None:
    """The model of a run, or several side by side; None for a run on ready vectors."""
    if config.model is None:
        return None
    if isinstance(config.model, str):
        return load_model(config.model)
    return ModelSet([load_model(name) for name in config.model])


def _open_source(config: RunConfig, model: Model | None, each: Sequence[RunConfig]) -> ActivationSource:
    """All that the dictionaries read and predict, from one pass."""
    if model is None:
        return activations(config.vectors or "", seed=config.activations.seed)
    hooks = hooks_of(each, model)
    if config.store is not None:
        return open_store(config, model, hooks)
    data: dict[str, Any] = {"text": config.text} if config.images is None else {"images": config.images}
    source = activations(model, hooks, **data, **config.activations.model_dump(exclude={"by_context"}))
    return source.by_context() if any(one.activations.by_context for one in each) else source


def hooks_of(each: Sequence[RunConfig], model: Model) -> list[str]:
    """All that dictionaries read and predict, each once."""
    places = [name for one in each for side in (one.hook, one.target) for name in listed(side)]
    return list(dict.fromkeys(model.hook_point(name).name for name in places))


def longest(each: Sequence[RunConfig]) -> int:
    """Tokens that the longest of some runs reads."""
    return max(one.tokens for one in each)


def _view(whole: ActivationSource, config: RunConfig) -> ActivationSource:
    """What one dictionary reads of it."""
    if not isinstance(whole, HookSource):
        return whole
    if config.target is not None:
        return whole.pair(config.hook or "", config.target)
    return whole.stack(config.hook) if isinstance(config.hook, list) else whole.select(config.hook or "")


def _build(config: RunConfig, source: ActivationSource) -> SAE:
    if config.target is None and issubclass(config.sae.kind, Transcoder | CrossLayerTranscoder):
        raise ConfigError(
            f"target: a {config.sae.architecture} predicts another hook point than it reads: name it, such as "
            "hook=mlp_in.2 and target=mlp_out.2"
        )
    stacked = isinstance(config.hook, list) or source.n_sources > 1
    return config.sae.build(
        source.d_in,
        source.d_out if config.target is not None else None,
        source.n_sources if stacked else None,
        source.device or default_device(),
    )


def listed(names: str | list[str] | None) -> list[str]:
    """One name, several or none, as a list."""
    return [names] if isinstance(names, str) else names or []


def require_held_out(config: RunConfig) -> None:
    """Say before training what evaluation would only say after it.

    Raises:
        ConfigError: the run trains on data of its own and names none to evaluate on.
        FileError: the data to evaluate on are missing or cannot be read.
    """
    look: dict[str, Callable[[str], object]] = {
        "vectors": lambda name: world(name) if is_world(name) else read_vectors(Path(name)),
        "images": images_of,
        "text": read_documents,
    }
    for name, open_ in look.items():
        own, held_out = getattr(config, name), getattr(config.evaluation, name)
        if own is None:
            continue
        if held_out is None and not is_world(own) and (name != "text" or own.partition(":")[0] != "bundled"):
            raise ConfigError(
                f"evaluation.{name}: the run trains on {own}: name held-out {name} "
                f"(--set evaluation.{name}=...), or leave the evaluation out (--no-evaluation)"
            )
        if held_out is not None:
            open_(held_out)
        return


@as_job
def run_evaluation(
    run: Run, model: Model | None = None, config: EvaluationConfig | None = None, progress: bool = True
) -> EvaluationReport:
    """Evaluate a trained dictionary in one pass: `evaluation.json`, `figures/` and `features/`.

    Ready vectors have no losses, and are gone through once more for the features. Of a synthetic world the scores
    against its truth stand beside, and its features are of other rows, each labelled by what is on in it.

    Raises:
        FileError: another process is writing into the folder, or it cannot be written.
    """
    described = run.config
    sae = run.sae()
    with first_alone_in(run.path):
        with doing("loading the model"):
            model = model or open_model(described)
        return _evaluated(run, sae, model, config or described.evaluation, progress)


def _evaluated(run: Run, sae: SAE, model: Model | None, config: EvaluationConfig, progress: bool) -> EvaluationReport:
    described = run.config
    counts: dict[str, Any] = {"tokens": config.tokens, "controls": config.controls, "progress": progress}
    of_images = described.images is not None or config.images is not None
    data: dict[str, Any] = {"images": config.images} if of_images else {"text": config.text}
    if model is None:
        if config.text or config.images:
            raise ConfigError(f"{run.path} reads vectors: it is measured on vectors, not on text or images")
        report = evaluate(sae, held_out_rows(described, config), suite=config.suite, **counts)
        _harvest_rows(run, config.vectors or described.vectors or "", {"tokens": config.tokens, "progress": progress})
    else:
        hooks = Places(sae, model, None if _remembers(sae) else described.hook).hooks
        if of_images:  # opened once, for the evaluation and the store
            data["images"], _ = reopened(sae.metadata, model, hooks[0], images=_held_out_images(run, config.images))
        images = data.get("images")
        shown_text = config.images or config.text or HELD_OUT
        features = new_harvest(sae, model, hooks, shown_text, shown=images)
        observers = [HarvestObserver(features, sae, lambda: new_harvest(sae, model, hooks, shown_text, shown=images))]
        report = evaluate(
            sae,
            model,
            **data,
            loss_tokens=config.loss_tokens,
            suite=config.suite,
            last_words=config.last_words,
            untrained_tokens=config.untrained_tokens,
            observers=observers,
            keep=run.path / KEPT,
            minutes=KEEP_MINUTES,
            **counts,
        )
        features = observers[0].harvest
        if merge_at_first(features, everyone()):
            with by_itself():
                store = FeatureStore(write_store(features, run.path / "features", sae, model, images))
                _explain(store, sae, model, described, progress)
    if everyone().first:
        report.save(run.path / "evaluation.json")
        save_draws(report, run.path)
        with doing("drawing figures"):
            write_figures(run.path / "figures", run.history(), report)
    everyone().wait()
    return report


def held_out_rows(described: RunConfig, config: EvaluationConfig) -> ActivationSource | Tensor | np.ndarray:
    """What a run on ready vectors is measured on: a file, or the synthetic world that draws other rows."""
    name = config.vectors or described.vectors or ""
    return PlantedActivations(name) if is_world(name) else read_vectors(Path(name))


def _harvest_rows(run: Run, name: str, options: dict[str, Any]) -> FeatureStore:
    """Features of ready vectors; of a synthetic world each row is labelled by what is on in it, `f3 f17`."""
    vectors: Any = name
    if is_world(name):
        rows = world(name).sample(min(options["tokens"], DRAWN_ROWS), SHOWN_SEED)
        on = [sorted(rows.codes[row].indices.tolist()) for row in range(len(rows.x))]
        options = options | {"labels": [" ".join(f"f{one}" for one in features) for features in on]}
        vectors = rows.x
    return harvest(run.sae(), run.path / "features", vectors=vectors, **options)


def _remembers(sae: SAE) -> bool:
    return bool(sae.metadata.hook or sae.metadata.hooks)


@as_job
def run_evaluations(
    run: Run, model: Model | None = None, config: EvaluationConfig | None = None, progress: bool = True
) -> Results:
    """Evaluate every dictionary of a run of several: `results.json`, `results.svg`, and what `run_evaluation` writes.

    Goes on where an earlier call with the same settings was stopped.
    """
    config = config or run.config.evaluation
    with job(progress) as shown, first_alone_in(run.path):
        with doing("loading the model"):
            model = model or open_model(run.config)
        results = Results.begin(run.path, config)
        missing = {name: member for name, member in run.members.items() if name not in results.rows}
        shown.expect(EVALUATING, len(missing) * config.tokens, like=FILLING)
        shown.expect(LOSSES, len(missing) * config.loss_tokens if model else 0, like=EVALUATING, weight=6)
        for name, member in missing.items():
            results.add(name, member.config.reads, run_evaluation(member, model, config, progress))
    return results


def run_harvest(
    run: Run,
    text: str | None = None,
    tokens: int = 1_000_000,
    keep_state: bool = False,
    progress: bool = True,
    images: str | None = None,
    vectors: str | None = None,
) -> FeatureStore:
    """Harvest a run's features into `features/`; the text, images or vectors are those of its evaluation if not given.

    Vectors without others to evaluate on are those of the training.

    Raises:
        ConfigError: there are no images to read, or vectors and a model are named.
    """
    with first_alone_in(run.path):
        options = {"tokens": tokens, "keep_state": keep_state, "progress": progress}
        return _harvested(run, text, images, vectors, options)


def _harvested(
    run: Run, text: str | None, images: str | None, vectors: str | None, options: dict[str, Any]
) -> FeatureStore:
    described, own, path = run.config, run.config.evaluation, run.path / "features"
    if described.vectors is not None:
        if text or images:
            raise ConfigError(f"{run.path} is of ready vectors: it reads no text and no images (--vectors FILE)")
        return _harvest_rows(run, vectors or own.vectors or described.vectors, options)
    if vectors is not None:
        raise ConfigError(f"{run.path} is of {described.reads}: it reads what its model says, not vectors")
    images = images or (own.images if text is None else None)
    if described.images is not None:
        images = _held_out_images(run, images)
    data: dict[str, Any] = {"images": images} if images else {"text": text or own.text or HELD_OUT}
    sae, model = run.sae(), open_model(described)
    store = harvest(sae, path, model, None if _remembers(sae) else described.hook, **data, **options)
    if everyone().first:
        with by_itself():
            _explain(store, sae, model, described, options["progress"])
    everyone().wait()
    return store


def explain_run(run: Run, latents: Sequence[int] | None = None, progress: bool = True) -> Explanations:
    """Explain the features of a run by rules, measured on text that its harvest did not see.

    Raises:
        DataError: its features are not of text.
    """
    with first_alone_in(run.path):
        store = run.features()
        require_words(store)
        latents = None if latents is None else list(known_latents(store, latents))
        return _explain(store, run.sae(), open_model(run.config), run.config, progress, latents)


def _explain(
    store: FeatureStore,
    sae: SAE,
    model: Model | None,
    described: RunConfig,
    progress: bool,
    latents: Sequence[int] | None = None,
) -> Explanations:
    """Of features of text: what they mean, measured on text that follows, or else on that of the training."""
    if store.words is None or model is None:
        return Explanations(store.path, None, ())
    hook = None if _remembers(sae) else described.hook
    return explain(store, latents, sae=sae, model=model, hook=hook, text=described.text, progress=progress)


def _held_out_images(run: Run, images: str | None) -> str:
    if images is None:
        raise ConfigError(f"{run.path} has been trained on images and names none to evaluate on: give --images")
    return images


def _refuse_another(folder: Path, config: RunConfig, each: Mapping[str, RunConfig]) -> None:
    """One dictionary and several are never in the same folder, and what a folder has, its description must name.

    Whether a dictionary of a folder is the one that is described, its identity says when it is to be trained.
    """
    if not (folder / "run.yaml").is_file():
        return
    old = Run(folder)
    if old.config.several != config.several:
        holds = "several dictionaries" if old.config.several else "one dictionary"
        wrong = f"a run of {holds}, and this is another description"
    else:
        lacking = [name for name in old.members if name not in each]
        wrong = f"dictionaries that this description lacks ({', '.join(lacking)})" if lacking else None
    if wrong:
        raise ConfigError(f"{folder} holds {wrong}: choose another folder (--set output=...), or delete that one")
