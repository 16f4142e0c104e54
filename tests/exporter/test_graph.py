"""The serving module is `model.predict`, from uint8 clips to scores, for every video by itself."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from action_export import source
from action_export.graph import serving_module
from action_export.mmaction_compat import import_mmaction
from action_export.source import RecognizerConfig
from action_export.types import Layout, Modality
from support.tiny import (
    MODEL_2D,
    MODEL_3D,
    MODEL_FLOW_2D,
    MODEL_FLOW_3D,
    changed,
    write_config,
)

VIEWS, CLIP_LEN, SIZE = 3, 4, 32


def recognizer(model: dict[str, Any], folder: Any) -> torch.nn.Module:
    """With seeded weights that keep the variance, and statistics that are not the identity."""
    torch.manual_seed(3)
    path = write_config(folder / "c.py", model=model, test_pipeline=[dict(type="DecordInit")])
    config: RecognizerConfig = source.load_config(str(path))
    built = source.build_untrained(config)
    for module in built.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, torch.nn.modules.conv._ConvNd | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return built


def clips_of(batch: int, clip_len: int, channels: int = 3) -> torch.Tensor:
    """uint8 [batch, views, clip_len, h, w, C]; each row, view and channel has its brightness."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 120, (batch, VIEWS, clip_len, SIZE, SIZE, channels))
    bright = rng.integers(0, 130, (batch, VIEWS, 1, 1, 1, channels))
    return torch.from_numpy((noise + bright).astype(np.uint8))


def predicted(
    model: Any, clips: torch.Tensor, layout: Layout, modality: Modality = "RGB"
) -> torch.Tensor:
    """mmaction2's own test_step on each video: data_preprocessor, then predict."""
    from mmaction.structures import ActionDataSample

    import_mmaction()
    rows = []
    for video in clips:
        inputs = video.permute(0, 4, 1, 2, 3)  # [views, C, T, h, w], as FormatShape NCTHW has it
        if layout == "NCHW":
            images = video.permute(0, 1, 4, 2, 3)
            inputs = images.flatten(1, 2) if modality == "Flow" else images.flatten(0, 1)
        with torch.no_grad():
            data = dict(inputs=[inputs.contiguous()], data_samples=[ActionDataSample()])
            rows.append(model.test_step(data)[0].pred_score)
    return torch.stack(rows)


def served(
    model: torch.nn.Module,
    clips: torch.Tensor,
    layout: Layout,
    average: Literal["prob", "score"],
    modality: Modality = "RGB",
) -> torch.Tensor:
    module = serving_module(model, layout=layout, average=average, modality=modality)
    with torch.no_grad():
        scores: torch.Tensor = module(clips)
    return scores


NO_NORM = dict(type="ActionDataPreprocessor")
BGR = dict(MODEL_3D["data_preprocessor"], to_rgb=True)
GREY = dict(type="ActionDataPreprocessor", mean=[127.5], std=[50.0])

TSM = changed(
    MODEL_2D,
    backbone=dict(type="MobileNetV2TSM", widen_factor=0.25, num_segments=VIEWS, shift_div=8),
    cls_head=dict(MODEL_2D["cls_head"], type="TSMHead", in_channels=1280, num_segments=VIEWS),
)

CASES: dict[str, tuple[dict[str, Any], Layout]] = {
    "2d": (MODEL_2D, "NCHW"),
    "2d score": (changed(MODEL_2D, cls_head__average_clips="score"), "NCHW"),
    "2d to_rgb": (changed(MODEL_2D, data_preprocessor=dict(BGR, format_shape="NCHW")), "NCHW"),
    # scores, because softmax over logits of raw pixels is saturated
    "2d unnormalised": (
        changed(MODEL_2D, data_preprocessor=NO_NORM, cls_head__average_clips="score"),
        "NCHW",
    ),
    "2d one mean": (changed(MODEL_2D, data_preprocessor=GREY), "NCHW"),
    "2d shifting": (TSM, "NCHW"),
    "3d": (MODEL_3D, "NCTHW"),
    "3d score": (changed(MODEL_3D, cls_head__average_clips="score"), "NCTHW"),
    "3d to_rgb": (changed(MODEL_3D, data_preprocessor=BGR), "NCTHW"),
    "3d unnormalised": (
        changed(
            MODEL_3D,
            data_preprocessor=dict(NO_NORM, format_shape="NCTHW"),
            cls_head__average_clips="score",
        ),
        "NCTHW",
    ),
    "3d unnormalised to_rgb": (
        changed(MODEL_3D, data_preprocessor=dict(NO_NORM, to_rgb=True, format_shape="NCTHW")),
        "NCTHW",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_module_equals_predict(case: str, tmp_path: Any) -> None:
    config, layout = CASES[case]
    model = recognizer(config, tmp_path)
    clips = clips_of(3, CLIP_LEN if layout == "NCTHW" else 1)
    expected = predicted(model, clips, layout)
    scores = served(model, clips, layout, config["cls_head"]["average_clips"])
    spread = float(expected.max() - expected.min())
    assert spread > 1e-3
    assert scores.dtype == torch.float32
    assert scores.shape == (3, 10)
    assert float((scores - expected).abs().max()) < 1e-5 * spread


@pytest.mark.parametrize(
    ("config", "layout", "clip_len"),
    [(MODEL_FLOW_2D, "NCHW", 2), (MODEL_FLOW_3D, "NCTHW", 4)],
    ids=["2d", "3d"],
)
def test_the_module_equals_predict_on_optical_flow(
    config: dict[str, Any], layout: Layout, clip_len: int, tmp_path: Any
) -> None:
    # scores, because softmax over these logits is saturated
    model = recognizer(changed(config, cls_head__average_clips="score"), tmp_path)
    clips = clips_of(3, clip_len, channels=2)
    expected = predicted(model, clips, layout, "Flow")
    spread = float(expected.max() - expected.min())
    assert spread > 1e-3
    scores = served(model, clips, layout, "score", "Flow")
    assert float((scores - expected).abs().max()) < 1e-5 * spread
    for changed_order in (clips.flip(2), clips.flip(5)):
        other = served(model, changed_order, layout, "score", "Flow")
        assert float((other - expected).abs().max()) > 1e-3 * spread


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("3d", "3d score"),
        ("3d", "3d to_rgb"),
        ("3d score", "3d unnormalised"),
        ("2d", "2d to_rgb"),
        ("2d score", "2d unnormalised"),
        ("2d", "2d one mean"),
    ],
)
def test_the_cases_above_tell_these_apart(ours: str, theirs: str, tmp_path: Any) -> None:
    """The comparison with `predict` is of use only if a step left out would change the scores."""
    layout = CASES[ours][1]
    clips = clips_of(2, CLIP_LEN if layout == "NCTHW" else 1)
    a = predicted(recognizer(CASES[ours][0], tmp_path), clips, layout)
    b = predicted(recognizer(CASES[theirs][0], tmp_path), clips, layout)
    assert float((a - b).abs().max()) > 1e-3 * float(a.max() - a.min())


@pytest.mark.parametrize("case", ["2d", "2d shifting", "3d"])
def test_rows_are_independent(case: str, tmp_path: Any) -> None:
    config, layout = CASES[case]
    model = recognizer(config, tmp_path)
    clips = clips_of(3, CLIP_LEN if layout == "NCTHW" else 1)
    together = served(model, clips, layout, "prob")
    for row in range(3):
        alone = served(model, clips[row : row + 1], layout, "prob")
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)
    changed_neighbour = clips.clone()
    changed_neighbour[1] = 255 - changed_neighbour[1]
    again = served(model, changed_neighbour, layout, "prob")
    torch.testing.assert_close(together[[0, 2]], again[[0, 2]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[1], again[1], rtol=1e-3)


def test_probabilities_sum_to_one_and_scores_need_not(tmp_path: Any) -> None:
    model = recognizer(MODEL_3D, tmp_path)
    clips = clips_of(2, CLIP_LEN)
    torch.testing.assert_close(served(model, clips, "NCTHW", "prob").sum(dim=1), torch.ones(2))
    assert not torch.allclose(served(model, clips, "NCTHW", "score").sum(dim=1), torch.ones(2))


def test_the_module_is_in_eval_mode_and_leaves_the_model_as_it_was(tmp_path: Any) -> None:
    model = recognizer(MODEL_3D, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    module = serving_module(model, layout="NCTHW", average="prob")
    assert not any(part.training for part in module.modules())
    module(clips_of(1, CLIP_LEN))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
