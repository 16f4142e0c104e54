"""`scripts/zoo`: goes on where it stopped, redoes what other code made, and tells failures."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zoo_run
from action_export.config_file import zoo_configs
from action_export.errors import ConfigError
from action_export.source import load_config
from zoo_table import table

PROVED: dict[str, Any] = {
    "verdict": "proved",
    "cfg_options": [],
    "layout": "NCHW",
    "config_views": {"num_clips": 25, "crops": "ten"},
    "proved_views": 2,
    "opset": 18,
    "nodes": 134,
    "checkpoint_mb": 93.1,
    "graph_mb": 92.8,
    "seconds": 5.6,
    "forward_mb": 63,
    "limit_mb": 468,
    "peak_mb": {"trace graph": 666, "prove graph": 511},
    "error": 3.04e-06,
    "top1": 1.0,
    "top5": 0.9,
    "time_ratio": 1.004,
    "plain_patched": False,
}

MADE = {"code": "a", "older": False}


class Zoo:
    """The driver with rows in a folder of its own, and jobs that only note their config."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.page = folder / "zoo.md"
        self.ran: list[str] = []
        self.verdicts: dict[str, str] = {}
        self.code = "a"
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(zoo_run, "DOCS", folder)
        monkeypatch.setattr(zoo_run.Jobs, "run", self._run)
        monkeypatch.setattr(
            zoo_run, "digests", lambda kind, families: dict.fromkeys(families, self.code)
        )

    def __call__(self, *argv: str) -> int:
        self._monkeypatch.setattr("sys.argv", ["scripts/zoo", *argv])
        self.ran = []
        return zoo_run.main()

    def _run(self, family: str, config: str) -> dict[str, Any]:
        if self.verdicts.get(config) == "interrupt":
            raise KeyboardInterrupt
        self.ran.append(config)
        if self.verdicts.get(config) == "break":
            raise RuntimeError("broken")
        row = {**PROVED, "verdict": self.verdicts.get(config, "proved")}
        return {"family": family, "config": config, "code": self.code, "job_seconds": 1.0, **row}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return zoo_run.read_rows(zoo_run.ZOO)

    def write(self, rows: list[dict[str, Any]]) -> None:
        (self.folder / "zoo.json").write_text(json.dumps(rows))


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    return Zoo(tmp_path, monkeypatch)


def test_every_config_of_the_families_asked_for_is_run_and_gets_a_row(zoo: Zoo) -> None:
    assert zoo("trn", "x3d", "--jobs", "2") == 0
    assert sorted(zoo.ran) == sorted(row["config"] for row in zoo.rows)
    assert [row["family"] for row in zoo.rows] == ["trn", "trn", "x3d", "x3d"]
    assert zoo.page.read_text() == zoo_run.page()


def test_the_page_tells_which_code_each_row_is_of_and_how_many_are_older(zoo: Zoo) -> None:
    zoo("trn", "x3d")
    assert "**Older than the code beside this page: 0 of 4 rows**" in zoo.page.read_text()
    assert zoo.page.read_text().count("\nCode `a`, that beside this page.\n") == 2
    zoo.code = "b"
    assert zoo("--page") == 0
    assert zoo.ran == []
    assert [row["code"] for row in zoo.rows] == ["a"] * 4
    assert "**Older than the code beside this page: 4 of 4 rows**" in zoo.page.read_text()
    older = "\nCode `a`, older than the code beside this page in 2 of 2 rows.\n"
    assert zoo.page.read_text().count(older) == 2


def test_without_a_family_it_is_the_whole_zoo(zoo: Zoo) -> None:
    assert zoo() == 0
    assert len(zoo.rows) == 125
    assert len({row["family"] for row in zoo.rows}) == 22


def test_a_run_goes_on_where_it_was_stopped(zoo: Zoo) -> None:
    names = sorted(name for name in zoo_configs() if name.startswith(("ipcsn", "ircsn")))
    zoo.verdicts[names[3]] = "interrupt"
    assert zoo("csn") == 130
    assert [row["config"] for row in zoo.rows] == names[:3]
    zoo.verdicts.clear()
    assert zoo("csn") == 0
    assert zoo.ran == names[3:]
    assert len(zoo.rows) == len(names)
    assert zoo("csn") == 0
    assert zoo.ran == []
    assert zoo("csn", "--again") == 0
    assert zoo.ran == names


def test_rows_of_other_code_are_dropped_and_done_again(zoo: Zoo) -> None:
    other = {"family": "x3d", "config": "x3d_s", "code": "a", "verdict": "proved"}
    zoo("trn")
    zoo.write([*zoo.rows, other])  # its figures have other names
    zoo.code = "b"
    assert zoo("trn") == 0
    assert len(zoo.ran) == 2
    assert [(row["family"], row["code"]) for row in zoo.rows] == [("trn", "b")] * 2


def test_a_failure_is_a_row_and_an_exit_code_and_is_tried_again(zoo: Zoo) -> None:
    failing = "x3d_m_16x5x1_facebook-kinetics400-rgb"
    zoo.verdicts[failing] = "ParityError: off"
    assert zoo("x3d") == 1
    assert {row["config"]: row["verdict"] for row in zoo.rows}[failing] == "ParityError: off"
    assert "**1 of 2 configs are proved.**" in zoo.page.read_text()
    zoo.verdicts.clear()
    assert zoo("x3d") == 0
    assert zoo.ran == [failing]


def test_what_breaks_the_driver_starts_no_further_config(zoo: Zoo) -> None:
    zoo.verdicts = {name: "break" for name in zoo_configs() if name.startswith("tsn")}
    with pytest.raises(RuntimeError, match="broken"):
        zoo("tsn")
    assert len(zoo.ran) < len(zoo.verdicts)


def test_a_second_run_is_refused_while_the_first_writes(zoo: Zoo) -> None:
    with (
        zoo_run.alone(zoo.folder),
        pytest.raises(SystemExit, match="another run writes to"),
    ):
        zoo("x3d")
    assert zoo("x3d") == 0


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_jobs_below_one_is_refused(
    zoo: Zoo, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        zoo("x3d", "--jobs", number)
    assert caught.value.code == 2
    assert "--jobs" in capsys.readouterr().err


def test_the_table_has_each_figure_in_its_column() -> None:
    row = {"family": "tsn", "config": "tsn_r50", **PROVED, **MADE, "plain_patched": True}
    lines = table([row], [])
    names, _, row = (line.split(" | ") for line in lines.splitlines()[-3:])
    cells = dict(zip([name.strip("| ") for name in names], row, strict=True))
    assert {name: cell.strip("| ") for name, cell in cells.items()} == {
        "config": "`tsn_r50`",
        "layout": "NCHW",
        "views": "25 x ten",
        "proved": "2",
        "opset": "18",
        "nodes": "134",
        "checkpoint": "93",
        "graph": "93",
        "seconds": "6",
        "peak": "666",
        "limit": "468",
        "error": "3.0e-06",
        "top-1": "100%",
        "top-5": "90%",
        "time": "1.00*",
        "verdict": "proved",
    }


def test_the_committed_table_proves_every_config_that_has_a_test_pipeline() -> None:
    rows = zoo_run.read_rows(zoo_run.ZOO)
    assert {row["config"] for row in rows} == set(zoo_configs())
    for row in rows:
        if row["verdict"] != "proved":
            with pytest.raises(ConfigError, match="nor test_pipeline"):
                load_config(row["config"])


def test_the_page_is_what_the_rows_and_the_code_print_as() -> None:
    """scripts/write_docs writes it: whether rows are older changes with the code."""
    assert (zoo_run.DOCS / zoo_run.PAGE).read_text("utf-8") == zoo_run.page()


def test_precisions_have_a_table_of_their_own() -> None:
    plan = {
        "verdict": "built",
        "mb": 47.6,
        "seconds": 0.9,
        "tensorrt": "TensorRT-RTX 1.7",
        "compute_capability": "8.0",
    }
    served = {"verdict": "proved", "graph_mb": 92.8, "error": 1.2e-3, "server": "tritonserver"}
    refused = "ParityError: int8 changes the scores by 0.45 of their spread, more than its bound"
    precisions = {
        "fp32": {**served, "top1": 1.0, "plan": plan},
        "fp16": {**served, "top1": 0.5, "plan": {"verdict": "EngineError: no"}},
        "int8": {"verdict": refused},
    }
    rows = [{"family": "tsm", "config": "tsm_r50", **PROVED, **MADE}]
    row = {"family": "tsn", "config": "tsn_r50", "precisions": precisions, **MADE}
    page = table(rows, [row])
    lines = page[page.index("## Precisions") :].splitlines()
    assert lines[-1] == (
        "| tsn | `tsn_r50` | 93 | 1.2e-03 | 48 | 93 | 1.2e-03 | EngineError: no "
        "|  | refused: 0.45 |  |"
    )
    assert "1 of 1 in fp32, 0 of 1 in fp16, 0 of 0 in int8" in page
    assert "tsm_r50" not in "".join(lines)
    assert "## Precisions" not in table(rows, [])


def test_a_precision_that_mixes_videos_up_is_called_inconclusive() -> None:
    verdict = {"verdict": "InconclusiveError: int8 graph, batch 1: nearer to another's"}
    precisions = dict.fromkeys(("fp32", "fp16", "int8"), verdict)
    page = table([], [{"family": "tsm", "config": "tsm_v2", "precisions": precisions, **MADE}])
    assert page.endswith("| tsm | `tsm_v2` " + "|  | inconclusive |  " * 3 + "|\n")


def test_precisions_are_run_and_kept_by_themselves(zoo: Zoo) -> None:
    zoo("trn")
    assert zoo("--precisions", "x3d") == 0
    (row,) = zoo_run.read_rows(zoo_run.PRECISIONS)
    assert row["config"] == zoo.ran[0] == "x3d_s_13x6x1_facebook-kinetics400-rgb"
    assert [row["family"] for row in zoo.rows] == ["trn", "trn"]


def test_an_unknown_family_is_refused_with_the_known_ones(zoo: Zoo) -> None:
    with pytest.raises(SystemExit) as caught:
        zoo("x4d")
    assert "no family x4d" in str(caught.value)
    assert "x3d" in str(caught.value)
    assert zoo.rows == []


def test_a_config_that_fails_in_its_process_tells_why() -> None:
    row = zoo_run.Jobs(zoo_run.ZOO, {"none": "a"}, threads=1).run("none", "no_such_config")
    assert row["verdict"].startswith("ConfigError: 'no_such_config' is neither a file nor a config")


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ("import os; os.kill(os.getpid(), 9)", "failed with exit code -9: no word"),
        ("print('no row')", "failed with exit code 0: no word"),
        ("raise ValueError('too odd')", "failed with exit code 1: ValueError: too odd"),
        ("import time; time.sleep(60)", "not finished after 1 s"),
        ("print('noise'); print('{\"verdict\": \"proved\"}')", "proved"),
    ],
    ids=["killed", "no JSON", "exception", "too long", "proved"],
)
def test_a_process_that_ends_in_any_way_gives_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, verdict: str
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "zoo_case.py").write_text(script)
    monkeypatch.setattr(zoo_run, "ROOT", tmp_path)
    monkeypatch.setattr(zoo_run, "LIMIT_S", 1)
    row = zoo_run.Jobs(zoo_run.ZOO, {"tsn": "a"}, threads=1).run("tsn", "tsn_r50")
    assert row["verdict"] == verdict
    assert row["config"] == "tsn_r50"


def test_stopping_ends_what_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scripts").mkdir()
    started = tmp_path / "started"
    (tmp_path / "scripts" / "zoo_case.py").write_text(
        f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    )
    monkeypatch.setattr(zoo_run, "ROOT", tmp_path)
    jobs = zoo_run.Jobs(zoo_run.ZOO, {"tsn": "a"}, threads=1)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(jobs.run, "tsn", "tsn_r50")
        while not started.exists():
            time.sleep(0.01)
        jobs.stop()
        assert running.result(timeout=20)["verdict"] == "failed with exit code -9: no word"


def test_the_digest_is_of_the_code_that_an_export_of_the_family_runs_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo_run, "ROOT", tmp_path)
    both, none = {"tin", "tsn"}, set[str]()
    files = {
        "scripts/zoo_case.py": both,
        "exporter/action_export/graph.py": both,
        "exporter/action_export/families/_family.py": both,
        "exporter/action_export/families/plain.py": both,
        "exporter/action_export/families/tin.py": {"tin"},
        "model_repository_templates/action_runtime/sampling.py": both,
        "model_repository_templates/action_templates/config.pbtxt.j2": both,
        "tests/support/weights.py": both,
        "tests/support/tiny.py": none,
        "constraints.txt": both,
        "exporter/action_export/cli/export.py": none,
        "exporter/action_export/serve/server.py": none,
        "scripts/zoo_table.py": none,
        "exporter/action_export/precision.py": none,
        "exporter/action_export/tensorrt.py": none,
        "scripts/precision_case.py": none,
    }
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    for name, depends in files.items():
        before = [zoo_run.digests(kind, both) for kind in (zoo_run.ZOO, zoo_run.PRECISIONS)]
        (tmp_path / name).write_text("after\n")
        after = [zoo_run.digests(kind, both) for kind in (zoo_run.ZOO, zoo_run.PRECISIONS)]
        zoo, precisions = (
            {family for family in both if was[family] != now[family]}
            for was, now in zip(before, after, strict=True)
        )
        assert zoo == depends, name
        if name.endswith(("precision.py", "tensorrt.py", "precision_case.py")):
            assert precisions == both, name
