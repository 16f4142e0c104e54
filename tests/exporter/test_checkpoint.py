"""What is read of a checkpoint, and what is refused with the way out."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import fractions
import os
import pickle
import sys
import tempfile
import types
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import addict
import numpy as np
import pytest
import torch
from action_export import source
from action_export.checkpoint import (
    Checkpoint,
    _is_foreign,
    build_model,
    load_checkpoint,
    unused_note,
)
from action_export.errors import (
    ActionExportError,
    CheckpointError,
)
from action_export.mmaction_compat import import_mmaction
from action_export.source import RecognizerConfig, load_config
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint as load_with_mmengine
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


class Payload:
    """Runs `function(*arguments)` while it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


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
    assert "`ema_state_dict` beside `state_dict`" in checkpoint.notes[0]
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


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "nowhere.pth"))
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


@pytest.mark.parametrize("key", ["model", "model_state", "state_dict_ema"])
def test_weights_under_another_key_are_named(tmp_path: Path, key: str) -> None:
    torch.save({key: {"w": torch.zeros(1)}, "epoch": 3}, tmp_path / "w.pth")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert error.message.endswith(f"; {key} would be one")
    assert f"checkpoint[{key!r}]" in error.hint


def test_a_whole_model_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "w.pth")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "--trust-checkpoint" in error.hint
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth", trust=True))
    assert "a whole model (Linear)" in error.message
    assert "model.state_dict()" in error.hint


def test_a_model_of_torchscript_is_called_that(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "w.pt")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pt"))
    assert "is a model of TorchScript" in error.message


# --- What training stores beside the weights ----------------------------------------------------

NUMBERS = ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "g", "F", "D"]
META: dict[str, Any] = {
    "cfg": "model = dict(type='Recognizer3D')",
    "every number of numpy": [np.dtype(kind).type(1) for kind in NUMBERS],
    "texts and times of numpy": [
        np.str_("x"),
        np.bytes_(b"x"),
        np.datetime64("2026-01-01"),
        np.timedelta64(3, "s"),
    ],
    "arrays": [
        np.arange(3, dtype=np.float16),
        np.array(["a", "bc"]),
        np.array([1, "a", None], object),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    ],
    "types of numpy": [np.float16, np.int64, np.dtype("f4"), np.str_],
    "paths": [Path("work_dirs/x"), PurePosixPath("/x"), PureWindowsPath("C:/x")],
    "times": [datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), datetime.date.max],
    "durations": [datetime.timedelta(1), datetime.time(1)],
    "dicts": [OrderedDict(a=1), Counter("aab"), defaultdict(list, a=[1])],
    "dicts of settings": [ConfigDict(a={"b": 1}), addict.Dict(a={"b": 1})],
    "configs": Config({"model": {"type": "Recognizer3D"}}),
    "sequences": [{1}, frozenset([1]), deque([1, 2]), range(3), slice(1, 2), bytearray(b"x"), b"x"],
    "settings": [argparse.Namespace(a=1), types.SimpleNamespace(a=1)],
    "exact numbers": [decimal.Decimal("0.1"), fractions.Fraction(1, 3), uuid.UUID(int=1), 1j],
    "the version of torch": torch.__version__,
    "log": HistoryBuffer([1.0], [1]),
    "generators": [np.random.RandomState(0), np.random.default_rng(0)],
    "state of a generator": np.random.RandomState(0).get_state(),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("stored", META)
def test_what_training_stores_beside_the_weights_needs_no_trust(
    weights: dict[str, torch.Tensor], tmp_path: Path, stored: str, legacy: bool
) -> None:
    path = tmp_path / "w.pth"
    meta = {stored: META[stored], "dataset_meta": {"classes": CLASS_NAMES}}
    content = {"meta": meta, "state_dict": weights, "message_hub": {"runtime_info": meta}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(path)
    assert loaded.classes == CLASS_NAMES
    assert loaded.state_dict.keys() == weights.keys()
    assert loaded.notes == ()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "classes",
    [
        ["a", "bü 🎉"],
        ("a", "bü 🎉"),
        [np.str_("a"), np.str_("bü 🎉")],
        np.array(["a", "bü 🎉"]),
        np.array(["a", "bü 🎉"], ">U9"),
        np.array(["a", "bü 🎉"], object),
    ],
    ids=["list", "tuple", "numpy texts", "array", "big-endian", "objects"],
)
def test_names_of_classes_are_read_in_whatever_form(
    weights: dict[str, torch.Tensor], tmp_path: Path, classes: object, trust: bool
) -> None:
    meta = {"dataset_meta": ConfigDict(classes=classes)}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "w.pth")
    assert load_checkpoint(tmp_path / "w.pth", trust=trust).classes == ("a", "bü 🎉")


def test_names_of_classes_that_are_no_texts_are_noted(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    meta = {"dataset_meta": {"classes": [Path("a"), Path("b")]}}
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "w.pth")
    loaded = load_checkpoint(tmp_path / "w.pth")
    assert loaded.classes == ()
    assert "not as a list of texts" in loaded.notes[0]


def test_no_function_of_numpy_is_called_with_what_a_file_holds(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    calls = [Payload(np.core.multiarray.scalar, "no type", 1), Payload(np.dtype, "no type")]
    torch.save({"state_dict": weights, "meta": {"value": calls}}, tmp_path / "w.pth")
    assert load_checkpoint(tmp_path / "w.pth").state_dict.keys() == weights.keys()


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (lambda: Payload(print, "x"), "builtins.print"),
        (lambda: [Payload(print, "x"), Payload(os.getcwd)], "builtins.print, posix.getcwd"),
        (lambda: Payload(getattr, np.ndarray, "tofile"), "getattr of ('tofile',)"),
        (lambda: torch.nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d"),
    ],
)
def test_what_could_run_code_is_named(
    weights: dict[str, torch.Tensor], tmp_path: Path, stored: Callable[[], object], named: str
) -> None:
    torch.save({"state_dict": weights, "meta": stored()}, tmp_path / "w.pth")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert named in error.message
    assert "--trust-checkpoint" in error.hint


def test_what_a_stand_in_cannot_stand_for_is_named(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = types.ModuleType("mmengine.settings")
    settings.Settings = type("Settings", (dict,), {"__module__": settings.__name__})
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    torch.save({"state_dict": weights, "meta": settings.Settings(a=1)}, tmp_path / "w.pth")
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert error.message.endswith(": mmengine.settings.Settings")
    assert "--trust-checkpoint" in error.hint


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_a_later_protocol_is_a_matter_of_trust(
    weights: dict[str, torch.Tensor], tmp_path: Path, protocol: int
) -> None:
    torch.save({"state_dict": weights}, tmp_path / "w.pth", pickle_protocol=protocol)
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / "w.pth"))
    assert f"protocol {protocol}" in error.message
    assert "--trust-checkpoint" in error.hint
    assert load_checkpoint(tmp_path / "w.pth", trust=True).state_dict.keys() == weights.keys()


# --- Checkpoints that hold code -----------------------------------------------------------------


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


@pytest.mark.parametrize(
    "keys",
    [
        ["n_averaged"],
        ["steps"],
        ["ema_backbone_conv1_conv_weight"],
        ["fc.weight", "fc.bias"],
        ["backbone.fc.weight", "backbone.fc.bias"],
        ["backbone.head.fc.weight"],
        ["cls_head.loss_cls.class_weight"],
        ["backbone.layer1.total_ops", "backbone.layer1.0.total_params"],
        ["student.backbone.conv1.conv.weight"],
    ],
    ids=lambda keys: keys[0],
)
def test_keys_that_change_no_score_are_noted_and_left_out_as_mmengine_does(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path, keys: list[str]
) -> None:
    path = tmp_path / "w.pth"
    state = {**weights, **{key: torch.zeros(3) for key in keys}}
    torch.save({"state_dict": state}, path)
    checkpoint = load_checkpoint(path)
    model = build_model(config, checkpoint)
    [note] = unused_note(model, checkpoint)
    assert note.startswith(f"{len(keys)} tensors")
    assert note.endswith(", ".join(sorted(keys)))
    theirs = source.build_untrained(config)
    load_with_mmengine(theirs, str(path), map_location="cpu")
    assert_equal_weights(model, theirs)


def assert_equal_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def test_a_checkpoint_of_the_very_model_needs_no_note(
    config: RecognizerConfig, training: Training
) -> None:
    checkpoint = load_checkpoint(training.checkpoint)
    assert unused_note(build_model(config, checkpoint), checkpoint) == ()


@pytest.mark.parametrize(
    "key",
    [
        "backbone.layer1.2.conv1.conv.weight",  # one more block: a deeper network
        "backbone.layer3.0.conv1.conv.weight",  # one more stage
        "backbone.layer1.0.conv1.attention.weight",
        "backbone.conv1.conv.bias",
        "backbone.norm.weight",
        "neck.conv.weight",
        "cls_head.fc_more.weight",
        "cls_head.fc_cls.scale",
    ],
)
def test_one_key_of_another_architecture_is_refused(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path, key: str
) -> None:
    error = fit_error(
        config, {**weights, "n_averaged": weights[HEAD], key: weights[HEAD]}, tmp_path
    )
    assert error.message.endswith(f"does not fit the config: unexpected {key}")
    assert error.hint == "the checkpoint belongs to another config"


def test_a_deeper_network_of_the_same_shapes_is_refused(
    config: RecognizerConfig, tmp_path: Path
) -> None:
    """As a ResNet-101 in the config of a ResNet-50: every weight of the config is in the file."""
    deeper = write_config(
        tmp_path / "deeper.py",
        model=changed(MODEL_3D, backbone__depth=34),
        test_pipeline=PIPELINE_3D,
    )
    state = source.build_untrained(load_config(str(deeper))).state_dict()
    assert state.keys() > source.build_untrained(config).state_dict().keys()
    error = fit_error(config, dict(state), tmp_path)
    assert "missing" not in error.message
    assert "unexpected backbone.layer1.2.conv1.conv.weight" in error.message


@pytest.mark.parametrize(("shift", "fits"), [(0.0, True), (1.0, False)])
def test_stored_means_of_pixels_must_be_the_configs(
    config: RecognizerConfig,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    shift: float,
    fits: bool,
) -> None:
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1, 1) + shift
    state = {**weights, "data_preprocessor.mean": mean}
    if not fits:
        assert "data_preprocessor.mean" in fit_error(config, state, tmp_path).message
        return
    torch.save(state, tmp_path / "w.pth")
    checkpoint = load_checkpoint(tmp_path / "w.pth")
    assert "data_preprocessor.mean" in unused_note(build_model(config, checkpoint), checkpoint)[0]


def test_the_classifier_of_a_backbone_that_has_none_is_no_other_architecture(
    tmp_path: Path,
) -> None:
    """torchvision's backbones keep an Identity in the place of their classifier."""
    model = torch.nn.Module()
    model.backbone = torch.nn.Sequential(torch.nn.Linear(1, 1))
    model.backbone.fc = torch.nn.Identity()
    state = {**model.state_dict(), "backbone.fc.weight": torch.zeros(1)}
    checkpoint = Checkpoint(path=tmp_path, sha256="", state_dict=state, classes=())
    assert not _is_foreign(model, checkpoint, "backbone.fc.weight")
    assert _is_foreign(model, checkpoint, "backbone.0.scale")


@pytest.mark.parametrize(
    "form",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace("backbone.", "backbone._orig_mod."),
    ],
    ids=["whole", "parallel of compiled", "compiled of parallel", "backbone"],
)
def test_the_prefix_of_torch_compile_is_stripped_and_noted(
    weights: dict[str, torch.Tensor], tmp_path: Path, form: Callable[[str], str]
) -> None:
    state = {form(key): value for key, value in weights.items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    loaded = load_checkpoint(tmp_path / "w.pth")
    assert loaded.state_dict.keys() == weights.keys()
    assert "_orig_mod, which torch.compile puts" in loaded.notes[0]


def test_averaged_weights_of_torch_itself_are_read(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = source.build_untrained(config)
    model.load_state_dict(weights)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / "w.pth")
    checkpoint = load_checkpoint(tmp_path / "w.pth")
    built = build_model(config, checkpoint)
    assert_equal_weights(built, model)
    assert "n_averaged" in unused_note(built, checkpoint)[0]


@pytest.mark.parametrize("key", ["ema_state_dict", "state_dict_ema"])
def test_a_second_set_of_weights_is_noted_and_left_as_mmaction2s_test_leaves_it(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path, key: str
) -> None:
    second = {name: value + 1 for name, value in weights.items()}
    torch.save({"state_dict": weights, key: second}, tmp_path / "w.pth")
    checkpoint = load_checkpoint(tmp_path / "w.pth")
    [note] = checkpoint.notes
    assert f"`{key}` beside `state_dict`" in note
    theirs = source.build_untrained(config)
    load_with_mmengine(theirs, str(tmp_path / "w.pth"), map_location="cpu")
    assert_equal_weights(build_model(config, checkpoint), theirs)


def test_a_test_run_with_an_ema_hook_runs_what_is_loaded(
    config: RecognizerConfig, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.hooks import EMAHook
    from mmengine.runner import Runner

    hook = EMAHook(momentum=0.5)
    # mmengine leaves torch's default, which refuses the logs in its checkpoints since torch 2.6
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=dict(config.model),
            work_dir=folder,
            test_dataloader=dict(
                dataset=NoiseVideos(),
                batch_size=2,
                sampler=dict(type="DefaultSampler", shuffle=False),
                collate_fn=dict(type="pseudo_collate"),
            ),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=dict(type="AccMetric"),
            custom_hooks=[hook],
            load_from=str(training.checkpoint),
            default_scope="mmaction",
            log_level="ERROR",
            experiment_name="test_run",
        )
        run: list[dict[str, torch.Tensor]] = []
        runner.model.test_step = _noting(runner.model, run)
        runner.test()
    ours = build_model(config, load_checkpoint(training.checkpoint)).state_dict()
    assert all(torch.equal(run[0][key], value) for key, value in ours.items())


def _noting(model: Any, run: list[dict[str, torch.Tensor]]) -> Callable[[Any], Any]:
    """The model's own test_step, which notes the weights that it runs with."""
    test_step = model.test_step

    def noting(data: Any) -> Any:
        run.append({key: value.clone() for key, value in model.state_dict().items()})
        return test_step(data)

    return noting


def test_the_prefix_of_another_trainer_is_named(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = {f"recognizer.{key}": value for key, value in weights.items()}
    error = fit_error(config, state, tmp_path)
    assert "its keys begin with 'recognizer.'" in error.hint


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


def test_weights_of_a_training_that_diverged_are_called_that(
    config: RecognizerConfig, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights[HEAD][0, 0] = float("nan")
    error = fit_error(config, weights, tmp_path)
    assert error.message.endswith(f"holds NaN: {HEAD}")
    assert "diverged" in error.hint


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
