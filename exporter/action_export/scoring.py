"""What makes scores of the logits of a video's views: mmaction2's BaseHead, or something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from action_runtime.spec import Scores

from action_export.errors import UnsupportedError, first_line

if TYPE_CHECKING:
    import torch

# What a head's scores go through after its forward, which the graph repeats.
_OF_HEAD = ("predict", "predict_by_feat", "average_clip")
# What a recognizer goes through between pixels and its head, and extract_feat and the head, which
# the graph calls, are no part of.
_OF_RECOGNIZER = ("test_step", "forward", "predict")


def scores_of(model: torch.nn.Module, wanted: Literal["config", "sigmoid"]) -> Scores:
    """What the contract will say.

    Raises:
        UnsupportedError: the model overrides what the graph would have to repeat, and it cannot be
            called there; or its head has its own way of scoring, and sigmoids are wanted.
    """
    recognizer: Any = model
    head = recognizer.cls_head
    _check_recognizer(model)
    own = _overridden(head, _head_class(), _OF_HEAD)
    if not own:
        return wanted
    name = f"{type(head).__name__}.{own[0]}"
    if wanted == "sigmoid":
        raise UnsupportedError(
            f"{name} is the head's own way of scoring, and --scores sigmoid would leave it out",
            hint="leave --scores out: what the head makes of its logits is served",
        )
    if "predict" in own:
        raise UnsupportedError(
            f"{name} overrides what mmaction2 does between features and scores, which cannot be "
            "traced",
            hint="override average_clip or predict_by_feat instead: those are served as they are",
        )
    _check_traceable(head, name)
    return "head"


def own_scores(head: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head's predict_by_feat for each video of a batch by itself, so that rows cannot mix.

    Takes [batch, rows, classes], a video's logits as the head gives them, to [batch, classes]. What
    it calls sees one video, as a constant: mmaction2 asks for the number of videos by len(), which
    a traced batch does not have.
    """
    import torch
    from mmaction.structures import ActionDataSample

    def of_video(rows: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = head.predict_by_feat(rows, [ActionDataSample()])[0].pred_score
        return scores

    return torch.vmap(of_video)


def scores_notes(model: torch.nn.Module, scores: Scores, classes: int, average: str) -> list[str]:
    """What the user should know of the scores that are served."""
    recognizer: Any = model
    if scores == "head":
        return [
            f"scores are what {type(recognizer.cls_head).__name__} itself makes of its logits, "
            "which are not compared: the proof tells little where scores are saturated"
        ]
    if scores == "sigmoid":
        return ["scores are the average over views of each logit's sigmoid; mmaction2 gives others"]
    if classes == 1 and average == "prob":
        return [
            "softmax over one class is always 1, in mmaction2 as well; --scores sigmoid serves its "
            "probability, --cfg-options model.cls_head.average_clips=score its logit"
        ]
    if getattr(recognizer.cls_head, "multi_class", False) and average == "prob":
        return [
            "the model is trained for several labels a video (multi_class), and softmax is what "
            "mmaction2's predict gives and what is served; --scores sigmoid serves each class's "
            "own probability"
        ]
    return []


def _head_class() -> type:
    from mmaction.models.heads import BaseHead

    return BaseHead  # type: ignore[no-any-return]


def _check_recognizer(model: torch.nn.Module) -> None:
    from mmaction.models.recognizers import RecognizerOmni
    from mmaction.models.recognizers.base import BaseRecognizer

    base = RecognizerOmni if isinstance(model, RecognizerOmni) else BaseRecognizer
    if own := _overridden(model, base, _OF_RECOGNIZER):
        raise UnsupportedError(
            f"{type(model).__name__}.{own[0]} overrides what mmaction2 does between pixels and "
            "scores, which cannot be traced",
            hint="leave it as mmaction2 has it; extract_feat, the parts of the model, and "
            "average_clip or predict_by_feat of its head may be your own",
        )


def _overridden(part: Any, base: type, methods: tuple[str, ...]) -> list[str]:
    """Those methods that a class between the part's and `base`, or the part itself, replaces.

    All of them where the part is none of `base`.
    """
    return [
        name
        for name in methods
        if getattr(getattr(part, name, None), "__func__", None) is not getattr(base, name)
    ]


def _check_traceable(head: Any, name: str) -> None:
    """Calls it as the graph will; what leaves torch, or decides by a value, fails here already."""
    import torch

    try:
        with torch.no_grad():
            scores = own_scores(head)(torch.rand(2, 3, head.num_classes))
    # the user's own code, which raises anything
    except Exception as exc:
        raise UnsupportedError(
            f"{name} is the head's own way of scoring, and cannot be traced: {first_line(exc)}",
            hint="let it compute with torch alone, whatever the values; no numpy(), item() or if",
        ) from exc
    if scores.shape != (2, head.num_classes):
        raise UnsupportedError(
            f"{name} makes scores of shape {list(scores.shape[1:])} of a video, not "
            f"[{head.num_classes}]",
            hint="a served model answers one score for each class",
        )
