"""TIN's shift against mmcv's kernel, its sampler against the paper, its block against mmaction2."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from action_export.families import tin
from action_export.mmaction_compat import import_mmaction
from numpy.typing import NDArray


def kernel(data: NDArray[np.float32], shift: NDArray[np.int64]) -> NDArray[np.float32]:
    """tin_shift_forward_cuda_kernel of mmcv 2.1, one thread after the other."""
    batch_size, t_size, channels, hw_size = data.shape
    group_size = shift.shape[1]
    group_channel = channels // group_size
    given, output = data.ravel(), np.zeros(data.size, data.dtype)
    for index in range(batch_size * channels * hw_size):
        hw_index = index % hw_size
        j = index // hw_size % channels
        n_index = index // hw_size // channels
        t_shift = shift.ravel()[n_index * group_size + j // group_channel]
        offset = n_index * t_size * hw_size * channels + hw_size * j + hw_index
        for i in range(t_size):
            now_t = i + t_shift
            if 0 <= now_t < t_size:
                output[now_t * hw_size * channels + offset] = given[i * hw_size * channels + offset]
    return output.reshape(data.shape)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet_tin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mmaction2's module, with the kernel where mmcv-lite has none."""
    import_mmaction()
    from mmaction.models.backbones import resnet_tin as module

    def tin_shift(data: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(kernel(data.numpy(), shift.numpy()))

    monkeypatch.setitem(sys.modules, "mmcv.ops", SimpleNamespace(tin_shift=tin_shift))
    return module


# --- The shift ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
@pytest.mark.parametrize(("groups", "channels"), [(1, 2), (2, 2), (3, 6), (4, 12)])
def test_frames_move_as_the_kernel_moves_them(frames: int, groups: int, channels: int) -> None:
    # beyond the clip at both ends, where all frames are zeros; one row of shifts a video
    shifts = np.arange(-frames - 1, frames + 2)
    shift = np.random.default_rng(0).permuted(np.tile(shifts, (groups, 1)), axis=1).T
    data = random(len(shift), frames, channels, 3)
    moved = tin.tin_shift(data, torch.from_numpy(shift))
    np.testing.assert_array_equal(moved.numpy(), kernel(data.numpy(), shift))


# --- The sampler --------------------------------------------------------------------------------

OFFSETS = [
    [[0.25, -0.75, 1.5, -1.25], [-0.5, 0.5, 2.125, -2.875]],
    # whole ones, among them none at all
    [[0.0, 1.0, -1.0, 2.0], [3.0, -3.0, 0.0, -2.0]],
    # beyond the clip
    [[4.5, -4.5, 5.0, -5.0], [9.25, -9.25, 4.75, -0.25]],
]


@pytest.mark.parametrize("offsets", OFFSETS, ids=["fractional", "whole", "beyond the clip"])
def test_frames_are_interpolated_with_zeros_around_the_clip(offsets: list[list[float]]) -> None:
    data = random(2, 5, 8, 2, 3)
    frames, per_group = 5, 2
    expected = np.zeros(data.shape, np.float64)
    for row, channel, y, x in np.ndindex(2, 8, 2, 3):
        taken_from = np.arange(frames) - offsets[row][channel // per_group]
        line = data[row, :, channel, y, x].numpy()
        around = np.pad(line.astype(np.float64), 1)
        expected[row, :, channel, y, x] = np.interp(taken_from, np.arange(-1, frames + 1), around)
    sampled = tin.linear_sampler(data, torch.tensor(offsets))
    np.testing.assert_allclose(sampled.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offsets", OFFSETS, ids=["fractional", "whole", "beyond the clip"])
def test_the_sampler_equals_that_of_mmaction2_on_the_kernel(
    resnet_tin: Any, offsets: list[list[float]]
) -> None:
    data, offset = random(2, 5, 12, 2, 3), torch.tensor(offsets)
    expected = resnet_tin.linear_sampler(data, offset)
    torch.testing.assert_close(tin.linear_sampler(data, offset), expected)


def test_the_decision_gives_mmaction2_a_sampler_that_runs(
    resnet_tin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interlace, other = (
        resnet_tin.TemporalInterlace(8, num_segments=4, shift_div=1).eval() for _ in range(2)
    )
    frames = random(8, 8, 3, 2)
    with torch.no_grad():
        expected = interlace(frames)
        monkeypatch.delitem(sys.modules, "mmcv.ops")
        with pytest.raises(ImportError, match="tin_shift"):
            interlace(frames)
        decision = tin.shift_in_plain_operations(interlace)
        torch.testing.assert_close(interlace(frames), expected)
        # of this one alone
        with pytest.raises(ImportError, match="tin_shift"):
            other(frames)
    assert "tin_shift" in decision.note


# --- The block ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("segments", "channels", "shift_div"), [(8, 16, 4), (4, 8, 1), (3, 16, 2), (5, 24, 2)]
)
def test_the_block_equals_that_of_mmaction2(
    resnet_tin: Any, batch: int, segments: int, channels: int, shift_div: int
) -> None:
    torch.manual_seed(0)
    block = resnet_tin.TemporalInterlace(channels, num_segments=segments, shift_div=shift_div)
    # the offsets of a constructor's weights lie close to half a frame
    torch.nn.init.normal_(block.offset_net.fc2.weight, std=5)
    frames = random(batch * segments, channels, 3, 2)
    with torch.no_grad():
        expected = block(frames)
        tin.interlace_without_assignment(block)
        torch.testing.assert_close(block(frames), expected)
        alone = block(frames[:segments])
    torch.testing.assert_close(alone, expected[:segments])
