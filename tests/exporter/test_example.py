"""The bundled example recognizer is complete, small, and still decides what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import example_clips
import numpy as np
import pytest
import torch
from action_export import example
from action_export.mmaction_compat import import_mmaction

UNSEEN_SEED = 31_337  # neither training nor its held-out clips use it


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    return torch.load(example.CHECKPOINT, weights_only=True)


@pytest.fixture(scope="module")
def config() -> Any:
    import_mmaction()
    from mmengine import Config

    return Config.fromfile(example.CONFIG)


def test_checkpoint_is_weights_only_and_at_most_3_mb(checkpoint: dict[str, Any]) -> None:
    assert example.CHECKPOINT.stat().st_size <= 3_000_000
    assert set(checkpoint) == {"state_dict", "meta"}
    assert checkpoint["meta"]["seed"] != UNSEEN_SEED != checkpoint["meta"]["held_out_seed"]
    assert 0.95 <= checkpoint["meta"]["top1"] < 1.0


def test_labels_match_the_head_the_checkpoint_and_the_drawing(
    checkpoint: dict[str, Any], config: Any
) -> None:
    labels = example.LABELS.read_text(encoding="utf-8").splitlines()
    assert labels == list(example_clips.LABELS)
    assert labels == checkpoint["meta"]["dataset_meta"]["classes"]
    assert len(labels) == config.model.cls_head.num_classes >= 16


def test_bundled_clips_decode_and_are_small() -> None:
    import av

    assert len(example.CLIPS) == len(example_clips.BUNDLED)
    assert sum(path.stat().st_size for path in example.CLIPS) <= 400_000
    for path in example.CLIPS:
        assert path.stat().st_size <= 120_000
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert 64 <= sum(1 for _ in container.decode(video=0)) <= 100


@pytest.mark.parametrize("label_index", range(0, len(example_clips.LABELS), 7))
def test_drawing_depends_on_the_seed_alone(label_index: int) -> None:
    def draw(seed: int, **only: Any) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(seed)
        return example_clips.draw_clip(label_index, rng, (128, 96), 64, **only)

    clip = draw(3)
    assert clip.shape == (64, 96, 128, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(draw(3), clip)
    np.testing.assert_array_equal(draw(3, only=[5, 60]), clip[[5, 60]])
    assert (draw(4) != clip).any()


def test_held_out_clips_are_recognized(tmp_path: Path, config: Any) -> None:
    from mmaction.apis import inference_recognizer, init_recognizer

    model = init_recognizer(config, str(example.CHECKPOINT), device="cpu")
    entries = example_clips.write_dataset(tmp_path, UNSEEN_SEED, 96)
    decided = [
        int(inference_recognizer(model, str(path)).pred_score.argmax()) for path, _ in entries
    ]
    right = np.mean([got == label for got, (_, label) in zip(decided, entries, strict=True)])
    assert right >= 0.9
