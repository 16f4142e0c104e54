"""The bundled example from export to answer, against mmaction2's own inference."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from action_client import AsyncVideoClient, Classification, VideoClient
from action_client.bench import cli as bench_cli
from action_export import api, example, preprocess, source
from action_export.mmaction_compat import import_mmaction
from action_export.precision import BOUNDS, rounding_twin
from action_export.reference import clips_of
from action_export.serve import Server, ServerOptions, serve
from action_export.tracing import Graph
from action_export.types import ExportRequest, ExportResult, ViewOptions
from example_clips import write_dataset
from numpy.typing import NDArray

HELD_OUT_SEED = 20_260_000  # training and its own evaluation use others
CALIBRATION_SEED = 20_270_000
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
    # the largest where that is cheap, which depends on the machine
    batches = [name for name in names if name.startswith("graph, batch") and name[-1] != "5"]
    assert batches == [f"graph, batch {size}" for size in (1, 2, 3)]
    assert "graph, logits" in names
    assert names[-3:] == [
        "what clients read",
        "live recognizer, batch of 3",
        "live server, 2 at once",
    ]
    assert "a batch of several requests ran" in exported.checks[-1].detail
    assert all(check.passed for check in exported.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Files that no training saw. labels: [files]. scores: mmaction2's, [files, classes]."""

    videos: list[Path]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def accuracy(self, scores: NDArray[np.float32]) -> float:
        return float((scores.argmax(axis=1) == self.labels).mean())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    import_mmaction()
    from mmaction.apis import inference_recognizer, init_recognizer

    folder = tmp_path_factory.mktemp("held_out")
    videos, labels = zip(*write_dataset(folder, seed=HELD_OUT_SEED, count=CLIPS), strict=True)
    assert len(videos) == CLIPS
    model = init_recognizer(str(example.CONFIG), str(example.CHECKPOINT), device="cpu")
    scores = [inference_recognizer(model, str(video)).pred_score.numpy() for video in videos]
    return HeldOut(videos=list(videos), labels=np.array(labels), scores=np.stack(scores))


def serve_all(server: Server, name: str, videos: list[Path]) -> NDArray[np.float32]:
    """[videos, classes]"""
    with (
        VideoClient(server.grpc_url, name, timeout_s=60) as client,
        ThreadPoolExecutor(max_workers=8) as pool,
    ):
        return np.stack([answer.scores for answer in pool.map(client.classify, videos)])


def run_rounded(exported: ExportResult, name: str, videos: list[Path]) -> NDArray[np.float32]:
    """[videos, classes] of a half-precision graph that rounds as a GPU does."""
    graph = exported.repo / f"{name}_recognizer" / "1" / "model.onnx"
    half = Graph(path=graph, opset=18, nodes=0, files=(graph.name,))
    twin = rounding_twin(half, exported.repo.parent / "rounded.onnx")
    session = onnxruntime.InferenceSession(twin.path)
    preprocessing = preprocess.derive(source.load_config(str(example.CONFIG)), ViewOptions())
    rows = [clips_of(preprocessing, exported.contract, video) for video in videos]
    return np.concatenate([session.run(None, {"clips": clips})[0] for clips in rows])


@pytest.mark.timeout(600)
def test_200_held_out_files_decide_as_mmaction_does(server: Server, held_out: HeldOut) -> None:
    served = serve_all(server, "example", held_out.videos)
    np.testing.assert_array_equal(served.argmax(axis=1), held_out.scores.argmax(axis=1))
    assert np.abs(served - held_out.scores).max() <= BOUND


@pytest.mark.timeout(600)
def test_reduced_precision_is_served_beside_it_and_decides_alike(
    exported: ExportResult, server: Server, held_out: HeldOut, tmp_path: Path
) -> None:
    calibration = [path for path, _ in write_dataset(tmp_path, seed=CALIBRATION_SEED, count=60)]
    for name, kind, videos in (("half", "fp16", []), ("byte", "int8", calibration)):
        api.export(
            ExportRequest(
                triton_repo=exported.repo,
                name=name,
                precision=kind,  # type: ignore[arg-type]
                calibration=tuple(videos),
                proof="graph",
            )
        )
        _wait_for_version(server, name, "1")
    half = serve_all(server, "half", held_out.videos)
    np.testing.assert_array_equal(half.argmax(axis=1), held_out.scores.argmax(axis=1))
    # the server computes half floats in float32 here, so their rounding is looked at by itself
    rounded = run_rounded(exported, "half", held_out.videos)
    np.testing.assert_array_equal(rounded.argmax(axis=1), held_out.scores.argmax(axis=1))
    assert 0 < np.abs(rounded - held_out.scores).max() <= BOUNDS["fp16"]
    byte = serve_all(server, "byte", held_out.videos)
    exact = held_out.accuracy(held_out.scores)
    assert exact > 0.9
    assert held_out.accuracy(byte) >= exact - 0.01


def test_the_asyncio_client_answers_as_the_blocking_one(server: Server) -> None:
    async def classify_all() -> list[Classification]:
        async with AsyncVideoClient(server.grpc_url, "example", timeout_s=60) as client:
            await client.check_health()
            return await asyncio.gather(*map(client.classify, example.CLIPS))

    awaited = asyncio.run(classify_all())
    with VideoClient(server.grpc_url, "example", timeout_s=60) as client:
        for clip, answer in zip(example.CLIPS, awaited, strict=True):
            np.testing.assert_allclose(answer.scores, client.classify(clip).scores, atol=BOUND)


def test_action_bench_shows_where_a_real_server_spends_the_time(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(example.CLIPS[0])
    options = ["--concurrency", "1", "4", "--seconds", "1", "--requests", "20", "--json"]
    assert bench_cli.main([server.grpc_url, "example", clip, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["error"], found["notes"]) == (None, [])
    for callers, level in zip((1, 4), found["levels"], strict=True):
        assert level["answers"] >= 20
        latency = level["latency_ms"]
        assert level["throughput_per_s"] == pytest.approx(callers / latency["mean"] * 1e3, rel=0.2)
        assert latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        ensemble, preprocess, recognizer = level["server"]
        assert [step["model"] for step in (ensemble, preprocess, recognizer)] == [
            "example",
            "example_preprocess",
            "example_recognizer",
        ]
        assert ensemble["requests"] == pytest.approx(level["answers"], abs=2 * callers)
        assert 0 < preprocess["infer_ms"] < preprocess["total_ms"] < ensemble["total_ms"]
        assert ensemble["total_ms"] < latency["mean"] * 1.2
        ran = sum(int(size) * count for size, count in recognizer["batches"].items())
        assert ran == pytest.approx(recognizer["requests"], abs=callers)
    assert max(int(size) for size in found["levels"][1]["server"][2]["batches"]) > 1


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


def retrained(folder: Path) -> Path:
    """The example's checkpoint, surer of itself: other scores, the same classes."""
    import torch

    checkpoint = torch.load(example.CHECKPOINT, weights_only=False)
    head = [key for key in checkpoint["state_dict"] if key.startswith("cls_head.")]
    for key in head:
        checkpoint["state_dict"][key] = checkpoint["state_dict"][key] * 1.5
    torch.save(checkpoint, folder / "retrained.pth")
    return folder / "retrained.pth"


def test_second_export_adds_version_2_and_a_polling_server_serves_it(
    exported: ExportResult, server: Server, tmp_path: Path
) -> None:
    from mmaction.apis import inference_recognizer, init_recognizer

    checkpoint = retrained(tmp_path)
    model = init_recognizer(str(example.CONFIG), str(checkpoint), device="cpu")
    clip = example.CLIPS[0]
    expected = inference_recognizer(model, str(clip)).pred_score.numpy()
    with VideoClient(server.grpc_url, "example", timeout_s=60) as client:
        before = client.classify(clip)
        assert np.abs(before.scores - expected).max() > 10 * BOUND
        again = api.export(
            ExportRequest(
                triton_repo=exported.repo,
                config=str(example.CONFIG),
                checkpoint=checkpoint,
                labels=example.LABELS,
                name=exported.name,
                proof="graph",
                settle_s=0,
            )
        )
        assert (again.version, again.name) == (2, exported.name)
        assert (exported.repo / "example" / "1" / "manifest.json").is_file()
        _wait_for_version(server, "example", "2")
        after = client.classify(clip)
    assert np.abs(after.scores - expected).max() <= BOUND


def _wait_for_version(server: Server, model: str, version: str) -> None:
    from tritonclient.grpc import InferenceServerClient

    names = (model, f"{model}_preprocess", f"{model}_recognizer")
    deadline = time.monotonic() + 60
    with InferenceServerClient(server.grpc_url) as client:
        while not all(client.is_model_ready(name, version) for name in names):
            assert time.monotonic() < deadline, f"the server did not load {model} {version}"
            time.sleep(0.2)
