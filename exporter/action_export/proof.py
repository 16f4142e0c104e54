"""Proves what will be served, from the float32 graph to the live server, building it on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from action_export import (
    client_path,
    live,
    measure,
    openvino,
    parity,
    precision,
    reference,
    tensorrt,
)
from action_export.client_path import ClientPath, verify_client_path
from action_export.errors import DependencyError
from action_export.gpu import Gpu
from action_export.job import Job, Proved
from action_export.live import Live
from action_export.progress import Steps
from action_export.reference import Reference
from action_export.staged import Staged
from action_export.synthetic import verify_synthetic
from action_export.tensorrt import Engine, Target
from action_export.tracing import Graph
from action_export.types import Check, Reduced
from action_export.wire import LOSSY_HINT

# Of float32 on a GPU, which adds in another order, and convolves by Winograd's products.
_GPU_BOUND = 1e-3

_SATURATED = (
    "mmaction2's scores of the proof videos are saturated, and hide what logits could be off by: "
    "those of the graph are compared, those of what runs it are not; --videos names others"
)

_SEEN = (
    "int8 was proved on videos that its scales were measured on, which lose least: --videos names "
    "others"
)

# what NVIDIA's driver puts there, on Linux and in WSL
_NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def live_bound(job: Job) -> float:
    """Of a live server on a CPU; the official OpenVINO backend has no setting for float32.

    What JPEG adds on the way there is not in it.
    """
    if job.runtime.openvino and live.has_official_backends() and openvino.has_bf16():
        return job.widest_bound - job.wire_bound
    return job.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """What builds a plan here, and the GPU that runs it to prove it."""

    target: Target
    gpu: Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Of one job, whose models are staged. builder: None where no plan is built here."""

    job: Job
    stage: Path
    builder: Builder | None
    steps: Steps

    def run(self, exact: Graph, references: tuple[Reference, ...]) -> Proved:
        """The float32 graph is held to mmaction2 in any case: that finds what is wrong. A graph of
        reduced precision is made of it, and held to the bound of its precision.

        Raises:
            ParityError: something differs by more than its bound.
            InconclusiveError: the videos are too alike to tell.
        """
        job, tolerance = self.job, self.job.family.tolerance
        distinct = measure.distinguishable(references, tolerance)
        with self.steps("prove pixels") as step:
            pixels = parity.verify_pixels(references, job.contract)
            pixels += verify_synthetic(job.preprocessing, job.contract)
            step.result = parity.summary(pixels)
        client = self._prove_client(references)
        with self.steps("prove graph") as step:
            scores = parity.verify_graph(exact.path, distinct, job.tensors.clips, tolerance)
            step.result = parity.summary(scores)
        parity.require(pixels + scores)
        graph, checks, engine = exact, pixels + client.checks + scores, None
        if client.rounded:
            checks += self._prove_rounded(exact, client, references)
        if job.contract.wire is not None:
            checks += self._prove_jpeg(exact, references)
        saturated = measure.saturated(distinct, job.contract, tolerance)
        # what softmax makes of one class has a note of its own
        notes: tuple[str, ...] = (_SATURATED,) if saturated and job.contract.classes > 1 else ()
        kind = job.request.precision
        if kind == "int8":
            distinct, seen = self._unseen(distinct)
            notes += seen
        if kind != "fp32":
            distinct = measure.farthest_apart(distinct, job.bound)
        if kind == "fp16" or kind == "int8":
            graph, reduced = self._reduce(kind, exact, distinct)
            checks += reduced
        if job.runtime.openvino:
            graph, ran, told = self._openvino(exact, references)
            notes += told
            openvino.require(ran)
            checks += ran
        if self.builder is not None:
            engine = self._build(graph, self.builder)
            ran = self._prove_plan(engine, self.builder, distinct)
            if kind == "fp16" or kind == "int8":
                precision.require(kind, ran, exact, graph, distinct[0].clips)
            parity.require(ran)
            checks += ran
        if (bound := live_bound(job) + job.wire_bound) > job.bound:
            distinct = measure.farthest_apart(distinct, bound)
        served = self._prove_live(distinct)
        parity.require(served.checks, *([LOSSY_HINT] if job.contract.wire else []))
        return Proved(
            graph=graph,
            engine=engine,
            checks=checks + served.checks,
            notes=client.notes + notes + served.notes,
        )

    def _prove_client(self, references: tuple[Reference, ...]) -> ClientPath:
        with self.steps("prove client") as step:
            client = verify_client_path(references, self.job.contract)
            said = parity.summary(client.checks).replace("client's ", "")
            step.result = said or "takes no video files"
        parity.require(client.checks, client_path.hint(self.job.contract))
        return client

    def _prove_rounded(
        self, exact: Graph, client: ClientPath, references: tuple[Reference, ...]
    ) -> tuple[Check, ...]:
        """Of videos whose pixels the client's FFmpeg rounds otherwise than decord's."""
        job = self.job
        check = Check(
            name="client's rounded frames, graph",
            error=parity.clips_error(exact.path, client.rounded, references, job.contract),
            bound=job.family.tolerance + client_path.ROUNDED_BOUND,
            unit="of spread",
            detail=f"{len(client.rounded)} videos",
        )
        parity.require((check,), client_path.hint(job.contract))
        return (check,)

    def _prove_jpeg(self, exact: Graph, references: tuple[Reference, ...]) -> tuple[Check, ...]:
        job = self.job
        with self.steps("prove JPEG") as step:
            check = parity.verify_jpeg(
                exact.path, references, job.contract, job.family.tolerance + job.wire_bound
            )
            step.result = f"{parity.summary((check,))}, {check.detail}"
        parity.require((check,), LOSSY_HINT)
        return (check,)

    def _unseen(
        self, references: tuple[Reference, ...]
    ) -> tuple[tuple[Reference, ...], tuple[str, ...]]:
        """Those that no scale of int8 was measured on, where two are; scales suit the others."""
        measured = {video.resolve() for video in self.job.request.calibration}
        unseen = tuple(row for row in references if row.video.resolve() not in measured)
        return (unseen, ()) if len(unseen) > 1 else (references, (_SEEN,))

    def _reduce(
        self, kind: Reduced, exact: Graph, references: tuple[Reference, ...]
    ) -> tuple[Graph, tuple[Check, ...]]:
        job = self.job
        with self.steps("reduce precision") as step:
            videos = job.request.calibration
            clips = (
                (reference.clips_of(job.preprocessing, job.contract, video) for video in videos)
                if videos
                else (row.clips for row in references)
            )
            count = len(videos or references)
            path = job.graph_path(self.stage, kind)
            graph, kept = precision.reduced(exact, path, kind, clips, count)
            step.result = f"{kind}, {graph.nodes} nodes"
            step.result += f", {kept} kept in float32" if kept else ""
        with self.steps("prove precision") as step:
            rounding = graph
            if kind == "fp16":
                rounding = precision.rounding_twin(graph, self.stage / "rounding.onnx")
            # Its bound is that of scores; logits may lose more, and matter where scores hide it.
            checks = parity.verify_graph(
                rounding.path,
                references,
                job.tensors.clips,
                job.bound,
                name=f"{kind} graph",
                logits=measure.saturated(references, job.contract, job.bound),
            )
            step.result = parity.summary(checks)
        precision.require(kind, checks, exact, graph, references[0].clips)
        return graph, checks

    def _openvino(
        self, exact: Graph, references: tuple[Reference, ...]
    ) -> tuple[Graph, tuple[Check, ...], tuple[str, ...]]:
        """Both precisions are proved, whichever is asked for: the official backend computes in bf16
        where the CPU has it, and in float32 elsewhere.
        """
        job = self.job
        with self.steps("write IR") as step:
            graph = openvino.ir_of(exact, self.stage / job.plan.graph)
            step.result = f"{graph.nodes} operations"
        config = openvino.served_config(self.stage / job.plan.names.recognizer / "config.pbtxt")
        bounds: dict[openvino.Computes, float] = {"f32": job.family.tolerance}
        asked = job.request.precision == "bf16"
        if openvino.has_bf16(hinted=asked):
            bounds["bf16"] = precision.BOUNDS["bf16"]
        checks: tuple[Check, ...] = ()
        with self.steps("prove OpenVINO") as step:
            for computes, bound in bounds.items():
                checks += parity.verify_runner(
                    openvino.Runner(graph.path, job.tensors, config, computes),
                    measure.farthest_apart(references, bound),
                    job.tensors.clips,
                    bound,
                    name=f"OpenVINO in {computes}",
                )
            step.result = f"{' and '.join(bounds)}: {parity.summary(checks)}"
        return graph, checks, openvino.notes_on_bf16(asked=asked, proved="bf16" in bounds)

    def _build(self, graph: Graph, builder: Builder) -> Engine:
        with self.steps("build plan") as step:
            plan = self.stage / self.job.plan.graph
            engine = tensorrt.build(
                graph.path, plan, self.job.tensors, builder.target, self.steps.progress
            )
            step.result = (
                f"TensorRT {engine.tensorrt}, compute capability {engine.compute_capability}"
            )
        return engine

    def _prove_plan(
        self, engine: Engine, builder: Builder, references: tuple[Reference, ...]
    ) -> tuple[Check, ...]:
        job = self.job
        with self.steps("prove plan") as step:
            run = tensorrt.Runner(engine.path, job.tensors, builder.target, builder.gpu)
            bound = max(job.bound, _GPU_BOUND)
            checks = parity.verify_runner(run, references, job.tensors.clips, bound, name="plan")
            step.result = parity.summary(checks)
        return checks

    def _prove_live(self, references: tuple[Reference, ...]) -> Live:
        job, request = self.job, self.job.request
        if request.proof == "graph":
            return Live(checks=())
        with self.steps("prove server") as step:
            if request.plan_in_container:
                step.result = "skipped: the script builds the plan later"
                return Live(checks=())
            gpu = any(device.exists() for device in _NVIDIA)
            if request.proof == "auto" and request.device == "gpu" and not gpu:
                step.result = "skipped: --device gpu, and there is no GPU here"
                return Live(checks=())
            bound = live_bound(job)
            try:
                served = live.verify_live(
                    Staged(
                        folder=self.stage,
                        names=job.plan.names,
                        version=job.plan.version,
                        contract=job.contract,
                        tensors=job.tensors,
                        server_flags=job.runtime.server_flags,
                    ),
                    references,
                    live.Bounds(cpu=bound, gpu=max(bound, _GPU_BOUND), wire=job.wire_bound),
                )
            except DependencyError as exc:
                if request.proof == "server":
                    raise
                step.result = f"skipped: {exc.message}"
                return Live(checks=())
            step.result = parity.summary(served.checks)
            if job.contract.wire is not None:
                step.result += f", JPEG of quality {job.contract.wire.quality}"
        return served
