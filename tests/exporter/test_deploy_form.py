"""Backbones of other packages, and blocks that are fused: exported, and equal to mmaction2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from action_export import api
from action_export.families._patches import deploy_form
from action_export.types import ExportRequest, ExportResult
from support import zoo_packages
from support.tiny import (
    MODEL_2D,
    PIPELINE_2D,
    VIDEOS,
    Tiny,
    changed,
    make,
    references,
    with_step,
)

BOUND = 1e-4  # of the reference's spread over the classes
BLOCKS = 1 + 2 * (1 + 2)  # the stem, then a depthwise and a pointwise one each
MOBILEONE: dict[str, Any] = dict(
    type="mmpretrain.MobileOne",
    arch=dict(
        num_blocks=[1, 2, 0, 0],  # it takes four stages, empty ones too
        width_factor=[0.5, 0.5, 0.5, 0.5],
        num_conv_branches=[2, 1, 1, 1],
        num_se_blocks=[0, 0, 0, 0],
    ),
    out_indices=(1,),
)
MOBILEONE_2D = changed(MODEL_2D, backbone=MOBILEONE)
MOBILEONE_TSM = changed(
    MODEL_2D,
    backbone={**MOBILEONE, "type": "MobileOneTSM", "num_segments": 3, "shift_div": 8},
    cls_head__type="TSMHead",
    cls_head__num_segments=3,
)
SWIN = changed(
    MODEL_2D,
    backbone=dict(
        type="timm.swin_tiny_patch4_window7_224",
        feature_shape="NHWC",
        pretrained=True,
        img_size=64,
        window_size=4,
        embed_dim=16,
        depths=(1, 2),
        num_heads=(1, 2),
    ),
    cls_head__in_channels=32,
)
DENSENET = changed(
    MODEL_2D,
    backbone=dict(
        type="torchvision.DenseNet",
        growth_rate=8,
        block_config=(2, 2),
        num_init_features=16,
        bn_size=2,
    ),
    cls_head__in_channels=32,
)
PIPELINE = with_step(with_step(PIPELINE_2D, 3, scale=(-1, 72)), 4, crop_size=64)


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    zoo_packages.enable()


def recognizer(folder: Path, model: Mapping[str, Any]) -> Tiny:
    return make(folder, model, PIPELINE)


def export(folder: Path, tiny: Tiny) -> ExportResult:
    return api.export(
        ExportRequest(
            triton_repo=folder / "repo",
            config=str(tiny.config_file),
            checkpoint=tiny.checkpoint,
            max_batch_size=3,
            videos=tuple(VIDEOS),
            proof="graph",
        )
    )


def operators(result: ExportResult) -> Counter[str]:
    (path,) = (result.repo / file for file in result.files if file.endswith(".onnx"))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def scores(tiny: Tiny) -> np.ndarray[Any, Any]:
    return np.stack([reference.scores for reference in references(tiny)])


def convolutions(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())


def parts(model: torch.nn.Module) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    modules = {name: id(module) for name, module in model.named_modules()}
    return modules, deepcopy(model.state_dict())


# --- Fusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MOBILEONE_2D, MOBILEONE_TSM], ids=["tsn", "tsm"])
def test_fused_blocks_score_as_their_branches_did(tmp_path: Path, model: dict[str, Any]) -> None:
    tiny = recognizer(tmp_path, model)
    before = scores(tiny)
    deploy_form(tiny.model)
    assert convolutions(tiny.model) == BLOCKS
    after = scores(tiny)
    spread = before.max(axis=1) - before.min(axis=1)
    assert np.abs(before[0] - before[1]).max() > 100 * BOUND * spread.max()
    assert (np.abs(after - before).max(axis=1) <= BOUND / 10 * spread).all()


@pytest.mark.parametrize("model", [MOBILEONE_2D, MOBILEONE_TSM], ids=["tsn", "tsm"])
def test_the_graph_has_one_convolution_a_block(tmp_path: Path, model: dict[str, Any]) -> None:
    tiny = recognizer(tmp_path, model)
    found = operators(export(tmp_path, tiny))
    assert found["Conv"] == BLOCKS < convolutions(tiny.model)
    assert found["BatchNormalization"] == 0


def test_a_model_that_was_trained_fused_stays_as_it_is(tmp_path: Path) -> None:
    tiny = recognizer(tmp_path, changed(MOBILEONE_TSM, backbone__deploy=True))
    before, weights = parts(tiny.model)
    deploy_form(tiny.model)
    after, weights_after = parts(tiny.model)
    assert after == before
    torch.testing.assert_close(weights_after, weights, rtol=0, atol=0)
    assert operators(export(tmp_path, tiny))["Conv"] == BLOCKS


@pytest.mark.parametrize(
    "model",
    [MODEL_2D, changed(MOBILEONE_2D, backbone__norm_cfg=dict(type="SyncBN"))],
    ids=["no such blocks", "norms that are not fused"],
)
def test_a_model_that_cannot_be_fused_stays_as_it_is(tmp_path: Path, model: dict[str, Any]) -> None:
    tiny = recognizer(tmp_path, model)
    before, weights = parts(tiny.model)
    deploy_form(tiny.model)
    after, weights_after = parts(tiny.model)
    assert after == before
    torch.testing.assert_close(weights_after, weights, rtol=0, atol=0)


# --- Backbones of other packages ----------------------------------------------------------------


@pytest.mark.parametrize("model", [SWIN, DENSENET], ids=["timm", "torchvision"])
def test_a_backbone_of_another_package_is_exported(tmp_path: Path, model: dict[str, Any]) -> None:
    result = export(tmp_path, recognizer(tmp_path, model))
    graph_checks = [check for check in result.checks if check.name.startswith("graph, batch")]
    assert len(graph_checks) == 3
    assert all(check.error <= BOUND for check in graph_checks)
    # features with their channels last would be pooled in a loop over strides
    assert not operators(result).keys() & {"Loop", "SequenceEmpty"}
