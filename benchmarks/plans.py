"""What a run measures, and how long: the quick one and the full one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.driver import Budget
from benchmarks.models import Case
from benchmarks.videos import SIZES

NO_LOOPS = Budget(seconds=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Contenders that alternate on one case.

    engines: each alone, and served. others: contenders by name. videos: the first is of targets.
    slow: whether `others` take so long that each answers once, by itself.
    requests: by the number of callers, of each closed loop; None for no loops. loop_engine: the
    first that there is. loop_peers: whether the others loop as well, once.
    """

    case: Case
    engines: tuple[str, ...]
    budget: Budget
    others: tuple[str, ...] = ()
    videos: tuple[str, ...] = ("340x256",)
    slow: bool = False
    requests: Mapping[int, int] | None = None
    loops: Budget = NO_LOOPS
    loop_engine: tuple[str, ...] = ("onnx",)
    loop_peers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """preprocess: cases. jpeg: whether the wire is measured as JPEG, too. exports: rounds.

    limit_s: what is not likely to end by then is left out, and said so; no answer is waited for
    any longer. What is left to do then, stopping and writing, takes less than ten seconds.
    """

    groups: tuple[Group, ...]
    preprocess: tuple[str, ...]
    preprocess_budget: Budget
    batching: Budget
    exports: Mapping[str, int]
    limit_s: float


ALL = ("onnx", "openvino", "openvino-bf16")
PEERS = ("mmaction2", "by hand", "mmdeploy")


def quick() -> Plan:
    """The targets only, on a minute of measuring; under five minutes with all that is made."""
    return Plan(
        groups=(
            Group(
                case=Case.named("tsm-one"),
                engines=("onnx", "openvino-bf16"),
                others=PEERS,
                budget=Budget(seconds=14, least=3, most=9),
                requests={1: 3, 4: 8, 16: 24},
                loops=Budget(seconds=20, least=1, most=2, warm=0),
            ),
            Group(
                case=Case.named("tsn-one"),
                engines=("onnx", "openvino-bf16"),
                others=("mmaction2", "mmdeploy"),
                budget=Budget(seconds=18, least=3, most=5),
            ),
            Group(
                case=Case.named("slowfast-one"),
                engines=ALL,
                others=("mmaction2", "mmdeploy"),
                budget=Budget(seconds=16, least=3, most=7),
            ),
            Group(
                case=Case.named("slowfast-full"),
                engines=("openvino",),
                budget=Budget(seconds=10, least=1, most=2),
            ),
        ),
        preprocess=("slowfast-full", "slowfast-one"),
        preprocess_budget=Budget(seconds=2, least=3, most=9),
        batching=Budget(seconds=6, least=3, most=9),
        exports={"tsm-one": 1},
        limit_s=280,
    )


def full() -> Plan:
    """Everything, in twenty minutes; what no target needs comes last."""
    one = [
        Group(
            case=Case.named("tsm-one"),
            engines=ALL,
            others=PEERS,
            videos=tuple(SIZES),
            budget=Budget(seconds=30, least=5, most=15),
            requests={1: 3, 4: 8, 16: 24},
            loops=Budget(seconds=140, least=1, most=3, warm=0),
            loop_peers=True,
        ),
        Group(
            case=Case.named("tsn-one"),
            engines=ALL,
            others=PEERS,
            budget=Budget(seconds=45, least=5, most=9),
            requests={1: 3, 4: 8, 16: 24},
            loops=Budget(seconds=50, least=1, most=2, warm=0),
        ),
        Group(
            case=Case.named("slowfast-one"),
            engines=ALL,
            others=PEERS,
            videos=tuple(SIZES),
            budget=Budget(seconds=30, least=5, most=15),
            requests={1: 3, 4: 12, 16: 32},
            loops=Budget(seconds=40, least=1, most=3, warm=0),
            loop_engine=("openvino",),
        ),
    ]
    small = [
        Group(
            case=Case.named(f"{name}-one"),
            engines=ALL,
            others=PEERS,
            budget=Budget(seconds=10, least=5, most=15),
            requests={1: 16, 4: 32, 16: 64},
            loops=Budget(seconds=10, least=1, most=3, warm=0),
        )
        for name in ("x3d", "example")
    ]
    views = [
        Group(
            case=Case.named(f"slowfast-{clips}"),
            engines=("onnx", "openvino"),
            budget=Budget(seconds=12, least=2, most=4),
        )
        for clips in ("clips2", "clips4")
    ]
    slowfast = Group(
        case=Case.named("slowfast-full"),
        engines=("openvino", "onnx"),
        others=("mmaction2", "by hand"),
        slow=True,
        budget=Budget(seconds=60, least=1, most=3),
    )
    others = [
        Group(
            case=Case.named(f"{name}-full"),
            engines=("onnx", "openvino"),
            others=("mmaction2", "by hand"),
            slow=name in ("tsm", "tsn"),
            budget=Budget(seconds=20, least=1, most=5),
        )
        for name in ("tsm", "x3d", "example", "tsn")
    ]
    return Plan(
        groups=(*one, slowfast, *small, *views, *others),
        preprocess=("slowfast-full", "slowfast-one"),
        preprocess_budget=Budget(seconds=8, least=5, most=25),
        batching=Budget(seconds=20, least=9, most=25),
        exports={"tsm-one": 3},
        limit_s=1140,
    )
