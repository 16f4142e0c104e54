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
        if type(module) is TAM:
            module.register_buffer("bands", _bands(module), persistent=False)
            module.forward = MethodType(_temporal_adaptive, module)


def _temporal_adaptive(tam: Any, x: torch.Tensor) -> torch.Tensor:
    """TAM.forward (Liu et al., 2021, section 3.2) as one small matrix product for each channel.

    A convolution of `segments` frames is their product with a banded matrix of its taps. The
    activation of a frame scales that frame's column, which spares a pass over all pixels.

    x: [batch * segments, channels, h, w], and so is the result.
    """
    channels, height, width = x.shape[1:]
    segments = tam.num_segments
    frames = x.reshape(-1, segments, channels, height * width).transpose(1, 2)
    pooled = frames.mean(dim=3)  # [batch, channels, segments]
    taps = tam.G(pooled.reshape(-1, segments))  # [batch * channels, taps]
    bands = (taps @ tam.bands).reshape(-1, channels, segments, segments)
    mixed: torch.Tensor = (bands * tam.L(pooled).unsqueeze(2)) @ frames
    return mixed.transpose(1, 2).reshape(-1, channels, height, width)


def _bands(tam: Any) -> torch.Tensor:
    """[taps, segments * segments]: where in the matrix of a convolution each of its taps stands.

    Row t of the matrix gives frame t of the result: tap k reads frame t * stride + k - padding.
    """
    import torch

    segments, size = tam.num_segments, tam.adaptive_kernel_size
    stride, padding = tam.adaptive_convolution_stride, tam.adaptive_convolution_padding
    bands = torch.zeros(size, segments, segments)
    for tap in range(size):
        for row in range(segments):
            column = row * stride + tap - padding
            if 0 <= column < segments:
                bands[tap, row, column] = 1
    return bands.flatten(1)


TANET = Family(
    name="tanet",
    zoo=("tanet",),
    matches=has("backbone", "TANet"),
    patches=(without_batch_in_the_groups,),
)
