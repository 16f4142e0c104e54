"""`action-export`: what a person sees of a success, and of every way to fail."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
import torch
from action_export import api, tensorrt
from action_export.cli.export import main
from action_export.errors import (
    ActionExportError,
    CheckpointError,
    ConfigError,
    ContractChangedError,
    DependencyError,
    InconclusiveError,
    LabelsError,
    NameRefusedError,
    RepositoryError,
    TracingError,
    UnsupportedError,
    VideoError,
)
from support import zoo_packages
from support.disk import file_size_limit, read_only_folder
from support.tiny import (
    MODEL_3D,
    PIPELINE_3D,
    VIDEOS,
    Tiny,
    changed,
    make,
    with_step,
    write_config,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("".join(f"class {number}\n" for number in range(10)))
    return path


def tree(root: Path) -> dict[str, bytes | None]:
    """Content of every file below `root`, None for a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def proved(tiny: Tiny, repo: Path, *more: str) -> list[str]:
    """An export of the tiny recognizer, proved on two real videos without a server."""
    return [
        *(str(tiny.config_file), str(tiny.checkpoint)),
        *("--triton-repo", str(repo)),
        *("--proof", "graph"),
        *("--videos", *map(str, VIDEOS)),
        *more,
    ]


# --- Failures -----------------------------------------------------------------------------------


@dataclass
class Attempt:
    """A command line that a case of the table spoils; everything that it may touch is in `folder`.

    around: what the command runs in.
    """

    folder: Path
    config: str
    checkpoint: str
    repo: Path
    videos: list[str]
    options: list[str]
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def argv(self) -> list[str]:
        return [
            *filter(None, (self.config, self.checkpoint)),
            *("--triton-repo", str(self.repo)),
            *("--proof", "graph"),
            *("--videos", *self.videos),
            *self.options,
        ]

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def write_config(self, **variables: Any) -> None:
        given: dict[str, Any] = {"model": MODEL_3D, "test_pipeline": PIPELINE_3D, **variables}
        self.config = str(write_config(self.folder / "spoilt.py", **given))


@pytest.fixture
def attempt(tiny: Tiny, tmp_path: Path) -> Attempt:
    return Attempt(
        folder=tmp_path,
        config=str(tiny.config_file),
        checkpoint=str(tiny.checkpoint),
        repo=tmp_path / "parent" / "repo",
        videos=[str(video) for video in VIDEOS],
        options=["-q"],
    )


def truncated_checkpoint(a: Attempt) -> None:
    content = Path(a.checkpoint).read_bytes()
    a.checkpoint = a.file("cut.pth", content[: len(content) // 2])


def missing_checkpoint(a: Attempt) -> None:
    a.checkpoint = str(a.folder / "nowhere.pth")


def checkpoint_of_something_else(a: Attempt) -> None:
    a.checkpoint = a.file("notes.pth", "a note")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PAYLOAD_FOLDER"],)


def checkpoint_with_code(a: Attempt) -> None:
    os.environ["PAYLOAD_FOLDER"] = str(a.folder / "payload")
    torch.save({"state_dict": {}, "meta": Payload()}, a.folder / "code.pth")
    a.checkpoint = str(a.folder / "code.pth")


def checkpoint_of_another_model(a: Attempt) -> None:
    torch.save({"state_dict": {"head.weight": torch.zeros(3)}}, a.folder / "other.pth")
    a.checkpoint = str(a.folder / "other.pth")


def checkpoint_of_other_classes(a: Attempt) -> None:
    a.options += ["--cfg-options", "model.cls_head.num_classes=7"]


def no_checkpoint(a: Attempt) -> None:
    a.checkpoint = ""


def syntax_error(a: Attempt) -> None:
    a.config = a.file("broken.py", "model = dict(type='Recognizer3D'\n")


def missing_config(a: Attempt) -> None:
    a.config = str(a.folder / "nowhere.py")


def unknown_zoo_name(a: Attempt) -> None:
    a.config = "tsn_r50_kinetics"


def no_recognizer(a: Attempt) -> None:
    a.write_config(model=dict(type="FastRCNN", backbone=dict(type="ResNet3dSlowOnly")))


def no_model(a: Attempt) -> None:
    a.config = a.file("empty.py", "x = 1\n")


def recognizer_of_skeletons(a: Attempt) -> None:
    a.write_config(model=dict(type="RecognizerGCN"))


def unknown_transform(a: Attempt) -> None:
    a.write_config(test_pipeline=[*PIPELINE_3D[:4], dict(type="AugMix"), *PIPELINE_3D[4:]])


def transform_of_training(a: Attempt) -> None:
    a.write_config(test_pipeline=with_step(PIPELINE_3D, 1, test_mode=False))


def no_averaging(a: Attempt) -> None:
    a.write_config(model=changed(MODEL_3D, cls_head__average_clips=None))


def segments_that_do_not_divide(a: Attempt) -> None:
    a.write_config(
        model=changed(
            MODEL_3D,
            data_preprocessor__format_shape="NCHW",
            backbone__num_segments=3,
        ),
        test_pipeline=with_step(PIPELINE_3D, 5, input_format="NCHW"),
    )


def bad_option_of_the_config(a: Attempt) -> None:
    a.options += ["--cfg-options", "num_classes"]


def option(*words: str) -> Callable[[Attempt], None]:
    def give(a: Attempt) -> None:
        a.options += words

    return give


def labels_of_the_wrong_count(a: Attempt) -> None:
    a.options += ["--labels", a.file("labels.txt", "one\ntwo\n")]


def labels_in_another_order(a: Attempt) -> None:
    state = torch.load(a.checkpoint)
    names = [f"class {number}" for number in range(10)]
    torch.save({**state, "meta": {"dataset_meta": {"classes": names}}}, a.folder / "named.pth")
    a.checkpoint = str(a.folder / "named.pth")
    a.options += ["--labels", a.file("labels.txt", "\n".join(reversed(names)))]


def missing_labels(a: Attempt) -> None:
    a.options += ["--labels", str(a.folder / "nowhere.txt")]


def full_target(a: Attempt) -> None:
    a.around = lambda: file_size_limit(20_000)


def file_as_target(a: Attempt) -> None:
    a.repo = Path(a.file("taken", "a file"))


def file_above_the_target(a: Attempt) -> None:
    a.repo = Path(a.file("taken", "a file")) / "repo"


def foreign_model(a: Attempt) -> None:
    (a.repo / "tiny").mkdir(parents=True)


def contract_of_another_export(a: Attempt) -> None:
    from action_export import publishing, repository, staging
    from action_export.types import Tensors
    from action_runtime.spec import Contract, FixedResize, SampleFrames

    other = Contract(
        sampler=SampleFrames(clip_len=1),
        resize=FixedResize(width=8, height=8),
        crop=None,
        classes=10,
        average="prob",
    )
    names = repository.check_name("tiny")
    plan = repository.plan(a.repo, names, contract=other, tensors=Tensors.of(other, 1))
    with staging.beside(a.repo) as stage:
        repository.write(plan, stage)
        publishing.publish(plan, stage)


def missing_video(a: Attempt) -> None:
    a.videos[1] = str(a.folder / "nowhere.mp4")


def one_video(a: Attempt) -> None:
    del a.videos[1]


def two_copies_of_a_video(a: Attempt) -> None:
    shutil.copy(a.videos[0], a.folder / "copy.mp4")
    a.videos[1] = str(a.folder / "copy.mp4")


def model_that_does_not_run(a: Attempt) -> None:
    a.write_config(model=changed(MODEL_3D, cls_head__in_channels=8))
    state = torch.load(a.checkpoint)
    state["state_dict"]["cls_head.fc_cls.weight"] = torch.zeros(10, 8)
    torch.save(state, a.folder / "narrow.pth")
    a.checkpoint = str(a.folder / "narrow.pth")


def model_that_cannot_be_traced(a: Attempt) -> None:
    """Which way its numbers go depends on their values, and a graph has one way."""
    from mmaction.models import ResNet3dSlowOnly
    from mmaction.registry import MODELS

    @MODELS.register_module(force=True)
    class Undecided(ResNet3dSlowOnly):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(-x if x.sum() > 0 else x)

    a.write_config(model=changed(MODEL_3D, backbone__type="Undecided"))


def plan_without_a_gpu(a: Attempt) -> None:
    """With the package, but on another machine than the one that will serve."""

    @contextmanager
    def around() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "check_tensorrt", lambda *_, **__: None)
            patch.setitem(sys.modules, "cuda.bindings", None)
            patch.setattr(tensorrt, "installed", lambda _: tensorrt_rtx)
            yield

    a.around = around
    a.options += ["--format", "tensorrt"]


FAILURES: list[tuple[Callable[[Attempt], None], type[ActionExportError], str]] = [
    (truncated_checkpoint, CheckpointError, "truncated"),
    (missing_checkpoint, CheckpointError, "there is no checkpoint file"),
    (checkpoint_of_something_else, CheckpointError, "is no torch checkpoint"),
    (checkpoint_with_code, CheckpointError, "--trust-checkpoint"),
    (checkpoint_of_another_model, CheckpointError, "unexpected head.weight"),
    (checkpoint_of_other_classes, CheckpointError, "model.cls_head.num_classes=10"),
    (no_checkpoint, ConfigError, "CONFIG CHECKPOINT"),
    (syntax_error, ConfigError, "SyntaxError"),
    (missing_config, ConfigError, "there is no config file"),
    (unknown_zoo_name, ConfigError, "did you mean tsn_"),
    (no_recognizer, ConfigError, "FastRCNN"),
    (no_model, ConfigError, "not the config of a recognizer"),
    (segments_that_do_not_divide, ConfigError, "--num-clips 3"),
    (bad_option_of_the_config, ConfigError, "key=value"),
    (recognizer_of_skeletons, UnsupportedError, "RecognizerGCN"),
    (unknown_transform, UnsupportedError, "test_pipeline[4] is 'AugMix'"),
    (transform_of_training, UnsupportedError, "test_mode=False"),
    (no_averaging, UnsupportedError, "average_clips=prob"),
    (option("--crops", "three", "--cfg-options", "test_pipeline.4.crop_size=16"),
     UnsupportedError, "crop_size"),
    (option("--triton-version", "latest"), UnsupportedError, "--triton-version 24.10"),
    (option("--triton-version", "22.12"), UnsupportedError, "older than 23.10"),
    (option("--opset", "22"), UnsupportedError, "--opset 21 or lower"),
    (option("--opset", "20", "--triton-version", "23.10"), UnsupportedError, "--opset 19 or lower"),
    (option("--opset", "17"), UnsupportedError, "opset 17"),
    (option("--precision", "int8"), UnsupportedError, "--calibration VIDEO"),
    (option("--calibration", "a.mp4"), UnsupportedError, "--precision int8, not fp32"),
    (option("--format", "tensorrt", "--accelerator", "tensorrt"), UnsupportedError, "one of them"),
    (option("--format", "tensorrt", "--device", "cpu"), UnsupportedError, "runs on a GPU"),
    (option("--accelerator", "tensorrt", "--device", "cpu"), UnsupportedError, "runs on a GPU"),
    (option("--plan-in-container"), UnsupportedError, "add --format tensorrt"),
    (option("--format", "tensorrt", "--plan-in-container", "--proof", "server"),
     UnsupportedError, "leave one of them out"),
    (option("--accelerator", "tensorrt", "--precision", "fp16", "--triton-version", "24.04"),
     UnsupportedError, "--triton-version 24.05 or later"),
    (option("--precision", "int8", "--calibration", "nowhere.mp4"), VideoError, "nowhere.mp4"),
    (option("--format", "tensorrt", "--plan-in-container", "--gpus", "8.6",
            "--hardware-compatible", "ampere_plus"), UnsupportedError, "leave one of them out"),
    (option("--format", "tensorrt", "--gpus", "8.6"), UnsupportedError, "add --plan-in-container"),
    (option("--format", "tensorrt", "--plan-in-container", "--gpus", "ampere"),
     UnsupportedError, "--gpus 8.6 9.0"),
    (option("--timing-cache", "a"), UnsupportedError, "leave it out"),
    (option("--format", "tensorrt", "--plan-in-container", "--timing-cache", "a"),
     UnsupportedError, "leave it out"),
    (option("--format", "tensorrt", "--timing-cache", "nowhere/a"), RepositoryError,
     "a folder that exists"),
    (option("--version-compatible"), UnsupportedError, "properties of a plan"),
    (option("--hardware-compatible", "ampere_plus"), UnsupportedError, "properties of a plan"),
    (option("--workspace", "64"), UnsupportedError, "or --accelerator tensorrt"),
    (option("--builder-level", "2"), UnsupportedError, "or --accelerator tensorrt"),
    (option("--precision", "bf16"), UnsupportedError, "add --format openvino"),
    (option("--format", "tensorrt", "--precision", "bf16"), UnsupportedError, "--format openvino"),
    (option("--format", "openvino", "--precision", "fp16"), UnsupportedError, "--precision bf16"),
    (option("--format", "openvino", "--device", "gpu"), UnsupportedError, "leave out --device"),
    (option("--format", "openvino", "--accelerator", "tensorrt"), UnsupportedError, "one of them"),
    (option("--format", "openvino", "--plan-in-container"), UnsupportedError,
     "--format openvino serves none"),
    (option("--format", "openvino", "--max-batch-size", "2"), UnsupportedError,
     "leave out --max-batch-size"),
    (option("--format", "openvino", "--workspace", "64"), UnsupportedError, "for TensorRT"),
    (option("--format", "tensorrt"), DependencyError, "tensorrt==10.5.0.18.*"),
    (option("--format", "tensorrt", "--triton-version", "29.01"), UnsupportedError,
     "--server-tensorrt VERSION"),
    (option("--server-tensorrt", "11.0.0"), UnsupportedError, "for --format tensorrt"),
    (plan_without_a_gpu, DependencyError, "in the serving image"),
    (option("--name", "a/b"), NameRefusedError, "--name a_b"),
    (option("--name", ".."), NameRefusedError, "--name model"),
    (option("--name", "../up"), NameRefusedError, "--name up"),
    (labels_of_the_wrong_count, LabelsError, "2 labels, the model has 10 classes"),
    (labels_in_another_order, LabelsError, "class 0 is 'class 9', not 'class 0'"),
    (missing_labels, LabelsError, "there is no labels file"),
    (model_that_does_not_run, ConfigError, "mmaction2 cannot run the model"),
    (model_that_cannot_be_traced, TracingError, "torch cannot write"),
    (full_target, RepositoryError, "free space"),
    (file_as_target, RepositoryError, "is a file"),
    (file_above_the_target, RepositoryError, "Not a directory"),
    (foreign_model, RepositoryError, "--name"),
    (contract_of_another_export, ContractChangedError, "--name"),
    (missing_video, VideoError, "nowhere.mp4"),
    (one_video, InconclusiveError, "--videos"),
    (two_copies_of_a_video, InconclusiveError, "alike"),
]  # fmt: skip


def name_of(value: object) -> str:
    return getattr(value, "__name__", "") if callable(value) else ""


@pytest.mark.parametrize(("spoil", "kind", "told"), FAILURES, ids=name_of)
def test_a_failure_is_two_lines_with_the_fix_and_writes_nothing(
    attempt: Attempt,
    capfd: Capture,
    spoil: Callable[[Attempt], None],
    kind: type[ActionExportError],
    told: str,
) -> None:
    spoil(attempt)
    before = tree(attempt.folder)
    with attempt.around():
        code = main(attempt.argv())
    out, err = capfd.readouterr()
    assert code == kind.exit_code
    assert out == ""
    fact, fix = err.splitlines()
    assert fact.startswith("action-export: ")
    assert fix.startswith("  ")
    assert fix.strip()
    assert told in err
    assert tree(attempt.folder) == before


def test_a_read_only_target_is_two_lines_with_the_fix(attempt: Attempt, capfd: Capture) -> None:
    with read_only_folder(attempt.folder / "read_only") as folder:
        if folder is None:
            pytest.skip("root writes everywhere, and mounting is not permitted here")
        attempt.repo = folder / "parent" / "repo"
        code = main(attempt.argv())
        assert not list(folder.iterdir())
    out, err = capfd.readouterr()
    assert (code, out) == (RepositoryError.exit_code, "")
    assert len(err.splitlines()) == 2
    assert str(folder) in err
    assert "--triton-repo" in err


def test_every_kind_of_failure_of_an_export_is_in_the_table() -> None:
    kinds = {kind.__name__ for _, kind, _ in FAILURES}
    elsewhere = {"ParityError", "ServeError", "ModelDiedError", "EngineError"}
    assert kinds | elsewhere == {kind.__name__ for kind in ActionExportError.__subclasses__()}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (truncated_checkpoint, CheckpointError),
        (syntax_error, ConfigError),
        (option("--name", "a/b"), NameRefusedError),
        (file_as_target, RepositoryError),
    ],
    ids=name_of,
)
def test_with_json_a_failure_is_one_object(
    attempt: Attempt,
    capfd: Capture,
    spoil: Callable[[Attempt], None],
    kind: type[ActionExportError],
) -> None:
    spoil(attempt)
    attempt.options = [*attempt.options, "--json"]
    attempt.options.remove("-q")
    before = tree(attempt.folder)
    code = main(attempt.argv())
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert (error["kind"], error["exit_code"]) == (kind.__name__, kind.exit_code)
    assert error["message"]
    assert error["hint"]
    assert code == kind.exit_code
    assert len(err.splitlines()) <= 2
    assert tree(attempt.folder) == before


def test_an_interrupt_is_one_line(
    attempt: Attempt, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("action_export.tracing.optimise", interrupted)
    before = tree(attempt.folder)
    assert main(attempt.argv()) == 130
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "action-export: interrupted; nothing was published\n"
    assert tree(attempt.folder) == before


def test_a_bug_keeps_its_traceback_and_publishes_nothing(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("action_export.tracing.optimise", buggy)
    before = tree(attempt.folder)
    with pytest.raises(ZeroDivisionError):
        main(attempt.argv())
    assert tree(attempt.folder) == before


def test_a_graph_that_differs_is_not_published(
    attempt: Attempt, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is changed between the reference and the trace."""
    traced = api._trace

    def spoil_and_trace(job: Any, model: Any, *rest: Any) -> Any:
        with torch.no_grad():
            model.cls_head.fc_cls.weight *= 1.01
        return traced(job, model, *rest)

    monkeypatch.setattr(api, "_trace", spoil_and_trace)
    before = tree(attempt.folder)
    assert main(attempt.argv()) == 9
    out, err = capfd.readouterr()
    assert out == ""
    assert "graph, batch 1 by" in err
    assert len(err.splitlines()) == 2
    assert tree(attempt.folder) == before


def test_the_list_is_the_zoo_by_family_with_what_each_needs(capfd: Capture) -> None:
    assert main(["--list", "--json"]) == 0
    families = json.loads(capfd.readouterr().out)["families"]
    assert len(families) == 21  # of 22 folders; VideoMAE V2 is built like VideoMAE
    listed = {c["config"]: c for configs in families.values() for c in configs}
    needs = {name: config["needs"] for name, config in listed.items()}
    assert len(needs) == 125
    assert needs["tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb"] == []
    assert needs["slowonly_r50_8xb16-16x4x1-256e_kinetics400-flow"] == [
        "frames of optical flow, 2 channels"
    ]
    swin = "tsn_imagenet-pretrained-swin-transformer_8xb32-1x1x3-100e_kinetics400-rgb"
    assert needs[swin] == ["timm"]
    refused = {name: config["refused"] for name, config in listed.items() if config["refused"]}
    assert len(refused) == 3
    assert all("test_pipeline" in reason for reason in refused.values())
    for name, options in zoo_packages.CONFIGS.items():
        assert {f"--cfg-options {option}" for option in options} < set(needs[name])
    assert main(["--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if line in families] == sorted(families)
    assert f"  {swin}" in {line.partition("  needs")[0].rstrip() for line in lines}
    assert "needs timm" in next(line for line in lines if swin in line)
    for name, reason in refused.items():
        assert reason in next(line for line in lines if name in line)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--triton-repo"],
        ["--triton-repo", "r", "--num-clips", "0"],
        ["--triton-repo", "r", "--num-clips", "many"],
        ["--triton-repo", "r", "--max-batch-size", "-1"],
        ["--triton-repo", "r", "--model-version", "0"],
        ["--triton-repo", "r", "--crops", "five"],
        ["--triton-repo", "r", "--device", "tpu"],
        ["--triton-repo", "r", "--no-such-option"],
    ],
)
def test_a_wrong_option_is_argparses_own(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["config.py", "weights.pth", *options])
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "usage: action-export" in err
    assert not list(tmp_path.iterdir())


# --- Success ------------------------------------------------------------------------------------


@contextmanager
def no_bytes_written(folder: Path) -> Iterator[None]:
    before = tree(folder)
    yield
    assert tree(folder) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tiny: Tiny, tmp_path: Path, capfd: Capture
) -> None:
    repo = tmp_path / "parent" / "repo"
    with no_bytes_written(tmp_path):
        assert main(proved(tiny, repo, "--dry-run")) == 0
    out, err = capfd.readouterr()
    assert f"would publish tiny version 1 in {repo}" in out
    for line in ("tiny_recognizer/1/model.onnx", "frames UINT8 [-1, -1, -1, 3]", "nothing was"):
        assert line in out
    assert [line.split("  ")[0] for line in err.splitlines()] == [
        "read config",
        "load checkpoint",
        "plan",
    ]


def test_a_quiet_dry_run_shows_no_progress(tiny: Tiny, tmp_path: Path, capfd: Capture) -> None:
    assert main(proved(tiny, tmp_path / "repo", "--dry-run", "-q")) == 0
    out, err = capfd.readouterr()
    assert "would publish" in out
    assert err == ""


def test_a_dry_run_with_json_is_one_object(tiny: Tiny, tmp_path: Path, capfd: Capture) -> None:
    with no_bytes_written(tmp_path):
        assert main(proved(tiny, tmp_path / "repo", "--dry-run", "--json")) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert (result["dry_run"], result["version"], result["checks"]) == (True, 1, [])
    assert "tiny/1/manifest.json" in result["files"]
    assert err == ""


def test_views_of_one_s_own_are_noted(tiny: Tiny, tmp_path: Path, capfd: Capture) -> None:
    options = ["--dry-run", "-q", "--num-clips", "1", "--crops", "center"]
    assert main(proved(tiny, tmp_path / "repo", *options)) == 0
    out, _ = capfd.readouterr()
    assert "note: serves 1 clips with center crop, the config tests 2 with three" in out


def test_two_exports_are_two_versions_and_the_manifest_repeats_them(
    tiny: Tiny, labels: Path, tmp_path: Path, capfd: Capture
) -> None:
    repo = tmp_path / "repo"
    argv = proved(tiny, repo, "--name", "gestures", "--labels", str(labels))

    assert main([*argv, "-v"]) == 0
    out, err = capfd.readouterr()
    assert "graph, batch 1: off by" in out
    assert f"wrote {repo / 'gestures/config.pbtxt'}" in out
    for step in ("read config", "trace graph", "prove graph", "publish"):
        assert step in out
        assert step in err
    assert f"gestures version 1 is published in {repo}" in out
    assert f"action-serve {repo}" in out
    assert "action-client VIDEO --model gestures" in out

    assert main([*argv, "--json", "--settle", "0"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    result = json.loads(out)
    assert (result["error"], result["name"], result["version"]) == (None, "gestures", 2)
    assert result["contract"]["labels"] == labels.read_text().split("\n")[:-1]
    checks = {check["name"]: check for check in result["checks"]}
    assert {"sampled frames", "pixels", "graph, batch 1", "graph, batch 2"} <= checks.keys()
    assert all(check["error"] <= check["bound"] for check in checks.values())
    for file in result["files"]:
        assert (repo / file).is_file()

    manifest = json.loads((repo / "gestures" / "2" / "manifest.json").read_text())
    assert manifest["command"].split() == ["action-export", *repeated(tiny, labels, repo)]
    assert manifest["contract"]["provenance"]["config"] == "tiny"
    assert [video["file"] for video in manifest["proof"]["videos"]] == [v.name for v in VIDEOS]
    assert manifest["proof"]["checks"] == result["checks"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


def repeated(tiny: Tiny, labels: Path, repo: Path) -> list[str]:
    return [
        *(str(tiny.config_file), str(tiny.checkpoint)),
        *("--triton-repo", str(repo)),
        *("--name", "gestures", "--labels", str(labels)),
        *("--triton-version", "24.10", "--opset", "18", "--settle", "0", "--proof", "graph"),
        *("--videos", *map(str, VIDEOS)),
    ]


# --- What is imported, and when -----------------------------------------------------------------

EXTRAS = (
    *("torch", "mmaction", "mmengine", "mmcv", "cv2", "decord"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "jinja2", "rich", "pytriton"),
)
"""By import name, what comes with the extras only."""

COMMAND = [sys.executable, "-m", "action_export.cli.export"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_answers_in_under_half_a_second() -> None:
    """Seconds of the processor, the median of five: other programs do not count."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(5):
        before = spent()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
        seconds.append(spent() - before)
    assert "--triton-repo" in done.stdout
    assert statistics.median(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    done = run_python(
        "import contextlib, io, sys\n"
        "from action_export.cli.export import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['--help'])\n"
        "print(*sys.modules)\n"
    )
    imported = set(done.stdout.split())
    assert "action_export.cli.export" in imported
    assert not imported & {*EXTRAS, "tritonclient", "google.protobuf"}


WITHOUT_EXTRAS = """
import sys

class Without:
    '''A finder that does not find what only an extra installs.'''

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {extras!r}:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

IMPORT_ALL = """
import importlib, pkgutil, action_export

for module in pkgutil.walk_packages(action_export.__path__, "action_export."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_every_module_is_imported_without_the_extras() -> None:
    imported = run_python(WITHOUT_EXTRAS.format(extras=EXTRAS) + IMPORT_ALL).stdout.split()
    for name in ("api", "live", "parity", "source", "families.trn", "cli.export"):
        assert f"action_export.{name}" in imported


def test_without_the_extras_the_pip_line_is_the_fix(tmp_path: Path) -> None:
    code = (
        WITHOUT_EXTRAS.format(extras=EXTRAS) + "from action_export.cli.export import main\n"
        f"sys.exit(main(['--triton-repo', {str(tmp_path / 'repo')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 13
    assert done.stdout == ""
    fact, fix = done.stderr.splitlines()
    assert "torch is not installed" in fact
    assert 'pip install "action-export[export]"' in fix
    assert not list(tmp_path.iterdir())
