"""A config of each family: exported, published, served beside others, and equal to mmaction2.

Every family gets concurrent requests of different videos; scores are compared with what mmaction2's
own pipeline and `model.predict` make of the same file. That those scores differ enough for a mix-up
to show is part of the export's own proof, which refuses to publish otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
import torch
from action_client import VideoClient
from action_export import parity, preprocess, source, tensorrt
from action_export.checkpoint import build_model, load_checkpoint
from action_export.config_file import zoo_configs
from action_export.errors import DependencyError
from action_export.families import FAMILIES, decide, family_of
from action_export.gpu import Gpu
from action_export.precision import BOUNDS, half, rounding_twin
from action_export.reference import Reference, run_mmaction
from action_export.serve import Server, ServerOptions, serve
from action_export.tensorrt import Target, installed
from action_export.tracing import Graph
from action_export.types import Tensors, TensorSpec
from google.protobuf import text_format
from support.videos import real_videos
from support.zoo import CASES, ZooCase, export_case
from tritonclient.grpc import model_config_pb2

GPU_BOUND = 1e-3  # of float32, whose sums have another order there
BOUND = 1e-4  # of the reference's spread over the classes
VIDEOS = real_videos()
# Models that one server holds at once: each is two processes, of up to 9 GB.
TOGETHER = 4


def test_every_folder_of_the_zoo_has_a_case() -> None:
    folders = {path.parts[path.parts.index("recognition") + 1] for path in zoo_configs().values()}
    assert sorted(case.family for case in CASES) == sorted(folders)


def test_every_family_of_the_zoo_has_a_case() -> None:
    tested = {family_of(source.load_config(case.config).model, FAMILIES).name for case in CASES}
    assert tested == {family.name for family in FAMILIES if family.zoo}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


class Servers:
    """One server at a time, which holds the group of the case that is asked for.

    The exports run on beside the tests, two at a time: each keeps one core busy for much of it.
    """

    def __init__(self, cases: list[ZooCase], folder: Path, checkpoints: Path) -> None:
        self._groups = [cases[i : i + TOGETHER] for i in range(0, len(cases), TOGETHER)]
        self._folder = folder
        self._pool = ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,))
        self._exports = {
            case: self._pool.submit(
                export_case, case, self._repo(group), checkpoints / f"{case.family}.pth"
            )
            for group in self._groups
            for case in group
        }
        self._served: list[ZooCase] = []
        self._stack = ExitStack()

    def of(self, case: ZooCase) -> Server:
        """Raises what the export of this case failed with."""
        group = next(group for group in self._groups if case in group)
        wait([self._exports[member] for member in group])
        self._exports[case].result()
        if group is not self._served:
            self._stack.close()
            options = ServerOptions(stop_timeout_s=0)
            self._server = self._stack.enter_context(serve(self._repo(group), options))
            self._served = group
        return self._server

    def published(self, case: ZooCase) -> Path:
        """The folder of its recognizer."""
        group = next(group for group in self._groups if case in group)
        self._exports[case].result()
        return self._repo(group) / f"{case.family}_recognizer"

    def close(self) -> None:
        self._stack.close()
        self._pool.shutdown(cancel_futures=True)

    def _repo(self, group: list[ZooCase]) -> Path:
        return self._folder / group[0].family


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path
) -> Iterator[Servers]:
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {id(found.params.get("case")) for found in parameters if found is not None}
    cases = [case for case in CASES if id(case) in asked]
    with closing(Servers(cases, tmp_path_factory.mktemp("zoo"), checkpoints)) as servers:
        yield servers


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.family)
def case(request: pytest.FixtureRequest) -> ZooCase:
    """Of module scope, so that all tests of a case run while its server does."""
    found: ZooCase = request.param
    return found


@pytest.mark.timeout(1500)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Halved:
    """The graph that was published for a case, and what half precision makes of it."""

    single: Path
    half: Path
    tensors: Tensors
    references: tuple[Reference, ...]


@pytest.fixture(scope="module")
def halved(
    servers: Servers, case: ZooCase, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Halved:
    model = servers.published(case)
    references = tuple(_references(case, checkpoints / f"{case.family}.pth").values())[:2]
    single, path = model / "1" / "model.onnx", tmp_path_factory.mktemp("half") / "half.onnx"
    half(single, path, [row.clips for row in references])
    return Halved(
        single=single,
        half=path,
        tensors=_tensors_of(model / "config.pbtxt"),
        references=references,
    )


@pytest.mark.timeout(1500)
def test_half_precision_scores_as_mmaction_within_its_bound(halved: Halved, tmp_path: Path) -> None:
    graph = Graph(path=halved.half, opset=18, nodes=0, files=(halved.half.name,))
    twin = onnxruntime.InferenceSession(rounding_twin(graph, tmp_path / "twin.onnx").path)
    for row in halved.references:
        scores = twin.run(None, {"clips": row.clips})[0][0]
        spread = row.scores.max() - row.scores.min()
        assert 0 < np.abs(scores - row.scores).max() <= BOUNDS["fp16"] * spread, row.video.name


@pytest.mark.timeout(1500)
def test_tensorrt_builds_the_recognizer(halved: Halved, tmp_path: Path) -> None:
    """NVIDIA's parser and builder on the graph that was served and on its half, for a GPU that is
    not here; where there is one, it runs them.
    """
    target, gpu = _target()
    tensors, sizes = halved.tensors, []
    for graph, bound in ((halved.single, GPU_BOUND), (halved.half, BOUNDS["fp16"])):
        engine = tensorrt.build(graph, tmp_path / f"{graph.stem}.plan", tensors, target)
        sizes.append(engine.path.stat().st_size)
        # all weights are in it, in their precision
        assert sizes[-1] > 0.9 * graph.stat().st_size
        if gpu is not None:
            run = tensorrt.Runner(engine.path, tensors, target, gpu)
            parity.require(
                parity.verify_runner(run, halved.references, tensors.clips, bound, name="plan")
            )
    assert sizes[1] < 0.75 * sizes[0]


def _target() -> tuple[Target, Gpu | None]:
    """For the GPU that is here, or else for one that the release knows."""
    try:
        gpu = Gpu()
    except DependencyError:
        return Target(trt=tensorrt_rtx, compute_capability="8.0"), None
    try:
        return Target(trt=installed(""), compute_capability=gpu.compute_capability), gpu
    except DependencyError:
        return Target(trt=tensorrt_rtx, compute_capability=gpu.compute_capability), gpu


def _tensors_of(config: Path) -> Tensors:
    """Of a recognizer's config; it has no frames."""
    parsed = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
    (clips,), (scores,) = parsed.input, parsed.output
    none = TensorSpec(name="none", dtype="UINT8", dims=())
    return Tensors(
        frames=none,
        frame_index=none,
        clips=_spec(clips, "UINT8", parsed.max_batch_size),
        scores=_spec(scores, "FP32", parsed.max_batch_size),
    )


def _spec(tensor: Any, dtype: Literal["UINT8", "FP32"], batch: int) -> TensorSpec:
    return TensorSpec(name=tensor.name, dtype=dtype, dims=tuple(tensor.dims), max_batch_size=batch)


@lru_cache(maxsize=1)  # the tests of a case follow each other
def _references(case: ZooCase, checkpoint: Path) -> dict[Path, Reference]:
    config = source.load_config(case.config)
    model = build_model(config, load_checkpoint(checkpoint))
    preprocessing = preprocess.derive(config, case.views)
    decide(model, family_of(config.model, FAMILIES))
    return {video: run_mmaction(model, preprocessing, video) for video in VIDEOS}
