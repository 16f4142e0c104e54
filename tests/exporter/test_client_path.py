"""From the file to the clips, a client does what mmaction2 does, or nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_export import api, client_path
from action_export.client_path import verify_client_path
from action_export.errors import ParityError, VideoError
from action_export.reference import Reference, run_mmaction
from action_export.types import ExportRequest
from action_runtime import decoders, sampled, sampling, video, wire
from action_runtime.limits import DEFAULT
from support.encode import Encoding, encode, moving_shapes
from support.tiny import (
    MODEL_2D,
    MODEL_FLOW_2D,
    PIPELINE_2D,
    PIPELINE_FLOW_2D,
    VIDEOS,
    Tiny,
    make,
    references,
    with_step,
)
from support.videos import decode

BT709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
GOPS = {"g": "12", "bf": "3"}
INIT, SAMPLE, DECODE = range(3)


def pipeline_of(decoder: str) -> list[dict[str, Any]]:
    pipeline = with_step(PIPELINE_2D, INIT, type=f"{decoder}Init")
    return with_step(pipeline, DECODE, type=f"{decoder}Decode")


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tiny]:
    folder = tmp_path_factory.mktemp("tinies")
    return {
        name: make(folder, MODEL_2D, pipeline_of(name), name=name)
        for name in ("Decord", "PyAV", "OpenCV")
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Those on which the decoders differ, of pictures that a recognizer tells apart."""
    folder = tmp_path_factory.mktemp("files")
    real, drawn = decode(VIDEOS[0], 40), moving_shapes(40, 72, 96)
    turned = np.ascontiguousarray(np.rot90(real, 1, (1, 2)))
    made = {
        "phone.mp4": (turned, Encoding(rotation=270)),
        "bt709.mp4": (drawn, Encoding(color=BT709, options=GOPS)),
        "interlaced.mp4": (drawn, Encoding(options={"x264-params": "interlaced=1"})),
        "odd.mp4": (moving_shapes(40, 73, 97), Encoding(pix_fmt="yuv444p")),
        "variable.mp4": (
            drawn,
            Encoding(options=GOPS, rate=100, ticks=[i + i * i // 9 for i in range(40)]),
        ),
    }
    return {name: encode(folder / name, *how) for name, how in made.items()}


def of_files(tiny: Tiny, files: Mapping[str, Path], *names: str) -> tuple[Reference, ...]:
    return tuple(
        run_mmaction(tiny.model, tiny.preprocessing, files[name]) for name in names or files
    )


@pytest.fixture(scope="module")
def by_decord(tinies: Mapping[str, Tiny]) -> tuple[Reference, ...]:
    return references(tinies["Decord"])


def failed(tiny: Tiny, rows: tuple[Reference, ...], **changes: Any) -> set[str]:
    checks = verify_client_path(rows, replace(tiny.contract, **changes)).checks
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("decoder", ["Decord", "PyAV", "OpenCV"])
def test_the_client_equals_mmaction2_to_the_byte_whatever_decodes(
    decoder: str, tinies: Mapping[str, Tiny], files: Mapping[str, Path]
) -> None:
    tiny = tinies[decoder]
    path = verify_client_path(of_files(tiny, files), tiny.contract)
    assert {check.name: check.error for check in path.checks} == {
        "client's sampled frames": 0,
        "client's decoded frames": 0,
        "client's clips": 0,
    }
    assert {check.bound for check in path.checks} == {0}
    assert not path.rounded
    assert not path.notes


def test_a_config_of_frame_files_is_held_to_what_the_client_decodes(
    files: Mapping[str, Path], tmp_path: Path
) -> None:
    pipeline = [PIPELINE_2D[SAMPLE], dict(type="RawFrameDecode"), *PIPELINE_2D[DECODE + 1 :]]
    tiny = make(tmp_path, MODEL_2D, pipeline)
    assert not failed(tiny, of_files(tiny, files, "phone.mp4", "interlaced.mp4"))


@pytest.mark.parametrize(
    ("config", "followed", "name"),
    [
        ("PyAV", "decord", "phone.mp4"),
        ("PyAV", "opencv", "bt709.mp4"),
        ("OpenCV", "decord", "bt709.mp4"),
        ("OpenCV", "pyav", "variable.mp4"),
        ("Decord", "pyav", "interlaced.mp4"),
    ],
)
def test_another_decoder_than_the_configs_is_found(
    config: str, followed: str, name: str, tinies: Mapping[str, Tiny], files: Mapping[str, Path]
) -> None:
    tiny = tinies[config]
    rows = of_files(tiny, files, name)
    assert not failed(tiny, rows)
    assert "client's decoded frames" in failed(tiny, rows, decoder=followed)


def test_a_sampling_that_is_off_by_one_is_found(
    tinies: Mapping[str, Tiny], by_decord: tuple[Reference, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda *given: np.maximum(right(*given) - 1, 0))
    assert "client's sampled frames" in failed(tinies["Decord"], by_decord)


def test_a_shrinking_that_is_off_by_one_grey_level_is_found(
    tinies: Mapping[str, Tiny], by_decord: tuple[Reference, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = wire.shrink

    def wrong(frames: Any, resize: Any) -> Any:
        small = right(frames, resize)
        return small if small is frames else small ^ 1

    monkeypatch.setattr(wire, "shrink", wrong)
    assert failed(tinies["Decord"], by_decord) == {"client's clips"}


def test_what_decords_ffmpeg_rounds_otherwise_is_held_to_the_scores(
    tinies: Mapping[str, Tiny], tmp_path: Path
) -> None:
    clip = encode(tmp_path / "old.avi", moving_shapes(40), Encoding(codec="mpeg4"))
    rows = of_files(tinies["Decord"], {"old.avi": clip})
    path = verify_client_path(rows, tinies["Decord"].contract)
    assert [check.name for check in path.checks] == [
        "client's sampled frames",
        "client's rounded frames, mean",
    ]
    assert all(check.passed for check in path.checks)
    assert "old.avi are not decord's to the byte" in path.notes[0]
    ((clips, reference),) = path.rounded
    assert clips.shape == reference.clips.shape
    assert np.abs(clips.astype(int) - reference.clips).max() <= 2
    other = moving_shapes(40, seed=3)
    wrong = replace(rows[0], frames=other[rows[0].sampled])
    assert failed(tinies["Decord"], (wrong,)) == {"client's rounded frames, mean"}


def test_a_video_that_the_client_refuses_proves_nothing(
    tinies: Mapping[str, Tiny], by_decord: tuple[Reference, ...], tmp_path: Path
) -> None:
    clip = encode(tmp_path / "uncounted.mkv", moving_shapes(40))
    row = replace(by_decord[0], video=clip)
    with pytest.raises(VideoError, match="does not announce how many frames"):
        verify_client_path((row,), tinies["PyAV"].contract)


@pytest.fixture
def default_limits() -> Iterator[Callable[..., None]]:
    """Sets what every client has unless it is told otherwise."""
    before = {name: getattr(DEFAULT, name) for name in ("memory", "frames")}

    def give(**values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(DEFAULT, name, value)

    yield give
    give(**before)


def test_frames_of_full_size_may_take_more_memory_than_a_client_sends(
    tinies: Mapping[str, Tiny],
    by_decord: tuple[Reference, ...],
    tmp_path: Path,
    default_limits: Callable[..., None],
) -> None:
    """As of a long clip in 4K, which mmaction2 has decoded and a client shrinks frame by frame."""
    files = [PIPELINE_2D[SAMPLE], dict(type="RawFrameDecode"), *PIPELINE_2D[DECODE + 1 :]]
    extracted = make(tmp_path, MODEL_2D, files)
    sent = 3 * 36 * 128 * 3
    assert sent < min(row.frames.nbytes for row in by_decord)
    default_limits(memory=sent)
    assert not failed(tinies["Decord"], by_decord)
    assert not failed(extracted, references(extracted))


def test_a_limit_of_clients_is_told_with_what_an_export_can_do(
    tinies: Mapping[str, Tiny],
    by_decord: tuple[Reference, ...],
    default_limits: Callable[..., None],
) -> None:
    default_limits(frames=10)
    with pytest.raises(VideoError, match="frames or more, and 10 are allowed") as caught:
        verify_client_path(by_decord, tinies["Decord"].contract)
    assert caught.value.hint.startswith("name other videos (--videos")
    assert "of a client: to allow more" in caught.value.hint


def test_optical_flow_is_in_no_file(tmp_path: Path) -> None:
    tiny = make(tmp_path, MODEL_FLOW_2D, PIPELINE_FLOW_2D, modality="Flow")
    assert verify_client_path((), tiny.contract).checks == ()


def test_the_hint_tells_of_decords_own_errors_only_where_it_decodes(
    tinies: Mapping[str, Tiny],
) -> None:
    assert "open GOPs" in client_path.hint(tinies["Decord"].contract)
    assert "decord" not in client_path.hint(tinies["PyAV"].contract)


# --- Whole exports ------------------------------------------------------------------------------


def request(tiny: Tiny, repo: Path, videos: tuple[Path, ...]) -> ExportRequest:
    return ExportRequest(
        triton_repo=repo,
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        name="tiny",
        videos=videos,
        proof="graph",
    )


def test_an_export_is_proved_through_the_clients_path_and_names_its_decoder(
    tinies: Mapping[str, Tiny], files: Mapping[str, Path], tmp_path: Path
) -> None:
    videos = (files["phone.mp4"], VIDEOS[1])
    result = api.export(request(tinies["PyAV"], tmp_path / "repo", videos))
    assert result.contract.decoder == "pyav"
    assert {"client's decoded frames", "client's clips"} <= {check.name for check in result.checks}


def test_an_export_on_what_is_rounded_otherwise_measures_and_notes_it(
    tinies: Mapping[str, Tiny], tmp_path: Path
) -> None:
    clip = encode(tmp_path / "old.avi", moving_shapes(40), Encoding(codec="mpeg4"))
    result = api.export(request(tinies["Decord"], tmp_path / "repo", (clip, VIDEOS[1])))
    checks = {check.name: check for check in result.checks}
    measured = checks["client's rounded frames, graph"]
    assert measured.detail == "1 videos"
    assert measured.error < measured.bound < 0.03
    assert checks["client's clips"].error == 0
    assert any("old.avi are not decord's to the byte" in note for note in result.notes)


def test_a_client_that_turns_frames_upright_for_pyav_publishes_nothing(
    tinies: Mapping[str, Tiny],
    files: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoders, "_read_pyav", lambda file, *how: video.read_source(file, *how))
    videos = (files["phone.mp4"], VIDEOS[1])
    with pytest.raises(ParityError, match="client's decoded frames") as caught:
        api.export(request(tinies["PyAV"], tmp_path / "repo", videos))
    assert "nothing was published" in caught.value.hint
    assert not (tmp_path / "repo" / "tiny").exists()


def test_the_client_and_the_proof_sample_by_one_function() -> None:
    from action_client import _request

    assert _request.sampled is client_path.sampled is sampled
