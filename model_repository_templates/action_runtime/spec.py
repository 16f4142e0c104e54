"""The serving contract: one frozen value, one JSON string.

The exporter writes the string into the `parameters` of the ensemble, where a client finds it with
`get_model_config`, and of the preprocess model, whose backend gets it in `args["model_config"]`.
It holds decisions only; every shape is derived from them here, so that none can disagree.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

SCHEMA = 1
PARAMETER = "serving_contract"
"""Key of the contract in the `parameters` of config.pbtxt."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]
Scores = Literal["config", "head", "sigmoid"]


Decoder = Literal["decord", "pyav", "opencv"]
"""Whose frames of a video file the model was trained on."""


class ContractError(ValueError):
    """The text is no contract of a schema that this code can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFrames:
    """mmaction2's SampleFrames with test_mode=True."""

    kind: ClassVar[str] = "sample_frames"
    clip_len: int
    frame_interval: int = 1
    num_clips: int = 1
    twice_sample: bool = False
    out_of_bound: Literal["loop", "repeat_last"] = "loop"
    target_fps: float | None = None

    @property
    def total_clips(self) -> int:
        return self.num_clips * (2 if self.twice_sample else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSampleFrames:
    """mmaction2's DenseSampleFrames with test_mode=True: num_clips at each of several positions."""

    kind: ClassVar[str] = "dense_sample_frames"
    clip_len: int
    frame_interval: int = 1
    num_clips: int = 1
    sample_range: int = 64
    num_sample_positions: int = 10
    out_of_bound: Literal["loop", "repeat_last"] = "loop"

    @property
    def total_clips(self) -> int:
        return self.num_clips * self.num_sample_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformSample:
    """mmaction2's UniformSample with test_mode=True."""

    kind: ClassVar[str] = "uniform_sample"
    clip_len: int
    num_clips: int = 1

    @property
    def total_clips(self) -> int:
        return self.num_clips


Sampler = SampleFrames | DenseSampleFrames | UniformSample


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRatioResize:
    """As large as possible with the short side <= short and the long side <= long (None: no limit).

    With long=None the short side becomes exactly `short`: mmaction2's scale=(-1, short).
    """

    kind: ClassVar[str] = "keep_ratio"
    short: int
    long: int | None = None
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedResize:
    """Exactly this size, whatever the aspect ratio: mmaction2's keep_ratio=False."""

    kind: ClassVar[str] = "fixed"
    width: int
    height: int
    interpolation: Interpolation = "bilinear"


Resize = KeepRatioResize | FixedResize


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """`count` crops of width x height pixels of every frame, in mmaction2's order.

    center: the middle. three: left, right, middle (top, bottom, middle of an upright frame).
    ten: upper left, upper right, lower left, lower right, centre, each followed by its flip.
    """

    kind: Literal["center", "three", "ten"]
    width: int
    height: int

    @property
    def count(self) -> int:
        return {"center": 1, "three": 3, "ten": 10}[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """Frames travel as JPEG files, in the size that the model takes.

    quality: 1 to 100 on the scale of the Independent JPEG Group, which libjpeg and OpenCV use.
    chroma: full is 4:4:4, halved is 4:2:0. Models that were published before there was a choice
        have halved chroma and say nothing of it, so that is what an absent field means.
    """

    kind: ClassVar[str] = "jpeg"
    quality: int = 95
    chroma: Literal["halved", "full"] = "halved"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ContractError(f"a JPEG quality goes from 1 to 100, and is not {self.quality}")
        if self.chroma not in ("halved", "full"):
            raise ContractError(f"the chroma of JPEG is {self.chroma!r}, not halved or full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """How a video becomes the `clips` of the recognizer, and what its `scores` mean.

    decoder: what gave mmaction2 the frames of a video file. Decord is not written, as all contracts
        were before there was a choice; a client that knows no other refuses the others by name.
    reads_fps: the config's decoder tells SampleFrames the frame rate (only decord does in
        mmaction2); where it is False, target_fps has no effect on the sampled positions.
    average: what is averaged over the views, softmax probabilities or raw scores.
    scores: what else they may be: "head" is what the model's own head makes of its logits, whatever
        `average` says, and "sigmoid" the average over the views of each logit's sigmoid.
    channels: of a frame: 3 are RGB; 2 are optical flow, x and y, in grey levels with 128 for none.
    wire: how frames travel to the server: None is as pixels, without loss. Only Jpeg is written,
        so that a client that knows pixels only reads no contract of a model that takes none.
    labels: one name for each class in order, or empty where none are known.
    config_views: num_clips and crops of the config, when fewer views are served than it asks for.
    provenance: config name and sha256, checkpoint sha256, version of the exporter.
    """

    sampler: Sampler
    resize: Resize | None
    crop: Crop | None
    classes: int
    average: Literal["prob", "score"]
    channels: int = 3
    decoder: Decoder = "decord"
    reads_fps: bool = True
    wire: Jpeg | None = None
    scores: Scores = "config"
    labels: tuple[str, ...] = ()
    config_views: Mapping[str, int | str] | None = None
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.crop is None and not isinstance(self.resize, FixedResize):
            raise ContractError("without a crop only a fixed resize gives clips of one size")
        if self.labels and len(self.labels) != self.classes:
            raise ContractError(f"{len(self.labels)} labels for {self.classes} classes")
        if self.wire is not None and self.channels != 3:
            raise ContractError(f"JPEG holds frames of 3 channels, not {self.channels}")
        if self.scores not in ("config", "head", "sigmoid"):
            raise ContractError(f"scores are {self.scores!r}, which this code does not know")
        if self.decoder not in get_args(Decoder):
            raise ContractError(
                f"the frames of the model are decoded by {self.decoder!r}, which this version does "
                "not follow; install the action-export version that wrote the model repository"
            )

    @property
    def takes_flow(self) -> bool:
        return self.channels == 2

    @property
    def frames_tensor(self) -> str:
        """The input that holds the frames; of another type, it has another name."""
        return "frames" if self.wire is None else "frames_jpeg"

    @property
    def positions(self) -> int:
        """Length of `frame_index`: sampled clips x clip_len."""
        return self.sampler.total_clips * self.sampler.clip_len

    @property
    def crops(self) -> int:
        return self.crop.count if self.crop is not None else 1

    @property
    def views(self) -> int:
        """Clips of one video that the recognizer sees: crops x sampled clips, crop-major."""
        return self.crops * self.sampler.total_clips

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of each frame of `clips`."""
        box = self.crop if self.crop is not None else self.resize
        assert isinstance(box, Crop | FixedResize)  # __post_init__
        return box.height, box.width

    @property
    def clips_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of `clips` without its batch axis: views, clip_len, height, width, channels."""
        return (self.views, self.sampler.clip_len, *self.frame_size, self.channels)

    def to_json(self) -> str:
        """The one string that is written; keys are sorted, so equal contracts are equal strings."""
        fields = {"schema": SCHEMA, **_plain(self)}
        for name, unsaid in _LATER.items():
            if getattr(self, name) == unsaid:
                del fields[name]
        if self.wire is not None and self.wire.chroma == "halved":
            del fields["wire"]["chroma"]
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Parses `to_json`'s string.

        Raises:
            ContractError: no JSON, another schema, a missing or unknown field.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as exc:
            raise ContractError(f"the serving contract is no JSON: {exc}") from exc
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ContractError(
                f"the serving contract is not of schema {SCHEMA}; install the action-export "
                "version that wrote the model repository"
            )
        try:
            return cls(
                **{
                    **data,
                    "sampler": _tagged(_SAMPLERS, data["sampler"]),
                    "resize": data["resize"] and _tagged(_RESIZES, data["resize"]),
                    "crop": None if data["crop"] is None else Crop(**data["crop"]),
                    "wire": _tagged(_WIRES, data["wire"]) if "wire" in data else None,
                    "labels": tuple(data["labels"]),
                }
            )
        except (KeyError, TypeError) as exc:
            raise ContractError(f"the serving contract is incomplete: {exc}") from exc


_LATER: Mapping[str, Any] = {"wire": None, "scores": "config", "decoder": "decord"}
"""Fields that came after the first contracts, and the value at which they are left out, so that a
contract that needs none of them is the same text for every client."""

_SAMPLERS: dict[str, Any] = {c.kind: c for c in (SampleFrames, DenseSampleFrames, UniformSample)}
_RESIZES: dict[str, Any] = {c.kind: c for c in (KeepRatioResize, FixedResize)}
_WIRES: dict[str, Any] = {Jpeg.kind: Jpeg}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tagged with their `kind` where that is a class attribute."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": value.kind, **fields} if hasattr(value, "kind") else fields
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _tagged(classes: dict[str, Any], data: dict[str, Any]) -> Any:
    fields = dict(data)
    return classes[fields.pop("kind")](**fields)
