"""Video Swin's masks against mmaction2's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from action_export.families import swin
from action_export.mmaction_compat import import_mmaction
from support.untouched import mmaction_untouched

Axes = tuple[int, int, int]


@pytest.fixture
def mmaction_swin() -> Iterator[Any]:
    """mmaction2's module, put back after the test: the patch changes it for the whole process."""
    import_mmaction()
    from mmaction.models.backbones import swin as module

    with mmaction_untouched():
        yield module


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 8, 12), (2, 4, 4), (1, 2, 2)),
        ((16, 14, 14), (8, 7, 7), (4, 3, 3)),
        # one window holds an axis, which is then not shifted
        ((2, 8, 8), (2, 4, 4), (0, 2, 2)),
        ((4, 4, 8), (2, 4, 4), (1, 0, 2)),
        ((4, 8, 4), (2, 4, 4), (1, 2, 0)),
        ((2, 4, 4), (2, 4, 4), (0, 0, 0)),
        ((6, 6, 9), (3, 2, 3), (1, 1, 2)),
    ],
)
def test_the_mask_equals_that_of_mmaction2(
    mmaction_swin: Any, size: Axes, window: Axes, shift: Axes
) -> None:
    device = torch.device("cpu")
    expected = mmaction_swin.compute_mask(*size, window, shift, device)
    swin.mask_from_regions(torch.nn.Identity())
    assert mmaction_swin.compute_mask is swin._compute_mask
    mask = mmaction_swin.compute_mask(*size, window, shift, device)
    assert mask.dtype == expected.dtype
    assert torch.equal(mask, expected)


def test_tokens_that_a_shift_brought_together_are_kept_apart(mmaction_swin: Any) -> None:
    swin.mask_from_regions(torch.nn.Identity())
    windows = mmaction_swin.compute_mask(1, 1, 4, (1, 1, 2), (0, 0, 1), torch.device("cpu"))
    apart = [[0, -100], [-100, 0]]
    assert windows.tolist() == [[[0, 0], [0, 0]], apart]
