"""Video Swin: windows that are shifted between layers, with a mask where a window wraps around."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from action_export.families._family import Family, has
from action_export.families._patches import all_views_at_once, rebind

if TYPE_CHECKING:
    import torch


def mask_from_regions(model: torch.nn.Module) -> None:
    """Keeps the region of each token in the graph, and not the mask of each pair of tokens.

    The masks of Swin-T are 100 MB beside 120 MB of weights. A runtime folds them when it loads.
    """
    from mmaction.models.backbones.swin import BasicLayer

    for module in model.modules():
        if type(module) is BasicLayer:
            rebind(module, compute_mask=_compute_mask)


def _compute_mask(
    frames: int,
    height: int,
    width: int,
    window: Sequence[int],
    shift: Sequence[int],
    device: torch.device,
) -> torch.Tensor:
    """compute_mask of mmaction2: -100 between tokens of different regions, [windows, n, n].

    A cyclic shift brings three bands of each axis together, whose products are the regions (Liu et
    al., 2021, figure 4 of arXiv:2103.14030).
    """
    import numpy as np
    import torch

    regions = np.zeros((frames, height, width), np.int32)
    bands = [
        (slice(-size), slice(-size, -by), slice(-by, None))
        for size, by in zip(window, shift, strict=True)
    ]
    for number, region in enumerate(product(*bands)):
        regions[region] = number
    t, h, w = window
    split = regions.reshape(frames // t, t, height // h, h, width // w, w)
    tokens = split.transpose(0, 2, 4, 1, 3, 5).reshape(-1, t * h * w)
    ids = torch.from_numpy(tokens).to(device)
    apart = ids[:, None, :] != ids[:, :, None]
    return torch.where(apart, -100.0, 0.0)


SWIN = Family(
    name="swin",
    zoo=("swin",),
    matches=has("backbone", "SwinTransformer3D"),
    patches=(all_views_at_once, mask_from_regions),
)
