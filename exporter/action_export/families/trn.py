"""TRN: relations between frames, of which mmaction2 draws some at random for every prediction."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

from action_export.families._family import Decision, Family, has

if TYPE_CHECKING:
    import torch

Subsets = dict[int, list[tuple[int, ...]]]
"""By the number of frames in a relation, the frames of each relation that is evaluated."""


def fixed_relations(model: torch.nn.Module) -> Decision | None:
    """Gives every scale of the head the same relations for every prediction.

    mmaction2 calls np.random.choice in each forward pass, so two predictions for one video differ.
    Of the relations of a scale, in lexicographic order, those in the middle of equal parts are
    taken: as many as mmaction2 draws, spread over the whole clip.
    """
    from mmaction.models.heads.trn_head import RelationModuleMultiScale

    recognizer: Any = model
    consensus: Any = getattr(recognizer.cls_head, "consensus", None)
    if type(consensus) is not RelationModuleMultiScale:
        return None  # one relation, of all frames, or what the user has derived
    subsets: Subsets = {}
    for scale, relations, count in zip(
        consensus.scales, consensus.relations_scales, consensus.subsample_scales, strict=True
    ):
        middles = ((2 * part + 1) * len(relations) // (2 * count) for part in range(count))
        subsets[scale] = [tuple(relations[middle]) for middle in middles]
    consensus.forward = MethodType(_relate(subsets), consensus)
    return Decision(
        note="mmaction2 draws the frame subsets of TRN's relations at random for every prediction; "
        "this export and its proof use the ones in manifest.json",
        record={"trn_relations": {str(scale): chosen for scale, chosen in subsets.items()}},
    )


def _relate(subsets: Subsets) -> Any:
    def forward(consensus: Any, x: torch.Tensor) -> torch.Tensor:
        """RelationModuleMultiScale.forward. x: [rows, segments, hidden], to [rows, classes]."""
        scores = [
            fusion(x[:, list(frames)].flatten(1))
            for fusion, chosen in zip(consensus.fc_fusion_scales, subsets.values(), strict=True)
            for frames in chosen
        ]
        total: torch.Tensor = sum(scores[1:], scores[0])
        return total

    return forward


TRN = Family(
    name="trn", zoo=("trn",), matches=has("cls_head", "TRNHead"), decisions=(fixed_relations,)
)
