"""TANet: a temporal convolution whose kernels are computed from the clip."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from action_export.families._family import Family, has

if TYPE_CHECKING:
    import torch


def without_batch_in_the_groups(model: torch.nn.Module) -> None:
    """mmaction2's TAM convolves all videos at once with batch x channels groups.

    A group count is part of an ONNX graph's structure, so the batch would be fixed by it.
    """
    from mmaction.models.common import TAM

    for module in model.modules():
        if isinstance(module, TAM):
            module.forward = MethodType(_temporal_adaptive, module)


def _temporal_adaptive(tam: Any, x: torch.Tensor) -> torch.Tensor:
    """TAM.forward (Liu et al., 2021, section 3.2) with the convolution as a sum of shifted frames.

    x: [batch * segments, channels, h, w], and so is the result.
    """
    import torch
    from torch.nn.functional import pad

    channels, height, width = x.shape[1:]
    segments = tam.num_segments
    frames = x.reshape(-1, segments, channels, height, width)
    pooled = frames.mean(dim=(3, 4)).transpose(1, 2)  # [batch, channels, segments]
    kernels = tam.G(pooled.reshape(-1, segments))  # [batch * channels, taps]
    taps = kernels.shape[1]
    kernels = kernels.reshape(-1, channels, taps).transpose(1, 2)[..., None, None]
    activation = tam.L(pooled).transpose(1, 2)[..., None, None]

    margin, stride = tam.adaptive_convolution_padding, tam.adaptive_convolution_stride
    padded = pad(frames * activation, (0, 0, 0, 0, 0, 0, margin, margin))
    reach = stride * (segments - 1) + 1
    shifted = [padded[:, tap : tap + reach : stride] * kernels[:, tap, None] for tap in range(taps)]
    return torch.stack(shifted).sum(dim=0).reshape(-1, channels, height, width)


TANET = Family(
    name="tanet",
    zoo=("tanet",),
    matches=has("backbone", "TANet"),
    patches=(without_batch_in_the_groups,),
)
