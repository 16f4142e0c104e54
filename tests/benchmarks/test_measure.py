"""What a run is made of: plans that cover the targets, answers that are compared, real videos."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import pytest
from action_export.types import ViewOptions
from support.videos import real_videos

from benchmarks import measure, plans, prepare, videos
from benchmarks.__main__ import _parser
from benchmarks.driver import ContenderError
from benchmarks.models import CASE_TITLES, ENGINES, Case, Engine
from benchmarks.replies import loop_series, series_of, wrong_answers
from benchmarks.results import Series
from benchmarks.targets import FULL, ONE_VIEW
from benchmarks.workspace import Workspace


@pytest.mark.parametrize("plan", [plans.quick(), plans.full()])
def test_a_plan_measures_what_every_target_needs(plan: plans.Plan) -> None:
    groups = {group.case.name: group for group in plan.groups}
    for case in ONE_VIEW:
        assert {"mmaction2", "mmdeploy"} <= set(groups[case].others)
        assert {"onnx", "openvino-bf16"} <= set(groups[case].engines)
        assert not groups[case].slow
        assert groups[case].videos[0] == "340x256"
    assert FULL in groups
    assert "by hand" in groups["tsm-one"].others
    assert set(groups["tsm-one"].requests or ()) == {1, 4, 16}
    assert set(plan.preprocess) == {FULL, "slowfast-one"}
    assert plan.exports["tsm-one"] >= 1


@pytest.mark.parametrize(("plan", "seconds"), [(plans.quick(), 300), (plans.full(), 1200)])
def test_a_plan_fits_in_its_time(plan: plans.Plan, seconds: float, tmp_path: Path) -> None:
    assert plan.limit_s <= seconds - 20
    sections = list(measure.sections_of(plan, Workspace(folder=tmp_path)))
    budgets = [group.budget.seconds + group.loops.seconds for group in plan.groups]
    assert sum(section.seconds for section in sections) > sum(budgets)
    # a minute and a half for what is made before
    assert sum(section.seconds for section in sections) < plan.limit_s - 90


def test_a_section_that_does_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def section(title: str, seconds: float) -> measure.Section:
        return measure.Section(
            title=title, seconds=seconds, measure=lambda: begun.append(title) or []
        )

    monkeypatch.setattr(measure, "prepare", lambda *_: None)
    monkeypatch.setattr(
        measure, "sections_of", lambda *_: [section("long", 400), section("short", 1)]
    )
    found = measure.run(
        plans.quick(), Workspace(folder=tmp_path), [], quick=True, say=lambda _: None
    )
    assert begun == ["short"]
    assert dict(found.skipped)["long"].startswith("no time was left of 280 s")


def test_what_is_made_before_has_no_more_time_than_the_whole(tmp_path: Path) -> None:
    with pytest.raises(ContenderError, match="tsm was not made in 0 s"):
        prepare._run({"model": "tsm"}, Workspace(folder=tmp_path, ends=0.0))


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("--json", "missing/dir/x.json"),
        ("--json", "."),
        ("--page", "none.json"),
        ("--mmdeploy-python", "none/bin/python"),
        ("--mmdeploy-python", "plain"),
    ],
)
def test_paths_are_checked_before_anything_is_measured(
    option: str,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").touch()
    with pytest.raises(SystemExit):
        _parser().parse_args([option, path])
    assert f"argument {option}: {path} " in capsys.readouterr().err
    # contenders run elsewhere
    assert _parser().parse_args(["--json", "x.json"]).json == tmp_path / "x.json"


def test_the_full_plan_has_every_model_in_both_views() -> None:
    assert {group.case.name for group in plans.full().groups} >= set(CASE_TITLES)


def test_cases_have_the_views_of_their_names() -> None:
    assert Case.named("x3d-one").options == ViewOptions(num_clips=1, crops="center")
    assert Case.named("tsn-one").options == ViewOptions(crops="center")
    assert Case.named("slowfast-full").options == ViewOptions()
    assert Case.named("slowfast-clips4").options == ViewOptions(num_clips=4, crops="center")


def test_an_engine_that_this_code_cannot_serve_says_so() -> None:
    assert ENGINES["onnx"].missing() == ""
    assert "'abacus'" in Engine(name="new", format="abacus").missing()
    assert "'colour'" in Engine(name="new", extra={"colour": "red"}).missing()


def test_an_answer_that_differs_is_wrong_and_not_a_time() -> None:
    def answer(*scores: float) -> list[dict[str, object]]:
        return [{"seconds": 1.0, "scores": list(scores), "top1": scores.index(max(scores))}]

    replies = {
        "runtime onnx": answer(0.1, 0.9, 0.0),
        "mmaction2": answer(0.1, 0.8, 0.1),
        "ours onnx": answer(0.1, 0.8005, 0.1),
        "ours openvino-bf16": answer(0.1, 0.75, 0.15),
        "mmdeploy": [{"seconds": 1.0, "top1": 2}],
        "cv2": [{"seconds": 1.0, "scores": [], "top1": None}],
    }
    found = {name: "".join(wrong_answers(name, replies)) for name in replies}
    assert found["runtime onnx"].startswith("wrong: off by 0.14 of the spread")
    assert found["mmdeploy"] == "wrong: class 2, not 1"
    assert found["ours openvino-bf16"] == ""
    assert not found["mmaction2"] + found["ours onnx"] + found["cv2"]
    like = Series(section="latency", case="tsm-one", contender="")
    series = {each.contender: each for each in series_of(like, replies)}
    assert series["runtime onnx"].values == ()
    assert series["runtime onnx"].error == found["runtime onnx"]
    assert series["ours onnx"].values == (1.0,)


def test_another_number_of_scores_is_wrong() -> None:
    replies = {
        "mmaction2": [{"seconds": 1.0, "scores": [0.2, 0.8], "top1": 1}],
        "ours onnx": [{"seconds": 1.0, "scores": [0.2, 0.7, 0.1], "top1": 1}],
    }
    assert wrong_answers("ours onnx", replies) == ["wrong: 3 scores, not 2"]


def test_answers_of_closed_loops_are_compared() -> None:
    like = Series(section="throughput", case="tsm-one", contender="")
    reference = {"scores": [0.2, 0.8]}
    loop = {"seconds": 2.0, "requests": 4, "each": [1.0] * 4}
    right = {**loop, "lowest": [0.2, 0.8], "highest": [0.2, 0.8]}
    low = {**right, "lowest": [0.1, 0.8]}
    high = {**right, "highest": [0.2, float("nan")]}
    assert loop_series(like, "frames onnx", 4, [right], reference).values == (2.0,)
    for wrong in (low, high):
        found = loop_series(like, "frames onnx", 4, [right, wrong], reference)
        assert found.error.startswith("wrong: off by")
        assert not found.values


def test_one_wrong_answer_of_many_is_enough_and_nan_is_wrong() -> None:
    right = {"seconds": 1.0, "scores": [0.2, 0.8], "top1": 1}
    wrong = {"seconds": 1.0, "scores": [float("nan"), 0.8], "top1": 0, "crashes": 2}
    replies = {"mmaction2": [right], "by hand": [wrong, right], "mmdeploy": [right, wrong]}
    like = Series(section="latency", case="tsm-one", contender="")
    series = {each.contender: each for each in series_of(like, replies)}
    assert series["by hand"].error.startswith("wrong: off by nan")
    # its flaw is known, and its time does not depend on it
    assert series["mmdeploy"].values == (1.0, 1.0)
    assert series["mmdeploy"].facts["wrong"].startswith("1 of 2 answers wrong: off by nan")
    assert series["mmdeploy"].facts["crashes"] == 2


def test_a_video_has_280_frames_in_ten_seconds(tmp_path: Path) -> None:
    path = videos.make(real_videos()[2], "340x256", tmp_path / "340x256.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (340, 256, 28)
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(frames) == 280
    # it moves all the way, also where the source was turned round
    assert all((one != other).any() for one, other in pairwise(frames))
