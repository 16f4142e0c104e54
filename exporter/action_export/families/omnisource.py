"""OmniSource: one network of images and videos, of which the videos are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from action_export.families._family import Family

if TYPE_CHECKING:
    import torch


def features_with_options(model: torch.nn.Module) -> None:
    """RecognizerOmni.extract_feat returns features alone, where others add the head's options."""
    recognizer: Any = model
    extract_feat = recognizer.extract_feat
    recognizer.extract_feat = lambda *args, **kwargs: (extract_feat(*args, **kwargs), {})


OMNISOURCE = Family(
    name="omnisource",
    zoo=("omnisource",),
    matches=lambda model: model["type"] == "RecognizerOmni",
    patches=(features_with_options,),
)
