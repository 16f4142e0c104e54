#!/usr/bin/env python
"""What JPEG on the wire costs the bundled example, for the table in docs/preprocessing.md.

    python scripts/jpeg_loss.py [--drawn N] [VIDEO...]

Runs the bundled clips, N clips that scripts/example_clips.py draws, and the videos that are given
through the example's published graph: as pixels, and as the files that a client would send. Prints
for each setting the largest difference of the scores as a share of their spread over the classes,
beside the bound of its quality.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import example_clips
import numpy as np
from action_export import api, example
from action_export.dependencies import import_onnxruntime
from action_export.types import ExportRequest
from action_export.wire import bound_of
from action_runtime import jpeg, sampled
from action_runtime.spec import Contract, Jpeg
from action_runtime.transforms import make_clips
from numpy.typing import NDArray

SETTINGS = (
    *(Jpeg(quality=quality, chroma="halved") for quality in (95, 98)),
    *(Jpeg(quality=quality, chroma="full") for quality in (95, 90, 85, 75)),
)
SEED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The example's, as it is published."""

    contract: Contract
    path: Path

    def scores(self, frames: NDArray[np.uint8], index: NDArray[np.int32]) -> NDArray[np.float32]:
        session = import_onnxruntime().InferenceSession(self.path)
        scores: NDArray[np.float32] = session.run(
            None, {"clips": make_clips(frames, index, self.contract)}
        )[0][0]
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", nargs="*", type=Path, metavar="VIDEO")
    parser.add_argument("--drawn", type=int, default=60, metavar="N", help="%(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repo = Path(folder, "repo")
        result = api.export(ExportRequest(triton_repo=repo, proof="graph"))
        graph = Graph(
            contract=result.contract,
            path=repo / f"{result.name}_recognizer" / str(result.version) / "model.onnx",
        )
        drawn = example_clips.write_dataset(Path(folder, "clips"), SEED, arguments.drawn)
        videos = [*example.CLIPS, *(path for path, _ in drawn), *arguments.videos]
        print(f"{len(videos)} videos\n\n| quality | chroma | bytes over pixels | largest | bound |")
        print("|---|---|---|---|---|")
        losses = np.array([[loss(graph, video, how) for how in SETTINGS] for video in videos])
    for how, (differences, sizes) in zip(SETTINGS, losses.transpose(1, 2, 0), strict=True):
        print(
            f"| {how.quality} | {how.chroma} | {sizes.mean():.2f} | {differences.max():.3f} "
            f"| {bound_of(how):.3f}, {(differences > bound_of(how)).sum()} beyond |"
        )


def loss(graph: Graph, video: Path, how: Jpeg) -> tuple[float, float]:
    """(the largest difference over the spread, bytes of the files over those of the pixels)."""
    contract = replace(graph.contract, wire=how)
    sent = sampled.sample_file(video, contract)
    files = jpeg.encode(sent.frames, how)
    exact = graph.scores(sent.frames, sent.frame_index)
    lossy = graph.scores(jpeg.decode(files, contract), sent.frame_index)
    return (
        float(np.abs(lossy - exact).max() / np.ptp(exact)),
        sum(map(len, files)) / sent.frames.nbytes,
    )


if __name__ == "__main__":
    main()
