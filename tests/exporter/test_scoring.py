"""What makes scores of logits: mmaction2's own way, the head's own, or sigmoids."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from action_export import api, measure, parity, source
from action_export.errors import UnsupportedError
from action_export.graph import serving_module
from action_export.mmaction_compat import import_mmaction
from action_export.reference import run_mmaction
from action_export.scoring import scores_notes, scores_of
from action_export.tracing import onnx_from_module
from action_export.types import ExportRequest
from action_runtime.spec import Contract
from support.tiny import MODEL_3D, PIPELINE_3D, VIDEOS, Tiny, changed, make, write_config

import_mmaction()

from mmaction.models.heads import I3DHead  # noqa: E402
from mmaction.models.recognizers import Recognizer3D  # noqa: E402
from mmaction.registry import MODELS  # noqa: E402


@MODELS.register_module(force=True)
class TestSigmoidHead(I3DHead):
    """Several labels a video, as many write it."""

    __test__ = False

    def average_clip(self, cls_scores: torch.Tensor, num_segs: int = 1) -> torch.Tensor:
        views = cls_scores.view(-1, num_segs, cls_scores.shape[-1])
        return views.sigmoid().mean(dim=1)


@MODELS.register_module(force=True)
class TestBestViewHead(I3DHead):
    """The best view of each class, and the number of videos from the data samples."""

    __test__ = False

    def predict_by_feat(self, cls_scores: torch.Tensor, data_samples: Any) -> Any:
        views = cls_scores.view(len(data_samples), -1, cls_scores.shape[-1])
        for sample, scores in zip(data_samples, views.softmax(dim=2).amax(dim=1), strict=True):
            sample.set_pred_score(scores)
            sample.set_pred_label(scores.argmax(dim=-1, keepdim=True))
        return data_samples


@MODELS.register_module(force=True)
class TestNumpyHead(I3DHead):
    __test__ = False

    def average_clip(self, cls_scores: torch.Tensor, num_segs: int = 1) -> torch.Tensor:
        return torch.from_numpy(cls_scores.numpy()).mean(dim=0, keepdim=True)


@MODELS.register_module(force=True)
class TestDecidingHead(I3DHead):
    __test__ = False

    def average_clip(self, cls_scores: torch.Tensor, num_segs: int = 1) -> torch.Tensor:
        scores = cls_scores.mean(dim=0, keepdim=True)
        return scores if scores.max() < 1 else scores / scores.max()


@MODELS.register_module(force=True)
class TestOneScoreHead(I3DHead):
    __test__ = False

    def average_clip(self, cls_scores: torch.Tensor, num_segs: int = 1) -> torch.Tensor:
        return cls_scores.mean(dim=0, keepdim=True)[:, :1]


@MODELS.register_module(force=True)
class TestPredictingHead(I3DHead):
    __test__ = False

    def predict(self, feats: Any, data_samples: Any, **options: Any) -> Any:
        return super().predict(feats, data_samples, **options)


@MODELS.register_module(force=True)
class TestPredictingRecognizer(Recognizer3D):
    __test__ = False

    def predict(self, inputs: Any, data_samples: Any, **options: Any) -> Any:
        return super().predict(inputs.flip(2), data_samples, **options)


def with_head(kind: str, **arguments: Any) -> dict[str, Any]:
    return changed(MODEL_3D, cls_head={**MODEL_3D["cls_head"], "type": kind, **arguments})


def untrained(model: dict[str, Any], folder: Path) -> torch.nn.Module:
    path = write_config(folder / "c.py", model=model, test_pipeline=PIPELINE_3D)
    built: torch.nn.Module = source.build_untrained(source.load_config(str(path)))
    return built


def proved(
    tiny: Tiny, scores: Any, path: Path, average: Any = "prob", served: Any = None
) -> dict[str, Any]:
    """The checks of the graph that is exported, or of another model's, against mmaction2."""
    references = tuple(
        run_mmaction(tiny.model, tiny.preprocessing, video, scores) for video in VIDEOS
    )
    module = serving_module(served or tiny.model, layout="NCTHW", average=average, scores=scores)
    tensors = tiny.tensors
    onnx_from_module(module, clips=tensors.clips, scores=tensors.scores, opset=18, path=path)
    measure.require_distinguishable(references, 1e-4)
    checks = parity.verify_graph(path, references, tensors.clips, 1e-4)
    return {check.name: check for check in checks}


@pytest.mark.parametrize("kind", ["TestSigmoidHead", "TestBestViewHead"])
def test_a_head_that_scores_in_its_own_way_is_served_as_it_is(kind: str, tmp_path: Path) -> None:
    tiny = make(tmp_path, with_head(kind), PIPELINE_3D)
    assert scores_of(tiny.model, "config") == "head"
    checks = proved(tiny, "head", tmp_path / "model.onnx")
    assert all(check.passed for check in checks.values())
    # what was traced before: mmaction2's softmax and average
    wrong = proved(tiny, "config", tmp_path / "wrong.onnx")
    assert not any(check.passed for name, check in wrong.items() if "batch" in name)


def test_mmactions_own_heads_score_as_the_config_says(tmp_path: Path) -> None:
    model = untrained(MODEL_3D, tmp_path)
    assert scores_of(model, "config") == "config"
    assert scores_of(model, "sigmoid") == "sigmoid"


def test_an_override_of_the_instance_is_seen(tmp_path: Path) -> None:
    model: Any = untrained(MODEL_3D, tmp_path)
    head = model.cls_head
    head.average_clip = lambda scores, num_segs=1: scores.sigmoid().mean(dim=0, keepdim=True)
    assert scores_of(model, "config") == "head"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("TestNumpyHead", r"TestNumpyHead\.average_clip .* cannot be traced"),
        ("TestDecidingHead", r"TestDecidingHead\.average_clip .* cannot be traced"),
        ("TestOneScoreHead", r"makes scores of shape \[1\] of a video, not \[10\]"),
        ("TestPredictingHead", r"TestPredictingHead\.predict overrides"),
    ],
)
def test_a_head_that_cannot_be_served_is_named_before_anything_is_traced(
    kind: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        scores_of(untrained(with_head(kind), tmp_path), "config")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_recognizer_that_predicts_in_its_own_way_is_named(tmp_path: Path) -> None:
    model = untrained(MODEL_3D, tmp_path)
    model.__class__ = TestPredictingRecognizer
    with pytest.raises(UnsupportedError, match=r"TestPredictingRecognizer\.predict overrides"):
        scores_of(model, "config")


def test_sigmoids_are_not_put_in_place_of_what_a_head_does_itself(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="own way of scoring") as caught:
        scores_of(untrained(with_head("TestSigmoidHead"), tmp_path), "sigmoid")
    assert "leave --scores out" in caught.value.hint


def test_sigmoid_scores_are_proved_against_the_sigmoid_of_mmactions_logits(tmp_path: Path) -> None:
    tiny = make(tmp_path, MODEL_3D, PIPELINE_3D)
    # By hand, on what its head gives: six views of ten classes
    given: list[torch.Tensor] = []
    handle = tiny.model.cls_head.register_forward_hook(lambda *call: given.append(call[2]))
    plain = run_mmaction(tiny.model, tiny.preprocessing, VIDEOS[0])
    handle.remove()
    assert given[0].shape == (6, 10)
    reference = run_mmaction(tiny.model, tiny.preprocessing, VIDEOS[0], "sigmoid")
    expected = (1 / (1 + np.exp(-given[0].double().numpy()))).mean(axis=0)
    np.testing.assert_allclose(reference.scores, expected, rtol=1e-6)
    assert np.abs(plain.scores - expected).max() > 0.1
    assert plain.scores.sum() == pytest.approx(1, abs=1e-5)

    assert all(check.passed for check in proved(tiny, "sigmoid", tmp_path / "m.onnx").values())


def test_the_way_of_scoring_is_in_the_contract_only_where_it_is_another(tmp_path: Path) -> None:
    tiny = make(tmp_path, MODEL_3D, PIPELINE_3D)
    assert '"scores"' not in tiny.contract.to_json()
    sigmoid = tiny.preprocessing.contract(
        tiny.config, labels=(), provenance={}, wire=None, scores="sigmoid"
    )
    assert '"scores": "sigmoid"' in sigmoid.to_json()
    assert Contract.from_json(sigmoid.to_json()) == sigmoid


def test_several_labels_a_video_and_one_class_are_told_what_is_served(tmp_path: Path) -> None:
    plain = untrained(MODEL_3D, tmp_path)
    several = untrained(with_head("I3DHead", multi_class=True), tmp_path)
    assert scores_notes(plain, "config", 10, "prob") == []
    (note,) = scores_notes(several, "config", 10, "prob")
    assert "multi_class" in note
    assert "softmax" in note
    assert "--scores sigmoid" in note
    assert scores_notes(several, "config", 10, "score") == []
    (served,) = scores_notes(several, "sigmoid", 10, "prob")
    assert "sigmoid" in served
    (one,) = scores_notes(plain, "config", 1, "prob")
    assert "always 1" in one


@pytest.mark.parametrize(
    ("average", "scores", "caught"),
    [
        ("prob", "config", {"graph, logits"}),
        ("score", "config", {"graph, batch 1", "graph, batch 2", "graph, batch 3"}),
        (
            "prob",
            "sigmoid",
            {"graph, batch 1", "graph, batch 2", "graph, batch 3", "graph, logits"},
        ),
    ],
)
def test_a_model_of_one_class_is_proved(
    average: Any, scores: Any, caught: set[str], tmp_path: Path
) -> None:
    model = with_head("I3DHead", num_classes=1, average_clips=average)
    tiny = make(tmp_path, model, PIPELINE_3D)
    checks = proved(tiny, scores, tmp_path / "m.onnx", average)
    assert all(check.passed for check in checks.values())
    spoiled = deepcopy(tiny.model)
    spoiled.data_preprocessor.std *= 1.05
    wrong = proved(tiny, scores, tmp_path / "wrong.onnx", average, spoiled)
    assert {name for name, check in wrong.items() if not check.passed} == caught


def test_an_export_serves_sigmoids_where_they_are_asked_for(tmp_path: Path) -> None:
    tiny = make(tmp_path, with_head("I3DHead", multi_class=True), PIPELINE_3D)
    result = api.export(
        ExportRequest(
            config=str(tiny.config_file),
            checkpoint=tiny.checkpoint,
            triton_repo=tmp_path / "repo",
            videos=tuple(VIDEOS),
            scores="sigmoid",
            proof="graph",
        )
    )
    assert result.contract.scores == "sigmoid"
    assert "--scores sigmoid" in result.manifest["command"]
    assert "several labels" not in " ".join(result.notes)
    assert "sigmoid" in " ".join(result.notes)
    assert "Loop" in _operators(next((tmp_path / "repo").rglob("model.onnx")))


def test_a_head_of_its_own_needs_no_average_clips_and_is_told_of(tmp_path: Path) -> None:
    tiny = make(tmp_path, with_head("TestSigmoidHead"), PIPELINE_3D)
    result = api.export(
        ExportRequest(
            config=str(tiny.config_file),
            checkpoint=tiny.checkpoint,
            triton_repo=tmp_path / "repo",
            cfg_options=("model.cls_head.average_clips=None",),
            dry_run=True,
        )
    )
    assert result.contract.scores == "head"
    assert any("what TestSigmoidHead itself makes" in note for note in result.notes)


def _operators(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}
