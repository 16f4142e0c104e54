"""The targets' formulas on rounds whose ratios are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.results import Series, Target
from benchmarks.targets import FULL, ONE_VIEW, VIDEO, all_targets, native_bytes

LATENCY = Series(section="latency", case="tsm-one", contender="", video=VIDEO)


def latency(contender: str, *values: float, **changes: object) -> Series:
    return replace(LATENCY, contender=contender, values=values, **changes)


def ours(*values: float, decode: tuple[float, ...], engine: str = "onnx") -> Series:
    return latency(f"ours {engine}", *values, parts={"decode": decode})


def found(series: list[Series], name: str, skipped: dict[str, str] | None = None) -> Target:
    targets = [each for each in all_targets(series, skipped or {}) if each.name.startswith(name)]
    assert targets, name
    return targets[0]


def test_serving_tax_is_what_is_left_of_each_round_without_decoding_and_the_runtime() -> None:
    series = [
        ours(1.2, 2.3, 9.0, decode=(0.1, 0.2, 0.3)),
        latency("runtime onnx", 1.0, 2.0, 8.0),
    ]
    tax = found(series, "serving tax, TSM")
    # 10 %, 5 %, 8.75 %: the median of the ratios, not the ratio of the medians, which is 5 %
    assert tax.value == pytest.approx(0.0875)
    assert tax.met is False
    assert tax.rounds == 3
    assert tax.spread == pytest.approx((0.06875, 0.09375))


def test_the_engine_whose_runtime_is_faster_is_judged() -> None:
    series = [
        ours(1.0, decode=(0.0,)),
        latency("runtime onnx", 1.0),
        ours(0.6, decode=(0.0,), engine="openvino"),
        latency("runtime openvino", 0.5),
        latency("mmaction2", 3.0),
    ]
    assert found(series, "serving tax, TSM").value == pytest.approx(0.2)
    assert found(series, "mmaction2's latency over ours, fp32, TSM").value == pytest.approx(5.0)


def test_an_engine_with_a_wrong_answer_is_not_judged() -> None:
    series = [
        ours(1.0, decode=(0.0,)),
        latency("runtime onnx", 1.0),
        latency("ours openvino", error="wrong: off by 0.5"),
        latency("runtime openvino", 0.1),
    ]
    assert found(series, "serving tax, TSM").value == pytest.approx(0.0)


def test_throughput_is_held_to_the_runtime_with_one_caller_or_many() -> None:
    def loop(contender: str, callers: int, *values: float) -> Series:
        return Series(
            section="throughput",
            case="tsm-one",
            contender=contender,
            callers=callers,
            values=values,
        )

    series = [
        loop("frames onnx", 4, 2.0, 3.0),
        loop("runtime onnx", 4, 2.0, 2.0),
        loop("runtime onnx", 1, 1.0, 4.0),
    ]
    at_4 = found(series, "throughput at 4 callers over the runtime alone, TSM")
    assert at_4.value == pytest.approx((1.0 + 0.75) / 2)
    assert at_4.uncertain  # 0.95 lies between 0.75 and 1
    at_16 = found(series, "throughput at 16")
    assert at_16.met is None
    assert "frames onnx was not run" in at_16.why


def test_wire_memory_and_ratios_of_pairs() -> None:
    def pair(section: str, case: str, one: str, other: str, video: str = "") -> list[Series]:
        base = Series(section=section, case=case, contender=one, video=video, values=(3.0, 5.0))
        return [base, replace(base, contender=other, values=(2.0, 2.0))]

    native = native_bytes(320, "1080p")
    assert native == 320 * 1920 * 1080 * 3
    facts = {"bytes": native / 30, "native_bytes": native}
    memory = {"memory": {"client": 9e9, "server": 1e9, "stubs": 2e9, "shm": 9e9}}
    less = {"memory": {"client": 0, "server": 1e9, "stubs": 1e9, "shm": 0}}
    series = [
        Series(
            section="wire", case=FULL, contender="onnx", video="1080p", values=(1.0,), facts=facts
        ),
        latency("ours onnx", 1.0, case=FULL, facts=memory, parts={"decode": (0.0,)}),
        latency("runtime onnx", 1.0, case=FULL),
        latency("ours openvino", 0.5, case=FULL, facts=less, parts={"decode": (0.0,)}),
        latency("runtime openvino", 0.5, case=FULL),
        *pair("preprocess", FULL, "preprocess", "cv2", "720p"),
        *pair("export", "tsm-one", "ours", "torch"),
        *pair("batching", "tsm-one", "on", "off"),
    ]
    wire = found(series, "bytes on the wire")
    assert (wire.value, wire.met) == (pytest.approx(1 / 30), True)
    peak = found(series, "peak memory")
    assert (peak.value, peak.why) == (pytest.approx(3e9), "of ours onnx")
    # neither is a time, which few rounds leave uncertain
    assert (wire.uncertain, peak.uncertain) == (False, False)
    assert found(series, "preprocess step over the cv2 bound, SlowFast").met is None  # 340x256
    for name in ("export with its proof", "lone request with dynamic batching"):
        assert found(series, name).value == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"values": (), "error": "it fell over"}, "not measured: it fell over"),
        ({"facts": {"memory": {"server": 0, "stubs": 0}}}, "not measured: ours openvino had ended"),
    ],
)
def test_an_engine_that_failed_leaves_the_peak_open(changes: dict[str, object], why: str) -> None:
    memory = {"memory": {"server": 1e9, "stubs": 2e9}}
    onnx = latency("ours onnx", 1.0, case=FULL, facts=memory)
    openvino = replace(onnx, contender="ours openvino", **changes)
    peak = found([onnx, openvino], "peak memory")
    assert peak.met is None
    assert peak.why.startswith(why)


def test_a_time_of_few_rounds_is_uncertain() -> None:
    def at_three_times(*seconds: float) -> Target:
        mmaction2 = latency("mmaction2", *(3 * value for value in seconds))
        ours_too = ours(*seconds, decode=seconds)
        series = [ours_too, latency("runtime onnx", *seconds), mmaction2]
        return found(series, "mmaction2's latency over ours, fp32, TSM")

    assert [at_three_times(*[1.0] * rounds).uncertain for rounds in (1, 2, 3)] == [
        True,
        True,
        False,
    ]


def test_a_case_whose_loops_were_left_out_is_told() -> None:
    loop = Series(
        section="throughput", case="tsm-one", contender="frames onnx", callers=4, values=(1.0,)
    )
    targets = all_targets([loop], {"TSN r50, one view": "no time was left"}, ["tsm-one", "tsn-one"])
    rows = [target for target in targets if target.name.startswith("throughput at 4")]
    assert [target.name.partition("alone, ")[2] for target in rows] == [
        "TSM r50, one view",
        "TSN r50, one view",
    ]
    assert rows[1].why == "not measured: no time was left"


def test_a_section_that_was_left_out_says_why() -> None:
    skipped = {
        "dynamic batching": "one",
        f"preprocess step of {FULL}": "two",
        "bytes on the wire": "three",
        "export of tsm-one": "four",
    }
    for name, why in zip(("lone", "preprocess", "bytes", "export"), skipped.values(), strict=True):
        assert found([], name, skipped).why == f"not measured: {why}"


def test_nothing_measured_still_gives_every_row_and_says_why() -> None:
    skipped = {"openvino-bf16": "no bf16 here", "TSM r50, one view": "no time was left"}
    targets = all_targets([], skipped)
    assert {target.met for target in targets} == {None}
    assert all(target.why.startswith("not measured: ") for target in targets)
    reasons = {target.name: target.why for target in targets}
    assert reasons["mmaction2's latency over ours, bf16, TSM r50, one view"].endswith(
        "no bf16 here"
    )
    assert reasons["serving tax, TSM r50, one view"] == "not measured: no time was left"
    assert len(ONE_VIEW) == sum(name.startswith("mmdeploy") for name in reasons)
