"""Wrong paths, told before anything heavy is imported; and what is given in place of a file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import onnx
import pytest
import torch
from action_export import inputs
from action_export.checkpoint import load_checkpoint
from action_export.errors import (
    ActionExportError,
    CheckpointError,
    ConfigError,
    LabelsError,
    RepositoryError,
    VideoError,
)
from action_export.types import ExportRequest
from support.disk import open_folder, without_privileges
from support.refusal import refusal

EARLY = """
import json, sys
from action_export.cli.export import main
codes = [main(["-q", "--triton-repo", "repo", *argv]) for argv in json.loads(sys.argv[1])]
heavy = {"torch", "mmengine", "mmaction", "onnx", "onnxruntime", "av"} & sys.modules.keys()
print(json.dumps([codes, sorted(heavy)]))
"""


def test_wrong_paths_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    for name in ("c.py", "a.mp4"):
        (tmp_path / name).write_text("x = 1\n")
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    attempts = {
        ("c.py", "nowhere.pth"): CheckpointError,
        ("nowhere.py", "w.pth"): ConfigError,
        ("c.py", "c.py"): CheckpointError,
        ("w.pth", "c.py"): ConfigError,
        ("c.py", "w.pth", "--labels", "nowhere.txt"): LabelsError,
        ("c.py", "w.pth", "--videos", "a.mp4", "nowhere.mp4"): VideoError,
        ("c.py", "w.pth", "--precision", "int8", "--calibration", "nowhere.mp4"): VideoError,
        ("--videos", "nowhere.mp4"): VideoError,
        ("c.py", "w.pth", "--triton-repo", "s3://bucket/repo"): RepositoryError,
    }
    run = subprocess.run(
        [sys.executable, "-c", EARLY, json.dumps(list(attempts))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes, heavy = json.loads(run.stdout)
    assert codes == [error.exit_code for error in attempts.values()]
    assert heavy == []


def request(folder: Path, **paths: object) -> ExportRequest:
    """Of files that exist, but for `paths`."""
    (folder / "c.py").write_text("")
    torch.save({"w": torch.zeros(1)}, folder / "w.pth")
    given: dict[str, object] = dict(
        triton_repo=folder / "repo", config=str(folder / "c.py"), checkpoint=folder / "w.pth"
    )
    return ExportRequest(**{**given, **paths})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket/a/repo", "aws s3 sync ./repo s3://bucket/a/repo"),
        ("gs://bucket/repo", "gcloud storage rsync -r ./repo gs://bucket/repo"),
        ("http://host:80/repo", "copy that folder to http://host:80/repo"),
        ("hdfs://host/repo", "copy that folder to hdfs://host/repo"),
        ("file:///mnt/repo", "--triton-repo /mnt/repo"),
    ],
)
def test_a_repository_at_a_url_is_refused_with_the_way_there(
    tmp_path: Path, url: str, told: str
) -> None:
    error = refusal(RepositoryError, lambda: inputs.check(request(tmp_path, triton_repo=Path(url))))
    assert url in error.message
    assert told in error.hint


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("config", ConfigError),
        ("checkpoint", CheckpointError),
        ("labels", LabelsError),
        ("videos", VideoError),
        ("calibration", VideoError),
    ],
)
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket/x", "aws s3 cp s3://bucket/x ."),
        ("https://host/x?y=1", "curl -LO https://host/x?y=1"),
        ("rtsp://host/x", "rtsp://host/x"),
        ("file:///mnt/x", "give the path itself: /mnt/x"),
    ],
)
def test_a_file_at_a_url_is_refused_with_how_to_fetch_it(
    tmp_path: Path, given: str, kind: type[ActionExportError], url: str, told: str
) -> None:
    value: object = url if given == "config" else Path(url)
    value = (value,) if given in ("videos", "calibration") else value
    error = refusal(kind, lambda: inputs.check(request(tmp_path, **{given: value})))
    assert url in error.message
    assert told in error.hint


@pytest.mark.parametrize("name", ["2024-05-01T12:30.mp4", "a:b/c.mp4", "s3:/b.mp4", "x: y.mp4"])
def test_a_name_with_a_colon_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(b"")
    inputs.check(request(tmp_path, videos=(Path(name),)))


@pytest.mark.parametrize(
    ("given", "kind"), [("labels", LabelsError), ("videos", VideoError), ("config", ConfigError)]
)
def test_a_folder_in_place_of_a_file_is_called_that(
    tmp_path: Path, given: str, kind: type[ActionExportError]
) -> None:
    value = {"videos": (tmp_path,), "config": str(tmp_path)}.get(given, tmp_path)
    error = refusal(kind, lambda: inputs.check(request(tmp_path, **{given: value})))
    assert f"{tmp_path} is a folder" in error.message


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    error = refusal(
        VideoError, lambda: inputs.check(request(tmp_path, videos=(tmp_path / "pipe",)))
    )
    assert "is a pipe or a device" in error.message


def test_labels_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As a shell's <(...) gives them."""
    os.mkfifo(tmp_path / "pipe")
    inputs.check(request(tmp_path, labels=tmp_path / "pipe"))


def test_a_folder_that_is_closed_is_no_missing_file(tmp_path: Path) -> None:
    with open_folder() as folder:
        (folder / "closed").mkdir(mode=0)
        with without_privileges():
            error = refusal(
                CheckpointError, lambda: inputs.check_checkpoint(folder / "closed" / "w.pth")
            )
    assert "Permission denied" in error.message


def test_config_and_checkpoint_that_are_swapped_are_told_in_their_order(tmp_path: Path) -> None:
    config, checkpoint = tmp_path / "c.py", tmp_path / "w.pth"
    swapped = request(tmp_path, config=str(checkpoint), checkpoint=config)
    error = refusal(ConfigError, lambda: inputs.check(swapped))
    assert "they are swapped" in error.message
    assert f"action-export {config} {checkpoint} " in error.hint


def test_a_checkpoint_in_place_of_the_config_is_called_that(tmp_path: Path) -> None:
    twice = request(tmp_path, config=str(tmp_path / "w.pth"))
    error = refusal(ConfigError, lambda: inputs.check(twice))
    assert "w.pth is a checkpoint, where the config is expected" in error.message


# --- What is no checkpoint ----------------------------------------------------------------------


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("epoch_1.pth"))
    return file.getvalue()


def _onnx() -> bytes:
    graph = onnx.helper.make_graph([], "g", [], [])
    return bytes(onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString())


SAFETENSORS = b"\x40\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    ("name", "content", "fact", "told"),
    [
        ("c.py", b"model = dict()", "is a config", "CONFIG CHECKPOINT"),
        ("last_checkpoint", b"runs/epoch_3.pth", "names the checkpoint", "runs/epoch_3.pth"),
        ("latest", b"runs/epoch_3.pth\n", "names the checkpoint", "runs/epoch_3.pth"),
        ("w.tar", _tar(), "is a tar archive", "tar xf"),
        ("w.pth.gz", b"\x1f\x8b\x08\0", "is compressed", "unpack"),
        ("w.onnx", _onnx(), "is an ONNX graph", ".pth"),
        ("renamed.pth", _onnx(), "is an ONNX graph", ".pth"),
        ("w.safetensors", SAFETENSORS, "is a safetensors file", "torch.save"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
        ("w.pth", b"<!DOCTYPE html>\n<html>", "is a web page", "download"),
        (
            "w.pkl",
            b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}\x94.",
            "torch.save did not write",
            "torch.save",
        ),
        ("w.pth", b"notes", "neither a zip archive nor a pickle", "copy it again"),
    ],
)
def test_what_is_given_in_place_of_a_checkpoint_is_called_by_its_name(
    tmp_path: Path, name: str, content: bytes, fact: str, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path / name))
    assert str(tmp_path / name) in error.message
    assert fact in error.message
    assert told in error.hint


def test_a_work_dir_in_place_of_a_checkpoint_gets_its_newest_checkpoints(tmp_path: Path) -> None:
    for age, name in enumerate(["best_acc.pth", "epoch_3.pth", "epoch_2.pth", "epoch_1.pth"]):
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path))
    assert "is a folder" in error.message
    names = [f"{tmp_path}/{name}" for name in ("best_acc.pth", "epoch_3.pth", "epoch_2.pth")]
    assert error.hint == f"did you mean {' or '.join(names)}?"


def test_a_folder_without_checkpoints_is_a_folder(tmp_path: Path) -> None:
    error = refusal(CheckpointError, lambda: load_checkpoint(tmp_path))
    assert "is a folder" in error.message
    assert ".pth" in error.hint
