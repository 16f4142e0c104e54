"""Configs of the zoo that the tests run, with views that they can afford."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from action_export import api
from action_export.source import RecognizerConfig
from action_export.types import ExportRequest, ViewOptions
from support.videos import real_videos
from support.weights import write_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooCase:
    """family: the folder of the config in mmaction2's configs/recognition."""

    family: str
    config: str
    views: ViewOptions = ViewOptions(num_clips=1, crops="center")


def export_case(case: ZooCase, repo: Path, checkpoint: Path) -> None:
    """Writes a calibrated checkpoint and publishes what becomes of it, under its family's name.

    The live proof is left to the test that calls this, which is a harder one. With the accelerator
    configured, the graph is one that TensorRT reads, too.
    """
    videos = real_videos()
    api.export(
        ExportRequest(
            triton_repo=repo,
            config=case.config,
            checkpoint=write_checkpoint(case.config, checkpoint, videos),
            name=case.family,
            views=case.views,
            max_batch_size=3,
            accelerate=True,
            videos=tuple(videos[:2]),
            proof="graph",
        )
    )


# Most with one clip and its centre: tests/e2e/test_pipelines.py has all kinds of views.
CASES = (
    ZooCase(
        family="tsn",
        config="tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb",
        views=ViewOptions(num_clips=2, crops="center"),
    ),
    ZooCase(
        family="tsm",
        config="tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb",
        views=ViewOptions(),  # eight segments, three crops
    ),
    ZooCase(
        family="slowonly",
        config="slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
    ),
    ZooCase(
        family="slowfast",
        config="slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb",
        views=ViewOptions(num_clips=2, crops="center"),
    ),
    ZooCase(
        family="i3d",
        config="i3d_imagenet-pretrained-r50_8xb8-dense-32x2x1-100e_kinetics400-rgb",
    ),
    ZooCase(
        family="c2d",
        config="c2d_r50-in1k-pre_8xb32-8x8x1-100e_kinetics400-rgb",
    ),
    ZooCase(
        family="r2plus1d",
        config="r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb",
    ),
    ZooCase(
        family="x3d",
        config="x3d_s_13x6x1_facebook-kinetics400-rgb",
        views=ViewOptions(num_clips=2),
    ),
    ZooCase(
        family="c3d",
        config="c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb",
    ),
    ZooCase(
        family="tanet",
        config="tanet_imagenet-pretrained-r50_8xb8-dense-1x1x8-100e_kinetics400-rgb",
        views=ViewOptions(num_clips=8, crops="center"),
    ),
    ZooCase(
        family="tin",
        config="tin_imagenet-pretrained-r50_8xb6-1x1x8-40e_sthv1-rgb",
        views=ViewOptions(),  # eight segments, center crop
    ),
    ZooCase(
        family="tpn",
        config="tpn-tsm_imagenet-pretrained-r50_8xb8-1x1x8-150e_sthv1-rgb",
        views=ViewOptions(crops="center"),  # eight segments, sampled twice
    ),
    ZooCase(
        family="trn",
        config="trn_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv1-rgb",
        views=ViewOptions(crops="center"),  # eight segments, sampled twice
    ),
    ZooCase(
        family="csn",
        config="ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb",
    ),
    ZooCase(
        family="mvit",
        config="mvit-small-p244_k400-pre_16xb16-u16-100e_sthv2-rgb",
        views=ViewOptions(crops="center"),
    ),
    ZooCase(
        family="omnisource",
        config="slowonly_r50_8xb16-8x8x1-256e_imagenet-kinetics400-rgb",
    ),
    ZooCase(
        family="swin",
        config="swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    ),
    ZooCase(
        family="timesformer",
        config="timesformer_spaceOnly_8xb8-8x32x1-15e_kinetics400-rgb",
    ),
    ZooCase(
        family="uniformer",
        config="uniformer-small_imagenet1k-pre_16x4x1_kinetics400-rgb",
    ),
    ZooCase(
        family="uniformerv2",
        config="uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb",
    ),
    ZooCase(
        family="videomae",
        config="vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400",
    ),
    ZooCase(
        family="videomaev2",
        config="vit-small-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400",
    ),
)

PIPELINES = (
    "c2d_r50-in1k-pre-nopool_8xb32-8x8x1-100e_kinetics400-rgb",
    "c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb",
    "i3d_imagenet-pretrained-r50_8xb8-dense-32x2x1-100e_kinetics400-rgb",
    "mvit-base-p244_u32_sthv2-rgb",
    "tanet_imagenet-pretrained-r50_8xb8-1x1x8-50e_sthv1-rgb",
    "tanet_imagenet-pretrained-r50_8xb8-dense-1x1x8-100e_kinetics400-rgb",
    "timesformer_divST_8xb8-8x32x1-15e_kinetics400-rgb",
    "tin_imagenet-pretrained-r50_8xb6-1x1x8-40e_sthv1-rgb",
    "tsm_imagenet-pretrained-r50_8xb16-dense-1x1x8-50e_kinetics400-rgb",
    "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb",
    "tsn_imagenet-pretrained-r50_8xb32-dense-1x1x5-100e_kinetics400-rgb",
    "uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb",
    "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
    "x3d_s_13x6x1_facebook-kinetics400-rgb",
)
"""A config for each way in which those of RGB sample, crop and arrange frames; see kind_of()."""


def kind_of(config: RecognizerConfig) -> tuple[object, ...]:
    """What its test pipeline shares with others, whatever its sizes, counts and intervals are."""
    steps = {str(step["type"]): step for step in config.pipeline}
    sampler = next(name for name in steps if "Sample" in name)
    arguments = steps[sampler]
    return (
        sampler,
        arguments.get("num_clips", 1) > 1,
        arguments.get("twice_sample", False),
        "target_fps" in arguments,
        next(name for name in steps if name.endswith("Crop")),
        steps["FormatShape"]["input_format"],
    )
