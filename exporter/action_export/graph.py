"""The module that is exported: uint8 `clips` in, `scores` out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from action_runtime.spec import Scores

from action_export.scoring import own_scores
from action_export.types import Layout, Modality

if TYPE_CHECKING:
    import torch


def serving_module(
    model: torch.nn.Module,
    *,
    layout: Layout,
    average: Literal["prob", "score"],
    modality: Modality = "RGB",
    scores: Scores = "config",
    cast_first: bool = False,
    averaged: bool = True,
) -> torch.nn.Module:
    """Wraps a recognizer in eval mode so that it maps `clips` to what `model.predict` scores.

    The module takes uint8 [batch, views, clip_len, h, w, channels] and returns float32
    [batch, classes]. Rows are independent: views are averaged within a row only.

    cast_first: for TensorRT, which can do nothing with uint8 but cast it (TensorRT documentation,
        "DataType"). Otherwise bytes are transposed, which is a quarter of the memory to move.
    scores: see Contract.
    averaged: False leaves out the average over views, [batch, views, classes], for a graph that
        sees them in turn (see loop.py).
    """
    import torch

    # mmaction2 is untyped: extract_feat, cls_head and data_preprocessor are its BaseRecognizer's.
    recognizer: Any = model

    class ServingModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recognizer = model

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            batch = clips.shape[0]
            if cast_first:
                clips = clips.float()
            # Contiguous, because the exporter spells out the strides of what it takes for
            # channels_last (as_strided).
            if layout == "NCHW":
                images = clips.permute(0, 1, 2, 5, 3, 4)
                # A 2D model takes each frame as an image, or the flow of a clip as one: x, y, x, y.
                stacked = (2, 3) if modality == "Flow" else (1, 2)
                inputs = images.flatten(*stacked).contiguous()
            else:
                inputs = clips.permute(0, 1, 5, 2, 3, 4).contiguous()
            normalised = _normalise(inputs, recognizer.data_preprocessor, layout)
            features, options = recognizer.extract_feat(normalised, test_mode=True)
            per_view = recognizer.cls_head(features, **options)
            # mmaction2's BaseHead.predict_by_feat: rows of one video are adjacent.
            views = per_view.reshape(batch, -1, per_view.shape[-1])
            if scores == "head":
                return own_scores(recognizer.cls_head)(views)
            values = _values(views, "sigmoid" if scores == "sigmoid" else average)
            return values.mean(dim=1) if averaged else values

    return ServingModule().eval()


def _values(views: torch.Tensor, kind: Literal["prob", "score", "sigmoid"]) -> torch.Tensor:
    """What is averaged over the views, of logits [batch, views, classes]."""
    match kind:
        case "prob":
            return views.softmax(dim=2)
        case "sigmoid":
            return views.sigmoid()
        case "score":
            return views


def _normalise(inputs: torch.Tensor, preprocessor: Any, layout: Layout) -> torch.Tensor:
    """ActionDataPreprocessor.preprocess for inputs of [batch, n, C, (T,) h, w].

    C counts the stacked frames of flow, too.
    """
    if preprocessor.to_rgb:
        inputs = inputs.flip(2)
    values: torch.Tensor = inputs.float()
    if not preprocessor._enable_normalize:
        return values
    channels = (1, 1, -1) + (1,) * (2 if layout == "NCHW" else 3)
    mean, std = (buffer.reshape(channels) for buffer in (preprocessor.mean, preprocessor.std))
    normalised: torch.Tensor = (values - mean) / std
    return normalised
