"""The plots of docs/benchmarks.md, as SVG that is readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Between black and white, so that both grounds leave it legible.
_INK = "#7f8c8d"
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_COLOURS = ("#3498db", "#e67e22", "#27ae60", "#c0699c", "#e74c3c", "#8e7cc3", "#16a5a5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """x, y: points that were measured. theory: y of the line that theory gives, at the same x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    theory: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """segments: by name, one value for each of `names`; they are stacked."""

    title: str
    names: Sequence[str]
    segments: Mapping[str, Sequence[float]]


def curves(panels: Sequence[Panel], path: Path) -> None:
    """Panels beside each other, two in a row."""
    rows = (len(panels) + 1) // 2
    figure, axes = _figure(rows, 2, (9, 3.2 * rows))
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        for curve, colour in zip(panel.curves, _COLOURS, strict=False):
            axis.plot(curve.x, curve.y, "o-", color=colour, label=curve.name, markersize=4)
            if curve.theory:
                axis.plot(curve.x, curve.theory, "--", color=colour, linewidth=1, alpha=0.7)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _save(figure, path)


def bars(groups: Sequence[Bars], path: Path) -> None:
    """One chart below the other, of horizontal stacked bars in milliseconds."""
    heights = [0.9 + 0.32 * len(group.names) for group in groups]
    figure, axes = _figure(len(groups), 1, (9, sum(heights)), height_ratios=heights)
    for axis, group in zip(axes, groups, strict=True):
        left = [0.0] * len(group.names)
        for (name, values), colour in zip(group.segments.items(), _COLOURS, strict=False):
            axis.barh(group.names, values, left=left, color=colour, label=name, height=0.65)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axis.invert_yaxis()
        axis.set_title(group.title, fontsize=10)
        axis.set_xlabel("ms")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(names), fontsize=8, frameon=False
    )
    _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float], **grid: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    settings: Any = matplotlib.rcParams
    # the same figures give the same file
    settings.update({"svg.hashsalt": "benchmarks", "font.size": 9})
    settings.update(dict.fromkeys(_INKED, _INK))
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=size, squeeze=False, gridspec_kw=grid, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_facecolor("none")
        axis.grid(color=_INK, alpha=0.25, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
