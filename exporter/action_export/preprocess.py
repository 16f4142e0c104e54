"""Derives the serving contract from a test pipeline, or refuses by name and position.

Only what has been shown equal to mmaction2 is accepted: a transform or an argument that is not
listed here is an error, never a guess.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from action_runtime.spec import (
    Contract,
    ContractError,
    Crop,
    Decoder,
    DenseSampleFrames,
    FixedResize,
    Interpolation,
    Jpeg,
    KeepRatioResize,
    Resize,
    SampleFrames,
    Sampler,
    Scores,
    UniformSample,
)

from action_export import registries
from action_export.arguments import Arguments
from action_export.errors import ConfigError, UnsupportedError
from action_export.evaluation import Transform
from action_export.served_views import CROPS, INITS, SAMPLERS, from_disk, views_of, with_views
from action_export.source import RecognizerConfig
from action_export.types import Layout, Modality, ViewOptions

# Decoders by the first part of the names of their transforms.
_DECODERS: Mapping[str, Decoder] = {"Decord": "decord", "PyAV": "pyav", "OpenCV": "opencv"}
DECODES = (*(f"{name}Decode" for name in _DECODERS), "RawFrameDecode")
# Its frames depend on which PyAV its release of PIMS can open a file with.
_PIMS = ("PIMSInit", "PIMSDecode")
_OWN = "mmaction.datasets.transforms"  # a scope and a name may by now be the user's
# mmaction2's defaults come first.
_LAYOUTS: tuple[Layout, ...] = ("NCHW", "NCTHW")
_OUT_OF_BOUND: tuple[Literal["loop", "repeat_last"], ...] = ("loop", "repeat_last")
_INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "nearest", "bicubic", "area", "lanczos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What the pipeline does to a video.

    pipeline: the transforms with the views that are served, and with files read from the disk; the
        proof runs these through mmaction2.
    decoder: whose frames a client takes from a video file. Of extracted frame files it is decord,
        which gives pictures as players show them; what extracted them, no config says.
    config_views: the config's own views where they differ from the served ones.
    """

    pipeline: tuple[Transform, ...]
    sampler: Sampler
    resize: Resize | None
    crop: Crop | None
    layout: Layout
    modality: Modality
    decoder: Decoder
    reads_fps: bool
    config_views: Mapping[str, int | str] | None

    @property
    def channels(self) -> int:
        """Of a frame; flow is x and y."""
        return 2 if self.modality == "Flow" else 3

    @property
    def stacked(self) -> int:
        """Frames in the channels of one image: FormatShape stacks a clip of flow for a 2D model."""
        return self.sampler.clip_len if (self.modality, self.layout) == ("Flow", "NCHW") else 1

    def contract(
        self,
        config: RecognizerConfig,
        *,
        labels: tuple[str, ...],
        provenance: Mapping[str, str],
        wire: Jpeg | None = None,
        scores: Scores = "config",
    ) -> Contract:
        """The value that clients and the preprocess model read."""
        try:
            return Contract(
                sampler=self.sampler,
                resize=self.resize,
                crop=self.crop,
                classes=class_count(config),
                # a head of the user's own need not look at it
                average="prob" if scores == "head" else average_clips(config),
                channels=self.channels,
                decoder=self.decoder,
                reads_fps=self.reads_fps,
                wire=wire,
                scores=scores,
                labels=labels,
                config_views=self.config_views,
                provenance=provenance,
            )
        except ContractError as exc:
            raise UnsupportedError(
                f"the test pipeline of {config.path.name} cannot be served: {exc}",
                hint="add a CenterCrop, or a Resize with keep_ratio=False",
            ) from exc


def derive(config: RecognizerConfig, views: ViewOptions) -> Preprocessing:
    """Reads the test pipeline, with `views` in place of the config's where they are given.

    Raises:
        UnsupportedError: a transform, an argument or an order with no serving equivalent.
        ConfigError: the pipeline contradicts itself or the data_preprocessor.
    """
    has_crop = any(transform["type"] in CROPS for transform in config.pipeline)
    if views.crops != "config" and not has_crop:
        raise UnsupportedError(
            f"the test pipeline of {config.path.name} has no crop for --crops {views.crops}",
            hint="leave --crops out, or add a CenterCrop to the config",
        )
    pipeline = tuple(from_disk(with_views(transform, views)) for transform in config.pipeline)
    steps = _Steps(config)
    for position, transform in enumerate(pipeline):
        steps.read(position, transform)
    served = steps.finish(pipeline)
    original = views_of(config.pipeline)
    return replace(served, config_views=original if original != views_of(pipeline) else None)


def decoder_notes(preprocessing: Preprocessing) -> tuple[str, ...]:
    """What a user of extracted frames must know."""
    files = any(transform["type"] == "RawFrameDecode" for transform in preprocessing.pipeline)
    if not files or preprocessing.modality != "RGB":
        return ()
    return (
        "the config reads extracted frame files (RawFrameDecode), and a client decodes the video "
        "itself, as decord would: what extracting changed (size, JPEG, another decoder) is in the "
        "training and not in what is sent, and the proof cannot measure it",
    )


def class_count(config: RecognizerConfig) -> int:
    match config.model.get("cls_head"):
        # OmniHead scores images and videos, of which the videos are served
        case {"num_classes": int(classes)} | {"video_classes": int(classes)}:
            return classes
        case _:
            raise ConfigError(
                f"{config.path.name} has no model.cls_head.num_classes",
                hint="a recognizer to serve needs a classification head",
            )


def average_clips(config: RecognizerConfig) -> Literal["prob", "score"]:
    """What the head averages over the views of a video."""
    match config.model.get("cls_head", {}).get("average_clips"):
        case "prob":
            return "prob"
        case "score":
            return "score"
        case other:
            raise UnsupportedError(
                f"model.cls_head.average_clips is {other!r}, so the scores of a video are not "
                "averaged to one row",
                hint="--cfg-options model.cls_head.average_clips=prob",
            )


class _Steps:
    """The stages of a test pipeline, filled in order: decode, sample, resize, crop, format."""

    def __init__(self, config: RecognizerConfig) -> None:
        self._config = config
        self._sampler: Sampler | None = None
        self._resize: Resize | None = None
        self._crop: Crop | None = None
        self._layout: Layout | None = None
        self._opened_by: str | None = None
        self._reads_files = False
        self._decoded = False
        self._packed = False

    def read(self, position: int, transform: Transform) -> None:
        arguments = dict(transform)
        name = str(arguments.pop("type"))
        where = f"test_pipeline[{position}], {name},"
        reader = self._reader(name)
        if reader is None:
            raise _unknown(position, name)
        read = Arguments(where, f"{self._config.pipeline_key}.{position}", arguments)
        if self._packed:
            raise read.refuse("comes after PackActionInputs")
        reader(name, read)

    def _reader(self, name: str) -> Callable[[str, Arguments], None] | None:
        readers: dict[str, Callable[[str, Arguments], None]] = {
            **dict.fromkeys(INITS, self._read_init),
            **dict.fromkeys(DECODES, self._read_decode),
            **dict.fromkeys(_PIMS, self._refuse_pims),
            **dict.fromkeys(SAMPLERS, self._read_sampler),
            **dict.fromkeys(CROPS, self._read_crop),
            "Resize": self._read_resize,
            "Flip": self._read_flip,
            "FormatShape": self._read_format,
            "PackActionInputs": self._read_pack,
        }
        return readers.get(name)

    def _read_init(self, name: str, arguments: Arguments) -> None:
        arguments.ignore_all()  # how bytes are fetched, and by how many threads they are decoded
        self._opened_by = name.removesuffix("Init")

    def _read_decode(self, name: str, arguments: Arguments) -> None:
        if self._sampler is None:
            raise arguments.refuse("comes before the sampler")
        if self._config.modality == "Flow" and name != "RawFrameDecode":
            raise arguments.refuse("reads RGB frames, but the test dataset has modality='Flow'")
        arguments.expect("mode", "accurate")  # "efficient" returns key frames instead
        if name == "RawFrameDecode":
            if arguments.take("decoding_backend", "cv2") == "pillow":
                # mmcv.use_backend is for all that follows
                raise arguments.refuse("has decoding_backend='pillow', so Resize is Pillow's, too")
            arguments.ignore_all()  # how the files of frames are fetched
        arguments.ignore("io_backend", "decoding_backend", "multi_thread")
        arguments.finish()
        if name not in ("RawFrameDecode", f"{self._opened_by}Decode"):
            opened = f"{self._opened_by}Init" if self._opened_by else "none"
            init = name.replace("Decode", "Init")
            raise arguments.refuse(f"reads what {init} opens, and the pipeline has {opened}")
        self._reads_files = name == "RawFrameDecode"
        self._decoded = True

    def _refuse_pims(self, name: str, arguments: Arguments) -> None:
        raise arguments.refuse(
            "is of PIMS, whose frames no client here can follow",
            hint="PIMS decodes with PyAV: where PyAVInit and PyAVDecode score as well on your test "
            "set, put them in its place",
        )

    def _read_sampler(self, name: str, arguments: Arguments) -> None:
        if self._sampler is not None:
            raise arguments.refuse("is a second sampler")
        arguments.expect("test_mode", True, default=False)
        clip_len = arguments.integer("clip_len")
        num_clips = arguments.integer("num_clips", 1)
        if name == "UniformSample":
            self._sampler = UniformSample(clip_len=clip_len, num_clips=num_clips)
            arguments.finish()
            return
        arguments.expect("temporal_jitter", False)
        arguments.ignore("keep_tail_frames")  # read in training only
        interval = arguments.integer("frame_interval", 1)
        bound = arguments.choice("out_of_bound_opt", _OUT_OF_BOUND)
        twice = bool(arguments.take("twice_sample", False))
        target_fps = arguments.take("target_fps", None)
        if name == "SampleFrames":
            if twice and num_clips == 1 and clip_len > 1:
                raise arguments.refuse("has twice_sample with one clip: mmaction2 divides by zero")
            self._sampler = SampleFrames(
                clip_len=clip_len,
                frame_interval=interval,
                num_clips=num_clips,
                twice_sample=twice,
                out_of_bound=bound,
                target_fps=None if target_fps is None else float(target_fps),
            )
        else:  # DenseSampleFrames takes twice_sample and target_fps, and never reads them
            self._sampler = DenseSampleFrames(
                clip_len=clip_len,
                frame_interval=interval,
                num_clips=num_clips,
                out_of_bound=bound,
                sample_range=arguments.integer("sample_range", 64),
                num_sample_positions=arguments.integer("num_sample_positions", 10),
            )
        arguments.finish()

    def _read_resize(self, name: str, arguments: Arguments) -> None:
        self._check_pixels(arguments)
        if self._resize is not None or self._crop is not None:
            raise arguments.refuse("must be the only Resize and come before the crop")
        arguments.expect("lazy", False)
        interpolation = arguments.choice("interpolation", _INTERPOLATIONS)
        keep_ratio = bool(arguments.take("keep_ratio", True))
        match arguments.take("scale"):
            case (int(a), int(b)) if not keep_ratio and min(a, b) > 0:
                self._resize = FixedResize(width=a, height=b, interpolation=interpolation)
            case (int() | float() as a, int() | float() as b) if keep_ratio and max(a, b) > 0:
                short, long = sorted((a, b))
                # mmaction2 reads -1 as "no limit on the long side"
                unbounded = short == -1 or math.isinf(long)
                self._resize = KeepRatioResize(
                    short=int(long if short == -1 else short),
                    long=None if unbounded else int(long),
                    interpolation=interpolation,
                )
            case other:
                raise arguments.refuse(f"has scale={other!r}; a pair of pixels is served")
        arguments.finish()

    def _read_crop(self, name: str, arguments: Arguments) -> None:
        self._check_pixels(arguments)
        if self._crop is not None:
            raise arguments.refuse("is a second crop")
        arguments.expect("lazy", False)
        match arguments.take("crop_size"):
            case int(size) if size > 0:
                width = height = size
            case (int(width), int(height)) if min(width, height) > 0:
                pass
            case other:
                raise arguments.refuse(f"has crop_size={other!r}; a number or (w, h) is served")
        self._crop = Crop(kind=CROPS[name], width=width, height=height)
        if not _fits(self._crop, self._resize):
            raise arguments.refuse(
                f"has crop_size={(width, height)}; it must fit into the resized frames"
                + (", and be as wide or as high as they are" if name == "ThreeCrop" else "")
            )
        arguments.finish()

    def _read_flip(self, name: str, arguments: Arguments) -> None:
        arguments.expect("flip_ratio", 0, default=0.5)
        arguments.ignore("direction", "flip_label_map", "left_kp", "right_kp")
        arguments.expect("lazy", False)
        arguments.finish()

    def _read_format(self, name: str, arguments: Arguments) -> None:
        arguments.require("input_format")
        self._layout = arguments.choice("input_format", _LAYOUTS)
        arguments.expect("collapse", False)
        arguments.finish()

    def _read_pack(self, name: str, arguments: Arguments) -> None:
        arguments.expect("collect_keys", None)
        arguments.ignore("meta_keys", "algorithm_keys")
        arguments.finish()
        self._packed = True

    def _check_pixels(self, arguments: Arguments) -> None:
        if not self._decoded:
            raise arguments.refuse("comes before a decoder")
        if self._layout is not None:
            raise arguments.refuse("comes after FormatShape")

    def finish(self, pipeline: tuple[Transform, ...]) -> Preprocessing:
        """Everything read, checked as a whole."""
        name = self._config.path.name
        if self._sampler is None or not self._decoded:
            raise UnsupportedError(
                f"the test pipeline of {name} samples and decodes no frames",
                hint=f"a served pipeline has one of {', '.join(SAMPLERS)} and then a decoder",
            )
        if self._layout is None or not self._packed:
            raise UnsupportedError(
                f"the test pipeline of {name} does not end with FormatShape and PackActionInputs",
                hint="add them; they are what a recognizer is fed with",
            )
        served = Preprocessing(
            pipeline=pipeline,
            sampler=self._sampler,
            resize=self._resize,
            crop=self._crop,
            layout=self._layout,
            modality=self._config.modality,
            decoder="decord" if self._reads_files else _DECODERS[self._opened_by or "Decord"],
            # only decord's tells the frame rate to SampleFrames
            reads_fps=self._opened_by == "Decord",
            config_views=None,
        )
        self._check_layout(served.layout)
        self._check_channels(served)
        self._check_segments(served)
        return served

    @property
    def _preprocessor(self) -> Mapping[str, Any] | None:
        """As the config has it; None of a class of the user's own, which may have other defaults.

        mmaction2 runs it before anything is proved, and fails itself where it does not fit.
        """
        model = self._config.model
        entry = model.get("data_preprocessor") or {}
        found = registries.resolved(entry, "MODELS", registries.scope_of(model))
        own = found is not None and registries.mmactions_name(found, "models") is None
        return None if own else entry

    def _check_channels(self, served: Preprocessing) -> None:
        """mmaction2 would fail on another number of means, or drop channels with to_rgb."""
        preprocessor, key = self._preprocessor, self._config.preprocessor_key
        if preprocessor is None:
            return
        channels = served.channels * served.stacked
        normalised = len(preprocessor.get("mean") or ())
        # none is no normalisation, and one mean is every channel's
        if normalised not in (0, 1, channels):
            raise ConfigError(
                f"{key} normalises {normalised} channels; "
                f"{served.modality} frames in {served.layout} give the model {channels}",
                hint=f"give mean and std {channels} values, or set the modality of the test "
                "dataset: 'RGB', or 'Flow' for optical flow",
            )
        if served.modality == "Flow" and preprocessor.get("to_rgb"):
            raise ConfigError(
                f"{key}.to_rgb is True, but optical flow has no colours to swap",
                hint=f"--cfg-options {key}.to_rgb=False",
            )

    def _check_layout(self, layout: Layout) -> None:
        preprocessor, key = self._preprocessor, self._config.preprocessor_key
        if preprocessor is None:
            return
        declared = preprocessor.get("format_shape", "NCHW")
        # MIX2d3d: images or clips, told by the number of axes
        if declared not in (layout, "MIX2d3d"):
            kind = "" if preprocessor else f"{key}.type=ActionDataPreprocessor "
            raise ConfigError(
                f"FormatShape makes {layout}, {key} expects {declared}",
                hint=f"--cfg-options {kind}{key}.format_shape={layout}",
            )

    def _check_segments(self, served: Preprocessing) -> None:
        """A model that mixes a fixed number of segments needs whole groups of them."""
        model = self._config.model
        for part in ("backbone", "cls_head"):
            segments = (model.get(part) or {}).get("num_segments")
            frames = served.sampler.total_clips * served.sampler.clip_len // served.stacked
            if isinstance(segments, int) and served.layout == "NCHW" and frames % segments:
                kind = "frames" if served.stacked == 1 else "stacks of frames"
                raise ConfigError(
                    f"{frames} {kind} are sampled, but model.{part} mixes groups of {segments}",
                    hint=f"take --num-clips {segments} or a multiple of it",
                )


def _fits(crop: Crop, resize: Resize | None) -> bool:
    """False where no frame that leaves the resize is one that mmaction2 could crop so."""
    match resize:
        case FixedResize(width=width, height=height):
            inside = crop.width <= width and crop.height <= height
            # ThreeCrop asserts that it moves along one side only
            return inside and (crop.kind != "three" or crop.width == width or crop.height == height)
        case KeepRatioResize(short=short, long=None):
            # one side is `short`, the other at least that
            inside = min(crop.width, crop.height) <= short
            return inside and (crop.kind != "three" or short in (crop.width, crop.height))
        case _:
            return True


def _unknown(position: int, name: str) -> UnsupportedError:
    known = (*INITS, *DECODES, *SAMPLERS, *CROPS, "Resize", "FormatShape", "PackActionInputs")
    own = name.rpartition(".")[2]
    if own in known and name != own:
        return UnsupportedError(
            f"test_pipeline[{position}] is {name!r}, which is not mmaction2's {own}: what it does "
            "otherwise has no serving equivalent",
            hint=f"where it does the same, name mmaction2's own: type='{_OWN}.{own}'",
        )
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return UnsupportedError(
        f"test_pipeline[{position}] is {name!r}, which has no serving equivalent",
        hint=f"the nearest that is served is {close!r}; docs/preprocessing.md has the list",
    )
