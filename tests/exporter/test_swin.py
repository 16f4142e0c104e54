"""Video Swin's masks against mmaction2's, and the layers that are given them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from action_export.families import swin
from action_export.mmaction_compat import import_mmaction

Axes = tuple[int, int, int]
CPU = torch.device("cpu")


@pytest.fixture
def mmaction_swin() -> Any:
    import_mmaction()
    from mmaction.models.backbones import swin as module

    return module


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
    expected = mmaction_swin.compute_mask(*size, window, shift, CPU)
    mask = swin._compute_mask(*size, window, shift, CPU)
    assert mask.dtype == expected.dtype
    assert torch.equal(mask, expected)


def test_tokens_that_a_shift_brought_together_are_kept_apart() -> None:
    windows = swin._compute_mask(1, 1, 4, (1, 1, 2), (0, 0, 1), CPU)
    apart = [[0, -100], [-100, 0]]
    assert windows.tolist() == [[[0, 0], [0, 0]], apart]


def test_a_layer_takes_our_mask_and_gives_the_same_and_others_keep_theirs(
    mmaction_swin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, other = (
        mmaction_swin.BasicLayer(8, depth=2, num_heads=2, window_size=(2, 4, 4)).eval()
        for _ in range(2)
    )
    inputs = torch.randn(2, 8, 4, 8, 6)  # the width is padded to whole windows
    made: list[torch.Tensor] = []
    compute_mask = swin._compute_mask

    def noted(*arguments: Any) -> torch.Tensor:
        made.append(compute_mask(*arguments))
        return made[-1]

    monkeypatch.setattr(swin, "_compute_mask", noted)
    with torch.no_grad():
        expected = layer(inputs)
        assert not made
        swin.mask_from_regions(layer)
        torch.testing.assert_close(layer(inputs), expected)
        assert len(made) == 1
        other(inputs)
    assert len(made) == 1
    assert expected.std() > 0.1
