"""Contenders in processes of their own: the protocol, and taking turns."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from action_export import example
from action_runtime.spec import Contract, Crop, KeepRatioResize, SampleFrames
from support.tiny import CLASSES

from benchmarks import processes
from benchmarks.contender import Answer, closed_loop
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
    absent = Start(name="absent", command=(str(tmp_path / "no-python"),))
    with started([wire(tmp_path), broken, absent], tmp_path, failed) as running:
        assert list(running) == ["wire"]
    # a temporary folder's name is not for the page
    assert "WORK/none.json" in failed["broken"]
    assert "no-python" in failed["absent"]
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


# sleeps as many seconds as it is told before it answers, and each time four times as many
SLEEPER = """
import json, sys, time
print('{"ready": true}', flush=True)
for call, line in enumerate(sys.stdin):
    time.sleep(float(line) * 4**call)
    print(json.dumps({"seconds": float(line)}), flush=True)
"""


def sleeper(name: str) -> Start:
    return Start(name=name, command=(sys.executable, "-c", SLEEPER))


def test_one_that_does_not_answer_in_time_is_killed_with_its_late_answer(tmp_path: Path) -> None:
    with started([sleeper("slow")], tmp_path) as running:
        process = running["slow"]
        with pytest.raises(ContenderError, match=r"said nothing for 0\.2 s"):
            process.ask("0.4", timeout_s=0.2)
        assert process.child.poll() is not None
        with pytest.raises(ContenderError, match="has ended"):
            process.ask("0")


def test_what_computes_for_one_that_is_killed_ends_as_well(tmp_path: Path) -> None:
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    start = Start(name="parent", command=(sys.executable, "-c", parent, SLEEPER))
    with started([start], tmp_path) as running:
        process = running["parent"]
        [child] = set(processes.tree(process.child.pid)) - {process.child.pid}
        process.kill()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < deadline:
            if not Path(f"/proc/{child}/cmdline").read_bytes():  # a zombie
                break
            time.sleep(0.01)
        else:
            assert not Path(f"/proc/{child}").exists()


def test_where_the_time_is_over_whole_rounds_are_left(tmp_path: Path) -> None:
    with started([sleeper("A"), sleeper("B")], tmp_path) as running:
        began = time.perf_counter()
        for process in running.values():
            process.ends = began + 0.25
        runners = [
            Runner(key="A", process=running["A"], question="0"),
            # the third answer would take 0.32 s
            Runner(key="B", process=running["B"], question="0.02"),
        ]
        replies = alternate(runners, Budget(seconds=60, least=9, warm=0))
        assert len(replies["A"]) == len(replies["B"]) >= 1
        assert "error" not in replies["B"][0]


def test_what_has_not_answered_once_when_the_time_is_over_says_so(tmp_path: Path) -> None:
    with started([sleeper("A")], tmp_path) as running:
        process = running["A"]
        began = time.perf_counter()
        process.ends = began + 0.3
        runner = Runner(key="A", process=process, question="60")
        [reply] = alternate([runner], Budget(seconds=9, warm=0))["A"]
        assert time.perf_counter() - began < 2
    assert reply["error"] == "A had not answered when the time was over"


def test_a_closed_loop_warms_up_with_all_callers_and_keeps_the_ends_of_the_scores() -> None:
    calls: list[float] = []

    def run() -> Answer:
        calls.append(0.0)
        # the ninth request is the first that counts; the tenth is off
        shift = 0.5 if len(calls) == 10 else 0.0
        return Answer(scores=np.array([0.25 + shift, 0.75 - shift], np.float32))

    reply = closed_loop(run, callers=8, requests=4)
    assert len(calls) == 8 + 4
    assert (reply["lowest"], reply["highest"]) == ([0.25, 0.25], [0.75, 0.75])


def test_arguments_travel_as_json(tmp_path: Path) -> None:
    start = Start.ours("name", "kind", folder="a b", count=2)
    assert json.loads(start.command[-1]) == {"folder": "a b", "count": 2}
