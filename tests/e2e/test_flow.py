"""Models of optical flow: exported, served, and equal to mmaction2 on flow that a client sends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from action_client import ActionClientError, InvalidRequestError, VideoClient, cli
from action_export import api
from action_export.optical_flow import flow_images
from action_export.serve import ServerOptions, serve
from action_export.types import ExportRequest
from support import tiny
from support.serving import stubs_of
from support.tiny import CLASSES, VIDEOS, Tiny

BOUND = 1e-4  # of the reference's spread over the classes

RECOGNIZERS = {
    "flow_2d": (tiny.MODEL_FLOW_2D, tiny.PIPELINE_FLOW_2D),
    "flow_3d": (tiny.MODEL_FLOW_3D, tiny.PIPELINE_FLOW_3D),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    url: str
    repo: Path
    recognizers: dict[str, Tiny]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Both in one repository, proved on the graph; the server is what is tested here."""
    folder = tmp_path_factory.mktemp("flow")
    recognizers = {
        name: tiny.make(folder, model, pipeline, name=name, modality="Flow")
        for name, (model, pipeline) in RECOGNIZERS.items()
    }
    for made in recognizers.values():
        result = api.export(
            ExportRequest(
                triton_repo=folder / "repo",
                config=str(made.config_file),
                checkpoint=made.checkpoint,
                max_batch_size=3,
                videos=tuple(VIDEOS),
                proof="graph",
            )
        )
        assert result.contract.takes_flow
        assert result.tensors.frames.dims[-1] == 2
        pixels = {check.name: check.error for check in result.checks}["pixels"]
        assert pixels == 0
    with serve(folder / "repo", ServerOptions(stop_timeout_s=0)) as server:
        yield Served(url=server.grpc_url, repo=folder / "repo", recognizers=recognizers)


@pytest.mark.parametrize("name", RECOGNIZERS)
def test_flow_arrays_score_as_in_mmaction(name: str, served: Served) -> None:
    references = tiny.references(served.recognizers[name])
    with VideoClient(served.url, name) as client:
        for reference in references:
            images = flow_images(reference.video, range(reference.total_frames))
            flow = np.stack([images[number] for number in range(reference.total_frames)])
            scores = client.classify_frames(flow).scores
            spread = np.ptp(reference.scores)
            assert scores.shape == (CLASSES,)
            assert np.abs(scores - reference.scores).max() <= BOUND * spread
            # flow whose axes have changed places is another video
            other = client.classify_frames(flow[..., ::-1]).scores
            assert np.abs(other - reference.scores).max() > 10 * BOUND * spread


@pytest.mark.parametrize("name", RECOGNIZERS)
def test_a_video_file_is_refused_with_what_to_send(name: str, served: Served) -> None:
    with (
        VideoClient(served.url, name) as client,
        pytest.raises(InvalidRequestError, match="takes optical flow, 2 channels"),
    ):
        client.classify(VIDEOS[0])


def test_a_model_is_healthy_until_the_process_of_a_step_dies(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(served.repo, ServerOptions(stop_timeout_s=0)) as server:
        probe = ["--health", "--url", server.grpc_url, "--timeout", "20", "--model"]
        assert [cli.main([*probe, name]) for name in RECOGNIZERS] == [0, 0]
        stubs = {model: pid for pid, model in stubs_of(server.pid).items()}
        os.kill(stubs["flow_2d_preprocess"], signal.SIGKILL)
        with pytest.raises(ActionClientError), VideoClient(server.grpc_url, "flow_2d") as client:
            client.check_health()
        assert cli.main([*probe, "flow_2d"]) == 1
    assert capsys.readouterr().err
