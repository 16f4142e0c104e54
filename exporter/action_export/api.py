"""The whole engine: load, derive, plan, run mmaction2, trace, prove, publish."""

from __future__ import annotations

import gc
import hashlib
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from action_runtime.spec import Contract

from action_export import (
    batching,
    dependencies,
    example,
    inputs,
    manifest,
    measure,
    precision,
    preprocess,
    publishing,
    reference,
    repository,
    source,
    staging,
    tensorrt,
    tracing,
)
from action_export.checkpoint import build_model, load_checkpoint, unused_note
from action_export.errors import ConfigError, RepositoryError
from action_export.families import FAMILIES, decide, family_of, patch
from action_export.gpu import Gpu
from action_export.graph import serving_module
from action_export.image import DOCKERFILE, image_notes
from action_export.job import Job
from action_export.labels import load_labels
from action_export.progress import Steps
from action_export.proof import Builder, Proof
from action_export.reference import Reference
from action_export.scoring import scores_notes, scores_of
from action_export.tracing import Graph
from action_export.triton import (
    RecognizerRuntime,
    check_format,
    check_release,
    check_tensorrt,
    recognizer_runtime,
    tensorrt_of,
)
from action_export.types import (
    ExportRequest,
    ExportResult,
    OnStep,
    StepEvent,
    Tensors,
)
from action_export.wire import check_wire, wire_notes, wire_of

if TYPE_CHECKING:
    import torch


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
    precision.check_calibration(request.precision, request.calibration)
    check_wire(request)
    check_format(request)
    inputs.check(request)
    builder = None if request.dry_run else _builder_for(request)
    if request.format == "openvino" and not request.dry_run:
        dependencies.require("openvino", extra="openvino")
    for video in request.calibration:
        reference.check_video(video)
    if not request.dry_run:
        publishing.recover(request.triton_repo)
    job, model = _load(request, steps)
    if request.dry_run:
        return _result(job, steps, dry_run=True)
    with staging.beside(request.triton_repo) as stage:
        with batching.measured() as activations:
            references = _references(job, model, steps)
        job = _with_batch(job, activations.peak)
        repository.write(job.plan, stage)
        exact = _trace(job, model, stage, steps)
        # A large model's weights would stand beside those that the proof loads. Patches and the
        # module that was traced refer to each other in cycles, which only the collector frees.
        del model
        gc.collect()
        proved = Proof(job=job, stage=stage, builder=builder, steps=steps).run(exact, references)
        with steps("publish") as step:
            record = manifest.build(job, proved, references)
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (stage / job.plan.manifest).write_text(text, encoding="utf-8")
            publishing.publish(job.plan, stage, lambda: _settle(request.settle_s, steps))
            step.result = f"{job.plan.names.ensemble} version {job.plan.version}"
    beside = Path(job.plan.graph).parent
    weights = () if proved.engine else proved.graph.files
    files = {*job.plan.files, *(str(beside / name) for name in weights)}
    return replace(
        _result(job, steps),
        files=tuple(sorted(files)),
        checks=proved.checks,
        notes=(*job.notes, *proved.notes, *publishing.notes(job.plan)),
        manifest=record,
    )


def _settle(seconds: float, steps: Steps) -> None:
    """Until servers that poll have loaded what has just been published."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        steps.progress("servers that poll load it beside the old version", passed / seconds)
        time.sleep(min(0.5, seconds - passed))


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


def _load(request: ExportRequest, steps: Steps) -> tuple[Job, torch.nn.Module]:
    assert request.config is not None
    assert request.checkpoint is not None
    names = repository.check_name(request.name or Path(request.config).stem)
    with steps("read config") as step:
        config = source.load_config(request.config, request.cfg_options)
        preprocessing = preprocess.derive(config, request.views)
        wire = wire_of(request, preprocessing.modality)
        classes = preprocess.class_count(config)
        step.result = f"{config.recognizer}, {classes} classes"
    with steps("load checkpoint") as step:
        checkpoint = load_checkpoint(request.checkpoint, trust=request.trust_checkpoint)
        model = build_model(config, checkpoint)
        unused = unused_note(model, checkpoint)
        labels = load_labels(
            request.labels,
            checkpoint,
            classes,
            relabel=request.relabel,
            published=repository.published_labels(request.triton_repo, names),
        )
        family = family_of(config.model, FAMILIES)
        decisions = decide(model, family)
        scores = scores_of(model, request.scores)
        step.result = f"{len(checkpoint.state_dict)} tensors, {len(labels.names) or 'no'} labels"
    with steps("plan") as step:
        contract = preprocessing.contract(
            config,
            labels=labels.names,
            provenance=manifest.provenance(config, checkpoint),
            wire=wire,
            scores=scores,
        )
        batch = _given_batch(request, names)
        most = batch or batching.most_videos(contract.views)
        tensors, runtime, plan = _planned(request, names, contract, most)
        step.result = f"version {plan.version}, {contract.views} views, {len(plan.files)} files"
    job = Job(
        request=request,
        family=family,
        decisions=decisions,
        preprocessing=preprocessing,
        contract=contract,
        tensors=tensors,
        plan=plan,
        runtime=runtime,
        batch_given=batch is not None,
        notes=(
            *config.notes,
            *checkpoint.notes,
            *unused,
            *labels.notes,
            *(decision.note for decision in decisions),
            *_view_notes(contract),
            *preprocess.decoder_notes(preprocessing),
            *scores_notes(model, scores, contract.classes, contract.average),
            *wire_notes(contract),
            *image_notes(
                contract,
                shlex.quote(f"{plan.repo}/{plan.names.preprocess}/{plan.version}/{DOCKERFILE}"),
            ),
            *precision.precision_notes(request.precision),
            *_tensorrt_notes(request),
            *_openvino_notes(request),
        ),
    )
    return job, model


def _given_batch(request: ExportRequest, names: repository.Names) -> int | None:
    """Videos in one execution, where that is no matter of what the model takes.

    A further version keeps what the model has: its config is that of all its versions.
    """
    if request.max_batch_size is not None:
        return request.max_batch_size
    if request.format == "openvino":
        return 1
    return repository.published_batch(request.triton_repo, names)


def _planned(
    request: ExportRequest, names: repository.Names, contract: Contract, batch: int
) -> tuple[Tensors, RecognizerRuntime, repository.Plan]:
    tensors = Tensors.of(contract, batch)
    runtime = recognizer_runtime(request, tensors.clips, _identity(request, contract))
    plan = repository.plan(
        request.triton_repo,
        names,
        contract=contract,
        tensors=tensors,
        runtime=runtime,
        device=request.device,
        version=request.model_version,
        image=f"{request.triton_version}-py3",
    )
    return tensors, runtime, plan


def _with_batch(job: Job, activations: int) -> Job:
    """With the batch that the activations of mmaction2's run leave room for, in bytes.

    mmaction2 ran all views of a video at once, where the graph may loop over them.
    """
    if job.batch_given:
        return job
    views = job.contract.views
    of_one = activations * job.views_at_once // views
    batch = batching.videos(views, of_one)
    if batch == job.tensors.clips.max_batch_size:
        return job
    request = replace(job.request, model_version=job.plan.version)
    tensors, runtime, plan = _planned(request, job.plan.names, job.contract, batch)
    notes = (*job.notes, *batching.note(batch, views, of_one))
    return replace(job, tensors=tensors, runtime=runtime, plan=plan, notes=notes)


def _view_notes(contract: Contract) -> tuple[str, ...]:
    if contract.config_views is None:
        return ()
    before, crops = contract.config_views["num_clips"], contract.config_views["crops"]
    served = contract.crop.kind if contract.crop else "none"
    return (
        f"serves {contract.sampler.total_clips} clips with {served} crop, the config tests "
        f"{before} with {crops}: its published accuracy does not apply",
    )


def _identity(request: ExportRequest, contract: Contract) -> str:
    """Differs wherever the served graph could: its weights, shapes, precision or opset."""
    parts = [contract.to_json(), request.precision, str(request.opset)]
    parts += [source.file_sha256(video) for video in request.calibration]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _tensorrt_notes(request: ExportRequest) -> tuple[str, ...]:
    """What TensorRT will do later, and the proof has not seen."""
    if request.accelerate:
        return (
            "the server builds TensorRT's engine when it first loads the model, which takes "
            "minutes; the graph is proved, that engine is not",
        )
    if not request.plan_in_container:
        return ()
    return (
        f"{repository.SCRIPT} must run in the serving image, on its GPU, before a server loads the "
        "model; the graph is proved, the plan that TensorRT will build of it is not",
    )


def _openvino_notes(request: ExportRequest) -> tuple[str, ...]:
    """What the official backend does otherwise."""
    if request.format != "openvino" or request.precision != "fp32":
        return ()
    return (
        "Triton's own OpenVINO backend has no setting for float32: on a CPU with bf16 it computes "
        "in bf16, which is proved as well where this CPU has it; docs/openvino.md says how to keep "
        "it from that",
    )


def _trace(job: Job, model: torch.nn.Module, stage: Path, steps: Steps) -> Graph:
    with steps("trace graph") as step:
        patch(model, job.family)
        loops = job.views_at_once < job.contract.views
        module = serving_module(
            model,
            layout=job.preprocessing.layout,
            average=job.contract.average,
            modality=job.preprocessing.modality,
            scores=job.contract.scores,
            cast_first=job.runtime.tensorrt,
            averaged=not loops,
        )
        write = tracing.onnx_from_views if loops else tracing.onnx_from_module
        graph = write(
            module,
            clips=job.tensors.clips,
            scores=job.tensors.scores,
            opset=job.request.opset,
            path=job.graph_path(stage, "fp32"),
        )
        step.result = f"{graph.nodes} nodes, opset {graph.opset}"
        step.result += f", {job.views_at_once} views at a time" if loops else ""
    return graph


def _references(job: Job, model: torch.nn.Module, steps: Steps) -> tuple[Reference, ...]:
    """Of the bundled clips no more than two that mmaction2 tells apart; of the user's, all.

    What JPEG costs depends on the video, so there all of the bundled clips are run.
    """
    every = job.request.videos or job.contract.wire is not None
    videos = sorted(job.request.videos or example.CLIPS, key=_is_calibration(job.request))
    references: list[Reference] = []
    with steps("run mmaction2") as step:
        for video in videos:
            references.append(
                reference.run_mmaction(model, job.preprocessing, video, job.contract.scores)
            )
            # a wide bound tells a mix-up only of videos that lie further apart
            wanted = max(job.family.tolerance, 2 * job.widest_bound / measure.MARGIN)
            distinct = measure.distinguishable(tuple(references), wanted)
            if not every and len(distinct) >= 2:
                break
        measure.require_distinguishable(tuple(references), job.family.tolerance)
        step.result = f"{len(references)} videos"
    return tuple(references)


def _is_calibration(request: ExportRequest) -> Callable[[Path], bool]:
    """Scales of int8 suit the videos that they were measured on: others tell more."""
    measured = {video.resolve() for video in request.calibration}
    return lambda video: video.resolve() in measured


def _builder_for(request: ExportRequest) -> Builder | None:
    """None where no plan is built here; else one whose plan the server can load."""
    if request.format != "tensorrt" or request.plan_in_container:
        return None
    cache = request.engine.timing_cache
    if cache is not None and (cache.is_dir() or not cache.parent.is_dir()):
        raise RepositoryError(
            f"{cache} is no file that can be written",
            hint="name a file in a folder that exists: --timing-cache FILE",
        )
    served = tensorrt_of(request)
    trt = tensorrt.installed(served)
    check_tensorrt(trt.__version__, served, request)
    gpu = Gpu()
    target = tensorrt.Target(
        trt=trt, compute_capability=gpu.compute_capability, options=request.engine
    )
    return Builder(target=target, gpu=gpu)


def _result(job: Job, steps: Steps, *, dry_run: bool = False) -> ExportResult:
    return ExportResult(
        name=job.plan.names.ensemble,
        version=job.plan.version,
        repo=job.plan.repo,
        files=job.plan.files,
        steps=steps.finished,
        notes=(*job.notes, *([batching.NOT_MEASURED] if dry_run and not job.batch_given else [])),
        contract=job.contract,
        tensors=job.tensors,
        dry_run=dry_run,
        triton_version=job.request.triton_version,
        server_flags=job.runtime.server_flags,
        engine_cache=job.runtime.accelerator.get("trt_engine_cache_path", ""),
    )
