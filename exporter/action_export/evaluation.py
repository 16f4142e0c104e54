"""What mmaction2's test loop (tools/test.py, mmengine's Runner) makes of a config.

Every rule of it stands in docs/config.md, with what an export does about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from action_export import config_file, registries
from action_export.errors import ActionExportError, ConfigError, UnsupportedError
from action_export.types import Modality

Transform = Mapping[str, Any]
"""One entry of a pipeline: `type` and the arguments of the transform.

The type is mmaction2's name of its own class; of anyone else's, "module.name".
"""

SUPPORTED_RECOGNIZERS = ("Recognizer2D", "Recognizer3D", "RecognizerOmni")
# What the user's own recognizer may be derived from, too.
_BASES = (*SUPPORTED_RECOGNIZERS, "BaseRecognizer")
_COLLATES = ("pseudo_collate", "repeat_pseudo_collate")
"""Those give the model the very clips that the pipeline made."""
_KNOWN = ("mmengine", "mmaction")
# Stages of a hook that come before the scores of a test.
_STAGES = ("before_run", "after_load_checkpoint", "before_test", "before_test_epoch")
_ITERATIONS = ("before_test_iter", "after_test_iter")
_MIGRATION = (
    "take mmaction2 1.x's config of the same model, or rewrite this one: "
    "mmaction2's docs/en/migration.md says how; checkpoints of 0.x still load"
)

# mmcv has transforms by two of these names, for images
_OF_0X = ("Collect", "ToTensor", "Normalize")

Value = Callable[[str], Any]
"""A top-level value of the config by its name, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is tested.

    model: with the top-level data_preprocessor where the model has none, and in its scope.
    preprocessor_key, pipeline_key: where --cfg-options finds them.
    """

    model: Mapping[str, Any]
    preprocessor_key: str
    pipeline: tuple[Transform, ...]
    pipeline_key: str
    modality: Modality
    notes: tuple[str, ...]


def evaluation_of(path: Path, value: Value) -> Evaluation:
    """Reads the config by the rules of mmengine's Runner.

    Raises:
        ConfigError: it is not the config of a recognizer, or contradicts itself.
        UnsupportedError: the test does what cannot be served.
    """
    _check_version(path, value)
    scope = str(value("default_scope") or registries.SCOPE)
    model, preprocessor_key, merged = _model(path, value, scope)
    loader = value("test_dataloader") or {}
    nested = dict(_nested(loader.get("dataset"), "test_dataloader.dataset", scope))
    datasets = {key: dataset for key, dataset in nested.items() if not _wraps(dataset)}
    _check_collate(path, loader)
    key, pipeline, followed = _pipeline(path, value("test_pipeline") or [], datasets, scope)
    _check_start_index(path, datasets, pipeline)
    return Evaluation(
        model=model,
        preprocessor_key=preprocessor_key,
        pipeline=pipeline,
        pipeline_key=key,
        modality=_modality(path, datasets),
        notes=(
            *merged,
            *followed,
            *_dataset_notes(nested),
            *_loop_notes(value, scope),
            *_hook_notes(path, value, scope),
        ),
    )


def _check_version(path: Path, value: Value) -> None:
    """mmaction2 0.x had `data` in place of the dataloaders."""
    match value("data"):
        case {"test": _} | {"val": _} | {"train": _} | {"videos_per_gpu": _}:
            raise ConfigError(
                f"{path.name} is a config of mmaction2 0.x: it has `data` and no dataloaders",
                hint=_MIGRATION,
            )


# --- The model ----------------------------------------------------------------------------------


def _model(path: Path, value: Value, scope: str) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """(model, key of its data_preprocessor, notes), merged as Runner.__init__ does."""
    model, outside = value("model"), value("data_preprocessor")
    if not isinstance(model, dict) or "type" not in model:
        raise ConfigError(
            f"{path.name} has no `model = dict(type=...)`, so it is not the config of a recognizer",
            hint="give the config that the checkpoint was trained with",
        )
    if scope != registries.SCOPE:
        model.setdefault("_scope_", scope)
    _check_recognizer(path, model)
    key = "model.data_preprocessor"
    notes: tuple[str, ...] = ()
    if outside is not None and "data_preprocessor" not in model:
        key = "data_preprocessor"
        model["data_preprocessor"] = outside
    elif outside is not None and outside != model["data_preprocessor"]:
        notes = (
            "data_preprocessor and model.data_preprocessor differ; followed the latter, "
            "which is what mmaction2's test loop runs",
        )
    _check_preprocessor(path, model, key)
    return model, key, notes


def _check_recognizer(path: Path, model: Mapping[str, Any]) -> None:
    found = registries.resolved(model, "MODELS")
    base = registries.mmactions_base(found, "models")
    if base in _BASES:
        return
    if found is None:
        config_file.check_importable(path, model["type"])
    supported = f"supported are {', '.join(SUPPORTED_RECOGNIZERS)}"
    name = model["type"] if found is None else registries.name_of(found, "models")
    if base is not None and base.startswith(("Recognizer", "MMRecognizer")):
        raise UnsupportedError(
            f"{path.name} has the model {name!r}, which is not exported", hint=supported
        )
    if found is None and registries.mmactions_base(
        registries.resolved({"type": name}, "MODELS"), "models"
    ):
        scope = registries.scope_of(model)
        raise ConfigError(
            f"{path.name} has the model {name!r}, which is not found in the scope {scope!r}",
            hint="default_scope = 'mmaction', or a type with its scope: 'mmaction." + name + "'",
        )
    raise ConfigError(
        f"{path.name} has the model {name!r}, which is no recognizer",
        hint=f"{supported}, and classes derived from them; one of your own must be imported: "
        "custom_imports = dict(imports=['MODULE'])",
    )


def _check_preprocessor(path: Path, model: Mapping[str, Any], key: str) -> None:
    """The graph does what ActionDataPreprocessor does, and nothing else."""
    entry = model.get("data_preprocessor")
    if not isinstance(entry, Mapping):
        return
    import_own = registries.resolved({"type": "ActionDataPreprocessor"}, "MODELS")
    found = registries.resolved(entry, "MODELS", registries.scope_of(model))
    steps = ("forward", "forward_onesample", "preprocess", "cast_data")
    if found is not None and all(
        getattr(found, step, None) is getattr(import_own, step) for step in steps
    ):
        return
    name = entry.get("type") if found is None else registries.name_of(found, "models")
    raise UnsupportedError(
        f"{key} of {path.name} is {name!r}, which has no serving equivalent",
        hint="served is mmaction2's ActionDataPreprocessor, and what is derived from it without "
        "another preprocess",
    )


# --- The samples --------------------------------------------------------------------------------


def _nested(dataset: Any, key: str, scope: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """By key, a dataset and every one inside RepeatDataset (`dataset`), ConcatDataset (`datasets`).

    Each has `_scope_`, the scope that its pipeline is built in.
    """
    match dataset:
        case [*inners]:
            for position, inner in enumerate(inners):
                yield from _nested(inner, f"{key}.{position}", scope)
        case {}:
            scope = registries.scope_of(dataset, scope)
            yield key, {**dataset, "_scope_": scope}
            for inside in ("dataset", "datasets"):
                if _wraps(dataset):
                    yield from _nested(dataset.get(inside), f"{key}.{inside}", scope)


def _wraps(dataset: Mapping[str, Any]) -> bool:
    return not dataset.get("pipeline") and ("dataset" in dataset or "datasets" in dataset)


def _pipeline(
    path: Path, declared: Any, datasets: Mapping[str, Mapping[str, Any]], scope: str
) -> tuple[str, tuple[Transform, ...], tuple[str, ...]]:
    """(key, transforms, notes) of the test dataset's pipeline: mmaction2's test loop runs that."""
    runs = {
        f"{key}.pipeline": _transforms(path, dataset["pipeline"], dataset["_scope_"])
        for key, dataset in datasets.items()
        if dataset.get("pipeline")
    }
    if not runs:
        if not declared:
            raise ConfigError(
                f"{path.name} has neither test_dataloader.dataset.pipeline nor test_pipeline",
                hint="add the test_pipeline that the model is evaluated with",
            )
        return "test_pipeline", _transforms(path, declared, scope), ()
    key, followed = next(iter(runs.items()))
    if any(run != followed for run in runs.values()):
        raise ConfigError(
            f"the test datasets of {path.name} have different pipelines",
            hint="leave one dataset in test_dataloader.dataset: one model serves one pipeline",
        )
    notes: tuple[str, ...] = ()
    if declared and _transforms(path, declared, scope) != followed:
        notes = (
            f"test_pipeline and {key} differ; "
            "followed the latter, which is what mmaction2's test loop runs",
        )
    return key, followed, notes


def _transforms(path: Path, pipeline: Any, scope: str) -> tuple[Transform, ...]:
    return tuple(_transform(path, entry, scope) for entry in pipeline)


def _transform(path: Path, entry: Any, scope: str) -> Transform:
    if not (isinstance(entry, Mapping) and "type" in entry):
        raise ConfigError(
            f"the test pipeline of {path.name} has the entry {entry!r}, which has no type",
            hint="each transform is a dict(type=...) with its arguments",
        )
    found = registries.resolved(entry, "TRANSFORMS", scope)
    if entry["type"] in _OF_0X and (found is None or _package(found) == "mmcv"):
        raise ConfigError(
            f"the test pipeline of {path.name} is one of mmaction2 0.x: it has {entry['type']!r}",
            hint=_MIGRATION,
        )
    if found is not None:
        name = registries.name_of(found, "datasets.transforms")
    else:
        config_file.check_importable(path, entry["type"])
        within = registries.scope_of(entry, scope)
        name = entry["type"] if within == registries.SCOPE else f"{within}.{entry['type']}"
    arguments = {key: item for key, item in entry.items() if key not in ("type", "_scope_")}
    return {"type": name, **arguments}


def _check_collate(path: Path, loader: Mapping[str, Any]) -> None:
    collate = loader.get("collate_fn")
    if collate is None:
        return
    kind = collate.get("type") if isinstance(collate, Mapping) else collate
    found = registries.resolved_function(kind)
    if found is None or found not in map(registries.resolved_function, _COLLATES):
        name = kind if found is None else registries.name_of(found, "models")
        raise UnsupportedError(
            f"test_dataloader.collate_fn of {path.name} is {name!r}, which has no serving "
            "equivalent",
            hint="leave it out: mmengine's pseudo_collate is the default, and gives the model what "
            "the pipeline made",
        )


def _check_start_index(
    path: Path, datasets: Mapping[str, Mapping[str, Any]], pipeline: tuple[Transform, ...]
) -> None:
    """Of frame files it is the number of the first; of a video it shifts every sampled frame."""
    if any(transform["type"] == "RawFrameDecode" for transform in pipeline):
        return
    for key, dataset in datasets.items():
        if dataset.get("start_index"):
            raise UnsupportedError(
                f"{key}.start_index of {path.name} is {dataset['start_index']!r}: mmaction2 then "
                "takes other frames of a video than the sampler says",
                hint=f"videos are counted from 0: --cfg-options {key}.start_index=0",
            )


def _dataset_notes(datasets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One of the user's own may hand its transforms more than a file, or change what they made."""
    for key, dataset in datasets.items():
        found = registries.resolved(dataset, "DATASETS")
        if found is not None and _package(found) not in _KNOWN:
            name = registries.name_of(found, "models")
            yield (
                f"{key} is {name}: what it may change of a sample is not seen here, where the "
                "transforms are given a file"
            )


def _modality(path: Path, datasets: Mapping[str, Mapping[str, Any]]) -> Modality:
    """Of all test datasets; mmaction2's default is RGB."""
    named = {f"{key}.modality": dataset.get("modality", "RGB") for key, dataset in datasets.items()}
    for key, modality in named.items():
        if modality not in get_args(Modality):
            raise UnsupportedError(
                f"{key} of {path.name} is {modality!r}, which has no serving equivalent",
                hint=f"served are {' and '.join(map(repr, get_args(Modality)))}",
            )
    match sorted(set(named.values())):
        case []:
            return "RGB"
        case [modality]:
            return cast(Modality, modality)
        case _:
            raise ConfigError(
                f"the test datasets of {path.name} have different modalities",
                hint="leave one dataset in test_dataloader.dataset: one model serves one modality",
            )


# --- The loop around them -----------------------------------------------------------------------


def _loop_notes(value: Value, scope: str) -> Iterator[str]:
    loop = value("test_cfg")
    if isinstance(loop, Mapping):
        if loop.get("fp16"):
            yield (
                "test_cfg.fp16 lets mmaction2's test loop compute in half precision; "
                "served and proved is float32, unless --precision says otherwise"
            )
        standard = registries.resolved({"type": "TestLoop"}, "LOOPS")
        found = registries.resolved(loop, "LOOPS", scope)
        if "type" in loop and found is not standard:
            yield f"test_cfg.type is {_shown(loop['type'])}; served is what the model alone scores"
    if value("runner_type"):
        yield (
            f"runner_type is {_shown(value('runner_type'))}; "
            "followed are the rules of mmengine's Runner"
        )


def _hook_notes(path: Path, value: Value, scope: str) -> Iterator[str]:
    """EMAHook loads `state_dict` into the averaged model, too, and tests that: the same weights."""
    wraps = registries.resolved({"type": "PrepareTTAHook"}, "HOOKS")
    for key, hook in _hooks(value):
        found = registries.resolved(hook, "HOOKS", scope)
        if found is not None and found is wraps:
            raise UnsupportedError(
                f"{key} of {path.name} is PrepareTTAHook, which tests a model around this one",
                hint="leave the hook out; more views are --num-clips and --crops",
            )
        if found is None or _package(found) in _KNOWN:
            continue
        stages = [stage for stage in (*_STAGES, *_ITERATIONS) if _overrides(found, stage)]
        if stages:
            name = registries.name_of(found, "models")
            yield f"{key}, {name}, acts in tests ({', '.join(stages)}); it is not run here"


def _hooks(value: Value) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        custom, default = value("custom_hooks") or [], value("default_hooks") or {}
    except ActionExportError:  # one does not import here: a hook is no part of what is served
        return
    named = [(f"custom_hooks.{number}", hook) for number, hook in enumerate(custom)]
    named += [(f"default_hooks.{name}", hook) for name, hook in default.items()]
    for key, hook in named:
        if isinstance(hook, Mapping) and "type" in hook:
            yield key, hook


def _overrides(hook: Any, stage: str) -> bool:
    from mmengine.hooks import Hook

    standard = getattr(Hook, stage, None)
    return getattr(hook, stage, standard) is not standard


def _package(found: Any) -> str:
    return str(getattr(found, "__module__", "")).partition(".")[0]


def _shown(kind: Any) -> str:
    return repr(kind) if isinstance(kind, str) else registries.name_of(kind, "models")
