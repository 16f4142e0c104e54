"""What is known of an export before anything is run or traced, and what is once it is proved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from action_runtime.spec import Contract

from action_export import loop, precision, repository
from action_export.families import Decision, Family
from action_export.preprocess import Preprocessing
from action_export.tensorrt import Engine
from action_export.tracing import Graph
from action_export.triton import RecognizerRuntime
from action_export.types import Check, ExportRequest, Precision, Tensors
from action_export.wire import bound_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The request, and everything that follows from it and from the checkpoint.

    batch_given: whether `tensors` has its max_batch_size whatever the activations are.
    """

    request: ExportRequest
    family: Family
    decisions: tuple[Decision, ...]
    preprocessing: Preprocessing
    contract: Contract
    tensors: Tensors
    plan: repository.Plan
    runtime: RecognizerRuntime
    batch_given: bool
    notes: tuple[str, ...]

    @property
    def bound(self) -> float:
        """Of the scores of what will be served, as a share of their spread over the classes."""
        kind = self.request.precision
        return self.family.tolerance if kind == "fp32" else precision.BOUNDS[kind]

    @property
    def wire_bound(self) -> float:
        """What JPEG may add to it on the way to a live server."""
        return bound_of(self.contract.wire)

    @property
    def widest_bound(self) -> float:
        """Of all that is proved: Triton's OpenVINO backend computes in bf16 where it can."""
        bf16 = precision.BOUNDS["bf16"] if self.runtime.openvino else 0.0
        return max(self.bound, bf16) + self.wire_bound

    @property
    def views_at_once(self) -> int:
        """Of one video in the graph: fewer than all where it loops over them.

        A 2D head may mix the views of a video before softmax, as TSN's does, and a head's own way
        of scoring may mix them after it. TensorRT and the converters to reduced precision know flat
        graphs.
        """
        views = self.contract.views
        flat = self.request.precision in ("fp16", "int8") or self.runtime.tensorrt
        flat = flat or self.contract.scores == "head"
        return views if flat or self.preprocessing.layout == "NCHW" else loop.views_at_once(views)

    def graph_path(self, stage: Path, kind: Precision) -> Path:
        """In the model if this graph is what is served, or else beside the models."""
        made = self.runtime.builds or self.runtime.openvino
        served = kind == self.request.precision and not made
        return stage / (self.plan.graph if served else f"{kind}.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """The last graph, the plan that was built of it, and every comparison.

    notes: what is said of the proof itself.
    """

    graph: Graph
    engine: Engine | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
