"""What is served is what mmaction2's test loop tests, rule by rule (docs/config.md)."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_export.checkpoint import build_model, load_checkpoint
from action_export.errors import ActionExportError, ConfigError, UnsupportedError
from action_export.evaluation import Evaluation, evaluation_of
from action_export.mmaction_compat import import_mmaction, quiet
from action_export.preprocess import derive
from action_export.reference import run_mmaction
from action_export.source import load_config
from action_export.types import ViewOptions
from numpy.typing import NDArray
from support.tiny import (
    MODEL_2D,
    MODEL_3D,
    PIPELINE_2D,
    PIPELINE_3D,
    VIDEOS,
    changed,
    with_step,
    write_config,
)
from support.weights import write_checkpoint

import_mmaction()

from mmaction.datasets import VideoDataset, transforms  # noqa: E402
from mmaction.models import ActionDataPreprocessor, Recognizer3D, RecognizerGCN  # noqa: E402
from mmaction.models.recognizers import BaseRecognizer  # noqa: E402
from mmengine.hooks import EMAHook, Hook  # noqa: E402

NORM = dict(type="ActionDataPreprocessor", mean=[104, 117, 128], std=[9, 8, 7], to_rgb=True)
SAMPLE = 1


def read(**variables: Any) -> Evaluation:
    """The rules on a config with these values, beside a model and a pipeline."""
    values = {"model": deepcopy(MODEL_3D), "test_pipeline": PIPELINE_3D, **variables}
    return evaluation_of(Path("c.py"), values.get)


def dataset(**arguments: Any) -> dict[str, Any]:
    return dict(dataset={"type": "VideoDataset", "pipeline": PIPELINE_3D, **arguments})


def refused(kind: type[ActionExportError], **variables: Any) -> ActionExportError:
    with pytest.raises(kind) as caught:
        read(**variables)
    assert caught.value.hint
    return caught.value


def only_note(found: Evaluation) -> str:
    (note,) = found.notes
    return note


# --- Runner itself ------------------------------------------------------------------------------


def outside(layout: str, **model: Any) -> dict[str, Any]:
    """The model without a data_preprocessor, which the config has at its top."""
    base = dict(MODEL_2D if layout == "NCHW" else MODEL_3D)
    base.pop("data_preprocessor")
    return dict(model=changed(base, **model), data_preprocessor=dict(NORM, format_shape=layout))


RULES: dict[str, dict[str, Any]] = {
    "data_preprocessor at the top, 2d": outside("NCHW", cls_head__average_clips="score"),
    "data_preprocessor at the top, 3d": outside("NCTHW"),
    "the model's own data_preprocessor first": {
        **outside("NCTHW"),
        "model": MODEL_3D,
    },
    "EMAHook": dict(
        model=MODEL_3D, custom_hooks=[dict(type="EMAHook", momentum=0.5, update_buffers=True)]
    ),
    "another pipeline for people": dict(
        model=MODEL_3D, test_pipeline=with_step(PIPELINE_3D, SAMPLE, num_clips=1)
    ),
    "SyncBN": dict(model=changed(MODEL_3D, backbone__norm_cfg=dict(type="SyncBN"))),
    "scoped types": dict(
        model=changed(
            MODEL_3D,
            type="mmaction.Recognizer3D",
            backbone__type="mmaction.models.ResNet3dSlowOnly",
            cls_head___scope_="mmaction",
        ),
        pipeline=[
            {**step, "type": f"mmaction.datasets.transforms.{step['type']}"} for step in PIPELINE_3D
        ],
    ),
}


OWN_RECOGNIZER = """
from mmaction.models import recognizers

class Recognizer3D(recognizers.Recognizer3D):
    def extract_feat(self, *arguments, **options):
        features, more = super().extract_feat(*arguments, **options)
        return features * 3, more
"""


def in_pure_python(path: Path, kind: str, module: str) -> None:
    """Lets a config give this type as the class of that module."""
    text = path.read_text("utf-8").replace(f"'type': '{kind}'", f"'type': {kind}")
    path.write_text(f"from {module} import {kind}\n{text}", "utf-8")


@pytest.mark.parametrize("rule", [*RULES, "the user's own Recognizer3D"])
def test_the_reference_scores_what_mmengines_runner_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    variables = dict(RULES.get(rule, dict(model=MODEL_3D)))
    flat = variables["model"]["type"] == "Recognizer2D"
    pipeline = variables.pop("pipeline", PIPELINE_2D if flat else PIPELINE_3D)
    (tmp_path / "videos.txt").write_text("".join(f"{video} 0\n" for video in VIDEOS))
    variables.setdefault("test_pipeline", pipeline)
    path = write_config(
        tmp_path / "c.py",
        test_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dict(
                type="VideoDataset",
                ann_file=str(tmp_path / "videos.txt"),
                data_prefix=dict(video=""),
                pipeline=pipeline,
                test_mode=True,
            ),
        ),
        test_cfg=dict(type="TestLoop"),
        test_evaluator=dict(type="DumpResults", out_file_path=str(tmp_path / "scores.pkl")),
        **variables,
    )
    checkpoint = write_checkpoint(str(path), tmp_path / "c.pth", list(VIDEOS))
    if rule not in RULES:
        (tmp_path / "own_recognizers.py").write_text(OWN_RECOGNIZER)
        in_pure_python(path, "Recognizer3D", "own_recognizers")
        monkeypatch.syspath_prepend(tmp_path)
    expected = of_runner(path, checkpoint)
    config = load_config(str(path))
    served = derive(config, ViewOptions())
    model = build_model(config, load_checkpoint(checkpoint))
    scores = [run_mmaction(model, served, video).scores for video in VIDEOS]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6 * float(np.ptp(expected)))
    assert np.ptp(expected) > 1e-3


def of_runner(path: Path, checkpoint: Path) -> NDArray[np.float32]:
    """As mmaction2's tools/test.py does it."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    cfg = Config.fromfile(path)
    cfg.work_dir = str(path.parent / "work_dir")
    cfg.load_from = str(checkpoint)
    cfg.log_level = "ERROR"
    # mmengine keeps visualizers by this name, which else is the time in seconds: the next Runner of
    # the same second would write into the folder of this one.
    cfg.experiment_name = str(path.parent)
    with quiet():
        Runner.from_cfg(cfg).test()
    import_mmaction()  # Runner has put its own default scope in place
    with (path.parent / "scores.pkl").open("rb") as file:
        rows = pickle.load(file)
    return np.stack([row["pred_score"].numpy() for row in rows])


# --- The model ----------------------------------------------------------------------------------


def test_a_data_preprocessor_at_the_top_goes_into_a_model_without_one() -> None:
    found = read(**outside("NCTHW"))
    assert found.model["data_preprocessor"] == dict(NORM, format_shape="NCTHW")
    assert found.preprocessor_key == "data_preprocessor"
    assert found.notes == ()


def test_the_models_own_data_preprocessor_comes_first_and_is_noted() -> None:
    found = read(data_preprocessor=dict(NORM))
    assert found.model["data_preprocessor"] == MODEL_3D["data_preprocessor"]
    assert found.preprocessor_key == "model.data_preprocessor"
    assert "followed the latter" in only_note(found)
    assert read(data_preprocessor=MODEL_3D["data_preprocessor"]).notes == ()


def test_a_model_that_says_none_gets_none() -> None:
    model = changed(MODEL_3D, data_preprocessor=None)
    assert read(model=model, data_preprocessor=NORM).model["data_preprocessor"] is None


def test_hints_lead_to_the_data_preprocessor_at_the_top(tmp_path: Path) -> None:
    variables = outside("NCTHW")
    variables["data_preprocessor"]["format_shape"] = "NCHW"
    path = write_config(tmp_path / "c.py", test_pipeline=PIPELINE_3D, **variables)
    with pytest.raises(ConfigError, match="data_preprocessor expects NCHW") as caught:
        derive(load_config(str(path)), ViewOptions())
    _, *options = caught.value.hint.split()
    derive(load_config(str(path), tuple(options)), ViewOptions())


def test_hints_make_a_data_preprocessor_where_there_is_none(tmp_path: Path) -> None:
    model = outside("NCTHW")["model"]
    path = write_config(tmp_path / "c.py", test_pipeline=PIPELINE_3D, model=model)
    with pytest.raises(ConfigError, match="expects NCHW") as caught:
        derive(load_config(str(path)), ViewOptions())
    _, *options = caught.value.hint.split()
    config = load_config(str(path), tuple(options))
    derive(config, ViewOptions())
    assert config.model["data_preprocessor"]["type"] == "ActionDataPreprocessor"


class Renormalises(ActionDataPreprocessor):  # type: ignore[misc]
    def preprocess(self, *arguments: Any) -> Any:
        inputs, samples = super().preprocess(*arguments)
        return inputs * 2, samples


class Remembers(ActionDataPreprocessor):  # type: ignore[misc]
    """Another constructor, the same arithmetic."""

    def __init__(self) -> None:
        super().__init__(mean=[1, 2, 3], std=[1, 1, 1], format_shape="NCTHW")


@pytest.mark.parametrize("kind", [Renormalises, "BaseDataPreprocessor", "ImgDataPreprocessor"])
def test_a_data_preprocessor_of_another_arithmetic_is_refused(kind: Any) -> None:
    model = changed(MODEL_3D, data_preprocessor=dict(type=kind))
    error = refused(UnsupportedError, model=model)
    assert "model.data_preprocessor of c.py" in error.message
    assert getattr(kind, "__name__", kind) in error.message


def test_a_data_preprocessor_with_mmaction2s_arithmetic_is_served(tmp_path: Path) -> None:
    model = changed(MODEL_3D, data_preprocessor=dict(type=Remembers))
    found = read(model=model)
    assert found.model["data_preprocessor"]["type"] is Remembers
    # its own defaults are not mistaken for mmaction2's
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=PIPELINE_3D)
    derive(replace(load_config(str(path)), model=found.model), ViewOptions())


class MyRecognizer(Recognizer3D):  # type: ignore[misc]
    pass


class MyGraph(RecognizerGCN):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "kind", [MyRecognizer, type("Own", (BaseRecognizer,), {}), "mmaction.models.Recognizer3D"]
)
def test_recognizers_derived_from_mmaction2s_are_read(kind: Any) -> None:
    assert read(model=changed(MODEL_3D, type=kind)).model["type"] is kind


@pytest.mark.parametrize("kind", [MyGraph, RecognizerGCN, "mmaction.RecognizerGCN"])
def test_what_is_derived_from_another_recognizer_is_refused(kind: Any) -> None:
    assert "not exported" in refused(UnsupportedError, model=changed(MODEL_3D, type=kind)).message


def test_a_class_that_only_has_the_name_of_a_recognizer_is_none() -> None:
    model = changed(MODEL_3D, type=type("Recognizer3D", (), {}))
    assert "which is no recognizer" in refused(ConfigError, model=model).message


# --- Scopes -------------------------------------------------------------------------------------


def test_a_default_scope_that_does_not_know_the_model_is_named() -> None:
    error = refused(ConfigError, default_scope="mmengine")
    assert "'Recognizer3D', which is not found in the scope 'mmengine'" in error.message
    assert "mmaction.Recognizer3D" in error.hint


def test_names_are_looked_up_in_the_default_scope() -> None:
    pipeline = [dict(step) for step in PIPELINE_3D]
    found = read(
        default_scope="mmengine",
        model=changed(MODEL_3D, type="mmaction.Recognizer3D", data_preprocessor=None),
        test_pipeline=pipeline,
    )
    assert found.pipeline[3]["type"] == "mmcv.transforms.processing.Resize"
    assert found.pipeline[1]["type"] == "mmengine.SampleFrames"


def test_a_pipeline_is_looked_up_in_the_scope_of_its_dataset() -> None:
    def resize(**around: Any) -> str:
        found = read(test_dataloader=dict(dataset=dict(around, dataset=dataset()["dataset"])))
        return str(found.pipeline[3]["type"])

    assert resize() == "Resize"
    assert resize(_scope_="mmengine") == "mmcv.transforms.processing.Resize"


# --- Transforms ---------------------------------------------------------------------------------


class SampleFrames(transforms.SampleFrames):  # type: ignore[misc]
    """Of the user's own, by a name of mmaction2's."""


@pytest.fixture
def registered_over() -> Iterator[None]:
    """custom_imports with @TRANSFORMS.register_module(force=True)."""
    from mmaction.registry import TRANSFORMS

    standard = TRANSFORMS.module_dict["SampleFrames"]
    TRANSFORMS.register_module(module=SampleFrames, force=True)
    yield
    TRANSFORMS.register_module(module=standard, name="SampleFrames", force=True)


def own_transform(kind: Any) -> Callable[[], Evaluation]:
    return lambda: read(test_pipeline=with_step(PIPELINE_3D, SAMPLE, type=kind))


def test_a_transform_of_the_same_name_is_not_mmaction2s() -> None:
    assert (
        own_transform(SampleFrames)()
        .pipeline[SAMPLE]["type"]
        .endswith("test_evaluation.SampleFrames")
    )
    assert own_transform(transforms.SampleFrames)().pipeline[SAMPLE]["type"] == "SampleFrames"


@pytest.mark.usefixtures("registered_over")
def test_a_transform_registered_over_mmaction2s_is_not_mmaction2s(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=PIPELINE_3D)
    with pytest.raises(UnsupportedError) as caught:
        derive(load_config(str(path)), ViewOptions())
    assert "test_evaluation.SampleFrames', which is not mmaction2's SampleFrames" in str(
        caught.value
    )
    assert "mmaction.SampleFrames" not in caught.value.hint
    # the class itself is still mmaction2's, and so is what the reference builds of it
    kind = "mmaction.datasets.transforms.SampleFrames"
    pipeline = with_step(PIPELINE_3D, SAMPLE, type=kind)
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=pipeline)
    served = derive(load_config(str(path)), ViewOptions())
    from action_export.reference import _from_file

    assert type(list(_from_file(served))[SAMPLE]) is transforms.SampleFrames


@pytest.mark.parametrize("kind", ["Collect", "ToTensor", "Normalize"])
def test_a_pipeline_of_0x_is_called_that(kind: str) -> None:
    error = refused(ConfigError, test_pipeline=[*PIPELINE_3D[:5], dict(type=kind)])
    assert "mmaction2 0.x" in error.message
    assert "migration" in error.hint


@pytest.mark.parametrize(
    "data", [dict(videos_per_gpu=8, test=dict(type="VideoDataset")), dict(test=dict())]
)
def test_a_config_of_0x_is_called_that(data: dict[str, Any]) -> None:
    error = refused(ConfigError, data=data, model=dict(type="Recognizer3D"))
    assert "c.py is a config of mmaction2 0.x" in error.message
    assert "migration" in error.hint


# --- The samples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "collate",
    [dict(type="pseudo_collate"), "pseudo_collate", dict(type="repeat_pseudo_collate"), None],
)
def test_a_collate_fn_that_hands_on_the_samples_is_read(collate: Any) -> None:
    read(test_dataloader=dict(**dataset(), collate_fn=collate))


def twice(batch: Any) -> Any:
    """Of the user's own."""


@pytest.mark.parametrize("collate", [dict(type="default_collate"), dict(type=twice), twice])
def test_another_collate_fn_is_refused_by_name(collate: Any) -> None:
    error = refused(UnsupportedError, test_dataloader=dict(**dataset(), collate_fn=collate))
    assert "test_dataloader.collate_fn of c.py" in error.message
    assert "default_collate" in error.message or "twice" in error.message


class MyVideos(VideoDataset):  # type: ignore[misc]
    pass


@pytest.mark.parametrize("kind", [VideoDataset, "mmaction.VideoDataset", "NotInstalledDataset"])
def test_mmaction2s_own_datasets_need_no_note(kind: Any) -> None:
    assert read(test_dataloader=dataset(type=kind)).notes == ()


class MyWrapper:
    pass


def test_a_wrapper_of_the_users_own_is_noted() -> None:
    note = only_note(read(test_dataloader=dict(dataset=dict(type=MyWrapper, **dataset()))))
    assert note.startswith("test_dataloader.dataset is ")
    assert "test_evaluation.MyWrapper" in note


def test_a_dataset_of_the_users_own_is_noted() -> None:
    loader = dict(dataset=dict(type="RepeatDataset", **dataset(type=MyVideos)))
    note = only_note(read(test_dataloader=loader))
    assert note.startswith("test_dataloader.dataset.dataset is ")
    assert "test_evaluation.MyVideos" in note


def test_a_start_index_that_shifts_the_frames_of_a_video_is_refused() -> None:
    error = refused(UnsupportedError, test_dataloader=dataset(start_index=1))
    assert error.hint.endswith("--cfg-options test_dataloader.dataset.start_index=0")
    read(test_dataloader=dataset(start_index=0))


def test_a_start_index_of_frame_files_is_only_their_name() -> None:
    pipeline = [PIPELINE_3D[1], dict(type="RawFrameDecode"), *PIPELINE_3D[3:]]
    frames = dict(type="RawframeDataset", start_index=1, pipeline=pipeline)
    read(test_dataloader=dict(dataset=frames))


# --- The loop -----------------------------------------------------------------------------------


def test_half_precision_of_the_loop_is_noted() -> None:
    assert "test_cfg.fp16" in only_note(read(test_cfg=dict(type="TestLoop", fp16=True)))
    assert read(test_cfg=dict(type="TestLoop")).notes == read(test_cfg=dict()).notes == ()


class MyLoop:
    pass


@pytest.mark.parametrize("kind", [MyLoop, "RetrievalTestLoop", "NoSuchLoop"])
def test_another_loop_is_noted(kind: Any) -> None:
    assert getattr(kind, "__name__", kind) in only_note(read(test_cfg=dict(type=kind)))


def test_another_runner_is_noted() -> None:
    assert "runner_type is 'MyRunner'" in only_note(read(runner_type="MyRunner"))


class ActsInTests(Hook):  # type: ignore[misc]
    def before_test_epoch(self, runner: Any) -> None:
        pass


class ActsInTraining(Hook):  # type: ignore[misc]
    def after_train_iter(self, *arguments: Any, **more: Any) -> None:
        pass


def test_a_hook_of_the_users_that_acts_in_tests_is_noted() -> None:
    note = only_note(read(custom_hooks=[dict(type="EMAHook"), dict(type=ActsInTests)]))
    assert "custom_hooks.1" in note
    assert "ActsInTests, acts in tests (before_test_epoch)" in note


@pytest.mark.parametrize(
    "hooks",
    [
        dict(custom_hooks=[dict(type=EMAHook)]),
        dict(custom_hooks=[dict(type=ActsInTraining)]),
        dict(custom_hooks=[dict(type="NotInstalledHook")]),
        dict(default_hooks=dict(checkpoint=dict(type="CheckpointHook"), off=None)),
    ],
    ids=["EMA", "training", "unknown", "default"],
)
def test_hooks_that_change_no_score_of_a_test_are_not_noted(hooks: dict[str, Any]) -> None:
    assert read(**hooks).notes == ()


def test_a_hook_that_tests_another_model_is_refused() -> None:
    error = refused(UnsupportedError, custom_hooks=[dict(type="PrepareTTAHook", tta_cfg={})])
    assert "custom_hooks.0 of c.py is PrepareTTAHook" in error.message


@pytest.mark.parametrize(
    "unread",
    [
        dict(load_from="https://nowhere/else.pth", resume=True),
        dict(model_wrapper_cfg=dict(type="MMFullyShardedDataParallel")),
        dict(optim_wrapper=dict(type="AmpOptimWrapper", dtype="float16")),
        dict(tta_model=dict(type="TTA"), tta_pipeline=[dict(type="LoadImage")]),
        dict(test_evaluator=dict(type="ConfusionMatrix")),
        dict(train_dataloader=dict(collate_fn=dict(type="mix")), val_cfg=dict(fp16=True)),
        dict(randomness=dict(seed=1), compile=True, launcher="slurm", sync_bn="torch"),
    ],
    ids=["load_from", "wrapper", "amp", "tta", "evaluator", "training", "other"],
)
def test_what_changes_no_score_of_one_process_is_not_read(unread: dict[str, Any]) -> None:
    assert read(**unread) == read()
