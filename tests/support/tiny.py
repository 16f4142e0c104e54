"""Recognizers of a few thousand weights, for tests of every step of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from action_export import preprocess, source
from action_export.checkpoint import build_model, load_checkpoint
from action_export.reference import Reference, run_mmaction
from action_export.types import Modality, Tensors, ViewOptions
from action_runtime.spec import Contract
from support.videos import real_videos
from support.weights import write_checkpoint

if TYPE_CHECKING:
    import torch

CLASSES = 10
VIDEOS = real_videos()[1:3]
"""640x272 and 176x144: two that a tiny recognizer tells apart."""

_IMAGENET = dict(
    type="ActionDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
)

MODEL_3D: dict[str, Any] = dict(
    type="Recognizer3D",
    backbone=dict(
        type="ResNet3dSlowOnly",
        depth=18,
        base_channels=8,
        num_stages=2,
        spatial_strides=(1, 2),
        temporal_strides=(1, 1),
        dilations=(1, 1),
        inflate=(0, 1),
        out_indices=(1,),
        pretrained=None,
        lateral=False,
        conv1_kernel=(1, 7, 7),
        conv1_stride_t=1,
        pool1_stride_t=1,
        norm_eval=False,
    ),
    cls_head=dict(
        type="I3DHead",
        in_channels=16,
        num_classes=CLASSES,
        spatial_type="avg",
        dropout_ratio=0.0,
        average_clips="prob",
    ),
    data_preprocessor=dict(**_IMAGENET, format_shape="NCTHW"),
)

PIPELINE_3D: list[dict[str, Any]] = [
    dict(type="DecordInit"),
    dict(type="SampleFrames", clip_len=4, frame_interval=8, num_clips=2, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 32)),
    dict(type="ThreeCrop", crop_size=32),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]

MODEL_2D: dict[str, Any] = dict(
    type="Recognizer2D",
    backbone=dict(
        type="ResNet",
        depth=18,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        pretrained=None,
        norm_eval=False,
    ),
    cls_head=dict(
        type="TSNHead",
        in_channels=64,
        num_classes=CLASSES,
        spatial_type="avg",
        consensus=dict(type="AvgConsensus", dim=1),
        dropout_ratio=0.0,
        average_clips="prob",
    ),
    data_preprocessor=dict(**_IMAGENET, format_shape="NCHW"),
)

PIPELINE_2D: list[dict[str, Any]] = [
    dict(type="DecordInit"),
    dict(type="SampleFrames", clip_len=1, frame_interval=1, num_clips=3, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 36)),
    dict(type="CenterCrop", crop_size=32),
    dict(type="FormatShape", input_format="NCHW"),
    dict(type="PackActionInputs"),
]


def changed(value: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with keys replaced; `a__b=1` replaces `value["a"]["b"]`."""
    copy = deepcopy(dict(value))
    for key, new in changes.items():
        *parents, last = key.split("__")
        inner = copy
        for parent in parents:
            inner = inner[parent]
        inner[last] = new
    return copy


def with_step(
    pipeline: Sequence[Mapping[str, Any]], position: int, **arguments: Any
) -> list[dict[str, Any]]:
    """A copy of the pipeline with arguments of one transform replaced."""
    copy = deepcopy([dict(transform) for transform in pipeline])
    copy[position].update(arguments)
    return copy


MODEL_TRN: dict[str, Any] = changed(
    MODEL_2D,
    cls_head=dict(
        type="TRNHead",
        in_channels=64,
        num_classes=CLASSES,
        num_segments=6,
        hidden_dim=8,
        average_clips="prob",
    ),
)
PIPELINE_TRN = with_step(PIPELINE_2D, 1, num_clips=6)


# Means and deviations that differ, so that no two channels can change places unnoticed.
MODEL_FLOW_3D = changed(
    MODEL_3D,
    backbone__in_channels=2,
    data_preprocessor__mean=[128, 120],
    data_preprocessor__std=[32, 16],
)
MODEL_FLOW_2D = changed(
    MODEL_2D,
    backbone__in_channels=4,
    # Softmax saturates on the clip of more motion, and would hide a difference.
    cls_head__average_clips="score",
    data_preprocessor__mean=[128, 120, 132, 124],
    data_preprocessor__std=[32, 16, 24, 12],
)
PIPELINE_FLOW_3D: list[dict[str, Any]] = [
    dict(type="SampleFrames", clip_len=4, frame_interval=8, num_clips=2, test_mode=True),
    dict(type="RawFrameDecode"),
    *PIPELINE_3D[3:],
]
PIPELINE_FLOW_2D: list[dict[str, Any]] = [
    dict(type="SampleFrames", clip_len=2, frame_interval=1, num_clips=3, test_mode=True),
    dict(type="RawFrameDecode"),
    dict(type="Resize", scale=(-1, 36)),
    dict(type="TenCrop", crop_size=32),
    *PIPELINE_2D[5:],
]


def write_config(path: Path, **variables: Any) -> Path:
    """A config file with these top-level variables, in the text style of mmaction2's own."""
    lines = ['default_scope = "mmaction"']
    lines += [f"{name} = {value!r}" for name, value in variables.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """A tiny recognizer on disk and as everything that an export makes of it before tracing."""

    config_file: Path
    checkpoint: Path
    config: source.RecognizerConfig
    model: torch.nn.Module
    preprocessing: preprocess.Preprocessing
    contract: Contract
    tensors: Tensors


def make(
    folder: Path,
    model: Mapping[str, Any],
    pipeline: Sequence[Mapping[str, Any]],
    *,
    name: str = "tiny",
    modality: Modality = "RGB",
    max_batch_size: int = 3,
) -> Tiny:
    """Writes the config and calibrated weights, and loads them as `api.export` does."""
    config_file = write_config(
        folder / f"{name}.py",
        model=model,
        test_pipeline=pipeline,
        test_dataloader=dict(dataset=dict(modality=modality)),
    )
    checkpoint = write_checkpoint(str(config_file), folder / f"{name}.pth", VIDEOS)
    config = source.load_config(str(config_file))
    preprocessing = preprocess.derive(config, ViewOptions())
    contract = preprocessing.contract(config, labels=(), provenance={})
    return Tiny(
        config_file=config_file,
        checkpoint=checkpoint,
        config=config,
        model=build_model(config, load_checkpoint(checkpoint)),
        preprocessing=preprocessing,
        contract=contract,
        tensors=Tensors.of(contract, max_batch_size),
    )


def references(tiny: Tiny) -> tuple[Reference, ...]:
    return tuple(run_mmaction(tiny.model, tiny.preprocessing, video) for video in VIDEOS)
