"""What is measured: models, their views, the engines that serve them, and how they get there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from action_export import types
from action_export.types import ExportRequest, ViewOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """config: of mmaction2's zoo; None for the bundled example. one: its production view."""

    name: str
    title: str
    config: str | None
    one: ViewOptions = ViewOptions(num_clips=1, crops="center")


MODELS = {
    model.name: model
    for model in (
        Model(
            name="tsm",
            title="TSM r50",
            config="tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb",
            one=ViewOptions(crops="center"),  # its eight segments are one clip
        ),
        Model(
            name="tsn",
            title="TSN r50",
            config="tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb",
            one=ViewOptions(crops="center"),  # 25 frames
        ),
        Model(
            name="slowfast",
            title="SlowFast r50 4x16",
            config="slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb",
        ),
        Model(name="x3d", title="X3D-S", config="x3d_s_13x6x1_facebook-kinetics400-rgb"),
        Model(name="example", title="bundled example", config=None),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What runs the recognizer, as options of the export. extra: further fields of the request."""

    name: str
    format: str = "onnx"
    precision: str = "fp32"
    extra: dict[str, Any] = field(default_factory=dict)

    def missing(self) -> str:
        """Why this code or this machine cannot serve with it; "" where it can."""
        wanted = {"Format": self.format, "Precision": self.precision}
        for name, value in wanted.items():
            if value not in _choices(getattr(types, name)):
                return f"the exporter has no {name.lower()} {value!r}"
        fields = get_type_hints(ExportRequest)
        for name in self.extra:
            if name not in fields:
                return f"the exporter has no option {name!r}"
        if self.format == "openvino" and importlib.util.find_spec("openvino") is None:
            return "openvino is not installed"
        if self.precision == "bf16" and "avx512_bf16" not in cpu_flags():
            return "this CPU has no bf16"
        return ""


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(name="onnx"),
        Engine(name="openvino", format="openvino"),
        Engine(name="openvino-bf16", format="openvino", precision="bf16"),
        Engine(name="onnx-jpeg", extra={"wire": "jpeg"}),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and its views: "one" in production, "full" as its config tests it, or "clipsN"."""

    model: Model
    views: str

    @property
    def name(self) -> str:
        return f"{self.model.name}-{self.views}"

    @property
    def title(self) -> str:
        count = self.views.removeprefix("clips")
        words = {"one": "one view", "full": "full views"}.get(self.views, f"{count} clips")
        return f"{self.model.title}, {words}"

    @property
    def options(self) -> ViewOptions:
        match self.views:
            case "one":
                return self.model.one
            case "full":
                return ViewOptions()
            case clips:
                count = int(clips.removeprefix("clips"))
                return ViewOptions(num_clips=count, crops="center")

    @classmethod
    def named(cls, name: str) -> Case:
        model, _, views = name.partition("-")
        return cls(model=MODELS[model], views=views)


CASE_TITLES = {
    case.name: case.title
    for model in MODELS.values()
    for case in (Case(model=model, views="one"), Case(model=model, views="full"))
}


def request(case: Case, engine: Engine, repo: Path, checkpoint: Path | None) -> ExportRequest:
    """The export of a case, whose ensemble is called `served`."""
    options: dict[str, Any] = {
        "format": engine.format,
        "precision": engine.precision,
        **engine.extra,
    }
    return ExportRequest(
        triton_repo=repo,
        config=case.model.config,
        checkpoint=checkpoint,
        name=SERVED,
        views=case.options,
        device="cpu",
        **options,
    )


SERVED = "served"


def publish_unproved(engine: Engine, wanted: ExportRequest) -> None:
    """Publishes without the proof, which would take most of a short measurement.

    Every answer of the measurement is compared with mmaction2's, or with that of the runtime alone.
    What is measured as an export is one with its proof, see exporting.py.
    """
    from action_export import api, openvino, publishing, repository, staging
    from action_export.progress import Steps

    steps = Steps(lambda event: None)
    # the example's config and checkpoint are filled in as `export` does
    wanted = api._with_example(wanted)
    job, model = api._load(wanted, steps)
    with staging.beside(wanted.triton_repo) as stage:
        repository.write(job.plan, stage)
        graph = api._trace(job, model, stage, steps)
        if engine.format == "openvino":
            openvino.ir_of(graph, stage / job.plan.graph)
        (stage / job.plan.manifest).write_text("{}\n")
        publishing.publish(job.plan, stage)


def cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _choices(union: Any) -> frozenset[str]:
    """The strings of a Literal, also of one that holds others."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for inner in get_args(value):
            yield from walk(inner)

    return frozenset(walk(union))
