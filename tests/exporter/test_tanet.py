"""TANet's temporal convolution against mmaction2's, which has a group for each video's channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from action_export.families.tanet import without_batch_in_the_groups
from action_export.mmaction_compat import import_mmaction


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("segments", "taps", "stride", "padding"),
    [
        (8, 3, 1, 1),
        (4, 1, 1, 0),
        (5, 5, 1, 2),
        (5, 3, 2, 3),
        (4, 4, 2, 3),
        # the last of the padded frames is never reached
        (4, 3, 2, 3),
        (3, 3, 3, 3),
    ],
)
def test_the_convolution_equals_that_of_mmaction2(
    batch: int, segments: int, taps: int, stride: int, padding: int
) -> None:
    import_mmaction()
    from mmaction.models.common import TAM

    torch.manual_seed(0)
    tam: Any = TAM(
        in_channels=8,
        num_segments=segments,
        adaptive_kernel_size=taps,
        adaptive_convolution_stride=stride,
        adaptive_convolution_padding=padding,
    ).eval()
    # kernels of a constructor's weights are nearly flat
    for weight in tam.parameters():
        torch.nn.init.normal_(weight)
    frames = torch.randn(batch * segments, 8, 3, 2)
    with torch.no_grad():
        expected = tam(frames)
        without_batch_in_the_groups(torch.nn.Sequential(tam))
        torch.testing.assert_close(tam(frames), expected)
        alone = tam(frames[-segments:])
    torch.testing.assert_close(alone, expected[-segments:])
    assert expected.std() > 0.1


def test_a_module_that_the_user_derived_stays_as_it_is() -> None:
    import_mmaction()
    from mmaction.models.common import TAM

    class Mine(TAM):  # type: ignore[misc]
        pass

    tam = Mine(in_channels=8, num_segments=4)
    without_batch_in_the_groups(torch.nn.Sequential(tam))
    assert "forward" not in vars(tam)
