"""MViT: attention with pooled queries and keys, and a position term for each axis of the clip."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from action_export.families._family import Family, has
from action_export.families._patches import all_views_at_once

if TYPE_CHECKING:
    import torch

Size = tuple[int, int, int]
"""Frames, rows and columns of tokens."""


def attention_without_assignment(model: torch.nn.Module) -> None:
    """mmaction2 adds to slices of the attention in place, which a graph does by scattering.

    Its position term also multiplies whole coordinates by a Python float, an operator that torch
    does not translate to ONNX.
    """
    from mmaction.models.backbones.mvit import MultiScaleAttention

    for module in model.modules():
        if type(module) is MultiScaleAttention:
            module.forward = MethodType(_attend, module)


def _attend(attention: Any, x: torch.Tensor, in_size: Size) -> tuple[torch.Tensor, Size]:
    """MultiScaleAttention.forward (Li et al., 2022, section 4.1).

    x: [batch, tokens, channels], a class token first if there is one.
    """
    import torch
    from mmaction.models.backbones.mvit import attention_pool
    from torch.nn.functional import pad

    tokens = x.shape[1]
    first = int(attention.with_cls_token)
    split = attention.qkv(x).reshape(
        -1, tokens, 3, attention.num_heads, attention.out_dims // attention.num_heads
    )
    pooled = [
        attention_pool(part, pool, in_size, norm=norm, with_cls_token=attention.with_cls_token)
        for part, pool, norm in zip(
            split.permute(2, 0, 3, 1, 4).unbind(0),
            (attention.pool_q, attention.pool_k, attention.pool_v),
            (attention.norm_q, attention.norm_k, attention.norm_v),
            strict=True,
        )
    ]
    (q, q_size), (k, k_size), (v, _) = pooled
    queries, keys = q * attention.scale, k
    if attention.rel_pos_embed:
        # Terms of a product cost no pass of their own over all pairs, which for MViT-L are 2 GB.
        # The class token has no position, and so no terms.
        terms = _position(attention, q[:, :, first:], q_size, k_size)
        queries = torch.cat([queries, pad(terms, (0, 0, first, 0))], dim=3)
        places = pad(_places(k_size).to(k), (k.shape[3], 0, first, 0))
        keys = pad(k, (0, terms.shape[3])) + places
    y = (queries @ keys.transpose(-2, -1)).softmax(dim=-1) @ v
    if attention.residual_pooling:
        y = (
            torch.cat([y[:, :, :first], y[:, :, first:] + q[:, :, first:]], dim=2)
            if first
            else y + q
        )
    y = y.transpose(1, 2).flatten(2)
    return attention.proj(y), q_size


def _position(attention: Any, q: torch.Tensor, q_size: Size, k_size: Size) -> torch.Tensor:
    """What a query adds for each place of a key, by axis: [batch, heads, queries, t + h + w]."""
    import torch

    grid = torch.unflatten(q, 2, q_size)  # [batch, heads, t, h, w, channels]
    axes = zip(
        "thw",
        (attention.rel_pos_t, attention.rel_pos_h, attention.rel_pos_w),
        q_size,
        k_size,
        strict=True,
    )
    terms = [
        torch.einsum(f"bnthwc,{axis}kc->bnthwk", grid, _relative(table, queries, keys))
        for axis, table, queries, keys in axes
    ]
    return torch.cat(terms, dim=5).flatten(2, 4)


def _places(k_size: Size) -> torch.Tensor:
    """1 where a key stands on each axis: [keys, t + h + w]."""
    import numpy as np
    import torch

    # by numpy, so that the graph holds the result
    places = np.indices(k_size).reshape(3, -1)
    ones = [np.eye(length, dtype=np.float32)[at] for length, at in zip(k_size, places, strict=True)]
    return torch.from_numpy(np.concatenate(ones, axis=1))


def _relative(table: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Rows of the table for each distance of a query and a key, [queries, keys, channels]."""
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    distances = 2 * max(queries, keys) - 1
    if len(table) != distances:
        table = interpolate(table.T[None], size=distances, mode="linear")[0].T
    # computed by numpy, so the graph holds the result and not the arithmetic
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    apart = (
        np.arange(queries, dtype=np.float32)[:, None] * query_step
        - np.arange(keys, dtype=np.float32)[None] * key_step
    )
    return table[torch.from_numpy((apart + (keys - 1) * key_step).astype(np.int64))]


MVIT = Family(
    name="mvit",
    zoo=("mvit",),
    matches=has("backbone", "MViT"),
    patches=(all_views_at_once, attention_without_assignment),
)
