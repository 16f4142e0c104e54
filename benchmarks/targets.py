"""The targets of the project as formulas over a measurement; each is a ratio within one run.

A ratio is taken in each round, and the median over the rounds is the value: what disturbs the
machine in a round disturbs both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.models import CASE_TITLES
from benchmarks.results import Series, Target, find, quartiles
from benchmarks.videos import SIZES

VIDEO = "340x256"
ONE_VIEW = ("tsm-one", "tsn-one", "slowfast-one")
FULL = "slowfast-full"
FP32 = ("onnx", "openvino")
BF16 = "openvino-bf16"
ROUNDS = 3  # fewer cannot tell what the machine did from what is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    side: Literal["<=", ">="]
    value: float
    text: str

    def met(self, value: float) -> bool:
        return value <= self.value if self.side == "<=" else value >= self.value


def at_most(value: float, text: str = "") -> Limit:
    return Limit(side="<=", value=value, text=text or f"<= {value:g}")


def at_least(value: float) -> Limit:
    return Limit(side=">=", value=value, text=f">= {value:g}")


class NotMeasuredError(Exception):
    """Why a target has no value."""


def judge(
    name: str,
    limit: Limit,
    ratios: Callable[[], Sequence[float]],
    unit: str = "",
    *,
    timed: bool = True,
) -> Target:
    """The verdict on the median of the ratios, or why there is none.

    timed: the ratios are of times, so that few rounds leave it uncertain.
    """
    try:
        values = ratios()
    except NotMeasuredError as exc:
        return Target(name=name, target=limit.text, unit=unit, why=f"not measured: {exc}")
    value, spread = statistics.median(values), quartiles(values)
    return Target(
        name=name,
        target=limit.text,
        value=value,
        met=limit.met(value),
        spread=spread,
        rounds=len(values),
        uncertain=timed and (len(values) < ROUNDS or spread[0] <= limit.value <= spread[1]),
        unit=unit,
    )


def all_targets(
    series: Sequence[Series], skipped: dict[str, str], loops: Sequence[str] = ONE_VIEW
) -> tuple[Target, ...]:
    """In the order of the issue's table.

    skipped: reasons by name, of engines, contenders and sections. loops: the cases whose throughput
    was to be measured.
    """
    at = Measured(series, skipped)
    titles = CASE_TITLES
    found = [
        judge(f"serving tax, {titles[case]}", at_most(0.05, "<= 5 %"), at.tax(case), "share")
        for case in ONE_VIEW
    ]
    found.append(
        judge(f"serving tax, {titles[FULL]}", at_most(0.06, "<= 6 %"), at.tax(FULL), "share")
    )
    found += [
        judge(
            f"throughput at {callers} callers over the runtime alone, {titles[case]}",
            at_least(0.95),
            at.throughput(case, callers),
        )
        for case in loops
        for callers in (4, 16)
    ]
    for case, limit in zip(ONE_VIEW, (1.4, 1.75, 1.8), strict=True):
        name = f"mmaction2's latency over ours, fp32, {titles[case]}"
        found.append(judge(name, at_least(limit), at.over_ours("mmaction2", case, FP32)))
    for case, limit in zip(ONE_VIEW, (1.05, 1.05, 1.5), strict=True):
        name = f"mmdeploy SDK's latency over ours, fp32, {titles[case]}"
        target = judge(name, at_least(limit), at.over_ours("mmdeploy", case, FP32))
        found.append(replace(target, why=target.why or at.remark("mmdeploy", case)))
    for case in ONE_VIEW:
        name = f"mmaction2's latency over ours, bf16, {titles[case]}"
        found.append(judge(name, at_least(2.2), at.over_ours("mmaction2", case, (BF16,))))
    found += [
        judge(
            f"preprocess step over the cv2 bound, {titles[case]}, native {video}",
            at_most(1.5),
            at.preprocess(case, video),
        )
        for case in (FULL, "slowfast-one")
        for video in ("340x256", "720p")
    ]
    for wire, share in (("onnx", 25), ("onnx-jpeg", 300)):
        kind = "lossless" if wire == "onnx" else "JPEG"
        name = f"bytes on the wire over all native frames, 1080p, {titles[FULL]}, {kind}"
        limit_of_wire = at_most(1 / share, f"<= 1/{share}")
        found.append(judge(name, limit_of_wire, at.wire(wire), timed=False))
    name = f"peak memory of server and stubs, {titles[FULL]}"
    target = judge(name, at_most(4e9, "<= 4 GB"), at.memory, "bytes", timed=False)
    found.append(replace(target, why=target.why or f"of {at.heaviest()[0]}"))
    name = f"lone request with dynamic batching on, over off, {titles['tsm-one']}"
    found.append(judge(name, at_most(1.01), at.batching))
    name = f"export with its proof over a bare torch.onnx.export, {titles['tsm-one']}"
    found.append(judge(name, at_most(2.5), at.export("tsm-one")))
    return tuple(found)


class Measured:
    """The ratios of a measurement; each method gives a function that raises NotMeasuredError."""

    def __init__(self, series: Sequence[Series], skipped: dict[str, str]) -> None:
        self._series = series
        self._skipped = skipped

    def tax(self, case: str) -> Callable[[], Sequence[float]]:
        """(file to scores - client decode - runtime alone) / runtime alone, of the faster engine.

        The issue's own formula. What the client resizes, packs and sends counts as tax.
        """

        def ratios() -> Sequence[float]:
            engine = self._faster(case, FP32)
            ours = self._need("latency", case, f"ours {engine}")
            alone = self._need("latency", case, f"runtime {engine}")
            rounds = zip(ours.values, ours.parts["decode"], alone.values, strict=True)
            return [(whole - decoding - limit) / limit for whole, decoding, limit in rounds]

        return ratios

    def throughput(self, case: str, callers: int) -> Callable[[], Sequence[float]]:
        """Requests per second of frames to scores over those of the runtime alone.

        The frames are ready, because decoding on the same cores is work that the runtime alone does
        not do. The runtime has as many callers, or one, whichever is more in that round.
        """

        def ratios() -> Sequence[float]:
            engine = self._faster(case, FP32, section="throughput", callers=callers)
            ours = self._need("throughput", case, f"frames {engine}", callers=callers)
            many = self._need("throughput", case, f"runtime {engine}", callers=callers)
            one = find(self._series, section="throughput", case=case, contender=f"runtime {engine}")
            best = many.values
            if one is not None:
                best = tuple(map(max, zip(many.values, one.values, strict=True)))
            return _ratios(ours.values, best)

        return ratios

    def over_ours(
        self, contender: str, case: str, engines: Sequence[str]
    ) -> Callable[[], Sequence[float]]:
        """Its seconds from file to scores over ours with the fastest of these engines."""

        def ratios() -> Sequence[float]:
            engine = self._faster(case, engines)
            theirs = self._need("latency", case, contender)
            return _ratios(theirs.values, self._need("latency", case, f"ours {engine}").values)

        return ratios

    def remark(self, contender: str, case: str) -> str:
        """What must be told of a contender beside its time, or ""."""
        found = self._find("latency", case, contender, callers=1)
        return str(found.facts.get("wrong", "")) if found is not None else ""

    def preprocess(self, case: str, video: str) -> Callable[[], Sequence[float]]:
        """Triton's compute_infer of the preprocess model, over what OpenCV needs for the same."""

        def ratios() -> Sequence[float]:
            step = self._need("preprocess", case, "preprocess", video=video)
            bound = self._need("preprocess", case, "cv2", video=video)
            return _ratios(step.values, bound.values)

        return ratios

    def wire(self, kind: str) -> Callable[[], Sequence[float]]:
        """Bytes of the request's tensors over those of every sampled position at native size."""

        def ratios() -> Sequence[float]:
            sent = self._need("wire", FULL, kind, video="1080p")
            return [sent.facts["bytes"] / sent.facts["native_bytes"]]

        return ratios

    def memory(self) -> Sequence[float]:
        """Peaks of tritonserver and of its stubs, added, with the engine that needs most."""
        return [self.heaviest()[1]]

    def heaviest(self) -> tuple[str, float]:
        """The contender with the engine that needs most memory, and its bytes.

        An engine that failed may have been the one: then there is no answer.
        """
        names = [f"ours {engine}" for engine in FP32]
        run = {each.contender for each in self._series if each.case == FULL}
        # where none was run, the first says why
        wanted = [name for name in names if name in run] or names
        sizes: dict[str, float] = {}
        for name in wanted:
            memory = self._need("latency", FULL, name).facts["memory"]
            sizes[name] = memory["server"] + memory["stubs"]
            if not sizes[name]:
                raise NotMeasuredError(f"{name} had ended before its memory was read")
        return max(sizes.items(), key=lambda item: item[1])

    def batching(self) -> Sequence[float]:
        """A request by itself, of frames, on the repository as published and without the block."""
        on = self._need("batching", "tsm-one", "on")
        return _ratios(on.values, self._need("batching", "tsm-one", "off").values)

    def export(self, case: str) -> Callable[[], Sequence[float]]:
        """Seconds of api.export over those of torch.onnx.export, without the imports of either."""

        def ratios() -> Sequence[float]:
            ours = self._need("export", case, "ours")
            return _ratios(ours.values, self._need("export", case, "torch").values)

        return ratios

    def _faster(
        self, case: str, engines: Sequence[str], section: str = "latency", callers: int = 1
    ) -> str:
        """The engine whose runtime alone is fastest, of those that were measured with ours."""
        who = "frames" if section == "throughput" else "ours"
        known = {
            engine: alone.median
            for engine in engines
            if (alone := self._find(section, case, f"runtime {engine}", callers)) is not None
            and self._find(section, case, f"{who} {engine}", callers) is not None
        }
        if not known:
            # let the first say why
            for engine in engines:
                self._need(section, case, f"{who} {engine}", callers=callers)
                self._need(section, case, f"runtime {engine}", callers=callers)
        return (max if section == "throughput" else min)(known, key=known.__getitem__)

    def _find(self, section: str, case: str, contender: str, callers: int) -> Series | None:
        video = VIDEO if section == "latency" else None
        return find(
            self._series,
            section=section,
            case=case,
            contender=contender,
            video=video,
            callers=callers,
        )

    def _need(
        self,
        section: str,
        case: str,
        contender: str,
        *,
        video: str | None = None,
        callers: int = 1,
    ) -> Series:
        wanted = video or (VIDEO if section == "latency" else None)
        found = find(
            self._series,
            section=section,
            case=case,
            contender=contender,
            video=wanted,
            callers=callers,
        )
        if found is None:
            raise NotMeasuredError(self._reason(section, case, contender))
        return found

    def _reason(self, section: str, case: str, contender: str) -> str:
        for each in self._series:
            same = (each.section, each.case, each.contender) == (section, case, contender)
            if same and each.error:
                return each.error
        # by name, by engine, or with its whole section
        title = section_title(section, case)
        for word in (contender, contender.split()[-1], title):
            if word in self._skipped:
                return self._skipped[word]
        return f"{contender} was not run on {CASE_TITLES.get(case, case)} ({section})"


def section_title(section: str, case: str) -> str:
    """What a section is called where it is left out."""
    match section:
        case "batching":
            return "dynamic batching"
        case "preprocess":
            return f"preprocess step of {case}"
        case "wire":
            return "bytes on the wire"
        case "export":
            return f"export of {case}"
        case _:
            return CASE_TITLES.get(case, case)


def native_bytes(positions: int, video: str) -> int:
    """Of RGB frames of this video, one for each sampled position."""
    width, height = SIZES[video]
    return positions * width * height * 3


def _ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
