"""Contenders in processes of their own: the protocol, and taking turns."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from action_export import example
from action_runtime.spec import Contract, Crop, KeepRatioResize, SampleFrames
from support.tiny import CLASSES

from benchmarks import processes
from benchmarks.driver import Budget, ContenderError, Runner, Start, alternate, started

CLIP = str(example.CLIPS[0])
CONTRACT = Contract(
    sampler=SampleFrames(clip_len=2, num_clips=2),
    resize=KeepRatioResize(short=32),
    crop=Crop(kind="center", width=32, height=32),
    classes=CLASSES,
    average="prob",
)


def wire(folder: Path, name: str = "wire") -> Start:
    """A contender that is light: it packs requests, and sends none."""
    path = folder / "contract.json"
    path.write_text(CONTRACT.to_json())
    return Start.ours(name, "wire", contract=str(path))


def test_a_contender_answers_paths_and_commands_and_tells_errors(tmp_path: Path) -> None:
    with started([wire(tmp_path)], tmp_path) as running:
        process = running["wire"]
        answer = process.ask(CLIP)
        assert answer["seconds"] > 0
        assert answer["bytes"] % (32 * 3) == 4 * 4  # frames of 32 lines or columns; four positions
        with pytest.raises(ContenderError, match="there-is-none"):
            process.ask(str(tmp_path / "there-is-none.mp4"))
        loop = process.ask({"video": CLIP, "callers": 2, "requests": 5})
        assert (len(loop["each"]), loop["requests"]) == (5, 5)
        assert max(loop["each"]) <= loop["seconds"]
        assert processes.memory(process.child.pid).client > 10e6
        assert process.child.pid in processes.tree(os.getpid())
    assert process.child.returncode == 0


def test_one_that_does_not_start_is_left_out_and_says_why(tmp_path: Path) -> None:
    broken = Start.ours("broken", "wire", contract=str(tmp_path / "none.json"))
    failed: dict[str, str] = {}
    with started([wire(tmp_path), broken], tmp_path, failed) as running:
        assert list(running) == ["wire"]
    assert "none.json" in failed["broken"]
    with pytest.raises(ContenderError, match=r"none\.json"), started([broken], tmp_path):
        pass


def test_they_take_turns_and_one_that_fails_drops_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = tmp_path / "contender.py"
    script.write_text(
        "import sys, json\n"
        "print(json.dumps({'ready': True}), flush=True)\n"
        "for number, line in enumerate(sys.stdin):\n"
        f"    open({str(log)!r}, 'a').write(sys.argv[1])\n"
        "    bad = sys.argv[1] == 'C' and number == 2\n"
        "    print(json.dumps({'error': 'no'} if bad else {'seconds': number}), flush=True)\n"
    )
    starts = [Start(name=name, command=("python3", str(script), name)) for name in "ABCD"]
    with started(starts, tmp_path) as running:
        runners = [
            Runner(
                key=name,
                process=process,
                question="video",
                rounds=1 if name == "D" else None,
            )
            for name, process in running.items()
        ]
        replies = alternate(runners, Budget(seconds=60, least=3, most=3, warm=1))
    # D has one round and no warm-up; C fails in its third
    assert log.read_text() == "ABC" + "ABCD" + "ABC" + "AB"
    assert [reply["seconds"] for reply in replies["A"]] == [1, 2, 3]
    assert [reply["seconds"] for reply in replies["D"]] == [0]
    assert replies["C"] == [{"error": "C: no"}]


def test_rounds_stop_at_the_budget_but_not_before_the_least(tmp_path: Path) -> None:
    with started([wire(tmp_path)], tmp_path) as running:
        runner = Runner(key="wire", process=running["wire"], question=CLIP)
        assert len(alternate([runner], Budget(seconds=0, least=2))["wire"]) == 2
        assert len(alternate([runner], Budget(seconds=60, least=2, most=4))["wire"]) == 4


def test_arguments_travel_as_json(tmp_path: Path) -> None:
    start = Start.ours("name", "kind", folder="a b", count=2)
    assert json.loads(start.command[-1]) == {"folder": "a b", "count": 2}
