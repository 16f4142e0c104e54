"""OmniSource: one network of images and videos, of which the videos are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from action_export.families._family import Family, recognizes

if TYPE_CHECKING:
    import torch


def features_with_options(model: torch.nn.Module) -> None:
    """RecognizerOmni.extract_feat returns features alone, where others add the head's options."""
    from mmaction.models import RecognizerOmni

    recognizer: Any = model
    if type(recognizer).extract_feat is not RecognizerOmni.extract_feat:
        return
    extract_feat = recognizer.extract_feat
    recognizer.extract_feat = lambda *args, **kwargs: (extract_feat(*args, **kwargs), {})


OMNISOURCE = Family(
    name="omnisource",
    zoo=("omnisource",),
    matches=recognizes("RecognizerOmni"),
    patches=(features_with_options,),
)
