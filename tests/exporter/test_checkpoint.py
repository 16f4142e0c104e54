"""What is read of a checkpoint, and what is refused with the way out."""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from action_export import source
from action_export.checkpoint import build_model, load_checkpoint
from action_export.errors import (
    ActionExportError,
    CheckpointError,
)
from action_export.mmaction_compat import import_mmaction
from action_export.source import RecognizerConfig, load_config
from mmengine.logging import HistoryBuffer
from support.disk import open_folder, without_privileges
from support.refusal import refusal
from support.tiny import CLASSES, MODEL_3D, PIPELINE_3D, changed, write_config

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
