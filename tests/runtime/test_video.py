"""The frames of a file equal decord's, which mmaction2 reads; where decord errs, the file's own."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from action_runtime import decoding, video
from action_runtime.sampling import Plan
from action_runtime.video import VideoError
from support.encode import Encoding, encode, moving_shapes, remux
from support.videos import real_videos

OPEN_GOP = "open-gop=1:keyint=24:min-keyint=24:bframes=3:b-adapt=0:scenecut=0"
CLOSED_GOPS = {"g": "24", "bf": "3"}


def take(numbers: Callable[[int], Sequence[int]]) -> Callable[[video.VideoInfo], Plan]:
    """A plan of these frame numbers, given the length."""

    def choose(info: video.VideoInfo) -> Plan:
        chosen = np.array(sorted(set(numbers(info.total_frames))), np.int32)
        return Plan(frame_numbers=chosen, frame_index=np.arange(len(chosen), dtype=np.int32))

    return choose


def read(path: Path, numbers: Callable[[int], Sequence[int]] = range) -> np.ndarray:
    return video.read_frames(path, take(numbers))[1]


def info_of(path: Path) -> video.VideoInfo:
    seen = []

    def choose(info: video.VideoInfo) -> Plan:
        seen.append(info)
        return take(lambda total: [0])(info)

    video.read_frames(path, choose)
    return seen[-1]


def decord_reader(path: Path) -> decord.VideoReader:
    """As mmaction2's DecordInit opens it."""
    return decord.VideoReader(io.BytesIO(path.read_bytes()), num_threads=1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Presentation times of all frames that are decoded from here on, in order."""
    times: list[int | None] = []
    original = decoding._decoded

    def recording(*arguments):
        for frame in original(*arguments):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "_decoded", recording)
    return times


# Equal to decord: length, frame rate, and every byte.


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.stem)
def test_real_videos_equal_decord(path: Path) -> None:
    reader = decord_reader(path)
    numbers = np.unique(np.linspace(0, len(reader) - 1, 40).astype(int))
    found = info_of(path)
    assert (found.total_frames, found.fps) == (len(reader), reader.get_avg_fps())
    expected = reader.get_batch(numbers).asnumpy()
    assert np.array_equal(read(path, lambda total: numbers), expected)


ENCODINGS = {
    "b-frames.mp4": Encoding(options=CLOSED_GOPS),
    "open-gop.mp4": Encoding(options={"x264-params": OPEN_GOP}),
    "one-long-gop.mp4": Encoding(options={"g": "250"}),
    "matroska.mkv": Encoding(options=CLOSED_GOPS),
    "vp9.webm": Encoding(codec="libvpx-vp9", options={"g": "24"}),
    "hevc-open-gop.mp4": Encoding(
        codec="libx265", options={"x265-params": "keyint=24:open-gop=1:log-level=none"}
    ),
    "mpeg4-b-frames.avi": Encoding(codec="mpeg4", options={"bf": "2", "g": "24"}),
    "h264-b-frames.avi": Encoding(options=CLOSED_GOPS),
    "mpeg2.mpg": Encoding(codec="mpeg2video", options={"bf": "2", "g": "24"}),
    "flash.flv": Encoding(options=CLOSED_GOPS),
    "motion.avi": Encoding(codec="mjpeg", pix_fmt="yuvj420p"),
    "variable-rate.mp4": Encoding(ticks=[i + i * i // 9 for i in range(100)], rate=100),
    "ntsc.mp4": Encoding(rate=Fraction(30000, 1001)),
    "audio.mp4": Encoding(audio=True, options=CLOSED_GOPS),
    "interlaced.mp4": Encoding(options={"x264-params": "interlaced=1"}),
    "full-range.mp4": Encoding(pix_fmt="yuvj420p"),
    "bt709.mp4": Encoding(color={"colorspace": 1, "color_primaries": 1, "color_trc": 1}),
    "chroma-422.mp4": Encoding(pix_fmt="yuv422p"),
    "gray.mp4": Encoding(pix_fmt="gray"),
    "turned-90.mp4": Encoding(rotation=90),
    "turned-180.mp4": Encoding(rotation=180),
    "turned-270.mp4": Encoding(rotation=-90),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encoded_videos_equal_decord(name: str, tmp_path: Path) -> None:
    path = encode(tmp_path / name, moving_shapes(100, 144, 192), ENCODINGS[name])
    reader = decord_reader(path)
    found = info_of(path)
    assert (found.total_frames, found.fps) == (100, reader.get_avg_fps())
    # In order, because decord's random access is wrong for open GOPs and several containers.
    assert np.array_equal(read(path), reader.get_batch(range(len(reader))).asnumpy())


def test_no_two_encodings_of_the_same_frames_are_alike(tmp_path: Path) -> None:
    """As on some CPUs, so that a test which expects it fails on all of them."""
    first, second = (encode(tmp_path / f"{n}.mp4", moving_shapes(5)) for n in "ab")
    assert not np.array_equal(read(first), read(second))


def test_odd_dimensions_equal_decord(tmp_path: Path) -> None:
    frames = moving_shapes(12, 257, 341)
    path = encode(tmp_path / "odd.mp4", frames, Encoding(pix_fmt="yuv444p"))
    assert np.array_equal(read(path), decord_reader(path).get_batch(range(12)).asnumpy())


def test_odd_height_of_subsampled_chroma_is_close_to_decord(tmp_path: Path) -> None:
    """FFmpeg 4.1 and newer ones interpolate chroma rows differently there; H.264 can't have it."""
    frames = smooth(12, 257, 341)
    path = encode(tmp_path / "odd.webm", frames, Encoding(codec="libvpx-vp9"))
    found = read(path).astype(int)
    assert found.shape == (12, 257, 341, 3)
    distance = np.abs(found - decord_reader(path).get_batch(range(12)).asnumpy())
    assert distance.max() <= 2


def test_ten_bit_video_equals_decord_but_for_the_last_row(tmp_path: Path) -> None:
    path = encode(tmp_path / "ten.mp4", moving_shapes(12), Encoding(pix_fmt="yuv420p10le"))
    found, expected = read(path), decord_reader(path).get_batch(range(12)).asnumpy()
    assert np.array_equal(found[:, :-1], expected[:, :-1])


def test_mpeg4_is_within_one_grey_level_of_decord(tmp_path: Path) -> None:
    """The two versions of FFmpeg round MPEG-4's dequantisation differently in a few pixels."""
    path = encode(tmp_path / "simple.mp4", moving_shapes(60), Encoding(codec="mpeg4"))
    expected = decord_reader(path).get_batch(range(60)).asnumpy()
    assert np.abs(read(path).astype(int) - expected).max() <= 1


def smooth(count: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1)
    return np.stack([(frame * (20 + i) // (20 + count)).astype(np.uint8) for i in range(count)])


# Sparse frames: the same as in a full decode, for less work.


@pytest.mark.parametrize("name", ENCODINGS)
def test_sparse_frames_equal_those_of_a_full_decode(name: str, tmp_path: Path) -> None:
    path = encode(tmp_path / name, moving_shapes(100, 144, 192), ENCODINGS[name])
    everything = read(path)
    for step in (7, 31):
        sparse = read(path, lambda total, step=step: range(2, total, step))
        assert np.array_equal(sparse, everything[2::step])


@pytest.mark.parametrize(
    "options", [CLOSED_GOPS, {"x264-params": OPEN_GOP}], ids=["closed", "open"]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_far_apart_frames_are_jumped_to(
    suffix: str,
    options: dict[str, str],
    tmp_path: Path,
    decoded: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a jump leaves without its references is no damage.
    monkeypatch.setattr(video, "_with_care", lambda read: read(False))
    path = encode(tmp_path / f"long.{suffix}", moving_shapes(400), Encoding(options=options))
    frames = read(path, lambda total: [5, 150, 260, 399])
    assert len(decoded) < 4 * 60
    decoded.clear()
    assert np.array_equal(frames, read(path)[[5, 150, 260, 399]])
    assert len(decoded) == 400


def test_a_keyframe_is_decoded_alone(tmp_path: Path, decoded: list) -> None:
    path = encode(
        tmp_path / "long.mp4",
        moving_shapes(100),
        Encoding(options={"x264-params": "keyint=24:min-keyint=24:scenecut=0"}),
    )
    read(path, lambda total: [72])
    assert len(decoded) == 1


def test_decoding_stops_at_the_last_needed_frame(tmp_path: Path, decoded: list) -> None:
    path = encode(tmp_path / "long.mp4", moving_shapes(200), Encoding(options={"bf": "0"}))
    read(path, lambda total: [0, 3, 9])
    assert len(decoded) == 10


# I b b P b b P ..., where nothing refers to a b.
EVERY_THIRD_REFERRED_TO = "bframes=2:b-adapt=0:b-pyramid=none:scenecut=0"


@pytest.mark.parametrize("more", ["", ":slices=4"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pictures_that_nothing_refers_to_are_decoded_only_if_needed(
    suffix: str, more: str, tmp_path: Path, decoded: list
) -> None:
    options = {"x264-params": EVERY_THIRD_REFERRED_TO + more}
    path = encode(tmp_path / f"b.{suffix}", moving_shapes(61, 144, 192), Encoding(options=options))
    expected = read(path)
    times = decoded.copy()
    assert len(times) == 61
    decoded.clear()
    needed = [1, 9, 14, 15, 47]
    assert np.array_equal(read(path, lambda total: needed), expected[needed])
    # 48 comes before 47 in the file, and 47 refers to it.
    assert decoded == [times[i] for i in range(49) if i % 3 == 0 or i in needed]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        # With temporal layers, what HEVC marks as not referred to may be so from a higher layer.
        ("layers.mp4", Encoding(codec="libx265", options={"x265-params": "log-level=none"})),
        # Packets that hold more than slices: the timing of each picture, its fields.
        ("fields.mp4", Encoding(options={"x264-params": "interlaced=1:bframes=2"})),
        (
            "timing.mp4",
            Encoding(
                options={"x264-params": "nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900:bframes=2"}
            ),
        ),
        # A container whose times may be made up.
        ("b.flv", Encoding(options=CLOSED_GOPS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_the_mark_is_no_proof_every_picture_is_decoded(
    name: str, encoding: Encoding, tmp_path: Path, decoded: list
) -> None:
    path = encode(tmp_path / name, moving_shapes(40, 144, 192), encoding)
    expected = read(path)
    decoded.clear()
    assert np.array_equal(read(path, lambda total: [5, 39]), expected[[5, 39]])
    assert len(decoded) == 40


def test_frames_are_converted_one_by_one_before_they_are_kept(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", moving_shapes(30, 72, 96))
    seen = []

    def halve(frame: np.ndarray) -> np.ndarray:
        seen.append(frame.shape)
        return frame[:, ::2, ::2]

    _, frames = video.read_frames(path, take(lambda total: [1, 20, 29]), halve)
    assert seen == [(1, 72, 96, 3)] * 3
    assert np.array_equal(frames, read(path, lambda total: [1, 20, 29])[:, ::2, ::2])


def test_a_seek_that_lands_behind_its_keyframe_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "clip.mp4", moving_shapes(100), Encoding(options=CLOSED_GOPS))
    expected = read(path)[[2, 50, 90]]
    original = decoding._jump
    landed = []

    class Unmoved:
        """Seeks for itself once, and then ignores the seek of `_jump`."""

        def __init__(self, container, offset):
            self._container = container
            container.seek(offset)

        def seek(self, *_, **__):
            pass

        def demux(self, stream):
            return self._container.demux(stream)

    def astray(file, container, stream, index, key):
        landed.append(key)
        return original(file, Unmoved(container, 3_900_000), stream, index, key)

    monkeypatch.setattr(decoding, "_jump", astray)
    assert np.array_equal(read(path, lambda total: [2, 50, 90]), expected)
    assert landed


# Numbering where packets do not tell it.


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path, decoded: list) -> None:
    """decord counts all 60 and then repeats the last; players show 55."""
    whole = encode(
        tmp_path / "whole.mp4", moving_shapes(60), Encoding(options={"g": "12", "bf": "3"})
    )

    def earlier(number: int, packet: av.Packet) -> list[av.Packet]:
        packet.pts -= 5 * 512
        packet.dts -= 5 * 512
        return [packet]

    path = remux(whole, tmp_path / "trimmed.mp4", earlier)
    assert info_of(path).total_frames == 55
    expected = read(whole)[5:]
    decoded.clear()
    assert np.array_equal(read(path), expected)
    assert len(decoded) == 55  # the packets told, and no second pass was needed


def test_a_file_that_starts_between_keyframes_has_the_frames_that_can_be_decoded(
    tmp_path: Path,
) -> None:
    whole = encode(
        tmp_path / "whole.mp4", moving_shapes(60), Encoding(options={"g": "12", "bf": "0"})
    )
    path = remux(
        whole, tmp_path / "tail.mkv", lambda number, packet: [packet] if number >= 5 else []
    )
    assert np.array_equal(read(path), read(whole)[12:])
    assert np.array_equal(read(path, lambda total: [40]), read(whole)[[52]])


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_packets_without_a_picture_are_noticed_and_not_counted(suffix: str, tmp_path: Path) -> None:
    """decord counts them, and so is that many frames off from there on."""
    whole = encode(
        tmp_path / "whole.avi", moving_shapes(60), Encoding(codec="mpeg4", options={"g": "12"})
    )

    def with_skips(number: int, packet: av.Packet) -> list[av.Packet]:
        shift = sum(number > at for at in (10, 11))
        made = []
        contents = [bytes(packet)] + ([NOT_CODED] if number in (10, 11) else [])
        for offset, content in enumerate(contents):
            copy = av.Packet(content)
            copy.time_base, copy.duration = Fraction(1, 25), 1
            copy.pts = copy.dts = number + shift + offset
            copy.is_keyframe = packet.is_keyframe and content is not NOT_CODED
            made.append(copy)
        return made

    path = remux(whole, tmp_path / f"skips.{suffix}", with_skips)
    assert len(decord_reader(path)) == 62
    assert np.array_equal(read(path), read(whole))
    totals = []

    def choose(info: video.VideoInfo) -> Plan:
        totals.append(info.total_frames)
        return take(lambda total: [4, 40, 59])(info)

    assert np.array_equal(video.read_frames(path, choose)[1], read(whole)[[4, 40, 59]])
    assert totals == [62, 60]


# An MPEG-4 picture that says "as before": start code, P, time increment, vop_coded=0.
NOT_CODED = b"\x00\x00\x01\xb6\x50\x4e"


def test_a_raw_stream_without_times_is_numbered_by_decoding(tmp_path: Path) -> None:
    boxed = encode(tmp_path / "boxed.mp4", moving_shapes(60), Encoding(options=CLOSED_GOPS))
    raw = remux(boxed, tmp_path / "raw.h264")
    assert info_of(raw).total_frames == 60
    assert np.array_equal(read(raw, lambda total: [0, 33, 59]), read(boxed)[[0, 33, 59]])


def test_mpeg_ts_gives_every_frame(tmp_path: Path) -> None:
    """decord 0.6.0 returns other frames here, or fails at the end."""
    boxed = encode(tmp_path / "boxed.mp4", moving_shapes(60), Encoding(options=CLOSED_GOPS))
    stream = remux(boxed, tmp_path / "stream.ts")
    assert len(read(stream)) == 60
    assert np.array_equal(read(stream), read(boxed))


# Files that cannot be used: one sentence that names the file, and the next step.


def broken(tmp_path: Path, content: bytes, name: str = "broken.mp4") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refusal(path: Path, numbers: Callable[[int], Sequence[int]] = range) -> str:
    with pytest.raises(VideoError) as caught:
        read(path, numbers)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.mp4").endswith("does not exist")


def test_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("is a directory")


def test_empty_file(tmp_path: Path) -> None:
    assert refusal(broken(tmp_path, b"")).endswith("is empty")


def test_text_file(tmp_path: Path) -> None:
    assert "is not a video" in refusal(broken(tmp_path, b"hello world\n" * 100))


def test_audio_file(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        add_tone(container)
    assert refusal(tmp_path / "sound.m4a").endswith("has no video stream")


def test_music_with_a_cover_picture(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(moving_shapes(1, 64, 64)[0])
        frame.pts = 0
        for packet in [*picture.encode(frame), *picture.encode(None)]:
            container.mux(packet)
    assert refusal(path).endswith("has no video stream")


def add_tone(container: av.container.OutputContainer) -> None:
    stream = container.add_stream("aac", rate=44100)
    for start in range(0, 44100, 1024):
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        block.sample_rate, block.pts = 44100, start
        container.mux(stream.encode(block))
    container.mux(stream.encode(None))


def test_video_stream_without_frames(tmp_path: Path) -> None:
    """The head of a fragmented file: what a recorder leaves that dies at its start."""
    how = Encoding(container={"movflags": "frag_keyframe+empty_moov"})
    content = encode(tmp_path / "whole.mp4", moving_shapes(30), how).read_bytes()
    path = broken(tmp_path, content[: content.index(b"moof") - 4])
    assert refusal(path).endswith("without a single frame")


def test_codec_that_ffmpeg_does_not_know(tmp_path: Path) -> None:
    content = encode(tmp_path / "whole.mkv", moving_shapes(5)).read_bytes()
    path = broken(tmp_path, content.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"), "new.mkv")
    assert "cannot decode" in refusal(path)


@pytest.fixture
def streamable(tmp_path: Path) -> Path:
    """60 frames, its index in front, so that a part of the file can be opened."""
    how = Encoding(options=CLOSED_GOPS | {"g": "12"}, container={"movflags": "faststart"})
    return encode(tmp_path / "whole.mp4", moving_shapes(60, 144, 192), how)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_file_that_is_cut_short_says_how_much_is_there(
    streamable: Path, tmp_path: Path, share: float
) -> None:
    content = streamable.read_bytes()
    message = refusal(broken(tmp_path, content[: int(len(content) * share)]), lambda total: [0])
    assert "cut short: its header announces 60 frames, and only" in message


def test_file_that_lost_its_index(tmp_path: Path) -> None:
    content = encode(tmp_path / "whole.mp4", moving_shapes(60)).read_bytes()
    assert "or is cut short" in refusal(broken(tmp_path, content[:-500]))


def test_damage_is_an_error_only_where_it_matters(streamable: Path, tmp_path: Path) -> None:
    expected = read(streamable)
    content = bytearray(streamable.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(600)
    path = broken(tmp_path, bytes(content))
    assert np.array_equal(read(path, lambda total: [0, 9]), expected[[0, 9]])
    message = refusal(path)
    decodable = int(message.partition(" of its 60 frames can be decoded")[0].split()[-1])
    assert 12 <= decodable < 60


def test_damage_in_what_a_needed_frame_refers_to_is_an_error(tmp_path: Path) -> None:
    """Only frames that nothing refers to may be missing without a word."""
    options = {"x264-params": EVERY_THIRD_REFERRED_TO}
    whole = encode(tmp_path / "whole.mp4", moving_shapes(31, 144, 192), Encoding(options=options))
    expected = read(whole)[[0, 15]]

    def damage(mark: int) -> Path:
        """Empties the slices of the first picture from the 4th packet on with this mark."""
        done: list[int] = []

        def change(number: int, packet: av.Packet) -> list[av.Packet]:
            content = bytearray(bytes(packet))
            if number < 4 or done or (content[4] >> 5 > 0) != mark:
                return [packet]
            done.append(number)
            at = 0
            while at < len(content):
                end = at + 4 + int.from_bytes(content[at : at + 4], "big")
                content[at + 5 : end] = bytes(end - at - 5)
                at = end
            copy = av.Packet(bytes(content))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.duration = packet.duration
            return [copy]

        return remux(whole, tmp_path / f"damaged-{mark}.mp4", change)

    assert np.array_equal(read(damage(mark=0), lambda total: [0, 15]), expected)
    assert "can be decoded" in refusal(damage(mark=1), lambda total: [0, 15])


def test_a_playlist_cannot_make_the_client_connect(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        callers = []

        def hang_up_on_callers() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, address = server.accept()
                    callers.append(address)
                    caller.close()

        threading.Thread(target=hang_up_on_callers, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/part.ts"
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n"
        refusal(broken(tmp_path, text.encode(), "list.m3u8"))
        server.shutdown(socket.SHUT_RDWR)
    assert not callers
