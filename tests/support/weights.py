"""Checkpoints of zoo configs whose comparison with mmaction2 means something.

No trained weights are at hand. With a constructor's own random weights the activations die out or
saturate with depth, and then every video scores alike. So the weights keep the variance (He et al.,
2015), BatchNorm statistics are measured on real frames, and the classifier is scaled until the
logits have a spread that softmax neither flattens nor saturates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from action_export import preprocess, source
from action_export.mmaction_compat import quiet
from action_export.reference import run_pipeline
from action_export.types import ViewOptions

_LOGIT_SPREAD = 2.0  # standard deviation over the classes
_BRANCH_WEIGHT = 0.1  # of a convolution beside a shortcut of weight 1


def write_checkpoint(
    config_name: str,
    path: Path,
    videos: list[Path],
    *,
    cfg_options: tuple[str, ...] = (),
    seed: int = 0,
) -> Path:
    """Writes a seeded checkpoint of the config, calibrated on `videos`."""
    import torch

    torch.manual_seed(seed)
    config = source.load_config(config_name, cfg_options)
    model = source.build_untrained(config)
    _keep_variance(model)
    _lean_on_shortcuts(model)
    inputs = _inputs(config, videos)
    _measure_statistics(model, inputs)
    _scale_classifier(model, inputs)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
    return path


def _inputs(config: source.RecognizerConfig, videos: list[Path]) -> list[dict[str, Any]]:
    """Packed samples: the segments that a 2D model mixes, or one clip for a 3D model."""
    clips = 1
    if config.model["type"] == "Recognizer2D":
        segments = (
            config.model.get(part, {}).get("num_segments") for part in ("backbone", "cls_head")
        )
        clips = max(filter(None, segments), default=3)
    pipeline = preprocess.derive(config, ViewOptions(num_clips=clips, crops="center")).pipeline
    with quiet():
        return [run_pipeline(pipeline, video)[1] for video in videos]


def _keep_variance(model: Any) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def _lean_on_shortcuts(model: Any) -> None:
    """Lets the shortcuts of mmpretrain's deep backbones outweigh the convolutions beside them.

    Random branches of equal weight multiply rounding errors from block to block: the scores of
    mmaction2's MobileOne-s4 in float32 are then 0.8 % of their spread away from those in float64.
    """
    import torch

    for block in model.modules():
        for norm in _beside_shortcut(block):
            torch.nn.init.constant_(norm.weight, _BRANCH_WEIGHT)


def _beside_shortcut(block: Any) -> list[Any]:
    """The last norm of each branch of a block; branch_norm is the shortcut of MobileOne's."""
    if getattr(block, "branch_norm", None) is not None:
        branches = filter(None, (block.branch_scale, *block.branch_conv_list))
        return [branch.norm for branch in branches]
    return [block.norm3] if hasattr(block, "norm3_name") else []


def _measure_statistics(model: Any, inputs: list[dict[str, Any]]) -> None:
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the videos
        norm.train()
    _logits(model, inputs)
    model.eval()


def _scale_classifier(model: Any, inputs: list[dict[str, Any]]) -> None:
    import torch

    classifier = [m for m in model.cls_head.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        classifier.weight *= _LOGIT_SPREAD / _logits(model, inputs).std(dim=1).mean()


def _logits(model: Any, inputs: list[dict[str, Any]]) -> Any:
    """[videos, classes], averaged over a video's clips."""
    import torch
    from mmengine.dataset import pseudo_collate

    rows = []
    with torch.no_grad():
        for sample in inputs:
            data = model.data_preprocessor(pseudo_collate([sample]), False)
            features, options = model.extract_feat(data["inputs"], test_mode=True)
            rows.append(model.cls_head(features, **options).mean(dim=0))
    return torch.stack(rows)
