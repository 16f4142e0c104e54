"""A config of each family: exported, published, served beside others, and equal to mmaction2.

Every family gets concurrent requests of different videos; scores are compared with what mmaction2's
own pipeline and `model.predict` make of the same file. That those scores differ enough for a mix-up
to show is part of the export's own proof, which refuses to publish otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from action_client import VideoClient
from action_export import preprocess, source
from action_export.families import FAMILIES, decide, family_of
from action_export.reference import Reference, run_mmaction
from action_export.serve import Server, serve
from support.videos import real_videos
from support.zoo import CASES, ZooCase, export_case

BOUND = 1e-4  # of the reference's spread over the classes
VIDEOS = real_videos()
# Models that one server holds at once: each is two processes.
TOGETHER = 6
GROUPS = [CASES[start : start + TOGETHER] for start in range(0, len(CASES), TOGETHER)]


def test_every_folder_of_the_zoo_has_a_case() -> None:
    folders = {
        path.parts[path.parts.index("recognition") + 1] for path in source.zoo_configs().values()
    }
    assert sorted(case.family for case in CASES) == sorted(folders)


def test_every_family_of_the_zoo_has_a_case() -> None:
    tested = {family_of(source.load_config(case.config).model, FAMILIES).name for case in CASES}
    assert tested == {family.name for family in FAMILIES if family.zoo}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


class Servers:
    """One server at a time, which holds the group of the family that is asked for."""

    def __init__(self, folder: Path, checkpoints: Path) -> None:
        self._folder = folder
        self._checkpoints = checkpoints
        self._group: tuple[ZooCase, ...] = ()
        self._failed: dict[ZooCase, BaseException] = {}
        self._server: Server | None = None
        self._stack = ExitStack()

    def of(self, case: ZooCase) -> Server:
        """Raises what the export of this case failed with."""
        if case not in self._group:
            self.close()
            self._group = next(group for group in GROUPS if case in group)
            repo = self._publish(self._group)
            self._server = self._stack.enter_context(serve(repo))
        if case in self._failed:
            raise self._failed[case]
        assert self._server is not None
        return self._server

    def close(self) -> None:
        self._server = None
        self._stack.close()

    def _publish(self, group: tuple[ZooCase, ...]) -> Path:
        """All in one repository, two at a time: an export keeps one core busy for much of it."""
        repo = self._folder / group[0].family
        with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            exports = {
                case: pool.submit(export_case, case, repo, self._checkpoints / f"{case.family}.pth")
                for case in group
            }
        for case, export in exports.items():
            # the others of the group are tested all the same
            if error := export.exception():
                self._failed[case] = error
        return repo


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("zoo"), checkpoints)) as servers:
        yield servers


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.family)
def test_concurrent_videos_score_as_in_mmaction(
    servers: Servers, case: ZooCase, checkpoints: Path
) -> None:
    server = servers.of(case)
    references = _references(case, checkpoints / f"{case.family}.pth")
    with (
        VideoClient(server.grpc_url, case.family, timeout_s=600) as client,
        ThreadPoolExecutor(max_workers=len(VIDEOS)) as pool,
    ):
        answers = list(pool.map(client.classify, VIDEOS))
    for video, answer in zip(VIDEOS, answers, strict=True):
        expected = references[video].scores
        spread = expected.max() - expected.min()
        assert np.abs(answer.scores - expected).max() <= BOUND * spread, video.name
        assert answer.top[0].index == expected.argmax()


def _references(case: ZooCase, checkpoint: Path) -> dict[Path, Reference]:
    config = source.load_config(case.config)
    model = source.build_model(config, source.load_checkpoint(checkpoint))
    preprocessing = preprocess.derive(config, case.views)
    decide(model, family_of(config.model, FAMILIES))
    return {video: run_mmaction(model, preprocessing, video) for video in VIDEOS}
