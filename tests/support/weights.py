"""Checkpoints of zoo configs whose comparison with mmaction2 means something.

No trained weights can be downloaded. Random ones with the initial BatchNorm statistics saturate or
die out with depth, and then every video scores alike; so the statistics are measured on real
frames first, which keeps the activations of every layer in range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from action_export import preprocess, source
from action_export.reference import run_pipeline
from action_export.types import ViewOptions


def write_checkpoint(config_name: str, path: Path, videos: list[Path], *, seed: int = 0) -> Path:
    """Writes a seeded checkpoint of the config, with BatchNorm statistics measured on `videos`."""
    import torch

    torch.manual_seed(seed)
    config = source.load_config(config_name)
    model: Any = source.build_untrained(config)
    model.init_weights = lambda: None
    _spread_head(model)
    segments = _segments(config)
    views = ViewOptions(num_clips=segments or 1, crops="center")
    pipeline = preprocess.derive(config, views).pipeline
    packed = [run_pipeline(pipeline, video)[1] for video in videos]
    _measure_statistics(model, packed)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
    return path


def _segments(config: source.RecognizerConfig) -> int | None:
    """Frames that a 2D model mixes or averages; one clip is enough for a 3D model."""
    if config.model["type"] == "Recognizer3D":
        return None
    return next(int(t["num_clips"]) for t in config.pipeline if "num_clips" in t)


def _spread_head(model: Any) -> None:
    """mmaction2 initialises the classifier with a spread of 0.01, where softmax is flat."""
    import torch

    torch.nn.init.normal_(model.cls_head.fc_cls.weight, std=0.1)


def _measure_statistics(model: Any, packed: list[dict[str, Any]]) -> None:
    import torch
    from mmengine.dataset import pseudo_collate

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the videos
        norm.train()
    with torch.no_grad():
        for sample in packed:
            model.test_step(pseudo_collate([sample]))
    model.eval()
