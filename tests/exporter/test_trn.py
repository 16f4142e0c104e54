"""TRN's relations: the same for every prediction, and those that mmaction2 could have drawn."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
import torch
from action_export.families import Decision
from action_export.families.trn import fixed_relations
from action_export.mmaction_compat import import_mmaction

MAX_DRAWN = 3  # max_subsample of mmaction2's RelationModuleMultiScale


class Recognizer(torch.nn.Module):
    """TRN without its backbone."""

    def __init__(self, segments: int, relation_type: str = "TRNMultiScale") -> None:
        super().__init__()
        import_mmaction()
        from mmaction.models.heads import TRNHead

        torch.manual_seed(0)
        self.cls_head = TRNHead(
            num_classes=5,
            in_channels=6,
            num_segments=segments,
            hidden_dim=4,
            relation_type=relation_type,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.cls_head(features, num_segs=1)
        return scores


def predict(model: Recognizer, batch: int = 2) -> torch.Tensor:
    frames = batch * model.cls_head.num_segments
    features = torch.randn(frames, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores: torch.Tensor = model.eval()(features)
    return scores


def fix(model: Recognizer) -> Decision:
    decision = fixed_relations(model)
    assert decision is not None
    return decision


def test_relations_that_the_user_derived_stay_as_they_are() -> None:
    model = Recognizer(4)
    consensus = model.cls_head.consensus
    consensus.__class__ = type("Mine", (type(consensus),), {})
    assert fixed_relations(model) is None
    assert "forward" not in vars(consensus)


def relations(segments: int) -> dict[int, list[tuple[int, ...]]]:
    """By scale, what is recorded for a head of so many segments."""
    recorded = fix(Recognizer(segments)).record["trn_relations"]
    return {int(scale): chosen for scale, chosen in recorded.items()}


def test_mmaction2_scores_one_video_anew_for_every_prediction() -> None:
    model = Recognizer(8)
    assert not torch.allclose(predict(model), predict(model))


def test_two_predictions_are_equal_once_the_relations_are_fixed() -> None:
    model, other = Recognizer(8), Recognizer(8)
    for each in (model, other):
        fix(each)
    scores = predict(model)
    assert torch.equal(predict(model), scores)
    assert torch.equal(predict(other), scores)


@pytest.mark.parametrize("segments", [2, 3, 6, 8])
def test_the_fixed_relations_are_valid_and_as_many_as_mmaction2_draws(segments: int) -> None:
    found = relations(segments)
    assert list(found) == list(range(segments, 1, -1))
    for scale, chosen in found.items():
        assert len(set(chosen)) == len(chosen) == min(MAX_DRAWN, comb(segments, scale))
        assert set(chosen) <= set(combinations(range(segments), scale))


@pytest.mark.parametrize("segments", [3, 6, 8])
def test_the_fixed_relations_lie_in_the_middle_of_equal_parts(segments: int) -> None:
    for scale, chosen in relations(segments).items():
        everything = list(combinations(range(segments), scale))
        places = [everything.index(relation) + 0.5 for relation in chosen]
        part = len(everything) / len(chosen)
        middles = [(number + 0.5) * part for number in range(len(chosen))]
        assert np.abs(np.subtract(places, middles)).max() <= 0.5
        assert all(before < after for before, after in pairwise(places))


@pytest.mark.parametrize("segments", [2, 3, 6, 8])
def test_the_scores_are_those_of_mmaction2_when_it_draws_the_same_relations(
    monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    model = Recognizer(segments)
    theirs = deepcopy(model)
    fixed = fix(model).record["trn_relations"]
    drawn = iter(range(segments - 1, 1, -1))

    def choice(count: int, size: int, replace: bool) -> list[int]:
        scale = next(drawn)
        everything = list(combinations(range(segments), scale))
        assert (count, size, replace) == (len(everything), len(fixed[str(scale)]), False)
        return [everything.index(relation) for relation in fixed[str(scale)]]

    monkeypatch.setattr(np.random, "choice", choice)
    expected = predict(theirs)
    assert not list(drawn)
    torch.testing.assert_close(predict(model), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_the_relations_are_recorded_as_the_manifest_holds_them() -> None:
    decision = fix(Recognizer(3))
    assert json.loads(json.dumps(decision.record)) == {
        "trn_relations": {"3": [[0, 1, 2]], "2": [[0, 1], [0, 2], [1, 2]]}
    }
    assert "manifest.json" in decision.note


def test_a_head_of_one_relation_stays_as_it_is() -> None:
    model = Recognizer(4, relation_type="TRN")
    before = predict(model)
    assert fixed_relations(model) is None
    assert torch.equal(predict(model), before)
