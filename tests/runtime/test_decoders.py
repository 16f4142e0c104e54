"""Frames as mmaction2's own PyAVDecode and OpenCVDecode get them, to the byte."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from action_export.mmaction_compat import import_mmaction, quiet
from action_runtime import decoders, opencv_reader
from action_runtime.sampling import Plan, distinct
from action_runtime.spec import Decoder
from action_runtime.transforms import OpenCVMissingError
from action_runtime.video import VideoError, VideoInfo
from support.encode import Encoding, encode, moving_shapes
from support.videos import real_videos

GOPS = {"g": "12", "bf": "3"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
BT709 = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
VARIABLE = Encoding(options=GOPS, rate=100, ticks=[i + i * i // 9 for i in range(60)])

FILES: dict[str, tuple[tuple[int, int], Encoding]] = {
    "plain.mp4": ((72, 96), Encoding()),
    "b-frames.mp4": ((72, 96), Encoding(options=GOPS)),
    "open-gop.mp4": ((72, 96), Encoding(options=OPEN_GOP)),
    "turned-90.mp4": ((72, 96), Encoding(rotation=90)),
    "turned-180.mp4": ((72, 96), Encoding(rotation=180)),
    "turned-270.mp4": ((72, 96), Encoding(rotation=-90)),
    "bt709.mp4": ((72, 96), Encoding(color=BT709)),
    "full-range.mp4": ((72, 96), Encoding(pix_fmt="yuvj420p")),
    "interlaced.mp4": ((72, 96), Encoding(options={"x264-params": "interlaced=1"})),
    "odd.mp4": ((73, 97), Encoding(pix_fmt="yuv444p")),
    "gray.mp4": ((72, 96), Encoding(pix_fmt="gray")),
    "variable.mp4": ((72, 96), VARIABLE),
    "mpeg4.avi": ((72, 96), Encoding(codec="mpeg4", options={"bf": "2", "g": "12"})),
}
ONLY_OPENCV: dict[str, tuple[tuple[int, int], Encoding]] = {
    "matroska.mkv": ((72, 96), Encoding(options=GOPS)),
    "odd.webm": ((73, 97), Encoding(codec="libvpx-vp9", options={"g": "12"})),
    "stream.ts": ((72, 96), Encoding(options=GOPS)),
}
INDICES: dict[str, Callable[[int], Any]] = {
    "two clips, unordered": lambda total: [[5, 9, 13, 17], [30, 31, 32, 33], [2, 9, 2, 20]],
    "from the end": lambda total: [[total - 1, total - 2, 0, total - 1]],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each file once: two encodings of the same frames may differ."""
    folder = tmp_path_factory.mktemp("files")

    def file(name: str) -> Path:
        path = folder / name
        size, how = (FILES | ONLY_OPENCV)[name]
        return path if path.exists() else encode(path, moving_shapes(60, *size), how)

    return file


def mmactions(decoder: Decoder, path: Path, choose: Callable[[int], Any]) -> tuple[int, list[Any]]:
    """(total_frames, imgs) of mmaction2's own transforms."""
    import_mmaction()
    from mmaction.registry import TRANSFORMS

    name = {"decord": "Decord", "pyav": "PyAV", "opencv": "OpenCV"}[decoder]
    with quiet():
        results = TRANSFORMS.build(dict(type=f"{name}Init"))({"filename": str(path)})
        results["frame_inds"] = np.ravel(choose(results["total_frames"]))
        results = TRANSFORMS.build(dict(type=f"{name}Decode"))(results)
    return results["total_frames"], results["imgs"]


def ours(decoder: Decoder, path: Path, choose: Callable[[int], Any]) -> tuple[int, np.ndarray]:
    totals = []

    def plan(info: VideoInfo) -> Plan:
        totals.append(info.total_frames)
        numbers, index = distinct(np.ravel(choose(info.total_frames)))
        return Plan(frame_numbers=numbers, frame_index=index)

    chosen, frames = decoders.read_frames(path, decoder, plan)
    return totals[-1], frames[chosen.frame_index]


def check_equal(decoder: Decoder, path: Path) -> None:
    for choose in INDICES.values():
        total, expected = mmactions(decoder, path, choose)
        counted, found = ours(decoder, path, choose)
        assert counted == total
        np.testing.assert_array_equal(found, np.stack(expected))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_frames_equal_mmaction2s(decoder: Decoder, name: str, made: Callable[[str], Path]) -> None:
    check_equal(decoder, made(name))


@pytest.mark.parametrize("name", ONLY_OPENCV)
def test_files_without_a_count_equal_mmaction2s(name: str, made: Callable[[str], Path]) -> None:
    check_equal("opencv", made(name))


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_real_videos_equal_mmaction2s(decoder: Decoder) -> None:
    check_equal(decoder, real_videos()[2])


def test_the_decoders_differ_where_they_are_known_to(made: Callable[[str], Path]) -> None:
    """Or the tests above would tell nothing."""
    turned, marked = made("turned-90.mp4"), made("bt709.mp4")
    last = INDICES["from the end"]
    assert ours("decord", turned, last)[1].shape[1:3] == (96, 72)
    assert ours("pyav", turned, last)[1].shape[1:3] == (72, 96)
    assert (
        np.abs(ours("opencv", marked, last)[1].astype(int) - ours("pyav", marked, last)[1]).max()
        > 8
    )


# --- PyAV's count, and what it makes of frames that are not there --------------------------------


@pytest.fixture
def trimmed(tmp_path: Path) -> Path:
    """It announces 60 frames, of which an edit list hides the first five."""
    whole = encode(tmp_path / "whole.mp4", moving_shapes(60), Encoding(options=GOPS))
    with av.open(str(whole)) as given, av.open(str(tmp_path / "trimmed.mp4"), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.pts -= 5 * 512
                packet.dts -= 5 * 512
                packet.stream = stream
                out.mux(packet)
    return tmp_path / "trimmed.mp4"


def test_pyav_goes_round_where_frames_are_announced_and_not_there(trimmed: Path) -> None:
    check_equal("pyav", trimmed)
    total, found = ours("pyav", trimmed, lambda total: [0, 58])
    assert total == 60
    np.testing.assert_array_equal(found[1], ours("pyav", trimmed, lambda total: [3])[1][0])


def test_a_container_that_announces_no_length_is_refused(made: Callable[[str], Path]) -> None:
    with pytest.raises(VideoError, match="does not announce how many frames") as caught:
        ours("pyav", made("matroska.mkv"), lambda total: [0])
    assert "OUT.mp4" in caught.value.hint


# --- OpenCV --------------------------------------------------------------------------------------


@pytest.fixture
def seeks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    original = opencv_reader._Visits._seek

    def seek(self: Any, number: int) -> None:
        found.append(number)
        original(self, number)

    monkeypatch.setattr(opencv_reader._Visits, "_seek", seek)
    return found


@pytest.mark.parametrize(
    ("name", "seeking"), [("b-frames.mp4", False), ("variable.mp4", True), ("stream.ts", True)]
)
def test_opencv_seeks_only_where_the_times_do_not_tell_the_frames(
    name: str, seeking: bool, made: Callable[[str], Path], seeks: list[int]
) -> None:
    ours("opencv", made(name), lambda total: range(3, 50, 7))
    assert bool(seeks) == seeking


def test_a_seek_of_opencv_finds_another_frame_where_the_rate_varies(
    made: Callable[[str], Path],
) -> None:
    """What mmaction2 is trained on there is not the frame of that number."""
    asked = list(range(3, 50, 7))
    _, sought = ours("opencv", made("variable.mp4"), lambda total: asked)
    _, numbered = ours("pyav", made("variable.mp4"), lambda total: asked)
    assert not np.array_equal(sought, numbered)


def test_frames_that_opencv_counts_and_does_not_give_are_an_error(tmp_path: Path) -> None:
    path = encode(tmp_path / "slow.mkv", moving_shapes(60), VARIABLE)
    with pytest.raises(VideoError, match="and gives none from") as caught:
        ours("opencv", path, lambda total: [0, total - 40])
    assert "constant frame rate" in caught.value.hint


def test_ten_bits_are_refused_because_opencv_does_not_give_the_same_twice(tmp_path: Path) -> None:
    path = encode(tmp_path / "ten.mp4", moving_shapes(5), Encoding(pix_fmt="yuv420p10le"))
    with pytest.raises(VideoError, match="10 bits a sample"):
        ours("opencv", path, lambda total: [0])


def test_names_with_a_colon_are_opened_as_files(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "2024-05-01T12:30.mp4").write_bytes(made("plain.mp4").read_bytes())
    assert ours("opencv", tmp_path / "2024-05-01T12:30.mp4", lambda total: [7])[0] == 60


def test_no_opencv_is_an_error_that_says_what_to_install(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OpenCVMissingError, match="pip install opencv"):
        ours("opencv", made("plain.mp4"), lambda total: [0])
    assert ours("pyav", made("plain.mp4"), lambda total: [0])[0] == 60


def test_what_pyav_refuses_never_reaches_opencv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("opened"))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/part.ts\n")
    with pytest.raises(VideoError):
        ours("opencv", tmp_path / "list.m3u8", lambda total: [0])


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_damage_of_a_needed_frame_is_an_error_whatever_decodes(
    decoder: Decoder, tmp_path: Path
) -> None:
    """OpenCV itself says nothing of it."""
    how = Encoding(options=GOPS, container={"movflags": "faststart"})
    content = bytearray(encode(tmp_path / "w.mp4", moving_shapes(60, 144, 192), how).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(600)
    (tmp_path / "damaged.mp4").write_bytes(content)
    assert ours(decoder, tmp_path / "damaged.mp4", lambda total: [0, 5])[0] == 60
    with pytest.raises(VideoError, match="is damaged"):
        ours(decoder, tmp_path / "damaged.mp4", lambda total: range(total))
