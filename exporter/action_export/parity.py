"""Compares what was exported with mmaction2, on inputs that could tell a difference.

Three properties make the comparison mean something:
1. the inputs differ, and mmaction2 tells them apart by much more than the bound;
2. the rows of one batch belong to different videos, on several batch sizes;
3. a difference is measured against the spread of the reference over the classes, because softmax
   over random or saturated logits can make any absolute difference small.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np
from action_runtime import jpeg
from action_runtime.sampling import sample
from action_runtime.spec import Contract
from action_runtime.transforms import BadRequestError, make_clips, pixel_library
from numpy.typing import NDArray

from action_export.dependencies import import_onnxruntime
from action_export.errors import (
    InconclusiveError,
    ParityError,
    TracingError,
    VideoError,
    first_line,
)
from action_export.reference import Reference
from action_export.types import Check, Tensors, TensorSpec
from action_export.wire import pack_as_stated

# Property 1: how many times the bound two references must lie apart.
MARGIN = 10.0

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Scores [batch, classes] of clips [batch, views, clip_len, h, w, channels]."""

_HINT = "nothing was published; please report the config with these figures"


def distinguishable(references: tuple[Reference, ...], tolerance: float) -> tuple[Reference, ...]:
    """The references that mmaction2 tells apart, pairwise, by ten times the bound or more."""
    kept: list[Reference] = []
    for reference in references:
        if _spread(reference) > 0 and all(
            _difference(reference.scores, other) > MARGIN * tolerance for other in kept
        ):
            kept.append(reference)
    return tuple(kept)


def farthest_apart(references: tuple[Reference, ...], bound: float) -> tuple[Reference, ...]:
    """Those that tell most under a bound that may be wider than what lies between two videos.

    Pairwise they lie more than twice the bound apart; where no two do, they are the two that lie
    farthest apart.
    """
    kept = distinguishable(references, 2 * bound / MARGIN)
    if len(kept) > 1 or len(references) < 2:
        return kept
    return max(combinations(references, 2), key=lambda pair: _difference(pair[0].scores, pair[1]))


def require_distinguishable(references: tuple[Reference, ...], tolerance: float) -> None:
    """Raises InconclusiveError unless two references lie far enough apart for a check to fail."""
    if len(references) < 2:
        raise InconclusiveError(
            f"{len(references)} video proves nothing: a graph that mixes up rows would pass",
            hint="give two different videos or more to --videos",
        )
    if len(distinguishable(references, tolerance)) < 2:
        apart = max(_difference(a.scores, b) for a, b in combinations(references, 2))
        raise InconclusiveError(
            f"mmaction2 scores the {len(references)} proof videos alike (they differ by "
            f"{apart:.1e} of the spread over classes), so a wrong graph would pass",
            hint="is the checkpoint trained? prove on videos that it tells apart with --videos",
        )


def verify_pixels(references: tuple[Reference, ...], contract: Contract) -> tuple[Check, ...]:
    """The runtime's sampling and pixels against those of mmaction2's pipeline.

    Raises:
        VideoError: the runtime refuses the frames of a video, as it would a client's.
    """
    library = pixel_library(contract.resize)
    indices = max(_index_error(reference, contract) for reference in references)
    pixels = max(_pixel_error(reference, contract) for reference in references)
    return (
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


def verify_graph(
    path: Path,
    references: tuple[Reference, ...],
    clips: TensorSpec,
    tolerance: float,
    name: str = "graph",
) -> tuple[Check, ...]:
    """The ONNX file in ONNX Runtime against `model.predict`, on batches of mixed videos.

    Batch sizes are one, two and three, as far as `max_batch_size` allows: what takes the batch for
    a constant takes it for one of two, which it is traced with, and fails below or above that.
    More rows are the same computation, and what they take of memory says nothing of the server.

    Raises:
        TracingError: ONNX Runtime does not load the file.
        ParityError: it does not run on a batch, or gives another number of rows.
    """
    sizes = [size for size in (1, 2, 3) if size <= clips.max_batch_size]
    return _verify(_session(path, clips), references, sizes, tolerance, name)


def verify_jpeg(
    path: Path, references: tuple[Reference, ...], contract: Contract, bound: float
) -> Check:
    """What JPEG costs on the way: the clips of the files that a client sends, in the ONNX file.

    Every reference counts, also those that a wide bound could not tell from others: what JPEG costs
    differs a hundredfold from one video to the next.

    Raises:
        ParityError: the encoder does not do what the contract says.
    """
    run = _session(path, Tensors.of(contract, max_batch_size=1).clips)
    errors = []
    for reference in references:
        frames = jpeg.decode(pack_as_stated(reference.frames, contract), contract)
        scores = run(make_clips(frames, reference.frame_index, contract))
        errors.append(_difference(scores[0], reference))
    return Check(
        name="JPEG",
        error=float(np.max(errors)),
        bound=bound,
        unit="of spread",
        detail=f"{len(references)} videos",
    )


def verify_runner(
    run: Run, references: tuple[Reference, ...], clips: TensorSpec, tolerance: float, name: str
) -> tuple[Check, ...]:
    """What was built for batches of clips, against `model.predict`.

    Batch sizes are those of verify_graph and the largest, for which a plan has other kernels.
    """
    sizes = sorted({1, 2, 3, clips.max_batch_size} & set(range(1, clips.max_batch_size + 1)))
    return _verify(run, references, sizes, tolerance, name)


def _verify(
    run: Run, references: tuple[Reference, ...], sizes: list[int], tolerance: float, name: str
) -> tuple[Check, ...]:
    # The largest first: what it needed of memory is enough for the others.
    checks = [
        compare_scores(f"{name}, batch {size}", _run_batch(run, references, size), tolerance)
        for size in reversed(sizes)
    ]
    return tuple(reversed(checks))


def compare_scores(
    name: str,
    pairs: list[tuple[NDArray[np.float32], Reference]],
    tolerance: float,
) -> Check:
    """The worst row of `pairs`, each the served scores and the reference that they must equal.

    Raises:
        InconclusiveError: a row is within the bound and nearer to another reference than to its
            own, as a bound of reduced precision may be wider than what lies between two videos.
    """
    # numpy's max keeps a NaN wherever it stands; Python's only if it comes first
    error = float(np.max([_difference(scores, reference) for scores, reference in pairs]))
    if error <= tolerance:
        _require_own_reference(name, pairs)
    return Check(
        name=name,
        error=error,
        bound=tolerance,
        unit="of spread",
        detail=f"{len(pairs)} rows",
        top1=_agreement(pairs, 1),
        top5=_agreement(pairs, 5),
    )


def _require_own_reference(name: str, pairs: list[tuple[NDArray[np.float32], Reference]]) -> None:
    for scores, own in pairs:
        for _, other in pairs:
            if _difference(scores, other) < _difference(scores, own):
                apart = _difference(other.scores, own)
                raise InconclusiveError(
                    f"{name}: what was computed for {own.video.name} is nearer to mmaction2's "
                    f"scores of {other.video.name}, which lie {apart:.1e} of the spread away: rows "
                    "that are mixed up would look the same",
                    hint="nothing was published; prove on videos that mmaction2 tells further "
                    "apart with --videos",
                )


def _agreement(pairs: list[tuple[NDArray[np.float32], Reference]], count: int) -> float:
    """Share of the reference's `count` best classes that are among the served ones."""
    shares = [
        len(np.intersect1d(scores.argsort()[-count:], reference.scores.argsort()[-count:]))
        / min(count, len(reference.scores))
        for scores, reference in pairs
    ]
    return float(np.mean(shares))


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


def _run_batch(
    run: Run, references: tuple[Reference, ...], size: int
) -> list[tuple[NDArray[np.float32], Reference]]:
    # A batch of one is run for every video, a larger one once, with neighbours that differ.
    starts = range(len(references)) if size == 1 else range(1)
    pairs: list[tuple[NDArray[np.float32], Reference]] = []
    for start in starts:
        rows = [references[(start + row) % len(references)] for row in range(size)]
        scores = run(np.concatenate([row.clips for row in rows]))
        pairs += zip(scores, rows, strict=True)
    return pairs


def _session(path: Path, clips: TensorSpec) -> Run:
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

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            scores: NDArray[np.float32] = session.run(None, {clips.name: batch})[0]
        except Exception as exc:
            raise ParityError(
                f"the graph does not run on a batch of {len(batch)}: {first_line(exc)}", hint=_HINT
            ) from exc
        if scores.shape[:1] != batch.shape[:1]:
            raise ParityError(
                f"the graph turns a batch of {len(batch)} into {list(scores.shape)}", hint=_HINT
            )
        return scores

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


def _difference(scores: NDArray[np.float32], reference: Reference) -> float:
    """Property 3: max |scores - reference| over the reference's spread over the classes."""
    if scores.shape != reference.scores.shape:
        return float("inf")
    difference = float(np.abs(scores - reference.scores).max())
    spread = _spread(reference)
    return difference / spread if spread else (float("inf") if difference else 0.0)


def _spread(reference: Reference) -> float:
    return float(reference.scores.max() - reference.scores.min())
