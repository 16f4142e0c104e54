"""What an export leaves: memory of its own, and the decisions that it took in the manifest."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from action_export import api, batching, publishing, repository, staging
from action_export.errors import ContractChangedError
from action_export.types import ExportRequest, StepEvent
from support.tiny import MODEL_TRN, PIPELINE_TRN, VIDEOS, Tiny, make


@pytest.fixture(scope="module")
def tiny_trn(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Its patched modules refer to themselves, so that counting references does not free them."""
    return make(tmp_path_factory.mktemp("trn"), MODEL_TRN, PIPELINE_TRN)


def request(tiny: Tiny, repo: Path) -> ExportRequest:
    return ExportRequest(
        triton_repo=repo,
        config=str(tiny.config_file),
        checkpoint=tiny.checkpoint,
        name="tiny",
        videos=tuple(VIDEOS),
        proof="graph",
    )


def test_the_model_is_gone_before_the_graph_is_proved(
    tiny_trn: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[torch.nn.Module]] = []
    alive: dict[str, bool] = {}
    build_model = api.build_model

    def build(*args: Any) -> torch.nn.Module:
        model = build_model(*args)
        models.append(weakref.ref(model))
        return model

    def on_step(event: StepEvent) -> None:
        if event.result is None:
            alive[event.step] = any(model() is not None for model in models)

    monkeypatch.setattr(api, "build_model", build)
    api.export(request(tiny_trn, tmp_path / "repo"), on_step)
    assert len(models) == 1
    assert alive["trace graph"]
    assert not alive["prove pixels"]


def test_what_was_decided_for_mmaction2_stands_in_the_manifest(
    tiny_trn: Tiny, tmp_path: Path
) -> None:
    result = api.export(request(tiny_trn, tmp_path / "repo"))
    written = json.loads((result.repo / "tiny" / "1" / "manifest.json").read_text())
    assert written["decisions"]["trn_relations"]["6"] == [[0, 1, 2, 3, 4, 5]]
    assert list(written["decisions"]["trn_relations"]) == ["6", "5", "4", "3", "2"]
    assert any("draws the frame subsets" in note for note in result.notes)
    assert written["max_batch_size"] == 5  # 32 views' worth
    assert not any("--max-batch-size" in note for note in result.notes)


def test_a_batch_has_no_more_videos_than_their_activations_leave_room_for(
    tiny_trn: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tiny_trn, tmp_path / "repo")
    planned = api.export(replace(asked, dry_run=True))
    assert planned.tensors.clips.max_batch_size == 5
    assert batching.NOT_MEASURED in planned.notes
    monkeypatch.setattr(batching, "_ROOM", 1)
    result = api.export(asked)
    assert result.version == 1
    assert result.manifest["max_batch_size"] == result.tensors.clips.max_batch_size == 1
    assert "max_batch_size: 1\n" in (result.repo / "tiny_recognizer" / "config.pbtxt").read_text()
    assert any("videos go one by one, because" in note for note in result.notes)
    assert [check.name for check in result.checks if "batch" in check.name] == ["graph, batch 1"]


def test_a_further_version_keeps_the_batch_unless_another_is_given(
    tiny_trn: Tiny, tmp_path: Path
) -> None:
    publish_names(tiny_trn, tmp_path / "repo", ())
    asked = replace(request(tiny_trn, tmp_path / "repo"), dry_run=True)
    kept, given = api.export(asked), api.export(replace(asked, max_batch_size=7))
    assert kept.version == given.version == 2
    assert kept.tensors.clips.max_batch_size == tiny_trn.tensors.clips.max_batch_size == 3
    assert given.tensors.clips.max_batch_size == 7
    assert not {batching.NOT_MEASURED} & {*kept.notes, *given.notes}


def test_labels_are_held_to_the_checkpoints_and_to_the_published_ones(
    tiny_trn: Tiny, tmp_path: Path
) -> None:
    repo, names = tmp_path / "repo", tuple(f"class {number}" for number in range(10))
    publish_names(tiny_trn, repo, names)
    state = torch.load(tiny_trn.checkpoint)
    torch.save({**state, "meta": {"CLASSES": names[::-1]}}, tmp_path / "reversed.pth")
    (tmp_path / "labels.txt").write_text("\n".join(names[::-1]))
    asked = replace(
        request(tiny_trn, repo), checkpoint=tmp_path / "reversed.pth", dry_run=True, videos=()
    )
    with pytest.raises(ContractChangedError, match="class 0 is 'class 9', not 'class 0'"):
        api.export(asked)
    corrected = replace(asked, labels=tmp_path / "labels.txt")
    for accepted in (replace(asked, relabel=True), corrected):
        result = api.export(accepted)
        assert result.version == 2
        assert result.contract.labels == names[::-1]
        assert any("change with this version" in note for note in result.notes)


def publish_names(tiny: Tiny, repo: Path, labels: tuple[str, ...]) -> None:
    """Version 1 of a model with these labels, without the graph that nothing here reads."""
    planned = repository.plan(
        repo,
        repository.check_name("tiny"),
        contract=replace(tiny.contract, labels=labels),
        tensors=tiny.tensors,
    )
    with staging.beside(repo) as stage:
        repository.write(planned, stage)
        publishing.publish(planned, stage)
