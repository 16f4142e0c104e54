"""The packages of other projects that eight configs of mmaction2's zoo take their backbone from.

scripts/setup puts them into a folder of their own, out of sight of `action-export`: PyPI's
torchvision is built for CUDA, so beside a CPU build of torch neither it nor mmpretrain imports, and
mmaction2 does not import either where it finds such an mmpretrain.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

from action_export.mmaction_compat import import_mmaction

CONFIGS: dict[str, tuple[str, ...]] = {
    "tsm_imagenet-pretrained-mobileone-s4_8xb16-1x1x16-50e_kinetics400-rgb": (),
    "tsm_imagenet-pretrained-mobileone-s4_deploy_8xb16-1x1x16-50e_kinetics400-rgb": (),
    "tsn_imagenet-pretrained-dense161_8xb32-1x1x3-100e_kinetics400-rgb": (),
    "tsn_imagenet-pretrained-mobileone-s4_8xb32-1x1x8-100e_kinetics400-rgb": (),
    "tsn_imagenet-pretrained-mobileone-s4_deploy_8xb32-1x1x8-100e_kinetics400-rgb": (),
    # mmcls 1.0.0rc6, its last release, refuses mmcv 2.1; mmpretrain is its later name
    "tsn_imagenet-pretrained-rn101-32x4d_8xb32-1x1x3-100e_kinetics400-rgb": (
        "model.backbone.type=mmpretrain.ResNeXt",
    ),
    # Written for timm before 0.9, whose Swin had another order of axes. mmaction2 takes the order
    # of later releases for NCHW.
    "tsn_imagenet-pretrained-swin-transformer_32xb8-1x1x8-50e_kinetics400-rgb": (
        "model.backbone.feature_shape=NHWC",
    ),
    "tsn_imagenet-pretrained-swin-transformer_8xb32-1x1x3-100e_kinetics400-rgb": (),
}
"""The configs, each with the --cfg-options that it needs to run beside the pinned packages."""

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def enable() -> None:
    """Makes timm, torchvision and mmpretrain importable in this process."""
    folder = Path(sys.prefix) / "zoo"
    if not folder.is_dir():
        raise RuntimeError(f"{folder} is missing; run scripts/setup")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    _torchvision_operators(folder)
    import_mmaction()
    with warnings.catch_warnings():
        # as import_mmaction does
        warnings.simplefilter("ignore")
        # registers MobileOneTSM, which mmaction2 left out if it was imported before
        importlib.import_module("mmaction.models.backbones.mobileone_tsm")


@functools.cache
def _torchvision_operators(folder: Path) -> Any:
    """Defines the operators that torchvision's Python code needs while it is imported.

    The library is cached because torch forgets the operators once it is collected.
    """
    import torch

    try:
        torch.ops.load_library(folder / "torchvision" / "_C.so")
    # the operators are compiled against another build of torch than the one installed
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        # torchvision registers further functions of these two even where its operators are missing
        for name in ("nms", "qnms"):
            library.define(name + _NMS)
        return library
    return None
