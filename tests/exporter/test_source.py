"""What is read of a config and a checkpoint, and what is refused with the way out."""

from __future__ import annotations

import contextlib
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from action_export import preprocess, source
from action_export.errors import (
    ActionExportError,
    CheckpointError,
    ConfigError,
    DependencyError,
    LabelsError,
    UnsupportedError,
)
from action_export.mmaction_compat import import_mmaction
from action_export.source import RecognizerConfig, build_model, load_checkpoint, load_config
from action_export.types import ViewOptions
from action_runtime.spec import SampleFrames
from mmengine.logging import HistoryBuffer
from support import zoo_packages
from support.disk import open_folder, without_privileges
from support.tiny import CLASSES, MODEL_3D, PIPELINE_3D, changed, with_step, write_config

TSN = "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb"
CLASS_NAMES = tuple(f"class {number}" for number in range(CLASSES))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder / "tiny.py", model=MODEL_3D, test_pipeline=PIPELINE_3D)


@pytest.fixture(scope="module")
def config(config_file: Path) -> RecognizerConfig:
    return load_config(str(config_file))


@pytest.fixture
def weights(config: RecognizerConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(source.build_untrained(config).state_dict())


def refusal(kind: type[ActionExportError], act: Callable[[], object]) -> ActionExportError:
    """The error that `act` raises. Whatever it is, it says what and how to go on, in two lines."""
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# --- Configs ------------------------------------------------------------------------------------


def test_a_path_is_read(config_file: Path) -> None:
    config = load_config(str(config_file))
    assert config.name == "tiny"
    assert config.model == MODEL_3D
    assert list(config.pipeline) == PIPELINE_3D
    assert config.sha256 == source.file_sha256(config_file)
    assert config.notes == ()


def test_a_zoo_name_is_read() -> None:
    config = load_config(TSN)
    assert config.name == TSN
    assert config.model["backbone"]["depth"] == 50
    assert config.path.is_file()


def test_an_unknown_name_gets_the_closest_ones() -> None:
    error = refusal(ConfigError, lambda: load_config(TSN.replace("8xb32", "8xb23")))
    assert TSN in error.hint


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("tsn_r50_kinetics", "tsn_"),
        ("slowfast_r50", "slowfast_r50"),
        ("x3d", "x3d_"),
        ("i3d", "i3d"),
    ],
)
def test_a_fragment_of_a_name_gets_those_of_its_family(name: str, family: str) -> None:
    close = refusal(ConfigError, lambda: load_config(name)).hint.removeprefix("did you mean ")
    assert all(suggestion.startswith(family) for suggestion in close.rstrip("?").split(" or "))


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    error = refusal(ConfigError, lambda: load_config("%%%"))
    assert "did you mean" not in error.hint


@pytest.mark.parametrize("missing", ["nowhere.py", "./nowhere", "/nowhere/config.json"])
def test_a_missing_file_is_named(missing: str) -> None:
    assert missing in refusal(ConfigError, lambda: load_config(missing)).message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("model = dict(type='Recognizer3D'", "SyntaxError"),
        ("model = undefined", "NameError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise RuntimeError('no\\nlines')", "RuntimeError"),
        ("_base_ = ['nowhere.py']", "FileNotFoundError"),
        ("model = dict(type='{{ no }}')\nx = {{ broken", "SyntaxError"),
    ],
)
def test_a_config_that_does_not_load_is_named_with_the_reason(
    tmp_path: Path, text: str, kind: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "broken.py" in error.message
    assert kind in error.message


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a note")
    assert "notes.txt" in refusal(ConfigError, lambda: load_config(str(path))).message


@pytest.mark.parametrize("model", [None, "Recognizer3D", dict(backbone=dict(type="ResNet"))])
def test_a_config_without_a_model_is_no_recognizer(tmp_path: Path, model: object) -> None:
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    assert "recognizer" in refusal(ConfigError, lambda: load_config(str(path))).message


@pytest.mark.parametrize("kind", ["FastRCNN", "BMN", "ImageClassifier"])
def test_a_model_of_another_task_is_no_recognizer(tmp_path: Path, kind: str) -> None:
    path = write_config(tmp_path / "c.py", model=dict(type=kind), test_pipeline=PIPELINE_3D)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert f"{kind!r}, which is no recognizer" in error.message


@pytest.mark.parametrize("kind", ["RecognizerGCN", "RecognizerAudio", "MMRecognizer3D"])
def test_a_recognizer_of_something_else_than_frames_is_unsupported(
    tmp_path: Path, kind: str
) -> None:
    path = write_config(tmp_path / "c.py", model=dict(type=kind), test_pipeline=PIPELINE_3D)
    error = refusal(UnsupportedError, lambda: load_config(str(path)))
    assert kind in error.message
    assert "Recognizer2D, Recognizer3D" in error.hint


def test_cfg_options_override_the_config(config_file: Path) -> None:
    options = ("model.cls_head.num_classes=7", "test_pipeline.1.num_clips=5", "extra=[1,2]")
    config = load_config(str(config_file), options)
    assert config.model["cls_head"]["num_classes"] == 7
    assert config.pipeline[1]["num_clips"] == 5
    assert config.sha256 == source.file_sha256(config_file)


@pytest.mark.parametrize(
    "option", ["num_classes", "test_pipeline.99.num_clips=5", "default_scope.inner.value=1"]
)
def test_a_cfg_option_that_does_not_apply_is_refused(config_file: Path, option: str) -> None:
    error = refusal(ConfigError, lambda: load_config(str(config_file), (option,)))
    assert option in error.message
    assert "key=value" in error.hint


# --- The pipeline that is followed --------------------------------------------------------------


def test_the_pipeline_of_the_test_loop_is_followed_and_noted() -> None:
    # This config overrides test_pipeline, and leaves that of the dataset as its base has it.
    config = load_config("tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_sthv2-rgb")
    assert config.pipeline[1]["num_clips"] == 8
    assert len(config.notes) == 1
    assert "test_dataloader.dataset.pipeline" in config.notes[0]


NEW_STYLE = """
from mmaction.datasets.transforms import (
    CenterCrop, DecordDecode, DecordInit, FormatShape, PackActionInputs, Resize, SampleFrames)
from mmaction.models import ActionDataPreprocessor, I3DHead, Recognizer3D, ResNet3dSlowOnly

model = dict(
    type=Recognizer3D,
    backbone=dict(type=ResNet3dSlowOnly, depth=18, pretrained=None, lateral=False),
    cls_head=dict(type=I3DHead, in_channels=512, num_classes=3, average_clips="prob"),
    data_preprocessor=dict(type=ActionDataPreprocessor, format_shape="NCTHW"),
)
test_pipeline = [
    dict(type=DecordInit),
    dict(type=SampleFrames, clip_len=4, test_mode=True),
    dict(type=DecordDecode),
    dict(type=Resize, scale=(-1, 32)),
    dict(type=CenterCrop, crop_size=32),
    dict(type=FormatShape, input_format="NCTHW"),
    dict(type=PackActionInputs),
]
"""


def test_a_config_that_names_classes_by_themselves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new_style.py"
    path.write_text(NEW_STYLE)
    config = load_config(str(path))
    assert config.model["type"] == "Recognizer3D"
    assert [transform["type"] for transform in config.pipeline[:2]] == [
        "DecordInit",
        "SampleFrames",
    ]
    assert preprocess.derive(config, ViewOptions()).sampler == SampleFrames(clip_len=4)
    assert type(source.build_untrained(config)).__name__ == "Recognizer3D"


@pytest.mark.parametrize("entry", ["DecordInit", dict(clip_len=4), None])
def test_an_entry_that_is_no_transform_is_refused(tmp_path: Path, entry: object) -> None:
    pipeline = [PIPELINE_3D[0], entry]
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=pipeline)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert repr(entry) in error.message


def test_equal_pipelines_need_no_note(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dict(type="VideoDataset", pipeline=PIPELINE_3D)),
    )
    assert load_config(str(path)).notes == ()


FOLLOWED = with_step(PIPELINE_3D, 1, num_clips=6)
VIDEO_DATASET = dict(type="VideoDataset", pipeline=FOLLOWED)


@pytest.mark.parametrize(
    "dataset",
    [
        VIDEO_DATASET,
        dict(type="RepeatDataset", times=2, dataset=VIDEO_DATASET),
        dict(type="ConcatDataset", datasets=[VIDEO_DATASET, VIDEO_DATASET]),
        dict(type="RepeatDataset", dataset=dict(type="ConcatDataset", datasets=[VIDEO_DATASET])),
        [VIDEO_DATASET, VIDEO_DATASET],
    ],
    ids=["plain", "repeat", "concat", "nested", "list"],
)
def test_wrappers_of_the_test_dataset_are_unwrapped(tmp_path: Path, dataset: object) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dataset),
    )
    assert list(load_config(str(path)).pipeline) == FOLLOWED


def test_concatenated_datasets_that_are_read_differently_are_refused(tmp_path: Path) -> None:
    other = dict(type="VideoDataset", pipeline=PIPELINE_3D)
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=[VIDEO_DATASET, other])),
    )
    refusal(ConfigError, lambda: load_config(str(path)))


FLOW_DATASET = dict(type="RawframeDataset", modality="Flow", pipeline=FOLLOWED)


@pytest.mark.parametrize(
    ("dataset", "modality"),
    [
        (None, "RGB"),
        (VIDEO_DATASET, "RGB"),
        (FLOW_DATASET, "Flow"),
        (dict(type="RawframeDataset", modality="Flow"), "Flow"),
        (dict(type="RepeatDataset", dataset=FLOW_DATASET), "Flow"),
        (dict(type="ConcatDataset", datasets=[FLOW_DATASET, FLOW_DATASET]), "Flow"),
    ],
    ids=["no dataset", "default", "flow", "no pipeline", "repeat", "concat"],
)
def test_the_modality_is_the_test_datasets(
    tmp_path: Path, dataset: dict[str, Any] | None, modality: str
) -> None:
    loader = {} if dataset is None else dict(test_dataloader=dict(dataset=dataset))
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=PIPELINE_3D, **loader)
    assert load_config(str(path)).modality == modality


def test_a_modality_that_is_not_served_is_refused_by_name_and_place(tmp_path: Path) -> None:
    dataset = dict(type="RepeatDataset", dataset=dict(FLOW_DATASET, modality="Depth"))
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_dataloader=dict(dataset=dataset))
    error = refusal(UnsupportedError, lambda: load_config(str(path)))
    assert "test_dataloader.dataset.dataset.modality of c.py is 'Depth'" in error.message
    assert error.hint == "served are 'RGB' and 'Flow'"


def test_datasets_of_different_modalities_are_refused(tmp_path: Path) -> None:
    datasets = [VIDEO_DATASET, FLOW_DATASET]
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_dataloader=dict(dataset=datasets))
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "different modalities" in error.message


def test_a_dataset_without_a_pipeline_leaves_test_pipeline(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dict(type="VideoDataset")),
    )
    config = load_config(str(path))
    assert list(config.pipeline) == PIPELINE_3D
    assert config.notes == ()


def test_no_test_pipeline_at_all_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.py", model=MODEL_3D)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "test_pipeline" in error.message


# --- Checkpoints that training wrote ------------------------------------------------------------


class NoiseVideos(torch.utils.data.Dataset[Any]):
    """Four clips of noise, each of its own class, as a pipeline packs them."""

    metainfo: ClassVar = dict(classes=CLASS_NAMES)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmaction.structures import ActionDataSample

        pixels = np.random.default_rng(index).integers(0, 255, (1, 3, 4, 32, 32), np.uint8)
        sample = ActionDataSample()
        sample.set_gt_label(index)
        return dict(inputs=torch.from_numpy(pixels), data_samples=sample)


@dataclass(frozen=True)
class Training:
    """What mmengine's Runner left after two iterations with an EMAHook."""

    checkpoint: Path
    raw: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    from mmengine.hooks import EMAHook
    from mmengine.runner import Runner

    import_mmaction()
    folder = tmp_path_factory.mktemp("training")
    ema = EMAHook(momentum=0.5)
    runner = Runner(
        model=changed(MODEL_3D, cls_head__loss_cls=dict(type="CrossEntropyLoss")),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=NoiseVideos(),
            batch_size=2,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=2),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        param_scheduler=dict(type="MultiStepLR", milestones=[1], by_epoch=False),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False)),
        custom_hooks=[ema],
        default_scope="mmaction",
        log_level="ERROR",
        experiment_name="two_iterations",
    )
    runner.train()
    return Training(
        checkpoint=folder / "iter_2.pth",
        raw=dict(runner.model.state_dict()),
        averaged=dict(ema.ema_model.module.state_dict()),
    )


def test_a_checkpoint_of_mmengines_runner_is_read_without_trust(
    training: Training, config: RecognizerConfig
) -> None:
    saved = torch.load(training.checkpoint, weights_only=False)
    assert {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers"} <= set(saved)
    buffers = saved["message_hub"]["log_scalars"].values()
    assert any(isinstance(buffer, HistoryBuffer) for buffer in buffers)

    checkpoint = load_checkpoint(training.checkpoint)
    assert checkpoint.classes == CLASS_NAMES
    assert not build_model(config, checkpoint).training


def test_the_averaged_weights_of_an_ema_checkpoint_are_taken(training: Training) -> None:
    loaded = load_checkpoint(training.checkpoint).state_dict
    assert loaded.keys() == training.averaged.keys()
    for key, value in training.averaged.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    head = "cls_head.fc_cls.weight"
    assert not torch.equal(training.raw[head], training.averaged[head])


def test_the_weights_reach_the_model(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    built = build_model(config, load_checkpoint(tmp_path / "w.pth")).state_dict()
    assert built.keys() == weights.keys()
    assert all(torch.equal(built[key], weights[key]) for key in weights)


# --- Other forms of a checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "form",
    [
        lambda w: {"state_dict": w, "meta": {"epoch": 3}},
        lambda w: {"state_dict": OrderedDict(w), "meta": None},
        lambda w: w,
        lambda w: OrderedDict(w),
        lambda w: {"state_dict": {f"module.{key}": value for key, value in w.items()}},
        lambda w: {f"module.{key}": value for key, value in w.items()},
    ],
    ids=["mmengine", "ordered", "bare", "bare-ordered", "parallel", "bare-parallel"],
)
def test_every_usual_form_gives_the_same_weights(
    weights: dict[str, torch.Tensor], tmp_path: Path, form: Callable[[Any], Any], legacy: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save(form(weights), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(path)
    assert loaded.state_dict.keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict[key], weights[key]) for key in weights)
    assert loaded.sha256 == source.file_sha256(path)


@pytest.mark.parametrize("meta", [{"dataset_meta": {"classes": CLASS_NAMES}}, {"CLASSES": ["a"]}])
def test_classes_come_from_the_metadata(
    weights: dict[str, torch.Tensor], tmp_path: Path, meta: dict[str, Any]
) -> None:
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "w.pth")
    expected = CLASS_NAMES if "dataset_meta" in meta else ("a",)
    assert load_checkpoint(tmp_path / "w.pth").classes == expected


def test_arrays_pickled_under_numpy_2_are_data_too(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": weights, "meta": {"history": np.arange(3.0)}}, path)
    _rewrite_pickle(path, b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
    assert load_checkpoint(path).state_dict.keys() == weights.keys()


def _rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Changes the names of globals in the pickle of a zip checkpoint."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    assert old in members[pickled]
    members[pickled] = members[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# --- Checkpoints that cannot be read ------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_truncated_and_not_a_matter_of_trust(
    weights: dict[str, torch.Tensor], tmp_path: Path, legacy: bool
) -> None:
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"state_dict": weights}, whole, _use_new_zipfile_serialization=not legacy)
    content = whole.read_bytes()
    lengths = [0, 1, 3, 4, 20, 100, 700, *range(1000, len(content), len(content) // 20)]
    for length in [*lengths, len(content) - 1]:
        cut.write_bytes(content[:length])
        error = refusal(CheckpointError, lambda: load_checkpoint(cut))
        assert "truncated" in error.message, length
        assert "--trust-checkpoint" not in error.hint, length


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damaged_bytes_are_an_error_of_the_checkpoint_or_harmless(
    weights: dict[str, torch.Tensor], tmp_path: Path, legacy: bool
) -> None:
    whole, damaged = tmp_path / "whole.pth", tmp_path / "damaged.pth"
    torch.save({"state_dict": weights}, whole, _use_new_zipfile_serialization=not legacy)
    rng = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(whole.read_bytes())
        content[int(rng.integers(0, 2000))] ^= int(rng.integers(1, 256))
        damaged.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            load_checkpoint(damaged)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04no zip", b"\x80"],
)
def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    error = refusal(CheckpointError, lambda: load_checkpoint(path))
    assert "is no torch checkpoint" in error.message


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labels.txt", "a\nb\n")
    refusal(CheckpointError, lambda: load_checkpoint(path))


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / name))
    assert "there is no checkpoint file" in error.message


def test_a_checkpoint_without_permission_is_no_matter_of_its_content(
    weights: dict[str, torch.Tensor],
) -> None:
    with open_folder() as folder:
        path = folder / "w.pth"
        torch.save(weights, path)
        path.chmod(0)
        with without_privileges():
            error = refusal(CheckpointError, lambda: load_checkpoint(path))
    assert "Permission denied" in error.message
    assert "truncated" not in error.message


@pytest.mark.parametrize(
    "content",
    [{}, {"meta": {}, "epoch": 3}, {"state_dict": {}}, {"state_dict": [1]}, [1, 2], 7, "text"],
)
def test_a_checkpoint_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert "no weights" in error.message


# --- Checkpoints that hold code -----------------------------------------------------------------


class Payload:
    """Runs `function(*arguments)` while it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    weights: dict[str, torch.Tensor], tmp_path: Path, legacy: bool
) -> None:
    path, created = tmp_path / "w.pth", tmp_path / "created"
    content = {"state_dict": weights, "meta": {"cfg": Payload(open, str(created), "w")}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    error = refusal(CheckpointError, lambda: load_checkpoint(path))
    assert "--trust-checkpoint" in error.hint
    assert not created.exists()


def test_a_trusted_checkpoint_runs_its_code(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path, created = tmp_path / "w.pth", tmp_path / "created"
    torch.save({"state_dict": weights, "meta": Payload(Path(created).touch)}, path)
    assert load_checkpoint(path, trust=True).state_dict.keys() == weights.keys()
    assert created.exists()


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "__subclasses__"),
        (HistoryBuffer, "_set_default_statistics"),
        (OrderedDict, "fromkeys"),
        (np.ndarray, "tofile"),
    ],
)
def test_getattr_reaches_nothing_but_the_statistics_of_a_log(
    weights: dict[str, torch.Tensor], tmp_path: Path, owner: object, attribute: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": weights, "meta": Payload(getattr, owner, attribute)}, path)
    error = refusal(CheckpointError, lambda: load_checkpoint(path))
    assert "--trust-checkpoint" in error.hint


def test_getattr_on_an_object_of_the_pickle_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    array = np.zeros(3)
    torch.save({"state_dict": weights, "meta": Payload(getattr, array, "tofile")}, path)
    refusal(CheckpointError, lambda: load_checkpoint(path))


def _missing_module() -> object:
    raise ModuleNotFoundError("No module named 'gone'")


def _wrong_type() -> object:
    raise TypeError("takes no arguments")


@pytest.mark.parametrize(
    ("failing", "told"),
    [(_missing_module, "needs code that is not installed"), (_wrong_type, "takes no arguments")],
)
def test_a_trusted_checkpoint_whose_code_fails_is_an_error_of_the_checkpoint(
    weights: dict[str, torch.Tensor], tmp_path: Path, failing: Callable[[], object], told: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": weights, "meta": Payload(failing)}, path)
    error = refusal(CheckpointError, lambda: load_checkpoint(path, trust=True))
    assert str(path) in error.message
    assert told in error.message


def test_trust_does_not_mend_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"state_dict": 1}, protocol=2)[:-4])
    refusal(CheckpointError, lambda: load_checkpoint(path, trust=True))


# --- Fitting the checkpoint to the config -------------------------------------------------------

HEAD = "cls_head.fc_cls.weight"


def fit_error(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], folder: Path
) -> ActionExportError:
    torch.save({"state_dict": weights}, folder / "w.pth")
    checkpoint = load_checkpoint(folder / "w.pth")
    return refusal(CheckpointError, lambda: build_model(config, checkpoint))


def test_missing_and_unexpected_keys_are_listed(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights["neck.weight"] = weights.pop(HEAD)
    error = fit_error(config, weights, tmp_path)
    assert f"missing {HEAD}" in error.message
    assert "unexpected neck.weight" in error.message


def test_a_long_list_of_keys_is_cut_with_its_length(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    error = fit_error(config, {HEAD: weights[HEAD]}, tmp_path)
    # torch lets a state dict of before num_batches_tracked do without it
    missing = [key for key in weights if key != HEAD and "num_batches_tracked" not in key]
    assert error.message.count("missing") == 6
    assert error.message.endswith(f"and {len(missing) - 6} more")


def test_a_long_list_of_one_kind_does_not_hide_the_other(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    error = fit_error(config, {"neck.weight": weights[HEAD]}, tmp_path)
    assert "missing backbone.conv1.conv.weight" in error.message
    assert "unexpected neck.weight" in error.message


def test_misshapen_keys_are_listed_with_both_shapes(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "backbone.conv1.conv.weight"
    weights[name] = weights[name][:, :, :, :3, :3]
    error = fit_error(config, weights, tmp_path)
    assert f"{name} is [8, 3, 1, 3, 3], the config has [8, 3, 1, 7, 7]" in error.message
    assert "num_classes" not in error.hint


def test_another_class_count_says_the_option_that_fixes_it(
    config_file: Path, config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights[HEAD] = weights[HEAD][:7]
    weights["cls_head.fc_cls.bias"] = weights["cls_head.fc_cls.bias"][:7]
    error = fit_error(config, weights, tmp_path)
    option = "model.cls_head.num_classes=7"
    assert error.hint.endswith(f"--cfg-options {option}")
    mended = load_config(str(config_file), (option,))
    assert build_model(mended, load_checkpoint(tmp_path / "w.pth"))


def test_a_head_of_another_width_is_not_taken_for_another_class_count(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights[HEAD] = weights[HEAD][:, :8]
    assert "num_classes" not in fit_error(config, weights, tmp_path).hint


def test_a_head_that_holds_a_scalar_is_misshapen(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights["cls_head.fc_cls.bias"] = torch.tensor(1.0)
    assert "cls_head.fc_cls.bias is []" in fit_error(config, weights, tmp_path).message


@pytest.mark.parametrize(
    "model",
    [
        changed(MODEL_3D, backbone__type="NoSuchBackbone"),
        changed(MODEL_3D, backbone__depth=19),
        changed(MODEL_3D, cls_head__no_such_argument=1),
        dict(type="Recognizer3D"),
    ],
)
def test_a_model_that_mmaction2_cannot_build_is_an_error_of_the_config(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    error = refusal(ConfigError, lambda: source.build_untrained(config))
    assert "c.py" in error.message


def test_pretrained_weights_are_not_looked_for(tmp_path: Path) -> None:
    model = changed(MODEL_3D, backbone__pretrained="https://nowhere.invalid/resnet18.pth")
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    built: Any = source.build_untrained(config)
    assert built.backbone.pretrained is None
    assert config.model == model


# --- Backbones of other packages ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("timm.swin_base_patch4_window7_224", ("timm",)),
        ("torchvision.densenet161", ("torchvision",)),
        ("mmpretrain.MobileOne", ("mmpretrain", "torchvision")),
        ("MobileOneTSM", ("mmpretrain", "torchvision")),
        ("mmaction.MobileOneTSM", ("mmpretrain", "torchvision")),
        ("mmcls.ResNeXt", ("mmcls",)),
        ("ResNet", ()),
        ("mmaction.ResNet", ()),
        ("timmy.ResNet", ()),
    ],
)
def test_the_type_of_the_backbone_tells_its_packages(kind: str, packages: tuple[str, ...]) -> None:
    assert source.required_packages(changed(MODEL_3D, backbone__type=kind)) == packages


def test_a_model_without_a_backbone_requires_no_package() -> None:
    assert source.required_packages(dict(type="RecognizerOmni")) == ()


def test_of_tsn_and_tsm_just_the_configs_of_other_packages_require_any() -> None:
    requiring = {
        name
        for name in source.zoo_configs()
        if name.startswith(("tsn", "tsm")) and source.required_packages(load_config(name).model)
    }
    assert requiring == zoo_packages.CONFIGS.keys()


def package_error(folder: Path, kind: str) -> ActionExportError:
    model = changed(MODEL_3D, backbone=dict(type=kind))
    path = write_config(folder / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    error = refusal(DependencyError, lambda: source.build_untrained(config))
    assert f"the backbone {kind} of c.py" in error.message
    return error


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("timm.resnet18", "timm"),
        ("torchvision.resnet18", "torchvision"),
        ("mmpretrain.MobileOne", "mmpretrain"),
        ("mmpretrain.MobileOne", "torchvision"),
        ("MobileOneTSM", "mmpretrain"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, missing: str
) -> None:
    for package in ("mmpretrain", "timm", "torchvision"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    error = package_error(tmp_path, kind)
    assert f"needs the Python package {missing}, which is not installed" in error.message
    assert 'pip install "action-export[zoo]"' in error.hint


def test_a_backbone_of_mmcls_is_referred_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmcls", None)
    error = package_error(tmp_path, "mmcls.ResNeXt")
    assert "--cfg-options model.backbone.type=mmpretrain.ResNeXt " in error.hint


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision"),
        ("assert False, 'MMCV==2.1.0 is used but incompatible.'", "MMCV==2.1.0"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_package_that_does_not_import_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    error = package_error(tmp_path, "timm.resnet18")
    assert "needs the Python package timm, which does not import" in error.message
    assert reason in error.message


def test_mmaction2_that_does_not_import_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(init_default_scope: bool) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand a trace")

    import_mmaction()
    monkeypatch.setattr("mmaction.utils.register_all_modules", fail)
    error = refusal(DependencyError, import_mmaction)
    assert error.message.endswith("operator torchvision::nms does not exist")


# --- Labels -------------------------------------------------------------------------------------


def checkpoint_with(classes: tuple[str, ...]) -> source.Checkpoint:
    return source.Checkpoint(path=Path("w.pth"), sha256="", state_dict={}, classes=classes)


def test_labels_are_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(' pull up\nfête 🎉\r\n\nsay "hi"\n\n', encoding="utf-8")
    labels = source.load_labels(path, checkpoint_with(("x", "y", "z")), 3)
    assert labels == ("pull up", "fête 🎉", 'say "hi"')


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\n", encoding="utf-8-sig")
    assert source.load_labels(path, checkpoint_with(()), 2) == ("a", "b")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_of_the_wrong_count_are_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\n" * count)
    error = refusal(LabelsError, lambda: source.load_labels(path, checkpoint_with(()), 3))
    assert f"{count} labels, the model has 3 classes" in error.message


def test_labels_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("fête\n".encode("latin-1"))
    for path in (latin, tmp_path / "nowhere.txt", tmp_path):
        error = refusal(
            LabelsError, lambda path=path: source.load_labels(path, checkpoint_with(()), 1)
        )
        assert str(path) in error.message


def test_without_a_file_the_labels_are_the_checkpoints(tmp_path: Path) -> None:
    assert source.load_labels(None, checkpoint_with(("a", "b")), 2) == ("a", "b")


def test_without_a_file_labels_of_another_count_are_left_out() -> None:
    assert source.load_labels(None, checkpoint_with(("a", "b")), 3) == ()
    assert source.load_labels(None, checkpoint_with(()), 3) == ()
