"""Compares what was exported with mmaction2, on inputs that could tell a difference.

Four properties make the comparison mean something:
1. the inputs differ, and mmaction2 tells them apart by much more than the bound;
2. the rows of one batch belong to different videos, on several batch sizes, in an order that is
   another one from behind, and when it is counted modulo a smaller batch;
3. a difference is measured against the spread of the reference (measure.py);
4. logits are compared as well as scores, which say little of them where they are saturated.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from action_runtime import jpeg
from action_runtime.sampling import sample
from action_runtime.spec import Contract, SampleFrames
from action_runtime.transforms import (
    BadRequestError,
    OpenCVMissingError,
    make_clips,
    pixel_library,
)
from numpy.typing import NDArray

from action_export.dependencies import import_onnxruntime
from action_export.errors import ParityError, TracingError, VideoError, first_line
from action_export.logits import Probe, with_logits
from action_export.measure import Rows, compare_logits, compare_scores, difference, mixed_rows
from action_export.reference import Reference
from action_export.types import Check, Tensors, TensorSpec
from action_export.wire import pack_as_stated

# The largest batch is run if it takes no more processor time and memory than this, by what three
# rows took.
_CHEAP_S = 2.0
_CHEAP_BYTES = 2**30

# Of each video, which numpy resizes: some 3 ms for one of 1280x720.
_NUMPY_FRAMES = 8

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Scores [batch, classes] of clips [batch, views, clip_len, h, w, channels]."""

_HINT = "nothing was published; please report the config with these figures"


def verify_pixels(references: tuple[Reference, ...], contract: Contract) -> tuple[Check, ...]:
    """The runtime's sampling and pixels against those of mmaction2's pipeline.

    Pixels come from OpenCV, and from numpy as well where it could serve in its place.

    Raises:
        VideoError: the runtime refuses the frames of a video, as it would a client's.
    """
    library = pixel_library(contract.resize)
    indices = max(_index_error(reference, contract) for reference in references)
    pixels = max(_pixel_error(reference, contract) for reference in references)
    checks = (
        Check(
            name="sampled frames",
            error=indices,
            bound=0.0,
            unit="frames",
            detail=f"{len(references)} videos, {contract.positions} positions each",
        ),
        Check(
            name="pixels",
            error=pixels,
            bound=0.0 if library == "cv2" else 1.0,
            unit="grey levels",
            detail=f"resized by {library}",
        ),
    )
    if library == "numpy" or not _served_without_cv2(contract) or math.isinf(max(indices, pixels)):
        return checks
    return (
        *checks,
        Check(
            name="pixels without OpenCV",
            error=max(_numpy_error(reference, contract) for reference in references),
            bound=1.0,
            unit="grey levels",
            detail=f"{min(contract.positions, _NUMPY_FRAMES)} frames of each video, by numpy",
        ),
    )


def _served_without_cv2(contract: Contract) -> bool:
    """Whether the preprocess model runs in an image that has no OpenCV."""
    try:
        pixel_library(contract.resize, "numpy")
    except OpenCVMissingError:
        return False
    return contract.wire is None


def _numpy_error(reference: Reference, contract: Contract) -> float:
    """Of a few of the frames, in all crops: they are resized and cut one by one."""
    count = min(contract.positions, _NUMPY_FRAMES)
    picked = np.linspace(0, contract.positions - 1, count).astype(int)
    few = replace(contract, sampler=SampleFrames(clip_len=count))
    frames = reference.frames[reference.frame_index[picked]]
    ours = make_clips(frames, np.arange(count), few, library="numpy")
    theirs = reference.clips.reshape(contract.crops, contract.positions, *ours.shape[3:])
    return float(np.abs(ours[0].astype(np.int16) - theirs[:, picked]).max())


def verify_graph(
    path: Path,
    references: tuple[Reference, ...],
    clips: TensorSpec,
    tolerance: float,
    name: str = "graph",
    *,
    logits: bool = True,
) -> tuple[Check, ...]:
    """The ONNX file in ONNX Runtime against `model.predict`, on batches of mixed videos.

    Batch sizes are one, two and three, as far as `max_batch_size` allows: what takes the batch for
    a constant takes it for one of two, which it is traced with, and fails below or above that. More
    rows are the same computation; the largest batch is run where three rows tell that it is cheap.
    Two rows (one, if no two are served together) give their `logits` as well.

    Raises:
        TracingError: ONNX Runtime does not load the file.
        ParityError: it does not run on a batch, or gives another number of rows.
    """
    largest, checks = clips.max_batch_size, dict[int, Check]()
    run = _session(path, clips)
    with with_logits(path) as found:
        probe = found if logits and all(row.logits is not None for row in references) else None
        # The largest of these first: what it needed of memory is enough for the others.
        sizes = [size for size in (3, 2, 1) if size <= largest and not (size == 2 and probe)]
        cost = _Cost()
        for size in sizes:
            checks[size] = _verify(run, references, size, tolerance, name)
            if size == 3 and largest > 3 and cost.allows(largest / size):
                checks[largest] = _verify(run, references, largest, tolerance, name)
        del run  # and the memory that it holds
        before = []
        if probe is not None:
            rows = mixed_rows(references, 2)[-min(2, largest) :]
            scores, of_views = _probed(probe, clips, rows)
            if len(rows) == 2:
                checks[2] = compare_scores(_name(name, 2), scores, tolerance)
            before.append(compare_logits(f"{name}, logits", of_views, tolerance))
    return (*(checks[size] for size in sorted(checks)), *before)


def _probed(probe: Probe, clips: TensorSpec, rows: list[Reference]) -> tuple[Rows, Rows]:
    """The scores and the logits of these videos in one batch."""
    batch = np.concatenate([row.clips for row in rows])
    scores, logits = _runner(probe.path, clips)(batch)
    of_videos = probe.of_videos(logits)
    return list(zip(scores, rows, strict=True)), list(zip(of_videos, rows, strict=True))


class _Cost:
    """Processor time and memory since it was made: of a batch, of which a larger one takes more."""

    def __init__(self) -> None:
        self._started, self._held = time.process_time(), _resident_bytes()

    def allows(self, times: float) -> bool:
        """Whether this many times the cost is cheap."""
        seconds, held = time.process_time() - self._started, _resident_bytes() - self._held
        # what is not known is NaN, and not cheap
        return times * seconds <= _CHEAP_S and times * held <= _CHEAP_BYTES


def _resident_bytes() -> float:
    """Of this process; what a batch took is still held by ONNX Runtime's arena when it ends."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:  # not Linux
        return math.nan
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def verify_jpeg(
    path: Path, references: tuple[Reference, ...], contract: Contract, bound: float
) -> Check:
    """What JPEG costs on the way: the clips of the files that a client sends, in the ONNX file.

    Every reference counts, also those that a wide bound could not tell from others: what JPEG costs
    differs a hundredfold from one video to the next.

    Raises:
        ParityError: the encoder does not do what the contract says.
    """
    sent = (jpeg.decode(pack_as_stated(row.frames, contract), contract) for row in references)
    clips = (
        make_clips(frames, row.frame_index, contract)
        for frames, row in zip(sent, references, strict=True)
    )
    error = clips_error(path, zip(clips, references, strict=True), references, contract)
    return Check(
        name="JPEG",
        error=error,
        bound=bound,
        unit="of spread",
        detail=f"{len(references)} videos",
    )


def clips_error(
    path: Path,
    pairs: Iterable[tuple[NDArray[np.uint8], Reference]],
    references: Sequence[Reference],
    contract: Contract,
) -> float:
    """Clips that mmaction2 did not make, in the ONNX file, against `model.predict`: the worst.

    references: all that are proved; one class is measured in their spread.
    """
    run = _session(path, Tensors.of(contract, max_batch_size=1).clips)
    among = [reference.scores for reference in references]
    errors = [difference(run(clips)[0], row.scores, among) for clips, row in pairs]
    return float(np.max(errors))


def verify_runner(
    run: Run, references: tuple[Reference, ...], clips: TensorSpec, tolerance: float, name: str
) -> tuple[Check, ...]:
    """What was built for batches of clips, against `model.predict`.

    Batch sizes are those of verify_graph and the largest, for which a plan has other kernels.
    """
    sizes = sorted({1, 2, 3, clips.max_batch_size} & set(range(1, clips.max_batch_size + 1)))
    # The largest first: what it needed of memory is enough for the others.
    checks = [_verify(run, references, size, tolerance, name) for size in reversed(sizes)]
    return tuple(reversed(checks))


def _verify(
    run: Run, references: tuple[Reference, ...], size: int, tolerance: float, name: str
) -> Check:
    return compare_scores(_name(name, size), _run_batch(run, references, size), tolerance)


def _name(name: str, size: int) -> str:
    return f"{name}, batch {size}"


def require(checks: tuple[Check, ...], hint: str = _HINT) -> None:
    """Raises ParityError with every comparison that failed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ParityError(
            "the export differs from mmaction2: "
            + "; ".join(
                f"{check.name} by {check.error:.3g} {check.unit} (bound {check.bound:g})"
                for check in failed
            ),
            hint=hint,
        )


def summary(checks: tuple[Check, ...]) -> str:
    """A few words for the end table: what is identical, and the worst of what is not."""
    same = [f"{check.name} identical" for check in checks if check.error == 0]
    other = [check for check in checks if check.error != 0]
    if other:
        worst = max(other, key=lambda check: check.error / check.bound if check.bound else math.inf)
        same.append(f"off by {worst.error:.1e} {worst.unit} (bound {worst.bound:g})")
    return ", ".join(same)


def _run_batch(run: Run, references: tuple[Reference, ...], size: int) -> Rows:
    """A batch of one is run for every video, a larger one once."""
    batches = [[row] for row in references] if size == 1 else [mixed_rows(references, size)]
    return [
        pair
        for rows in batches
        for pair in zip(run(np.concatenate([row.clips for row in rows])), rows, strict=True)
    ]


def _session(path: Path, clips: TensorSpec) -> Run:
    run = _runner(path, clips)
    return lambda batch: run(batch)[0]


def _runner(
    path: Path, clips: TensorSpec
) -> Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """Gives all outputs of the file, `scores` first."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A buffer that a later layer can use again would be held until then: half of a Swin's memory.
    # What is free, the arena holds for any layer; to zero fresh memory took half of the time.
    options.enable_mem_reuse = False
    # Threads that wait for work by spinning take the cores from whatever else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _give_back_what_is_freed()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base class of their own.
    except Exception as exc:
        raise TracingError(
            f"ONNX Runtime does not load the graph: {first_line(exc)}",
            hint="another --opset may be one that it supports",
        ) from exc

    def run(batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        try:
            given: list[NDArray[np.float32]] = session.run(None, {clips.name: batch})
        except Exception as exc:
            raise ParityError(
                f"the graph does not run on a batch of {len(batch)}: {first_line(exc)}", hint=_HINT
            ) from exc
        if given[0].shape[:1] != batch.shape[:1]:
            raise ParityError(
                f"the graph turns a batch of {len(batch)} into {list(given[0].shape)}", hint=_HINT
            )
        return given

    return run


def _give_back_what_is_freed() -> None:
    """Tells glibc to map each large buffer by itself, as it does until one is freed.

    From then on it puts buffers of that size on its heap (man 3 mallopt, M_MMAP_THRESHOLD), whose
    gaps stay with the process: up to a third of what the proof of a 3D network took.
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


# malloc.h
_M_MMAP_THRESHOLD = -3


def _index_error(reference: Reference, contract: Contract) -> float:
    fps = reference.fps if contract.reads_fps else None
    ours = sample(reference.total_frames, fps, contract.sampler)
    if ours.shape != reference.sampled.shape:
        return float("inf")
    return float(np.abs(ours - reference.sampled).max())


def _pixel_error(reference: Reference, contract: Contract) -> float:
    if reference.frame_index.shape != (contract.positions,):
        return float("inf")
    try:
        ours = make_clips(reference.frames, reference.frame_index, contract)
    except BadRequestError as exc:
        raise VideoError(
            f"the preprocess model refuses {reference.video}: {exc}",
            hint="prove on other videos with --videos",
        ) from exc
    if ours.shape != reference.clips.shape:
        return float("inf")
    # by view, so that only one view at a time is widened to hold the sign
    return max(
        float(np.abs(a.astype(np.int16) - b).max())
        for a, b in zip(ours[0], reference.clips[0], strict=True)
    )
