"""One small config of each family that is exported, with views that a test can afford."""

from __future__ import annotations

from dataclasses import dataclass, field

from action_export.types import ViewOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooCase:
    family: str
    config: str
    views: ViewOptions = field(default_factory=ViewOptions)


CASES = (
    ZooCase(
        family="tsn",
        config="tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb",
        views=ViewOptions(num_clips=2),  # with the ten crops of the config
    ),
    ZooCase(
        family="tsm",
        config="tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e_kinetics400-rgb",
    ),
    ZooCase(
        family="slowonly",
        config="slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
        views=ViewOptions(num_clips=1),
    ),
    ZooCase(
        family="slowfast",
        config="slowfast_r50_8xb8-4x16x1-256e_kinetics400-rgb",
        views=ViewOptions(num_clips=2, crops="center"),
    ),
    ZooCase(
        family="i3d",
        config="i3d_imagenet-pretrained-r50_8xb8-dense-32x2x1-100e_kinetics400-rgb",
        views=ViewOptions(num_clips=1, crops="center"),
    ),
    ZooCase(
        family="c2d",
        config="c2d_r50-in1k-pre_8xb32-8x8x1-100e_kinetics400-rgb",
        views=ViewOptions(num_clips=1, crops="center"),
    ),
    ZooCase(
        family="r2plus1d",
        config="r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb",
        views=ViewOptions(num_clips=1, crops="center"),
    ),
    ZooCase(
        family="x3d",
        config="x3d_s_13x6x1_facebook-kinetics400-rgb",
        views=ViewOptions(num_clips=2),
    ),
    ZooCase(
        family="c3d",
        config="c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb",
        views=ViewOptions(num_clips=2),
    ),
)
