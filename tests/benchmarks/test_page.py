"""The page and its plots from a small measurement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import page, plots
from benchmarks.results import Results, Series, percentile, quartiles
from benchmarks.targets import VIDEO, all_targets

MEMORY = {"client": 100e6, "server": 200e6, "stubs": 300e6, "shm": 4e6}
FACTS = {"bytes": 2_000_000, "memory": MEMORY, "idle_cpu": 0.001, "graph_bytes": 50e6}
RUNTIME = Series(
    section="latency",
    case="tsm-one",
    contender="runtime onnx",
    video=VIDEO,
    values=(0.2, 0.25, 0.3),
    facts=FACTS,
)
OURS = replace(
    RUNTIME,
    contender="ours onnx",
    values=(0.3, 0.35, 0.4),
    parts={"decode": (0.05, 0.05, 0.06), "recognizer_infer": (0.2, 0.21, 0.2)},
)
LOOP = replace(RUNTIME, section="throughput", values=(4.0,), facts={"latencies": [0.2, 0.3]})


def results(*more: Series) -> Results:
    series = (
        RUNTIME,
        OURS,
        replace(RUNTIME, contender="by hand", values=(), error="wrong: class 3, not 4"),
        LOOP,
        replace(LOOP, contender="frames onnx"),
        replace(LOOP, contender="frames onnx", callers=4, facts={"latencies": [0.8]}),
        *more,
    )
    return Results(
        quick=True,
        seconds=200.0,
        machine={
            "cpu": "Some CPU",
            "cores": 2,
            "flags": ["avx2"],
            "memory_bytes": 2**34,
            "system": "Linux",
            "load": [0.5],
        },
        versions={"torch": "2.13.0"},
        series=series,
        targets=all_targets(series, {}),
        skipped=(("mmdeploy", "it was not given"),),
    )


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    results().write(tmp_path / "out.json")
    assert Results.read(tmp_path / "out.json") == results()
    targets = json.loads((tmp_path / "out.json").read_text())["targets"]
    assert {"name", "value", "target", "met", "spread", "why"} <= set(targets[0])


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="measure again"):
        Results.read(tmp_path / "old.json")


def test_the_page_tells_verdicts_reasons_and_what_is_wrong(tmp_path: Path) -> None:
    page.write(results(), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    lines = text.splitlines()
    tax = next(line for line in lines if line.startswith("| serving tax, TSM"))
    # 25 %, 20 %, 13.3 %
    assert [cell.strip() for cell in tax.split("|")[2:4]] == ["<= 5 %", "20.0%"]
    assert tax.endswith("missed |")
    assert "wrong: class 3, not 4" in text
    assert "- mmdeploy: it was not given" in text
    assert page.NOTES.read_text() in text
    assert "| TSM r50, one view | ours onnx | 100.0 | 200.0 | 300.0 | 4.0 | 0.1% |" in lines


def test_the_page_tells_few_rounds_and_loops_that_are_wrong(tmp_path: Path) -> None:
    wrong = replace(LOOP, contender="frames onnx", callers=16, values=(), error="wrong: off by 1")
    page.write(results(wrong), tmp_path)
    lines = (tmp_path / "benchmarks.md").read_text().splitlines()
    assert "| TSM r50, one view | frames onnx | 16 | wrong: off by 1 |  |  |  |" in lines
    loops = replace(LOOP, callers=4)
    targets = all_targets([*results().series, loops], {})
    [at_4] = [t for t in targets if t.name.startswith("throughput at 4") and "TSM" in t.name]
    assert page.verdict(at_4) == "met, uncertain (of 1 of 3 rounds)"


def test_plots_are_svg_without_a_ground_of_their_own(tmp_path: Path) -> None:
    page.write(results(), tmp_path)
    files = sorted(tmp_path.glob("*.svg"))
    assert [plot.stem for plot in files] == [
        "benchmarks-latency",
        "benchmarks-scale",
        "benchmarks-throughput",
    ]
    for plot in files:
        ElementTree.parse(plot)
        assert plot.name in (tmp_path / "benchmarks.md").read_text()
        # black or white ink, or a ground, would vanish on one of the two pages
        assert inks(plot).isdisjoint({"#000000", "#ffffff"})
        assert "#ffffff" not in plot.read_text()


def test_black_ink_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_INK", "#000000")
    page.write(results(), tmp_path)
    assert inks(tmp_path / "benchmarks-latency.svg") == {"#000000"}


def inks(plot: Path) -> set[str]:
    """Of every text; SVG's own is black, where none is written."""
    svg = "{http://www.w3.org/2000/svg}"
    texts = [
        group
        for group in ElementTree.parse(plot).iter(f"{svg}g")
        if group.get("id", "").startswith("text_")
    ]
    assert texts
    styles = (inner.get("style", "") for text in texts for inner in text.findall(f"{svg}g"))
    return {
        style.partition("fill: ")[2].partition(";")[0] if "fill: " in style else "#000000"
        for style in styles
    }


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        page.write(results(), tmp_path / name)
        texts.append([file.read_text() for file in sorted((tmp_path / name).iterdir())])
    assert texts[0] == texts[1]


def test_quartiles_and_percentiles() -> None:
    assert quartiles((3.0, 1.0)) == (1.0, 3.0)
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (2.0, 4.0)
    assert percentile((4.0, 1.0, 3.0, 2.0), 0.5) == 2.5
    assert percentile((1.0,), 0.95) == 1.0
