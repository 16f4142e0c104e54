"""Charts: what is drawn where, and that every reader can take them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from action_client._plot import Axis, Chart, Series, svg

SVG = "{http://www.w3.org/2000/svg}"


def chart(*series: Series, x: Axis | None = None, y: Axis | None = None) -> Chart:
    return Chart(
        title="a < b & c",
        x=x or Axis(title="videos per second"),
        y=y or Axis(title="latency, ms"),
        series=series,
    )


def parse(drawn: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(svg(drawn))


def texts(drawn: Chart) -> list[str]:
    return [element.text or "" for element in parse(drawn).iter(f"{SVG}text")]


def circles(drawn: Chart) -> list[tuple[float, float]]:
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in parse(drawn).iter(f"{SVG}circle")
    ]


def test_points_lie_where_the_ticks_say() -> None:
    drawn = chart(Series(name="ours", points=[(0, 0), (10, 40), (20, 80)]))
    (left, bottom), middle, right = circles(drawn)
    assert middle == pytest.approx(((left + right[0]) / 2, (bottom + right[1]) / 2), abs=0.2)
    tick = {
        element.text: float(element.attrib["x"])
        for element in parse(drawn).iter(f"{SVG}text")
        if element.attrib.get("text-anchor") == "middle" and "x" in element.attrib
    }
    assert tick["20"] == pytest.approx(right[0])
    assert tick["0"] == pytest.approx(left)


def test_on_a_log_axis_equal_factors_are_equal_steps() -> None:
    points = [(1, 1), (2, 1), (4, 1), (16, 1)]
    drawn = chart(Series(name="ours", points=points), x=Axis(title="callers", log=True))
    one, two, four, sixteen = (x for x, _ in circles(drawn))
    assert two - one == pytest.approx(four - two, abs=0.2)
    assert sixteen - four == pytest.approx(2 * (two - one), abs=0.2)
    assert {"1", "2", "4", "8", "16"} <= set(texts(drawn))


def test_a_log_axis_takes_the_whole_width() -> None:
    points = [(100, 1), (1000, 1)]
    low, high = circles(chart(Series(name="ours", points=points), x=Axis(title="n", log=True)))
    assert low[0] < 640 * 0.2
    assert high[0] > 640 * 0.8


def test_a_log_axis_over_many_decades_has_powers_of_ten() -> None:
    points = [(1, 0.01), (2, 1000)]
    drawn = chart(Series(name="ours", points=points), y=Axis(title="MB", log=True))
    assert {"0.01", "0.1", "1", "10", "100", "1000"} <= set(texts(drawn))


def test_nothing_has_no_place_on_a_log_axis() -> None:
    with pytest.raises(ValueError, match="callers: 0 has no place"):
        svg(chart(Series(name="ours", points=[(0, 1)]), x=Axis(title="callers", log=True)))


def test_a_chart_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        svg(chart(Series(name="ours", points=[])))


def test_several_series_have_a_legend_and_one_has_none() -> None:
    one = Series(name="ours", points=[(1, 1)])
    other = Series(name="theory <1>", points=[(1, 2), (2, 4)], dashed=True)
    assert {"ours", "theory <1>"} <= set(texts(chart(one, other)))
    assert "ours" not in texts(chart(one))
    assert "stroke-dasharray" in svg(chart(one, other))
    assert "stroke-dasharray" not in svg(chart(one))


def test_points_have_their_labels_and_titles_are_text() -> None:
    shown = texts(chart(Series(name="ours", points=[(1, 1), (2, 2)], labels=["4", "16"])))
    assert {"4", "16", "a < b & c", "videos per second", "latency, ms"} <= set(shown)


def test_everything_lies_within_the_picture() -> None:
    series = [Series(name=f"a long name {n}", points=[(1, 1e-4), (9, 1e-3)]) for n in range(8)]
    root = parse(chart(*series))
    for element in root.iter(f"{SVG}text"):
        if "x" in element.attrib:
            assert 0 <= float(element.attrib["x"]) <= 640
            assert 0 <= float(element.attrib["y"]) <= 400


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "#rrggbb"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_text_stand_out_from_the_page(scheme: str) -> None:
    series = [Series(name=str(n), points=[(1, n + 1)]) for n in range(6)]
    light, _, dark = svg(chart(*series)).partition("@media (prefers-color-scheme:dark)")
    rules = dict(
        re.findall(r"\.(\w+)\{(?:fill|stroke):(#\w{6})", light if scheme == "light" else dark)
    )
    page = luminance(rules["page"])

    def contrast(name: str) -> float:
        low, high = sorted((luminance(rules[name]), page))
        return (high + 0.05) / (low + 0.05)

    assert contrast("text") >= 7
    assert min(contrast(f"s{n}") for n in range(6)) >= 3  # WCAG 1.4.11, graphical objects
