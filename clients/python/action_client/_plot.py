"""Line charts as SVG, readable on light and dark pages, from nothing but this file.

    svg(Chart(title="...", x=Axis(title="callers", log=True), y=Axis(title="ms"), series=[...]))

The colours follow the page's scheme (prefers-color-scheme), also of an <img>. Text is set in the
reader's own sans-serif, so widths are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its points in order, and a text beside each where there are texts.

    dashed: for what is not measured, such as a bound or a theory. It has no markers.
    """

    name: str
    points: Sequence[Point]
    labels: Sequence[str] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """title: with the unit. log: only for values above 0; any other axis starts at 0."""

    title: str
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A legend is drawn where there are several series."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    width: int = 640
    height: int = 400


# Of Okabe and Ito, who chose them to be told apart by everybody; the second for dark pages.
_COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#00845e", "#2fc79a"),
    ("#b0508c", "#e59bc8"),
    ("#8a6d00", "#f0e442"),
    ("#5b5b5b", "#bdbdbd"),
)
_MARKERS = (
    '<circle class="{c}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
    '<rect class="{c}" x="{left:.1f}" y="{top:.1f}" width="7.5" height="7.5"/>',
    '<path class="{c}" d="M{x:.1f} {above:.1f}l5 8.6h-10z"/>',
    '<path class="{c}" d="M{x:.1f} {above:.1f}l5 5-5 5-5-5z"/>',
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 44, 56
_LETTER = 6.6  # width of a letter of 12 px, on average
_TICKS = 6


def svg(chart: Chart) -> str:
    """Raises ValueError where there is no point, or one of a log axis is not above 0."""
    points = [point for series in chart.series for point in series.points]
    if not points:
        raise ValueError("a chart needs at least one point")
    legend = _legend_width(chart.series)
    plot = _Plot(
        x=_scale([x for x, _ in points], chart.x, _LEFT, chart.width - _RIGHT - legend),
        y=_scale([y for _, y in points], chart.y, chart.height - _BOTTOM, _TOP),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{chart.width}" height="{chart.height}" '
        f'viewBox="0 0 {chart.width} {chart.height}" role="img" '
        f'font-family="system-ui, -apple-system, sans-serif" font-size="12">',
        f"<title>{escape(chart.title)}</title>",
        f"<style>{_style(len(chart.series))}</style>",
        f'<rect class="page" width="{chart.width}" height="{chart.height}"/>',
        f'<text class="text" x="{_LEFT}" y="24" font-size="15" font-weight="600">'
        f"{escape(chart.title)}</text>",
        *_axes(chart, plot),
        *(part for number, one in enumerate(chart.series) for part in _line(one, number, plot)),
        *(part for one in chart.series for part in _texts(one, plot)),
        *(_legend(chart.series, chart.width - _RIGHT - legend + 20) if legend else ()),
        "</svg>\n",
    ]
    return "\n".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    x: _Scale
    y: _Scale


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    if axis.log:
        if min(values) <= 0:
            raise ValueError(f"{axis.title}: {min(values)} has no place on a log axis")
        low, high = min(values) / 1.15, max(values) * 1.15
        ticks = _log_ticks(low, high)
    else:
        step = _step(max(max(values), 1e-9) * 1.05)
        low, high = 0.0, step * math.ceil(max(max(values), 1e-9) * 1.05 / step)
        ticks = [step * number for number in range(round(high / step) + 1)]
    return _Scale(low=low, high=high, start=start, end=end, log=axis.log, ticks=ticks)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, some `_TICKS` of which make up the span."""
    power: float = 10 ** math.floor(math.log10(span / _TICKS))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * _TICKS >= span)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of two where few make up the span, as of numbers of callers; else 1, 2, 5, 10..."""
    if high / low <= 2 ** (_TICKS + 1):
        powers: Iterable[float] = (2.0**power for power in _whole(math.log2(low), math.log2(high)))
        return list(powers)
    decades = list(_whole(math.log10(low) - 1, math.log10(high)))
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = (factor * 10.0**decade for decade in decades for factor in factors)
    return [tick for tick in ticks if low <= tick <= high]


def _whole(low: float, high: float) -> range:
    return range(math.ceil(low), math.floor(high) + 1)


def _style(count: int) -> str:
    def rules(scheme: int, page: str, text: str, grid: str) -> str:
        lines = "".join(
            f".s{n}{{stroke:{_COLOURS[n % len(_COLOURS)][scheme]}}}"
            f".m{n}{{fill:{_COLOURS[n % len(_COLOURS)][scheme]}}}"
            for n in range(count)
        )
        return (
            f".page{{fill:{page}}}.text{{fill:{text}}}.grid{{stroke:{grid}}}"
            f".halo{{stroke:{page};stroke-width:3;fill:none}}{lines}"
        )

    light = rules(0, "#ffffff", "#1f2328", "#d8dee4")
    dark = rules(1, "#0d1117", "#e6edf3", "#30363d")
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _axes(chart: Chart, plot: _Plot) -> list[str]:
    x, y = plot.x, plot.y
    rows = [
        f'<path class="grid" d="M{x.start} {y(tick):.1f}H{x.end}"/>'
        f'<text class="text" x="{x.start - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
        f"{_number(tick)}</text>"
        for tick in y.ticks
    ]
    columns = [
        f'<path class="grid" d="M{x(tick):.1f} {y.start}V{y.end}"/>'
        f'<text class="text" x="{x(tick):.1f}" y="{y.start + 18}" text-anchor="middle">'
        f"{_number(tick)}</text>"
        for tick in x.ticks
    ]
    middle = ((x.start + x.end) / 2, (y.start + y.end) / 2)
    titles = [
        f'<text class="text" x="{middle[0]:.1f}" y="{y.start + 42}" text-anchor="middle">'
        f"{escape(chart.x.title)}</text>",
        f'<text class="text" transform="translate(18 {middle[1]:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(chart.y.title)}</text>',
    ]
    return [*rows, *columns, *titles]


def _line(series: Series, number: int, plot: _Plot) -> list[str]:
    places = [(plot.x(x), plot.y(y)) for x, y in series.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="6 5"' if series.dashed else ""
    line = f'<path class="s{number}" fill="none" stroke-width="2"{dash} d="M{path}"/>'
    markers = [] if series.dashed else [_marker(number, x, y) for x, y in places]
    return [line, *markers]


def _texts(series: Series, plot: _Plot) -> list[str]:
    """Each twice: not every renderer knows paint-order, which would do with one."""
    return [
        f'<text class="{kind}" x="{plot.x(x):.1f}" y="{plot.y(y) - 9:.1f}" '
        f'text-anchor="middle" font-size="11"{hidden}>{escape(text)}</text>'
        for (x, y), text in zip(series.points, series.labels, strict=False)
        for kind, hidden in (("halo", ' aria-hidden="true"'), ("text", ""))
    ]


def _marker(number: int, x: float, y: float) -> str:
    shape = _MARKERS[number % len(_MARKERS)]
    return shape.format(c=f"m{number}", x=x, y=y, left=x - 3.75, top=y - 3.75, above=y - 5)


def _legend_width(series: Sequence[Series]) -> float:
    """In pixels; none for a single series, which the title names."""
    return 50 + _LETTER * max(len(one.name) for one in series) if len(series) > 1 else 0


def _legend(series: Sequence[Series], left: float) -> list[str]:
    parts = []
    for number, one in enumerate(series):
        y = _TOP + 12 + 20 * number
        dash = ' stroke-dasharray="6 5"' if one.dashed else ""
        parts.append(
            f'<path class="s{number}" stroke-width="2"{dash} d="M{left:.1f} {y}h24"/>'
            + ("" if one.dashed else _marker(number, left + 12, y))
            + f'<text class="text" x="{left + 30:.1f}" y="{y + 4}">{escape(one.name)}</text>'
        )
    return parts


def _number(value: float) -> str:
    return f"{value:,.10g}".replace(",", " ") if value >= 1e4 else f"{value:.4g}"
