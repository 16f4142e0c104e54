"""The bundled example from export to answer, against mmaction2's own inference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from action_client import AsyncVideoClient, Classification, VideoClient
from action_export import api, example
from action_export.mmaction_compat import import_mmaction
from action_export.serve import Server, ServerOptions, serve
from action_export.types import ExportRequest, ExportResult
from example_clips import write_dataset

HELD_OUT_SEED = 20_260_000  # training and its own evaluation use others
CLIPS = 200
BOUND = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    repo = tmp_path_factory.mktemp("example") / "repo"
    return api.export(ExportRequest(triton_repo=repo, proof="server"))


@pytest.fixture(scope="module")
def server(exported: ExportResult) -> Iterator[Server]:
    with serve(exported.repo, ServerOptions(poll_s=1)) as running:
        yield running


def test_every_part_of_the_proof_ran_and_passed(exported: ExportResult) -> None:
    names = [check.name for check in exported.checks]
    assert names[:2] == ["sampled frames", "pixels"]
    assert [name for name in names if name.startswith("graph, batch")] == [
        f"graph, batch {size}" for size in (1, 2, 3, exported.tensors.clips.max_batch_size)
    ]
    assert names[-1].startswith("live server")
    assert all(check.passed for check in exported.checks)


@pytest.mark.timeout(600)
def test_200_held_out_files_decide_as_mmaction_does(server: Server, tmp_path: Path) -> None:
    import_mmaction()
    from mmaction.apis import inference_recognizer, init_recognizer

    videos = [path for path, _ in write_dataset(tmp_path, seed=HELD_OUT_SEED, count=CLIPS)]
    assert len(videos) == CLIPS
    model = init_recognizer(str(example.CONFIG), str(example.CHECKPOINT), device="cpu")
    expected = [inference_recognizer(model, str(video)).pred_score.numpy() for video in videos]
    with (
        VideoClient(server.grpc_url, "example", timeout_s=60) as client,
        ThreadPoolExecutor(max_workers=8) as pool,
    ):
        answers = list(pool.map(client.classify, videos))
    served = np.stack([answer.scores for answer in answers])
    reference = np.stack(expected)
    assert int((served.argmax(axis=1) == reference.argmax(axis=1)).sum()) == CLIPS
    assert np.abs(served - reference).max() <= BOUND


def test_the_asyncio_client_answers_as_the_blocking_one(server: Server) -> None:
    async def classify_all() -> list[Classification]:
        async with AsyncVideoClient(server.grpc_url, "example", timeout_s=60) as client:
            return await asyncio.gather(*map(client.classify, example.CLIPS))

    awaited = asyncio.run(classify_all())
    with VideoClient(server.grpc_url, "example", timeout_s=60) as client:
        for clip, answer in zip(example.CLIPS, awaited, strict=True):
            np.testing.assert_allclose(answer.scores, client.classify(clip).scores, atol=BOUND)


def test_labels_come_back_by_class_count_from_any_client(server: Server) -> None:
    """`class_count` is plain Triton: no code of ours is needed to get names."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    frames = np.random.default_rng(0).integers(0, 255, (4, 72, 96, 3), dtype=np.uint8)
    frame_index = np.arange(16, dtype=np.int32) // 4
    inputs = [
        InferInput("frames", frames.shape, "UINT8"),
        InferInput("frame_index", frame_index.shape, "INT32"),
    ]
    inputs[0].set_data_from_numpy(frames)
    inputs[1].set_data_from_numpy(frame_index)
    with InferenceServerClient(server.grpc_url) as client:
        result = client.infer(
            "example", inputs, outputs=[InferRequestedOutput("scores", class_count=3)]
        )
    rows = [row.decode() for row in result.as_numpy("scores").ravel()]
    labels = example.LABELS.read_text("utf-8").splitlines()
    assert len(rows) == 3
    for row in rows:
        _score, index, label = row.split(":")
        assert label == labels[int(index)]


def test_second_export_adds_version_2_and_a_polling_server_serves_it(
    exported: ExportResult, server: Server
) -> None:
    again = api.export(ExportRequest(triton_repo=exported.repo, proof="graph"))
    assert (again.version, again.name) == (2, exported.name)
    assert (exported.repo / "example" / "1" / "manifest.json").is_file()
    with VideoClient(server.grpc_url, "example", timeout_s=60) as client:
        before = client.classify(example.CLIPS[0])
        _wait_for_version(server, "2")
        after = client.classify(example.CLIPS[0])
    np.testing.assert_array_equal(before.scores, after.scores)


def _wait_for_version(server: Server, version: str) -> None:
    from tritonclient.grpc import InferenceServerClient

    names = ("example", "example_preprocess", "example_recognizer")
    deadline = time.monotonic() + 60
    with InferenceServerClient(server.grpc_url) as client:
        while not all(client.is_model_ready(name, version) for name in names):
            assert time.monotonic() < deadline, "the server did not load version 2"
            time.sleep(0.2)
