"""Nine families: exported, published, served together, and equal to mmaction2 on every video.

Every family gets concurrent requests of different videos; scores are compared with what mmaction2's
own pipeline and `model.predict` make of the same file. That those scores differ enough for a mix-up
to show is part of the export's own proof, which refuses to publish otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from action_client import VideoClient
from action_export import api, preprocess, source
from action_export.reference import Reference, run_mmaction
from action_export.serve import Server, serve
from action_export.types import ExportRequest
from support.videos import real_videos
from support.weights import write_checkpoint
from support.zoo import CASES, ZooCase

BOUND = 1e-4  # of the reference's spread over the classes
VIDEOS = real_videos()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        case.family: write_checkpoint(case.config, folder / f"{case.family}.pth", VIDEOS[:3])
        for case in CASES
    }


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]
) -> Iterator[Server]:
    """All nine in one repository. The live proof is left to the test, which is a harder one."""
    repo = tmp_path_factory.mktemp("zoo") / "repo"
    for case in CASES:
        api.export(
            ExportRequest(
                triton_repo=repo,
                config=case.config,
                checkpoint=checkpoints[case.family],
                name=case.family,
                views=case.views,
                max_batch_size=3,
                videos=tuple(VIDEOS[:2]),
                proof="graph",
            )
        )
    with serve(repo) as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_concurrent_videos_score_as_in_mmaction(
    case: ZooCase, server: Server, checkpoints: dict[str, Path]
) -> None:
    references = _references(case, checkpoints[case.family])
    requests = VIDEOS * 2
    with (
        VideoClient(server.grpc_url, case.family, timeout_s=300) as client,
        ThreadPoolExecutor(max_workers=len(requests)) as pool,
    ):
        answers = list(pool.map(client.classify, requests))
    for video, answer in zip(requests, answers, strict=True):
        expected = references[video].scores
        spread = expected.max() - expected.min()
        assert np.abs(answer.scores - expected).max() <= BOUND * spread, video.name
        assert answer.top[0].index == expected.argmax()


def _references(case: ZooCase, checkpoint: Path) -> dict[Path, Reference]:
    config = source.load_config(case.config)
    model = source.build_model(config, source.load_checkpoint(checkpoint))
    preprocessing = preprocess.derive(config, case.views)
    return {video: run_mmaction(model, preprocessing, video) for video in VIDEOS}
