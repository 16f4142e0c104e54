"""TIN: frames are mixed along time by offsets that the network computes."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from action_export.families._family import Decision, Family, has
from action_export.families._patches import rebind

if TYPE_CHECKING:
    import torch


def tin_shift(data: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Moves each group of channels along time by a whole number of frames, zeros coming in.

    What `tin_shift_forward_cuda_kernel` of mmcv 2.1 computes (mmcv/ops/csrc/common/cuda/
    tin_shift_cuda_kernel.cuh): output[n, t + shift[n, g]] = input[n, t] where both frames exist,
    for the channels c with c // (channels / groups) = g.

    data: [batch, frames, channels, pixels]. shift: whole numbers, [batch, groups].
    """
    import torch

    batch, frames, channels, pixels = data.shape
    groups = shift.shape[1]
    time = torch.arange(frames, device=data.device)
    # 1 where the frame `source` (last axis) moves to the frame `target`
    distance = time[:, None] - time[None, :]
    moves = (distance == shift[:, :, None, None]).to(data.dtype)
    grouped = data.reshape(batch, frames, groups, -1).transpose(1, 2)
    moved = torch.matmul(moves, grouped)
    return moved.transpose(1, 2).reshape(batch, frames, channels, pixels)


def linear_sampler(data: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Frames at fractional offsets: the two whole shifts around each, weighted by nearness.

    data: [batch, frames, channels, h, w]. offset: [batch, groups], in frames.
    """
    import torch

    below = torch.floor(offset)
    flat = data.flatten(3)
    lower, upper = (
        _grouped(tin_shift(flat, shift), offset.shape[1]) for shift in (below, below + 1)
    )
    upper_share = (offset - below)[:, None, :, None]
    return ((1 - upper_share) * lower + upper_share * upper).reshape(data.shape)


def _grouped(data: torch.Tensor, groups: int) -> torch.Tensor:
    """[batch, frames, groups, values of a group's channels] of data with all channels."""
    return data.reshape(*data.shape[:2], groups, -1)


def shift_in_plain_operations(model: torch.nn.Module) -> Decision:
    """mmcv's compiled tin_shift has no CPU kernel, and the wheel of mmcv-lite has none at all."""
    from mmaction.models.backbones.resnet_tin import TemporalInterlace

    for module in model.modules():
        if type(module) is TemporalInterlace:
            rebind(module, linear_sampler=linear_sampler)
    return Decision(
        note="mmcv's compiled tin_shift cannot run on a CPU; the reference uses the same shift in "
        "plain tensor operations",
    )


def interlace_without_assignment(model: torch.nn.Module) -> None:
    """mmaction2 fills a buffer of zeros slice by slice, which becomes two scatters in a graph."""
    from mmaction.models.backbones.resnet_tin import TemporalInterlace

    for module in model.modules():
        if type(module) is TemporalInterlace:
            module.forward = MethodType(_interlace, module)


def _interlace(interlace: Any, x: torch.Tensor) -> torch.Tensor:
    """TemporalInterlace.forward (Shao et al., 2020). x: [batch * segments, channels, h, w]."""
    import torch

    channels, height, width = x.shape[1:]
    folded = channels // interlace.shift_div
    part = x[:, :folded].reshape(-1, interlace.num_segments, folded, height, width)
    pooled = part.mean(dim=(3, 4)).transpose(1, 2)  # [batch, folded, segments]
    offset = interlace.offset_net(pooled)[:, 0]  # [batch, groups]
    weight = interlace.weight_net(pooled)  # [batch, segments, groups]
    shifted = linear_sampler(part, torch.cat([offset, -offset], dim=1))
    weights = torch.cat([weight, weight], dim=2)[..., None]
    weighted = (_grouped(shifted, weights.shape[2]) * weights).reshape(-1, folded, height, width)
    return torch.cat([weighted, x[:, folded:]], dim=1)


TIN = Family(
    name="tin",
    zoo=("tin",),
    matches=has("backbone", "ResNetTIN"),
    decisions=(shift_in_plain_operations,),
    patches=(interlace_without_assignment,),
)
