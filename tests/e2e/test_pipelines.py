"""The zoo's test pipelines, one of each kind with all its views, through a live server.

The sampler and the arrangement of frames are the config's own. Sizes are an eighth and the networks
tiny, so that hundreds of views are cheap; tests/e2e/test_zoo.py has the networks and the sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from action_client import VideoClient
from action_export import api, source
from action_export.serve import ServerOptions, serve
from action_export.types import ExportRequest
from support import tiny
from support.tiny import MODEL_2D, MODEL_3D, VIDEOS, Tiny
from support.zoo import PIPELINES

BOUND = 1e-4  # of the reference's spread over the classes
SHRINK = 8
NAMES = {config: f"pipeline_{number}" for number, config in enumerate(PIPELINES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    url: str
    recognizers: dict[str, Tiny]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All in one repository; the live proof is left to the test."""
    folder = tmp_path_factory.mktemp("pipelines")
    recognizers = {}
    for config, name in NAMES.items():
        pipeline = [_shrunk(step) for step in source.load_config(config).pipeline]
        layout = pipeline[-2]["input_format"]
        model = MODEL_3D if layout == "NCTHW" else MODEL_2D
        recognizers[config] = tiny.make(folder, model, pipeline, name=name)
        api.export(
            ExportRequest(
                triton_repo=folder / "repo",
                config=str(recognizers[config].config_file),
                checkpoint=recognizers[config].checkpoint,
                max_batch_size=2,
                videos=tuple(VIDEOS),
                proof="graph",
            )
        )
    with serve(folder / "repo", ServerOptions(stop_timeout_s=0)) as server:
        yield Served(url=server.grpc_url, recognizers=recognizers)


def _shrunk(step: Any) -> dict[str, Any]:
    small = dict(step)
    if "crop_size" in small:
        small["crop_size"] //= SHRINK
    if "scale" in small:
        small["scale"] = tuple(size if size < 0 else size // SHRINK for size in small["scale"])
    return small


@pytest.mark.parametrize("config", PIPELINES)
def test_the_views_of_a_config_score_as_in_mmaction(config: str, served: Served) -> None:
    references = tiny.references(served.recognizers[config])
    with (
        VideoClient(served.url, NAMES[config], timeout_s=600) as client,
        ThreadPoolExecutor(max_workers=len(VIDEOS)) as pool,
    ):
        answers = list(pool.map(client.classify, VIDEOS))
    for answer, reference in zip(answers, references, strict=True):
        spread = np.ptp(reference.scores)
        assert np.abs(answer.scores - reference.scores).max() <= BOUND * spread
