"""The whole engine: load, derive, plan, run mmaction2, trace, prove, publish."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from action_runtime.spec import Contract

from action_export import (
    example,
    live,
    manifest,
    parity,
    preprocess,
    reference,
    repository,
    source,
    tracing,
)
from action_export.errors import ConfigError, DependencyError
from action_export.families import FAMILIES, Decision, Family, decide, family_of, patch
from action_export.graph import serving_module
from action_export.progress import Steps
from action_export.reference import Reference
from action_export.tracing import Graph
from action_export.triton import check_release
from action_export.types import Check, ExportRequest, ExportResult, OnStep, StepEvent, Tensors

if TYPE_CHECKING:
    import torch


# the device file of NVIDIA's kernel driver
_NVIDIA = Path("/dev/nvidiactl")


def _ignore(event: StepEvent) -> None:
    """For callers who don't listen."""


def export(request: ExportRequest, on_step: OnStep = _ignore) -> ExportResult:
    """Turns a checkpoint into a model of the repository, once it is proved equal to mmaction2.

    Nothing is written inside the repository before the proof has passed, and nothing stays of an
    export that fails.

    Raises:
        ActionExportError: one of its kinds, as errors.py lists them.
    """
    steps = Steps(on_step)
    request = _with_example(request)
    check_release(request.triton_version, request.opset)
    tracing.check_opset(request.opset)
    job, model = _load(request, steps)
    if request.dry_run:
        return _result(job, steps, dry_run=True)
    with repository.staging(request.triton_repo) as stage:
        repository.write(job.plan, stage)
        references = _references(job, model, steps)
        graph = _trace(job, model, stage, steps)
        # A large model's weights would stand beside those that the proof loads. Patches and the
        # module that was traced refer to each other in cycles, which only the collector frees.
        del model
        gc.collect()
        checks = _prove(job, stage, graph, references, steps)
        with steps("publish") as step:
            record = manifest.build(
                request=request,
                plan=job.plan,
                contract=job.contract,
                tensors=job.tensors,
                graph=graph,
                references=references,
                checks=checks,
                decisions=job.decisions,
                notes=job.notes,
            )
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (stage / job.plan.manifest).write_text(text, encoding="utf-8")
            repository.publish(job.plan, stage)
            step.result = f"{job.plan.names.ensemble} version {job.plan.version}"
    beside = Path(job.plan.graph).parent
    files = {*job.plan.files, *(str(beside / name) for name in graph.files)}
    return replace(_result(job, steps), files=tuple(sorted(files)), checks=checks, manifest=record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is known before anything is run or traced."""

    request: ExportRequest
    family: Family
    decisions: tuple[Decision, ...]
    preprocessing: preprocess.Preprocessing
    contract: Contract
    tensors: Tensors
    plan: repository.Plan
    notes: tuple[str, ...]


def default_batch(views: int) -> int:
    """Videos in one execution: batching pays for few views, and memory grows with all of them."""
    return max(1, min(8, 32 // views))


def _with_example(request: ExportRequest) -> ExportRequest:
    """The bundled recognizer, where no config is given."""
    if request.config is not None:
        if request.checkpoint is None:
            raise ConfigError(
                f"no checkpoint is given for {request.config}",
                hint="action-export CONFIG CHECKPOINT --triton-repo DIR",
            )
        return request
    return replace(
        request,
        config=str(example.CONFIG),
        checkpoint=example.CHECKPOINT,
        name=request.name or "example",
        labels=request.labels or example.LABELS,
    )


def _load(request: ExportRequest, steps: Steps) -> tuple[_Job, torch.nn.Module]:
    assert request.config is not None
    assert request.checkpoint is not None
    names = repository.check_name(request.name or Path(request.config).stem)
    with steps("read config") as step:
        config = source.load_config(request.config, request.cfg_options)
        preprocessing = preprocess.derive(config, request.views)
        classes = preprocess.class_count(config)
        step.result = f"{config.model['type']}, {classes} classes"
    with steps("load checkpoint") as step:
        checkpoint = source.load_checkpoint(request.checkpoint, trust=request.trust_checkpoint)
        model = source.build_model(config, checkpoint)
        labels = source.load_labels(request.labels, checkpoint, classes)
        family = family_of(config.model, FAMILIES)
        decisions = decide(model, family)
        step.result = f"{len(checkpoint.state_dict)} tensors, {len(labels) or 'no'} labels"
    with steps("plan") as step:
        contract = preprocessing.contract(
            config, labels=labels, provenance=manifest.provenance(config, checkpoint)
        )
        tensors = Tensors.of(contract, request.max_batch_size or default_batch(contract.views))
        plan = repository.plan(
            request.triton_repo,
            names,
            contract=contract,
            tensors=tensors,
            device=request.device,
            version=request.model_version,
        )
        step.result = f"version {plan.version}, {contract.views} views, {len(plan.files)} files"
    job = _Job(
        request=request,
        family=family,
        decisions=decisions,
        preprocessing=preprocessing,
        contract=contract,
        tensors=tensors,
        plan=plan,
        notes=(
            *config.notes,
            *(decision.note for decision in decisions),
            *_view_notes(contract),
        ),
    )
    return job, model


def _view_notes(contract: Contract) -> tuple[str, ...]:
    if contract.config_views is None:
        return ()
    before, crops = contract.config_views["num_clips"], contract.config_views["crops"]
    served = contract.crop.kind if contract.crop else "none"
    return (
        f"serves {contract.sampler.total_clips} clips with {served} crop, the config tests "
        f"{before} with {crops}: its published accuracy does not apply",
    )


def _trace(job: _Job, model: torch.nn.Module, stage: Path, steps: Steps) -> Graph:
    with steps("trace graph") as step:
        patch(model, job.family)
        module = serving_module(
            model,
            layout=job.preprocessing.layout,
            average=job.contract.average,
            modality=job.preprocessing.modality,
        )
        graph = tracing.onnx_from_module(
            module,
            clips=job.tensors.clips,
            scores=job.tensors.scores,
            opset=job.request.opset,
            path=stage / job.plan.graph,
        )
        step.result = f"{graph.nodes} nodes, opset {graph.opset}"
    return graph


def _references(job: _Job, model: torch.nn.Module, steps: Steps) -> tuple[Reference, ...]:
    """Of the bundled clips no more than two that mmaction2 tells apart; of the user's, all."""
    videos = job.request.videos or example.CLIPS
    references: list[Reference] = []
    with steps("run mmaction2") as step:
        for video in videos:
            references.append(reference.run_mmaction(model, job.preprocessing, video))
            distinct = parity.distinguishable(tuple(references), job.family.tolerance)
            if not job.request.videos and len(distinct) >= 2:
                break
        parity.require_distinguishable(tuple(references), job.family.tolerance)
        step.result = f"{len(references)} videos"
    return tuple(references)


def _prove(
    job: _Job, stage: Path, graph: Graph, references: tuple[Reference, ...], steps: Steps
) -> tuple[Check, ...]:
    distinct = parity.distinguishable(references, job.family.tolerance)
    with steps("prove pixels") as step:
        pixels = parity.verify_pixels(references, job.contract)
        step.result = parity.summary(pixels)
    with steps("prove graph") as step:
        scores = parity.verify_graph(graph.path, distinct, job.tensors.clips, job.family.tolerance)
        step.result = parity.summary(scores)
    parity.require(pixels + scores)
    served = _prove_live(job, stage, distinct, steps)
    parity.require(served)
    return pixels + scores + served


def _prove_live(
    job: _Job, stage: Path, references: tuple[Reference, ...], steps: Steps
) -> tuple[Check, ...]:
    request = job.request
    if request.proof == "graph":
        return ()
    with steps("prove server") as step:
        if request.proof == "auto" and request.device == "gpu" and not _NVIDIA.exists():
            step.result = "skipped: --device gpu, and there is no GPU here"
            return ()
        try:
            check = live.verify_live(
                stage,
                model=job.plan.names.ensemble,
                tensors=job.tensors,
                references=references,
                tolerance=job.family.tolerance,
            )
        except DependencyError as exc:
            if request.proof == "server":
                raise
            step.result = f"skipped: {exc.message}"
            return ()
        step.result = parity.summary((check,))
    return (check,)


def _result(job: _Job, steps: Steps, *, dry_run: bool = False) -> ExportResult:
    return ExportResult(
        name=job.plan.names.ensemble,
        version=job.plan.version,
        repo=job.plan.repo,
        files=job.plan.files,
        steps=steps.finished,
        notes=job.notes,
        contract=job.contract,
        tensors=job.tensors,
        dry_run=dry_run,
    )
