"""What a video file may cost: each limit is one typed error, raised before the cost."""

from __future__ import annotations

import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

import av
import numpy as np
import pytest
from action_runtime import decoding, frame_index, video
from action_runtime.limits import Limits, VideoError, VideoLimitError
from action_runtime.sampling import Plan
from support.encode import Encoding, encode, moving_shapes


def everything(info: video.VideoInfo) -> Plan:
    numbers = np.arange(info.total_frames, dtype=np.int32)
    return Plan(frame_numbers=numbers, frame_index=numbers)


def read(path: Path, limits: Limits | None = None) -> np.ndarray:
    return video.read_frames(path, everything, limits=limits or Limits())[1]


def refusal(path: Path, limit: str, limits: Limits | None = None) -> VideoLimitError:
    with pytest.raises(VideoLimitError) as caught:
        read(path, limits)
    assert caught.value.limit == limit
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 96x72."""
    path = tmp_path_factory.mktemp("limits") / "clip.mp4"
    return encode(path, moving_shapes(30), Encoding(options={"g": "12"}))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg is not to see the file at all."""
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg opened it"))


def test_a_file_at_its_limits_is_read(clip: Path) -> None:
    size = clip.stat().st_size
    exact = Limits(file_bytes=size, pixels=96 * 72, frames=30, memory=30 * 96 * 72 * 3)
    assert np.array_equal(read(clip, exact), read(clip))


def test_bytes_of_the_file(clip: Path, unopened: None) -> None:
    refusal(clip, "file_bytes", Limits(file_bytes=clip.stat().st_size - 1))


def test_pixels_of_a_picture_are_known_before_one_is_decoded(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_decoded", lambda *_: pytest.fail("a picture was decoded"))
    found = refusal(clip, "pixels", Limits(pixels=96 * 72 - 1))
    assert "96x72" in found.message


def test_a_header_that_lies_about_the_size_is_not_believed(tmp_path: Path) -> None:
    """The stream holds 640x480, and its container says 96x72."""
    content = encode(tmp_path / "large.mp4", moving_shapes(3, 480, 640)).read_bytes()
    lies = content.replace(struct.pack(">HH", 640, 480), struct.pack(">HH", 96, 72))
    path = tmp_path / "lies.mp4"
    path.write_bytes(lies)
    assert lies != content
    assert "640x480" in refusal(path, "pixels", Limits(pixels=96 * 72)).message


def test_frames_that_the_header_announces(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_index, "_noted", lambda _: pytest.fail("a packet was read"))
    refusal(clip, "frames", Limits(frames=29))


def test_frames_that_no_header_announces_are_counted_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "clip.ts", moving_shapes(30))
    noted, seen = frame_index._noted, []
    monkeypatch.setattr(
        frame_index, "_noted", lambda packet: (seen.append(packet), noted(packet))[1]
    )
    refusal(path, "frames", Limits(frames=9))
    assert len(seen) == 9


def test_seconds_of_reading_and_decoding(clip: Path) -> None:
    refusal(clip, "seconds", Limits(seconds=1e-9))


def test_seconds_run_while_frames_are_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, over = decoding._decoded, threading.Event()

    def slow(packets, *rest):
        for frame in original(packets, *rest):
            over.wait(0.2)
            yield frame

    monkeypatch.setattr(decoding, "_decoded", slow)
    refusal(clip, "seconds", Limits(seconds=2))


def test_memory_of_the_needed_frames(clip: Path) -> None:
    refusal(clip, "memory", Limits(memory=30 * 96 * 72 * 3 - 1))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0(value: float) -> None:
    for name in (f.name for f in fields(Limits) if f.type in ("int", "float")):
        with pytest.raises(ValueError, match=f"the limit {name}"):
            Limits(**{name: value})


def test_formats_are_names() -> None:
    for formats in ((), ("mov", ""), ("mov,hls",)):
        with pytest.raises(ValueError, match="formats"):
            Limits(formats=formats)


# Formats: what is no video, and what names other files.


def gif(size: int, pictures: int) -> bytes:
    """One pixel for each picture of a screen of size x size: 25 bytes, and 18 for each."""
    screen = b"GIF89a" + struct.pack("<HHBBB", size, size, 0x80, 0, 0) + bytes(6)
    picture = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + picture * pictures + b";"


TEXTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {clip}\n",
    "list.mp4": "ffconcat version 1.0\nfile {clip}\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "art.txt": "hello world\n" * 100,
    "art.ans": "\x1b[31mhello\x1b[0m\n" * 100,
    "sheet.mpd": '<?xml version="1.0"?><MPD type="dynamic"><Period/></MPD>',
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_no_script_for_ffmpeg(name: str, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(TEXTS[name].format(clip=clip))
    with pytest.raises(VideoError, match=r"none of the container formats|is not a video"):
        read(path)


def test_an_animation_of_89_bytes_is_refused_by_its_format(tmp_path: Path) -> None:
    """FFmpeg makes a picture of the whole screen for each of its pixels: minutes, and gigabytes."""
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif(16000, 4)[:89])
    refusal(path, "formats")


def test_pictures_are_no_video(tmp_path: Path) -> None:
    for name, codec, pixels in (("a.png", "png", "rgb24"), ("a.jpg", "mjpeg", "yuvj420p")):
        with av.open(str(tmp_path / name), "w", format="image2", options={"update": "1"}) as made:
            stream = made.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
            made.mux(stream.encode(av.VideoFrame.from_ndarray(moving_shapes(1, 64, 64)[0])))
            made.mux(stream.encode(None))
        refusal(tmp_path / name, "formats")


def test_a_format_may_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "small.gif"
    path.write_bytes(gif(16, 3))
    assert read(path, Limits(formats=("gif",))).shape[1:] == (16, 16, 3)


# Headers of MP4 that declare more than there is.


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def rewritten(content: bytes, changes: dict[bytes, bytes | None]) -> bytes:
    """An MP4 whose boxes of these kinds have another content; None leaves them out."""
    made, at = b"", 0
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + size]
        at += size
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"):
            body = rewritten(body, changes)
        if changes.get(kind, body) is not None:
            made += box(kind, changes.get(kind, body))
    return made


def declaring(samples: int) -> dict[bytes, bytes | None]:
    """Boxes that make so many samples of one byte, in one chunk."""
    return {
        b"stsz": struct.pack(">III", 0, 1, samples),
        b"stts": struct.pack(">IIII", 0, 1, samples, 512),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, samples, 1),
        b"stss": None,
        b"ctts": None,
    }


def test_samples_that_only_the_header_has_are_refused_before_ffmpeg_counts_them(
    clip: Path, tmp_path: Path, unopened: None
) -> None:
    """FFmpeg took 4 s and 0.8 GB to open this, of 8 kB, and 27 s to read its packets."""
    path = tmp_path / "declares.mp4"
    path.write_bytes(rewritten(clip.read_bytes(), declaring(20_000_000)))
    assert path.stat().st_size < 20_000
    refusal(path, "frames")


def test_samples_that_edits_repeat_are_counted_for_each(
    clip: Path, tmp_path: Path, unopened: None
) -> None:
    edits = struct.pack(">II", 0, 100) + struct.pack(">IIHH", 1000, 0, 1, 0) * 100
    path = tmp_path / "edits.mp4"
    path.write_bytes(rewritten(clip.read_bytes(), declaring(900_000) | {b"elst": edits}))
    refusal(path, "frames")


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    how = Encoding(container={"movflags": "frag_keyframe+empty_moov"})
    path = tmp_path_factory.mktemp("limits") / "fragments.mp4"
    return encode(path, moving_shapes(30), how).read_bytes()


def test_runs_of_a_fragment_count(fragments: bytes, tmp_path: Path, unopened: None) -> None:
    path = tmp_path / "runs.mp4"
    path.write_bytes(rewritten(fragments, {b"trun": struct.pack(">II", 0, 50_000_000)}))
    refusal(path, "frames")


def test_a_compressed_header_is_not_opened(clip: Path, tmp_path: Path, unopened: None) -> None:
    path = tmp_path / "compressed.mov"
    path.write_bytes(box(b"moov", box(b"cmov", bytes(40))) + clip.read_bytes())
    refusal(path, "formats")


def test_an_hour_of_pcm_sound_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """Each of its samples counts as one in the header, and FFmpeg groups them."""
    path = tmp_path / "sound.mov"
    with av.open(str(path), "w") as made:
        picture = made.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 96, 72, "yuv420p"
        sound = made.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number, pixels in enumerate(moving_shapes(5)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = number
            made.mux(picture.encode(frame))
        made.mux(picture.encode(None))
        block = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        block.sample_rate, block.pts = 8000, 0
        made.mux(sound.encode(block))
        made.mux(sound.encode(None))
    assert len(read(path, Limits(frames=5))) == 5


# What is no regular file.


def test_a_pipe_that_nobody_writes_into(tmp_path: Path, unopened: None) -> None:
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    assert "pipe" in refusal(path, "regular_files").message


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unopened: None) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "socket" in refusal(Path("s"), "regular_files").message


def test_a_device(unopened: None) -> None:
    assert "device" in refusal(Path("/dev/zero"), "regular_files").message


@contextmanager
def piped(path: Path, content: bytes) -> Iterator[Path]:
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(content), daemon=True)
    writer.start()
    yield path
    writer.join(10)


def test_a_pipe_is_read_where_that_is_asked_for(clip: Path, tmp_path: Path) -> None:
    with piped(tmp_path / "pipe", clip.read_bytes()) as path:
        assert np.array_equal(read(path, Limits(regular_files=False)), read(clip))


def test_a_pipe_is_read_where_a_thousand_files_are_open(clip: Path, tmp_path: Path) -> None:
    """As in a service with many connections; select() has no place for their numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this user may not open so many")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with ExitStack() as many:
        many.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        path = many.enter_context(piped(tmp_path / "pipe", clip.read_bytes()))
        for _ in range(1024):
            many.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        assert len(read(path, Limits(regular_files=False))) == 30


def test_a_pipe_that_never_ends_is_read_up_to_the_limit() -> None:
    refusal(Path("/dev/zero"), "file_bytes", Limits(regular_files=False, file_bytes=3 * 2**20))


def test_a_pipe_that_gives_nothing_is_waited_for_up_to_the_limit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refusal(tmp_path / "pipe", "seconds", Limits(regular_files=False, seconds=0.3))


# Names.


@pytest.mark.parametrize(
    "name",
    ["2024-05-01T12:30.mp4", "file:clip.mp4", "pipe:0", "concat:a|b", "%d.mp4", "-i", "ü ☃.mp4"],
)
def test_a_name_is_the_name_of_a_file(
    name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip.read_bytes())
    assert np.array_equal(read(Path(name)), read(clip))


def test_a_name_that_is_no_text(clip: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    path.write_bytes(clip.read_bytes())
    assert np.array_equal(read(path), read(clip))


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 5000, "clip.mp4/under"])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"is no path|cannot be read"):
        read(tmp_path / name)


def test_metadata_that_is_no_utf8(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", moving_shapes(30))
    expected = read(path)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xffvf"))
    assert np.array_equal(read(path), expected)
