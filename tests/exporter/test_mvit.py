"""MViT's attention against mmaction2's, which assigns to slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from action_export.families.mvit import Size, _relative, attention_without_assignment
from action_export.mmaction_compat import import_mmaction

TRAINED: Size = (2, 4, 4)


def attention(**settings: Any) -> Any:
    import_mmaction()
    from mmaction.models.backbones.mvit import MultiScaleAttention

    torch.manual_seed(0)
    module = MultiScaleAttention(
        in_dims=6, out_dims=12, num_heads=2, input_size=TRAINED, **settings
    ).eval()
    # the tables are zeros, and norms and biases change nothing, until they are trained
    for weight in module.parameters():
        torch.nn.init.normal_(weight)
    return module


def check(module: Any, size: Size) -> None:
    """Patches the module, and compares it on a batch of two with what mmaction2 made of it."""
    frames, height, width = size
    tokens = torch.randn(2, frames * height * width + module.with_cls_token, 6)
    with torch.no_grad():
        expected, expected_size = module(tokens, size)
        attention_without_assignment(torch.nn.Sequential(module))
        found, found_size = module(tokens, size)
    assert tuple(found_size) == tuple(expected_size)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("with_cls_token", [True, False], ids=["class token", "no class token"])
@pytest.mark.parametrize("residual_pooling", [True, False], ids=["residual", "no residual"])
@pytest.mark.parametrize("rel_pos_embed", [True, False], ids=["positions", "no positions"])
@pytest.mark.parametrize(
    ("stride_q", "stride_kv"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 2, 2), (1, 2, 2)),
        ((1, 1, 1), (1, 2, 2)),
        ((1, 2, 2), (1, 1, 1)),
        ((1, 1, 1), (1, 4, 4)),
        ((2, 1, 1), (1, 2, 2)),
    ],
)
def test_the_attention_equals_that_of_mmaction2(
    with_cls_token: bool,
    residual_pooling: bool,
    rel_pos_embed: bool,
    stride_q: Size,
    stride_kv: Size,
) -> None:
    module = attention(
        with_cls_token=with_cls_token,
        residual_pooling=residual_pooling,
        rel_pos_embed=rel_pos_embed,
        stride_q=stride_q,
        stride_kv=stride_kv,
    )
    check(module, TRAINED)


@pytest.mark.parametrize("size", [(3, 4, 6), (1, 8, 4), (4, 2, 3), (2, 5, 7)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)])
def test_tables_for_clips_of_another_size_are_interpolated_alike(size: Size, stride: Size) -> None:
    check(attention(stride_q=(1, 1, 1), stride_kv=stride), size)
    check(attention(stride_q=stride, stride_kv=(1, 1, 1)), size)


@pytest.mark.parametrize(("queries", "keys"), [(78, 10), (39, 10), (8, 6), (8, 7), (10, 78)])
def test_a_distance_is_rounded_as_mmaction2_rounds_it(queries: int, keys: int) -> None:
    """In float32: in float64 the same product can lie on the other side of a whole number."""
    import_mmaction()
    from mmaction.models.backbones.mvit import resize_decomposed_rel_pos

    table = torch.arange(2.0 * max(queries, keys) - 1)[:, None]
    expected = resize_decomposed_rel_pos(table, queries, keys)
    assert torch.equal(_relative(table, queries, keys), expected)
