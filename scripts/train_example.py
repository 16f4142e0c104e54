#!/usr/bin/env python
"""Trains the example recognizer from nothing with mmaction2's Runner, and proves it.

    python scripts/train_example.py            # into exporter/action_export/example
    python scripts/train_example.py --out DIR  # elsewhere

What counts is the top-1 on clips of another seed, encoded as H.264 files and read by mmaction2's
inference through the config's own test_pipeline. Below MINIMUM_TOP1 nothing is written.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from action_export.example import CONFIG
from action_export.mmaction_compat import import_mmaction
from numpy.typing import NDArray

import_mmaction()

from mmaction.apis import inference_recognizer, init_recognizer  # noqa: E402
from mmaction.registry import DATASETS  # noqa: E402
from mmengine import Config  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from example_clips import (  # noqa: E402
    FRAMES,
    LABELS,
    SIZES,
    TWINS,
    draw_clip,
    write_bundled,
    write_dataset,
)

MINIMUM_TOP1 = 0.95
BATCH = 32
MIRROR_TWINS = (
    ("moves left", "moves right"),
    ("turns clockwise", "turns counter-clockwise"),
    ("circles clockwise", "circles counter-clockwise"),
)
_TWIN = {a: b for pair in MIRROR_TWINS for a, b in (pair, pair[::-1])}
MIRRORED = tuple(LABELS.index(_TWIN.get(label, label)) for label in LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    out: Path
    seed: int
    drawn_clips: int
    shown_clips: int
    held_out_seed: int
    held_out_clips: int


# ---- training ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a test clip is sampled from a file, and the `side` of its frames."""

    clip_len: int
    frame_interval: int
    side: int


@DATASETS.register_module()
class DrawnClips(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """`shown` clips, of which `drawn` are drawn and the rest are those again, in other guises.

    Clutter rises from a tenth to all of it over the first half of the drawn clips: without such a
    beginning nothing is learned for thousands of iterations. After the drawn clips those of the
    second half come again, mirrored (a label then becomes its mirror twin) and recoloured.
    """

    def __init__(
        self,
        seed: int,
        drawn: int,
        shown: int,
        drawing: dict[str, int],
        pipeline: list[dict[str, Any]],
    ) -> None:
        self.seed, self.shown = seed, shown
        self.pipeline = Compose(pipeline)
        plan = Drawing(**drawing)
        clutter = np.clip(np.arange(drawn) / (drawn / 2), 0.1, 1.0)
        jobs = ((seed, index, float(clutter[index]), plan) for index in range(drawn))
        self.videos = np.empty((drawn, plan.clip_len, plan.side, plan.side, 3), np.uint8)
        self.labels = np.empty(drawn, np.int64)
        with multiprocessing.get_context("fork").Pool() as pool:
            for index, (label, video) in enumerate(pool.imap(draw_sampled, jobs, chunksize=50)):
                self.labels[index], self.videos[index] = label, video

    def __len__(self) -> int:
        return self.shown

    def __getitem__(self, index: int) -> Any:
        half = len(self.labels) // 2
        at = index if index < 2 * half else half + index % half
        label, video = int(self.labels[at]), self.videos[at]
        rng = np.random.default_rng([self.seed, 1, index])
        if rng.random() < 0.5:
            label, video = MIRRORED[label], video[:, :, ::-1]
        images = list(np.ascontiguousarray(video[..., rng.permutation(3)]))
        return self.pipeline(
            {
                "imgs": images,
                "original_shape": video.shape[1:3],
                "img_shape": video.shape[1:3],
                "num_clips": 1,
                "clip_len": len(video),
                "modality": "RGB",
                "label": label,
            }
        )


def draw_sampled(job: tuple[int, int, float, Drawing]) -> tuple[int, NDArray[np.uint8]]:
    """(label, clip) of a job (seed, index, clutter, drawing): the frames that a test would sample.

    They are drawn at half the size of the files, and JPEG stands in for H.264.
    """
    seed, index, clutter, plan = job
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 0, index])
    label = int(rng.integers(len(LABELS)))
    width, height = SIZES[rng.integers(len(SIZES))]
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    positions = np.arange(plan.clip_len) * plan.frame_interval
    positions += rng.integers(frames - positions[-1])
    video = draw_clip(label, rng, (width // 2, height // 2), frames, positions.tolist(), clutter)
    quality = int(rng.integers(25, 90))
    scale = plan.side / min(video.shape[1:3])
    size = round(video.shape[2] * scale), round(video.shape[1] * scale)
    left, top = (int(rng.integers(length - plan.side + 1)) for length in size)
    crop = np.s_[top : top + plan.side, left : left + plan.side]
    return label, np.stack([cv2.resize(_jpeg(image, quality), size)[crop] for image in video])


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[Any]:
    """Compresses and decompresses; RGB passes as if it were BGR, both ways."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def training_config(options: Options, work_dir: str) -> Config:
    """The example's config with what only training needs."""
    config = Config.fromfile(CONFIG)
    sampling = next(step for step in config.test_pipeline if step.type == "SampleFrames")
    side = next(step for step in config.test_pipeline if step.type == "ThreeCrop").crop_size
    iterations = options.shown_clips // BATCH
    warmup = iterations // 10
    config.merge_from_dict(
        {
            "work_dir": work_dir,
            "train_dataloader": {
                "batch_size": BATCH,
                "num_workers": 2,
                "persistent_workers": True,
                "sampler": {"type": "InfiniteSampler", "shuffle": False},
                "dataset": {
                    "type": "DrawnClips",
                    "seed": options.seed,
                    "drawn": options.drawn_clips,
                    "shown": options.shown_clips,
                    "drawing": {
                        "clip_len": sampling.clip_len,
                        "frame_interval": sampling.frame_interval,
                        "side": side,
                    },
                    "pipeline": [
                        {"type": "FormatShape", "input_format": "NCTHW"},
                        {"type": "PackActionInputs"},
                    ],
                },
            },
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations},
            "optim_wrapper": {
                "optimizer": {"type": "AdamW", "lr": 1.2e-3, "weight_decay": 0.02},
                "clip_grad": {"max_norm": 5.0},
            },
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.05, "by_epoch": False, "end": warmup},
                {
                    "type": "CosineAnnealingLR",
                    "by_epoch": False,
                    "begin": warmup,
                    "end": iterations,
                    "eta_min": 0.0,
                },
            ],
            "default_hooks": {
                "logger": {"type": "LoggerHook", "interval": 200},
                "checkpoint": None,
            },
            "log_processor": {"by_epoch": False, "window_size": 100},
            "randomness": {"seed": options.seed},
        }
    )
    # the held-out clips are files, and are judged by mmaction2's inference instead
    for name in ("test_dataloader", "test_evaluator", "test_cfg"):
        config.pop(name)
    return config


def train(options: Options) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as work_dir:
        return Runner.from_cfg(training_config(options, work_dir)).train()


# ---- judging -----------------------------------------------------------------------------------


def save(path: Path, model: torch.nn.Module, made: Mapping[str, Any]) -> None:
    """Writes the weights and where they come from: plain values only, for weights_only=True."""
    meta = {"dataset_meta": {"classes": list(LABELS)}, **made}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, path)


def confusion_on_files(checkpoint: Path, seed: int, count: int) -> NDArray[np.int64]:
    """How often each label, [true, decided], is decided by mmaction2 on held-out H.264 files."""
    model = init_recognizer(str(CONFIG), str(checkpoint), device="cpu")
    confusion = np.zeros((len(LABELS), len(LABELS)), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        for path, label in write_dataset(folder, seed, count):
            decided = inference_recognizer(model, str(path)).pred_score.argmax()
            confusion[label, int(decided)] += 1
    return confusion


def report(confusion: NDArray[np.int64]) -> float:
    """Prints the accuracy of each label and the confusion of the twins; returns the top-1."""
    for label, row in zip(LABELS, confusion, strict=True):
        right = row[LABELS.index(label)]
        taken = {LABELS[i]: int(n) for i, n in enumerate(row) if n and LABELS[i] != label}
        wrong = ", ".join(f"{n} as {name}" for name, n in taken.items())
        print(f"  {label:<26}{right:>3} of {row.sum():<4}{wrong}")
    print("twins taken for each other:")
    for one, other in TWINS:
        i, j = LABELS.index(one), LABELS.index(other)
        swapped = confusion[i, j] + confusion[j, i]
        print(f"  {one} / {other}: {swapped} of {confusion[[i, j]].sum()}")
    top1 = float(confusion.trace() / confusion.sum())
    print(f"held-out top-1: {top1:.2%} ({confusion.trace()} of {confusion.sum()})")
    return top1


def versions() -> dict[str, str]:
    names = ("torch", "mmaction2", "mmengine", "numpy", "opencv-python", "av")
    return {name: importlib.metadata.version(name) for name in names}


def main() -> int:
    options = parse()
    began = time.monotonic()
    model = train(options)
    trained = time.monotonic()
    made = {
        "made_by": "scripts/train_example.py",
        "seed": options.seed,
        "drawn_clips": options.drawn_clips,
        "shown_clips": options.shown_clips,
        "held_out_seed": options.held_out_seed,
        "held_out_clips": options.held_out_clips,
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pth"
        save(checkpoint, model, made)
        top1 = report(confusion_on_files(checkpoint, options.held_out_seed, options.held_out_clips))
    print(
        f"{options.shown_clips} clips trained in {trained - began:.0f} s, "
        f"{options.held_out_clips} held-out clips judged in {time.monotonic() - trained:.0f} s"
    )
    if top1 < MINIMUM_TOP1:
        print(f"nothing written: the top-1 is below {MINIMUM_TOP1:.0%}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    save(options.out / "checkpoint.pth", model, {**made, "top1": top1})
    (options.out / "labels.txt").write_text("".join(f"{x}\n" for x in LABELS), encoding="utf-8")
    write_bundled(options.out / "clips")
    if options.out.resolve() != CONFIG.parent.resolve():
        shutil.copy(CONFIG, options.out)
    print(f"wrote {options.out}")
    return 0


def parse() -> Options:
    parser = argparse.ArgumentParser(description="Train the example recognizer from nothing.")
    parser.add_argument("--out", type=Path, default=CONFIG.parent, metavar="DIR")
    parser.add_argument("--seed", type=int, default=20_260_101)
    parser.add_argument("--drawn-clips", type=int, default=24_000)
    parser.add_argument("--shown-clips", type=int, default=104_000)
    parser.add_argument("--held-out-seed", type=int, default=555)
    parser.add_argument("--held-out-clips", type=int, default=400)
    options = Options(**vars(parser.parse_args()))
    if options.seed == options.held_out_seed:
        parser.error("--held-out-seed must differ from --seed: training would see its clips")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
