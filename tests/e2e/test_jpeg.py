"""Frames as JPEG, through the proof and to every client, on a live server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_client import AsyncVideoClient, Classification, VideoClient
from action_export import api
from action_export.errors import ParityError
from action_export.serve import serve
from action_export.types import ExportRequest, ExportResult
from action_export.wire import bound_of
from action_runtime import jpeg, wire
from action_runtime.spec import Jpeg
from support import tiny
from support.tiny import CLASSES, VIDEOS, Tiny
from support.videos import decode
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    url: str
    recognizer: Tiny
    exported: ExportResult


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("jpeg")
    recognizer = tiny.make(folder, tiny.MODEL_3D, tiny.PIPELINE_3D)
    exported = api.export(
        ExportRequest(
            triton_repo=folder / "repo",
            config=str(recognizer.config_file),
            checkpoint=recognizer.checkpoint,
            max_batch_size=3,
            videos=tuple(VIDEOS),
            proof="server",
            wire="jpeg",
        )
    )
    with serve(folder / "repo") as server:
        yield Served(url=server.grpc_url, recognizer=recognizer, exported=exported)


def test_what_jpeg_costs_is_measured_within_its_bound_and_kept(served: Served) -> None:
    checks = {check.name: check for check in served.exported.checks}
    lossy, live = checks.pop("JPEG"), checks.pop("live server, 2 at once")
    assert all(check.bound <= 1e-4 for name, check in checks.items() if "client" not in name)
    bound = bound_of(served.exported.contract.wire)
    assert bound == 10 * 24 / 2 / 1024
    assert lossy.detail == "2 videos"
    assert 1e-4 < lossy.error <= lossy.bound == pytest.approx(bound + 1e-4)
    assert served.exported.checks[-1] is live
    # lossy: pixels would be off by less than the bound of float32
    assert 1e-4 < live.error <= live.bound == pytest.approx(bound + 1e-4)
    (step,) = [step for step in served.exported.steps if step.step == "prove server"]
    assert step.result is not None
    assert step.result.endswith("JPEG of quality 90")
    assert served.exported.manifest["proof"]["checks"][-1]["error"] == live.error
    assert any("which is lossy" in note for note in served.exported.notes)


def test_both_clients_answer_as_mmaction_does_but_for_jpeg(served: Served) -> None:
    async def awaited() -> list[Classification]:
        async with AsyncVideoClient(served.url, "tiny") as client:
            return [await client.classify(video) for video in VIDEOS]

    bound = bound_of(served.exported.contract.wire) + 1e-4
    with VideoClient(served.url, "tiny") as client:
        client.check_health()
        blocking = [client.classify(video) for video in VIDEOS]
    references = tiny.references(served.recognizer)
    for one, other, reference in zip(blocking, asyncio.run(awaited()), references, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        assert one.scores.shape == (CLASSES,)
        off = np.abs(one.scores - reference.scores).max() / np.ptp(reference.scores)
        assert off <= bound
        # frames of 32 lines, a file each
        assert one.timings.wire_bytes < 8 * 3000


def test_what_costs_more_than_its_bound_is_not_published(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = jpeg.encode

    def bleaching(frames: Any, how: Jpeg) -> Any:
        return encode(frames // 2 + 128, how)

    monkeypatch.setattr(jpeg, "encode", bleaching)
    with pytest.raises(ParityError, match=r"from mmaction2: JPEG by .* of spread") as caught:
        api.export(
            ExportRequest(
                triton_repo=tmp_path / "repo",
                config=str(served.recognizer.config_file),
                checkpoint=served.recognizer.checkpoint,
                max_batch_size=1,
                videos=tuple(VIDEOS),
                proof="graph",
                wire="jpeg",
            )
        )
    assert "--wire raw" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def infer(url: str, files: list[bytes], index: list[int]) -> Any:
    values = np.array(files, np.object_)
    inputs = [InferInput("frames_jpeg", [len(files)], "BYTES").set_data_from_numpy(values)]
    inputs.append(InferInput("frame_index", [8], "INT32"))
    inputs[1].set_data_from_numpy(np.array(index, np.int32))
    with InferenceServerClient(url) as client:
        return client.infer("tiny", inputs, client_timeout=60).as_numpy("scores")


def test_a_request_of_any_client_is_answered_or_refused_by_the_frame(served: Served) -> None:
    resize, how = served.exported.contract.resize, served.exported.contract.wire
    assert how is not None
    small, large = (wire.shrink(decode(VIDEOS[1], 4), resize), decode(VIDEOS[1], 1))
    files = list(jpeg.encode(small, how))
    index = [0, 1, 2, 3, 3, 2, 1, 0]
    assert infer(served.url, files, index).shape == (1, CLASSES)
    (other_size,) = jpeg.encode(small[:1, :30], how)
    (not_resized,) = jpeg.encode(large, how)
    for bad, words in (
        (b"", r"frames_jpeg\[2\] is no JPEG file"),
        (files[2][:-100], r"frames_jpeg\[2\] is cut short"),
        (other_size, r"frames_jpeg\[2\] has 39x30 pixels, and the first one 39x32"),
    ):
        with pytest.raises(InferenceServerException, match=words) as caught:
            infer(served.url, [*files[:2], bad, files[3]], index)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(
        InferenceServerException, match=r"176x144.*resize before encoding"
    ) as caught:
        infer(served.url, [not_resized] * 4, index)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
