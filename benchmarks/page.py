"""docs/benchmarks.md and its plots from a measurement."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.models import CASE_TITLES, MODELS, Case
from benchmarks.results import Results, Series, Target, find, percentile
from benchmarks.targets import FULL, ROUNDS

NOTES = Path(__file__).with_name("notes.md")
GIB = 2**30

_HEAD = """\
# Benchmarks

`scripts/bench` wrote this page, its plots and [benchmarks.json](benchmarks.json) from one run, of
{minutes:.0f} minutes; `scripts/bench --quick --json out.json` repeats what the targets need in less
than five.

- Machine: {cpu}, {cores} cores ({flags}), {memory:.0f} GiB, {system}; load {load} when the run
  ended.
- Versions: {versions}.
- Weights are random, of a variance that deep layers keep. Videos: one real video in three sizes,
  H.264, 280 frames in ten seconds; 340x256 unless said otherwise.
- Every contender has a process of its own, and its own server where it needs one. They take turns,
  round by round, so ratios are taken within a round and hold on noisy machines; the median of the
  rounds is told, with the first and third quartile. Between two answers lies a tenth of a second,
  because the threads of a runtime spin for a while after theirs.
- Every answer, also of those with many callers, is compared with mmaction2's, or where that
  is not run with the first contender's: float32 within 1e-3 of the spread of the scores. What
  differs is told as wrong, and not timed; but [mmdeploy's SDK](../benchmarks/mmdeploy.md), which is
  wrong now and then, is.

| contender | what it is |
|---|---|
| runtime | the served graph with the served settings on clips that are ready: the limit |
| ours | `VideoClient` on a live tritonserver, from the file to the scores |
| frames | the same, of frames that are decoded already |
| by hand | an ensemble as one writes it by hand, [benchmarks/by_hand](../benchmarks/by_hand) |
| mmaction2 | its `inference_recognizer` |
| mmdeploy | its SDK, where `--mmdeploy-python` names an environment |
"""


def write(results: Results, docs: Path) -> None:
    """benchmarks.md, and what it shows, into `docs`."""
    parts = [_head(results), _targets(results.targets), _notes()]
    parts += [_latency(results.series, docs), _throughput(results.series, docs)]
    parts += [_preprocess(results.series), _wire(results.series), _memory(results.series)]
    parts += [_export(results.series), _scale(results.series, docs), _skipped(results)]
    (docs / "benchmarks.md").write_text("\n".join(part for part in parts if part), "utf-8")


def figure(target: Target, value: float | None) -> str:
    """A value in the unit of its target."""
    if value is None:
        return ""
    match target.unit:
        case "share":
            return f"{value:.1%}"
        case "bytes":
            return f"{value / 1e9:.2f} GB"
        case _ if value < 0.1:
            return f"1/{1 / value:.1f}"
        case _:
            return f"{value:.3g}"


def spread(target: Target) -> str:
    if target.spread is None or target.rounds < 2:
        return ""
    low, high = (figure(target, value) for value in target.spread)
    return f"{low} to {high}, {target.rounds} rounds"


def verdict(target: Target) -> str:
    if target.met is None:
        return target.why
    words = ["met" if target.met else "missed"]
    if target.uncertain:
        few = target.rounds < ROUNDS
        words.append(f"uncertain (of {target.rounds} of {ROUNDS} rounds)" if few else "uncertain")
    return ", ".join([*words, *([target.why] if target.why else [])])


def _head(results: Results) -> str:
    machine = results.machine
    return _HEAD.format(
        minutes=results.seconds / 60,
        cpu=machine["cpu"],
        cores=machine["cores"],
        flags=", ".join(machine["flags"]) or "no vector extensions",
        memory=machine["memory_bytes"] / GIB,
        system=machine["system"],
        load=machine["load"][0],
        versions=", ".join(f"{name} {version}" for name, version in results.versions.items()),
    )


def _targets(targets: Iterable[Target]) -> str:
    rows = [
        (t.name, t.target, figure(t, t.value), spread(t), verdict(t).replace("|", "/"))
        for t in targets
    ]
    return "## Targets\n\n" + _table(("figure", "target", "value", "spread", "verdict"), rows)


def _notes() -> str:
    return "## Notes on the targets\n\n" + NOTES.read_text("utf-8")


def _latency(series: Sequence[Series], docs: Path) -> str:
    found = [each for each in series if each.section == "latency"]
    if not found:
        return ""
    rows = [
        (
            CASE_TITLES.get(each.case, Case.named(each.case).title),
            each.video,
            each.contender + (f" ({each.facts['wrong']})" if "wrong" in each.facts else ""),
            *(
                (_ms(percentile(each.values, 0.5)), _ms(percentile(each.values, 0.95)))
                if each.values
                else (each.error, "")
            ),
            str(len(each.values)),
            _mb(each.facts.get("bytes", 0)),
        )
        for each in found
    ]
    text = "## Latency\n\nMilliseconds from the file to the scores (`runtime`: of clips).\n\n"
    columns = ("model", "video", "contender", "p50", "p95", "rounds", "MB sent")
    text += _table(columns, rows, numbers=4)
    charts = [chart for case in CASE_TITLES if (chart := _where(found, case)) is not None]
    if charts:
        plots.bars(charts, docs / "benchmarks-latency.svg")
        text += "\n### Where the time goes\n\n![where the time goes](benchmarks-latency.svg)\n\n"
        text += "Medians in milliseconds. Sampling is part of *decode*; of a contender that has no "
        text += "timers the whole is *compute*.\n\n"
        text += _table(
            ("model", "contender", *SEGMENTS),
            [
                (chart.title, name, *(f"{values[row]:.1f}" for values in chart.segments.values()))
                for chart in charts
                for row, name in enumerate(chart.names)
            ],
            numbers=len(SEGMENTS),
        )
    return text


# What each segment of a bar is made of: the client's own timers, and Triton's statistics of a step.
SEGMENTS = {
    "decode": ("decode",),
    "resize": ("resize",),
    "encode": ("encode",),
    "network": ("network",),
    "queue, copies": (
        "preprocess_queue",
        "preprocess_input",
        "preprocess_output",
        "recognizer_queue",
        "recognizer_input",
        "recognizer_output",
    ),
    "preprocess": ("preprocess_infer",),
    "compute": ("recognizer_infer",),
}


def _where(series: Sequence[Series], case: str) -> plots.Bars | None:
    """Medians in ms of all contenders whose parts are known; of others the whole as `compute`."""
    found = [each for each in series if each.case == case and each.values]
    found = [each for each in found if each.video == found[0].video]
    if not found:
        return None
    segments: dict[str, list[float]] = {name: [] for name in SEGMENTS}
    for each in found:
        for name, keys in SEGMENTS.items():
            if each.parts:
                value = sum(each.part(key) or 0.0 for key in keys)
            else:
                value = each.median if name == "compute" else 0.0
            segments[name].append(value * 1e3)
    return plots.Bars(
        title=CASE_TITLES[case], names=[each.contender for each in found], segments=segments
    )


def _throughput(series: Sequence[Series], docs: Path) -> str:
    every = [each for each in series if each.section == "throughput"]
    found = [each for each in every if each.values]
    if not found:
        return ""
    rows = []
    for each in every:
        head = (CASE_TITLES[each.case], each.contender, str(each.callers))
        if each.error:
            rows.append((*head, each.error, "", "", ""))
            continue
        waits = each.facts["latencies"]
        rows.append(
            (
                *head,
                f"{each.median:.2f}",
                _ms(percentile(waits, 0.5)),
                _ms(percentile(waits, 0.95)),
                str(len(each.values)),
            )
        )
    panels = [
        plots.Panel(
            title=CASE_TITLES[case],
            x_label="callers",
            y_label="videos per second",
            curves=[_by_callers(found, case, name) for name in _contenders(found, case)],
        )
        for case in dict.fromkeys(each.case for each in found)
    ]
    plots.curves(panels, docs / "benchmarks-throughput.svg")
    columns = ("model", "contender", "callers", "videos/s", "p50", "p95", "rounds")
    return (
        "## Throughput\n\nEach caller asks again as soon as it is answered; a fixed number of "
        "requests over the time that all take. `frames` begins at frames that are decoded already, "
        "`runtime` at clips that are ready, all others at the file. Latencies in "
        "milliseconds.\n\n![throughput](benchmarks-throughput.svg)\n\n"
        + _table(columns, rows, numbers=5)
    )


def _contenders(series: Iterable[Series], case: str) -> list[str]:
    return list(dict.fromkeys(each.contender for each in series if each.case == case))


def _by_callers(series: Iterable[Series], case: str, contender: str) -> plots.Curve:
    rows = [s for s in series if (s.case, s.contender) == (case, contender)]
    rows.sort(key=lambda each: each.callers)
    return plots.Curve(name=contender, x=[s.callers for s in rows], y=[s.median for s in rows])


def _preprocess(series: Sequence[Series]) -> str:
    rows = []
    for each in series:
        if each.section != "preprocess" or each.contender != "preprocess" or not each.values:
            continue
        bound = find(
            series, section="preprocess", case=each.case, contender="cv2", video=each.video
        )
        if bound is not None:
            rows.append((CASE_TITLES[each.case], each.video, _ms(each.median), _ms(bound.median)))
    if not rows:
        return ""
    return (
        "## The preprocess step\n\nMilliseconds on frames of native size: Triton's `compute_infer` "
        "of the step, and OpenCV on one thread for the same frames into buffers that are there.\n\n"
        + _table(("model", "video", "step", "bound"), rows, numbers=2)
    )


def _wire(series: Sequence[Series]) -> str:
    rows = [
        (
            CASE_TITLES[each.case],
            each.video,
            "JPEG" if each.contender.endswith("jpeg") else "lossless",
            _mb(each.facts["bytes"]),
            _mb(each.facts["native_bytes"]),
            f"1/{each.facts['native_bytes'] / each.facts['bytes']:.1f}",
        )
        for each in series
        if each.section == "wire" and each.values
    ]
    if not rows:
        return ""
    return "## Bytes on the wire\n\nMegabytes of one request.\n\n" + _table(
        ("model", "video", "wire", "sent", "all native frames", "share"), rows, numbers=3
    )


def _memory(series: Sequence[Series]) -> str:
    rows = []
    for each in series:
        memory = each.facts.get("memory")
        if each.section != "latency" or memory is None or each.contender.startswith("frames"):
            continue
        sizes = (_mb(memory[key]) for key in ("client", "server", "stubs", "shm"))
        if each.values and each.video == "340x256":
            title = Case.named(each.case).title
            idle = each.facts.get("idle_cpu")
            told = "" if idle is None else f"{idle:.1%}"
            rows.append((title, each.contender, *sizes, told))
    if not rows:
        return ""
    columns = ("model", "contender", "client", "server", "stubs", "/dev/shm", "idle CPU")
    return (
        "## Memory\n\nPeaks of resident memory in MB, after the latencies were measured; pages "
        "that processes share count in each. *client* is the contender's own process. *idle CPU*: "
        "share of a core while others had their turn.\n\n" + _table(columns, rows, numbers=5)
    )


def _export(series: Sequence[Series]) -> str:
    found = [each for each in series if each.section == "export" and each.values]
    if not found:
        return ""
    rows = [
        (CASE_TITLES[s.case], s.contender, f"{s.median:.1f}", str(len(s.values))) for s in found
    ]
    text = "## Export\n\nSeconds in fresh processes, without imports.\n\n"
    text += _table(("model", "export", "seconds", "rounds"), rows, numbers=2)
    for each in found:
        if each.parts:
            steps = [(name, f"{statistics.median(v):.2f}") for name, v in each.parts.items()]
            text += f"\nSteps of ours, {CASE_TITLES[each.case]}:\n\n"
            text += _table(("step", "seconds"), steps, numbers=1)
    return text


def _scale(series: Sequence[Series], docs: Path) -> str:
    panels = [*_by_views(series), *_by_size(series), *_by_model(series), *_by_load(series)]
    if not panels:
        return ""
    plots.curves(panels, docs / "benchmarks-scale.svg")
    return (
        "## Scale\n\nSolid: what was measured. Dashed: the straight line that theory gives. Views: "
        "proportional to their number, through the first point. Pixels: what is not decoded stays, "
        "decoding is proportional to the pixels. Models: ours takes as long as the runtime alone. "
        "Callers: each waits for all others. Memory of views: their activations are not there all "
        "at once, so it stays. Memory of models: their weights, above the smallest.\n\n"
        "![scale](benchmarks-scale.svg)\n"
    )


def _by_views(series: Sequence[Series]) -> list[plots.Panel]:
    """SlowFast with one clip, two, four, and its own thirty views."""
    points = (("slowfast-one", 1), ("slowfast-clips2", 2), ("slowfast-clips4", 4), (FULL, 30))
    found = [(views, _ours(series, case)) for case, views in points]
    known = [(views, ours) for views, ours in found if ours is not None]
    if len(known) < 2:
        return []
    x = [views for views, _ in known]
    seconds = [ours.median for _, ours in known]
    sizes = [_served_gib(ours) for _, ours in known]
    line = [seconds[0] / x[0] * views for views in x]
    flat = [sizes[0]] * len(x)
    return [
        _panel("Latency by views", "views", "s", x, seconds, line, "SlowFast"),
        _panel("Memory of server and stubs by views", "views", "GiB", x, sizes, flat, "SlowFast"),
    ]


def _by_size(series: Sequence[Series]) -> list[plots.Panel]:
    """One view of 340x256, 720p and 1080p."""
    from benchmarks.videos import SIZES

    found = [(size, _ours(series, "slowfast-one", name)) for name, size in SIZES.items()]
    known = [(w * h / 1e6, ours) for (w, h), ours in found if ours is not None]
    if len(known) < 2:
        return []
    x = [pixels for pixels, _ in known]
    first = known[0][1]
    decode = first.part("decode") or 0.0
    line = [first.median + decode * (pixels / x[0] - 1) for pixels in x]
    y = [ours.median for _, ours in known]
    label = "megapixels of a frame"
    return [_panel("Latency by frame size", label, "s", x, y, line, "SlowFast, one view")]


def _by_model(series: Sequence[Series]) -> list[plots.Panel]:
    """One view of every model: latency over the runtime's, memory over the size of the graph."""
    cases = [Case(model=model, views="one").name for model in MODELS.values()]
    pairs = [(_ours(series, case), _alone(series, case)) for case in cases]
    known = [(ours, alone) for ours, alone in pairs if ours is not None and alone is not None]
    if len(known) < 2:
        return []
    known.sort(key=lambda pair: pair[1].median)
    x = [alone.median for _, alone in known]
    y = [ours.median for ours, _ in known]
    panels = [_panel("Latency by model", "s, runtime alone", "s", x, y, x, "ours, one view")]
    known.sort(key=lambda pair: pair[0].facts["graph_bytes"])
    sizes = [ours.facts["graph_bytes"] / GIB for ours, _ in known]
    memory = [_served_gib(ours) for ours, _ in known]
    line = [memory[0] + size - sizes[0] for size in sizes]
    title = "Memory of server and stubs by model"
    return [*panels, _panel(title, "GiB of the graph", "GiB", sizes, memory, line, "one view")]


def _by_load(series: Sequence[Series]) -> list[plots.Panel]:
    """TSM with 1, 4 and 16 callers."""
    rows = [
        each
        for each in series
        if each.section == "throughput"
        and each.case == "tsm-one"
        and each.contender.startswith("frames")
        and each.values
    ]
    if len(rows) < 2:
        return []
    rows.sort(key=lambda each: each.callers)
    x = [float(each.callers) for each in rows]
    y = [statistics.median(each.facts["latencies"]) for each in rows]
    line = [y[0] * callers for callers in x]
    return [_panel("Latency by callers", "callers", "s", x, y, line, "TSM, one view")]


def _panel(
    title: str,
    x_label: str,
    y_label: str,
    x: Sequence[float],
    y: Sequence[float],
    theory: Sequence[float],
    name: str,
) -> plots.Panel:
    curve = plots.Curve(name=name, x=x, y=y, theory=theory)
    return plots.Panel(title=title, x_label=x_label, y_label=y_label, curves=[curve])


def _ours(series: Sequence[Series], case: str, video: str = "340x256") -> Series | None:
    return find(series, section="latency", case=case, contender="ours onnx", video=video)


def _alone(series: Sequence[Series], case: str) -> Series | None:
    return find(series, section="latency", case=case, contender="runtime onnx", video="340x256")


def _served_gib(ours: Series) -> float:
    memory = ours.facts["memory"]
    served: int = memory["server"] + memory["stubs"]
    return served / GIB


def _skipped(results: Results) -> str:
    if not results.skipped:
        return ""
    lines = [f"- {what}: {why}\n" for what, why in results.skipped]
    return "## Not measured\n\n" + "".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """numbers: columns at the end that are aligned to the right."""
    rule = ["---"] * (len(columns) - numbers) + ["---:"] * numbers
    lines = [columns, rule, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f}" if count else ""
