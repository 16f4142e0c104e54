"""What mmaction2 itself makes of a video: the pixels its pipeline gives, the scores it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from action_runtime import video as video_file
from action_runtime.limits import DEFAULT, VideoLimitError
from action_runtime.sampling import Plan, distinct
from action_runtime.spec import Contract, Scores
from action_runtime.transforms import make_clips
from numpy.typing import ArrayLike, NDArray

from action_export.errors import ConfigError, DependencyError, VideoError, first_line
from action_export.evaluation import Transform
from action_export.mmaction_compat import import_mmaction, quiet
from action_export.optical_flow import flow_images
from action_export.preprocess import Preprocessing

if TYPE_CHECKING:
    import torch

WHOLE_FRAMES = replace(DEFAULT, memory=2**63)
"""For frames as they are decoded, which mmaction2's pipeline holds all at once; a client keeps the
shrunk ones, and has a limit for those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One video through mmaction2's own test pipeline and `model.predict`.

    sampled: the frame number of each sampled position, [positions].
    frames, frame_index: the same decoded frames as a client sends them, uint8 [F, H, W, C] and
        int32 [positions].
    clips: what the pipeline ends with, in the layout of the `clips` tensor, uint8
        [1, views, clip_len, h, w, C].
    scores: float32 [classes].
    logits: what softmax or sigmoids make the scores of, float32 [rows, classes]: of each view, or
        of all together where the head joins them. None where the head scores in a way of its own.
    """

    video: Path
    total_frames: int
    fps: float | None
    sampled: NDArray[np.int32]
    frames: NDArray[np.uint8]
    frame_index: NDArray[np.int32]
    clips: NDArray[np.uint8]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None


def run_mmaction(
    model: torch.nn.Module, preprocessing: Preprocessing, video: Path, scores: Scores = "config"
) -> Reference:
    """Runs one video through the pipeline, noting what passes, and through the model.

    scores: see Contract; where sigmoids are served, they are made of mmaction2's logits.

    Raises:
        VideoError: the video cannot be read.
        DependencyError: the decoder that the pipeline names is not installed.
        ConfigError: mmaction2 refuses the arguments of a transform, or the clips they make.
    """
    import torch
    from mmengine.dataset import pseudo_collate

    passed, packed = _pipeline_of(preprocessing, video)
    # test_step may change what it is given, so the clips are taken first
    clips = as_clips(packed["inputs"].numpy(), preprocessing)
    recognizer: Any = model
    try:
        with torch.no_grad(), _outputs_of(recognizer.cls_head) as given:
            sample = recognizer.test_step(pseudo_collate([packed]))[0]
    # the parts of a model are foreign code, and raise anything where they do not fit together
    except Exception as exc:
        raise ConfigError(
            f"mmaction2 cannot run the model on the clips of {video}: {first_line(exc)}",
            hint="mend `model` or the test pipeline of the config",
        ) from exc
    sampled = np.asarray(passed["frame_inds"], np.int32)
    frames, frame_index = _distinct_frames(sampled, passed)
    logits = torch.cat(given).float().cpu() if given else None
    predicted = sample.pred_score.cpu()
    if scores == "sigmoid":
        assert logits is not None  # of BaseHead, whose forward gives a tensor
        predicted = logits.sigmoid().mean(dim=0)
    return Reference(
        video=video,
        total_frames=int(passed["total_frames"]),
        fps=passed.get("avg_fps"),
        sampled=sampled,
        frames=frames,
        frame_index=frame_index,
        clips=clips,
        scores=np.asarray(predicted, np.float32),
        logits=None if logits is None or scores == "head" else logits.numpy(),
    )


@contextmanager
def _outputs_of(head: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The tensors that it returns, in order."""
    import torch

    given: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            given.append(output)

    handle = head.register_forward_hook(note)
    try:
        yield given
    finally:
        handle.remove()


def clips_of(preprocessing: Preprocessing, contract: Contract, video: Path) -> NDArray[np.uint8]:
    """What the preprocess model makes of a video, [1, views, clip_len, h, w, C].

    Raises what run_mmaction raises, without a model.
    """
    passed, _ = _pipeline_of(preprocessing, video)
    sampled = np.asarray(passed["frame_inds"], np.int32)
    return make_clips(*_distinct_frames(sampled, passed), contract)


def _distinct_frames(
    sampled: NDArray[np.int32], passed: dict[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The frames that were decoded for these positions, as a client sends them, and their index."""
    _, first_position = np.unique(sampled, return_index=True)
    frames = np.stack([passed["imgs"][position] for position in first_position])
    return frames, distinct(sampled)[1]


def _pipeline_of(
    preprocessing: Preprocessing, video: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    check_video(video)
    with quiet():
        return run_pipeline(preprocessing, video)


def check_video(video: Path) -> None:
    """Raises VideoError for what is no video.

    Comes before mmaction2, because decord prints the bytes of what it cannot open.
    """
    import av

    if not video.is_file():
        raise VideoError(f"there is no video file {video}", hint="check the path")
    try:
        with av.open(_named(video)) as container:
            streams = len(container.streams.video)
    except (av.error.FFmpegError, OSError) as exc:
        raise VideoError(
            f"{video} is no video that can be read: {exc.strerror}", hint=_OTHER_VIDEOS
        ) from exc
    if not streams:
        raise VideoError(f"{video} has no video stream", hint=_OTHER_VIDEOS)


def _named(video: Path) -> str:
    """From the root, as FFmpeg takes what stands before a colon for a protocol."""
    return str(video.absolute())


_OTHER_VIDEOS = "name other videos (--videos proves, --calibration measures scales)"


def run_pipeline(
    preprocessing: Preprocessing, video: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the first value of each key that is compared, the packed result)."""
    results: dict[str, Any] = {
        "filename": _named(video),
        "start_index": 0,
        "label": -1,
        "modality": preprocessing.modality,
    }
    passed: dict[str, Any] = {}
    for transform in _from_file(preprocessing):
        results = _apply(transform, results, video)
        for key in ("total_frames", "avg_fps", "frame_inds", "imgs"):
            if key in results:
                # later transforms put crops in place of the decoded `imgs`
                passed.setdefault(key, results[key])
    return passed, results


def _from_file(preprocessing: Preprocessing) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A pipeline of extracted frame files reads the video instead; its pixels are not compared.

    No config says what extracted them, so they are what the client would decode.
    """
    files = any(transform["type"] == "RawFrameDecode" for transform in preprocessing.pipeline)
    flow = preprocessing.modality == "Flow"
    if files:
        # PyAVInit, like a folder of frames, tells no frame rate
        yield build_transform({"type": "PyAVInit"}) if flow else _count_frames
    for transform in preprocessing.pipeline:
        if transform["type"] != "RawFrameDecode":
            yield build_transform(transform)
        else:
            yield _decode_flow if flow else _decode_frames


def _count_frames(results: dict[str, Any]) -> dict[str, Any]:
    """What the dataset of extracted frames knows of a video, from the video."""
    return {**results, "total_frames": _video_frames(Path(results["filename"]), [0])[0]}


def _decode_frames(results: dict[str, Any]) -> dict[str, Any]:
    """What RawFrameDecode puts into the results, from the video in place of frame files."""
    numbers = np.ravel(results["frame_inds"])
    _, frames = _video_frames(Path(results["filename"]), np.unique(numbers))
    imgs = list(frames[np.searchsorted(np.unique(numbers), numbers)])
    shape = imgs[0].shape[:2]
    return {**results, "imgs": imgs, "original_shape": shape, "img_shape": shape}


def _video_frames(path: Path, numbers: ArrayLike) -> tuple[int, NDArray[np.uint8]]:
    """How many frames a video has, and these of them, as decord would decode them.

    Raises:
        VideoError: they cannot be decoded.
    """
    chosen = np.asarray(numbers, np.int32)
    total = 0

    def choose(info: video_file.VideoInfo) -> Plan:
        nonlocal total
        total = info.total_frames
        return Plan(frame_numbers=chosen, frame_index=np.arange(len(chosen), dtype=np.int32))

    try:
        _, frames = video_file.read_frames(path, choose, limits=WHOLE_FRAMES)
    except video_file.VideoError as exc:
        raise refused(exc) from exc
    return total, frames


def refused(exc: video_file.VideoError) -> VideoError:
    """What a client says of a proof video. Its limits are options of a client, not of an export."""
    limited = isinstance(exc, VideoLimitError)
    hint = f"{_OTHER_VIDEOS}; of a client: {exc.hint}" if limited else exc.hint
    return VideoError(exc.message, hint=hint)


def _decode_flow(results: dict[str, Any]) -> dict[str, Any]:
    """What RawFrameDecode puts into the results, from the video in place of flow images."""
    numbers = np.ravel(results["frame_inds"]).tolist()
    images = flow_images(Path(results["filename"]), numbers)
    imgs = [images[number] for number in numbers]
    shape = imgs[0].shape[:2]
    return {**results, "imgs": imgs, "original_shape": shape, "img_shape": shape}


def build_transform(transform: Transform) -> Any:
    """From mmaction2's own class, which the reader was written for: a registry's name may be the
    user's by now.
    """
    import_mmaction()
    from mmaction.datasets import transforms

    arguments = dict(transform)
    try:
        return getattr(transforms, arguments.pop("type"))(**arguments)
    # a constructor of mmaction2's, which checks with asserts and TypeErrors alike
    except Exception as exc:
        raise ConfigError(
            f"mmaction2 refuses {dict(transform)}: {first_line(exc)}",
            hint="mend the test pipeline",
        ) from exc


def _apply(
    transform: Callable[[dict[str, Any]], Any], results: dict[str, Any], video: Path
) -> dict[str, Any]:
    name = type(transform).__name__
    try:
        output: dict[str, Any] = transform(results)
    except VideoError:  # of _decode_flow and _decode_frames, which are not mmaction2's
        raise
    except ImportError as exc:
        raise DependencyError(
            f"the test pipeline decodes with {name}, whose library is missing: {first_line(exc)}",
            hint="install it beside the exporter (`pip install decord`, of DecordInit)",
        ) from exc
    # decoders raise errors of their own libraries, and the crops assert
    except Exception as exc:
        raise VideoError(
            f"mmaction2's {name} fails on {video}: {first_line(exc)}",
            hint=_OTHER_VIDEOS,
        ) from exc
    return output


def as_clips(inputs: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """FormatShape's output as [1, views, clip_len, h, w, C]."""
    if preprocessing.layout == "NCTHW":
        return np.moveaxis(inputs, 1, -1)[None]
    # images of one frame, or of the stacked flow of a clip: the same order of values
    clips = (1, -1, preprocessing.sampler.clip_len, preprocessing.channels)
    return np.moveaxis(inputs.reshape(*clips, *inputs.shape[2:]), 3, -1)
