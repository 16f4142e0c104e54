"""What can be checked without mmdeploy, which has an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.mmdeploy_contender import Arguments, Clips, Worker, clips_of, one_view, sampled

GIVEN = {"config": "tsn", "checkpoint": "tsn.pth", "folder": "out"}
# answers each line with itself; aborts as the SDK does while the file that it is given exists
CHILD = """
import json, os, pathlib, sys
print('{"ready": true}', flush=True)
for call, line in enumerate(sys.stdin, 1):
    if pathlib.Path(sys.argv[1]).exists():
        if sys.argv[2] == "once":
            os.remove(sys.argv[1])
        sys.stdout.write('{"half an')
        sys.stdout.flush()
        os.abort()
    print(json.dumps({"line": line.strip(), "call": call}), flush=True)
"""


def test_arguments_have_defaults() -> None:
    arguments = Arguments.parse(json.dumps(GIVEN))
    assert (arguments.threads, arguments.views, arguments.runtime) == (2, "one", "sdk")


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"views": "full"}, "'full'"),
        ({"runtime": "c++"}, "'c\\+\\+'"),
        ({"thread": 2}, "thread: not known"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(changed: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Arguments.parse(json.dumps({**GIVEN, **changed}))


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="checkpoint, folder: missing"):
        Arguments.parse('{"config": "tsn"}')


def test_one_view_of_a_3d_model_is_one_clip_and_its_centre() -> None:
    full = [
        {"type": "SampleFrames", "clip_len": 32, "frame_interval": 2, "num_clips": 10},
        {"type": "ThreeCrop", "crop_size": 256},
    ]
    assert one_view(full) == [
        {"type": "SampleFrames", "clip_len": 32, "frame_interval": 2, "num_clips": 1},
        {"type": "CenterCrop", "crop_size": 256},
    ]


def test_one_view_of_a_2d_model_keeps_its_segments() -> None:
    full = [{"type": "SampleFrames", "clip_len": 1, "num_clips": 25}, {"type": "TenCrop"}]
    assert clips_of(one_view(full)) == Clips(length=1, interval=1, count=25)


def test_other_samplers_are_refused() -> None:
    with pytest.raises(ValueError, match="no SampleFrames"):
        clips_of([{"type": "UniformSample"}])


def test_segments_are_sampled_at_their_middles() -> None:
    found = sampled(280, Clips(length=1, interval=1, count=8))
    assert found == [17, 52, 87, 122, 157, 192, 227, 262]


def test_one_clip_is_sampled_in_the_middle() -> None:
    found = sampled(280, Clips(length=32, interval=2, count=1))
    assert found == list(range(108, 172, 2))


def test_a_short_video_is_sampled_from_its_start_as_the_demo_does() -> None:
    found = sampled(20, Clips(length=32, interval=2, count=1))
    assert found == [*range(20), *range(12)]


def test_a_crashed_model_is_replaced_and_asked_again(tmp_path: Path) -> None:
    worker = _worker(tmp_path, "once")
    assert worker.ask("a") == {"line": "a", "call": 1, "crashes": 0}
    (tmp_path / "crash").touch()
    # not the first call of the new process, which is cold
    assert worker.ask("b") == {"line": "b", "call": 2, "crashes": 1}
    assert worker.ask("c") == {"line": "c", "call": 3, "crashes": 1}
    worker.stop()


def test_a_model_that_crashes_on_every_try_is_an_error(tmp_path: Path) -> None:
    worker = _worker(tmp_path, "always")
    (tmp_path / "crash").touch()
    assert worker.ask("a") == {"error": "crashed 5 times, at last with -6", "crashes": 5}
    worker.stop()


def _worker(tmp_path: Path, how_often: str) -> Worker:
    return Worker([sys.executable, "-c", CHILD, str(tmp_path / "crash"), how_often])
