"""Checkpoints of zoo configs whose comparison with mmaction2 means something.

No trained weights are at hand. With a constructor's own random weights the activations die out or
saturate with depth, and then every video scores alike. So the weights keep the variance (He et al.,
2015), BatchNorm statistics are measured on real frames, and the classifier is scaled until the
logits have a spread that softmax neither flattens nor saturates.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from action_export import preprocess, source
from action_export.families import FAMILIES, decide, family_of
from action_export.families._patches import deploy_form
from action_export.mmaction_compat import quiet
from action_export.reference import run_pipeline
from action_export.types import ViewOptions

_LOGIT_SPREAD = 2.0  # standard deviation over the classes
_STIR = 0.1  # standard deviation
_STIR_OF_TABLES = 0.02  # of positions, as they are initialised; more would sharpen attention
_MEAN_SHARE = 0.3
_BRANCH_WEIGHT = 0.1  # of a branch beside a shortcut of weight 1
# How much moves changes within a video far more than how it looks: scaled on one quiet clip, the
# logits of the next are twenty times as wide.
_FLOW_CLIPS = 3


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
    deployed = config.model["backbone"].get("deploy", False)
    if deployed:
        # Fused blocks have no norms to measure, so they are calibrated as they are trained.
        backbone = {**config.model["backbone"], "deploy": False}
        config = replace(config, model={**config.model, "backbone": backbone})
    model = source.build_untrained(config)
    # before mmaction2 runs: TPN's head grows a layer of its own when it does
    names = model.state_dict().keys()
    decide(model, family_of(config.model, FAMILIES))
    if getattr(model, "test_cfg", None):
        model.test_cfg.pop("max_testing_views", None)  # asserts a batch of one
    _keep_variance(model)
    _lean_on_shortcuts(model)
    inputs = _inputs(config, model, videos)
    _measure_statistics(model, inputs)
    _scale_classifier(model, inputs)
    if deployed:
        deploy_form(model)
    state = model.state_dict()
    if not deployed:
        state = {name: state[name] for name in names}
    torch.save({"state_dict": state, "meta": {}}, path)
    return path


def segments_of(model: Any) -> int:
    """Clips that a 2D model mixes, so that views come in whole groups of them; 1 if it does not."""
    parts = (getattr(model, part, None) for part in ("backbone", "cls_head"))
    return max((getattr(part, "num_segments", None) or 1 for part in parts), default=1)


def _inputs(config: source.RecognizerConfig, model: Any, videos: list[Path]) -> dict[str, Any]:
    """The collated samples of all videos: as many clips as calibrate the model, of each."""
    from mmengine.dataset import pseudo_collate

    crops = any(transform["type"].endswith("Crop") for transform in config.pipeline)
    clips = segments_of(model) * (_FLOW_CLIPS if config.modality == "Flow" else 1)
    views = ViewOptions(num_clips=clips, crops="center" if crops else "config")
    served = preprocess.derive(config, views)
    with quiet():
        samples = [run_pipeline(served, video)[1] for video in videos]
    collated: dict[str, Any] = model.data_preprocessor(pseudo_collate(samples), False)
    return collated


def _keep_variance(model: Any) -> None:
    """Every other parameter gets a share at random: a bias or a position of zero tells nothing."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            share = _STIR if parameter.ndim < 2 else _STIR_OF_TABLES
            parameter += share * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _lean_on_shortcuts(model: Any) -> None:
    """Lets the shortcuts of residual blocks outweigh the branches beside them, as training does.

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
    if hasattr(block, "norm3_name"):  # mmpretrain's
        return [block.norm3]
    if hasattr(block, "bn3"):  # OmniResNet's, torchvision's
        return [block.bn3]
    if hasattr(block, "downsample"):  # mmaction2's
        last = getattr(block, "conv3", None) or getattr(block, "conv2", None)
        return [last.bn] if hasattr(last, "bn") else []
    return []


def _measure_statistics(model: Any, inputs: dict[str, Any]) -> None:
    """Over all videos at once: a layer that sees pooled frames varies little within one of them."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # exactly what is measured
        norm.train()
    _logits(model, inputs)
    with torch.no_grad():
        for norm in norms:
            # Pooled features of a few clips lie so close together that the measured variance would
            # blow up rounding errors. Where it is wide, this share of the mean changes little.
            norm.running_var += (_MEAN_SHARE * norm.running_mean) ** 2
    model.eval()


def _scale_classifier(model: Any, inputs: dict[str, Any]) -> None:
    import torch

    logits = _logits(model, inputs)
    scorers = [
        m
        for m in model.cls_head.modules()
        if isinstance(m, torch.nn.Linear) and m.out_features == logits.shape[-1]
    ]
    # of one class, over the videos
    spread = logits.std(dim=1).max() if logits.shape[-1] > 1 else logits.std()
    with torch.no_grad():
        for scorer in scorers:
            scorer.weight *= _LOGIT_SPREAD / spread


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    """[videos, classes], averaged over a video's clips."""
    import torch

    with torch.no_grad():
        features = model.extract_feat(inputs["inputs"], test_mode=True)
        # RecognizerOmni gives no options for the head
        features, options = features if isinstance(features, tuple) else (features, {})
        rows = model.cls_head(features, **options)
    return rows.reshape(len(inputs["inputs"]), -1, rows.shape[-1]).mean(dim=1)
