"""A real server beside publications that are killed: each answer is of one version, whole.

The steps are stand-ins that tell who they are: scores are the version of the preprocess model, that
of the recognizer, and nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_export.pbtxt import step_versions
from action_export.publishing import publish, recover
from action_export.repository import Names, Plan
from action_export.serve import Server, ServerOptions, serve
from action_export.staging import beside
from action_export.triton import RecognizerRuntime
from action_runtime.spec import Contract, FixedResize, SampleFrames
from support import published
from support.published import kill_later, killed, planned, read_config
from tritonclient.grpc import InferenceServerClient, InferInput

PYTHON = RecognizerRuntime(backend="python", file="model.py", writes="model.py")
CONTRACT = Contract(
    sampler=SampleFrames(clip_len=1),
    resize=FixedResize(width=2, height=2),
    crop=None,
    classes=3,
    average="prob",
    labels=("a", "b", "c"),
)
OPERATIONS, COMMIT = 8, 6

PREPROCESS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        clips = np.full((1, 1, 1, 2, 2, 3), self.version, np.uint8)
        tensor = pb_utils.Tensor("clips", clips)
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]
"""

RECOGNIZER = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        answers = []
        for request in requests:
            clips = pb_utils.get_input_tensor_by_name(request, "clips").as_numpy()
            rows = [[clip.max(), self.version, 0] for clip in clips]
            tensor = pb_utils.Tensor("scores", np.array(rows, np.float32))
            answers.append(pb_utils.InferenceResponse([tensor]))
        return answers
"""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of what an export would stage."""

    def fill(what: Plan, stage: Path, content: str) -> None:
        real(what, stage, content)
        (stage / what.names.preprocess / str(what.version) / "model.py").write_text(PREPROCESS)
        (stage / what.graph).write_text(RECOGNIZER)

    real = published.fill
    monkeypatch.setattr(published, "fill", fill)
    monkeypatch.setattr(published, "RETRAINED", CONTRACT)


def publish_next(repo: Path, settle: Callable[[], None] = lambda: None, **changes: Any) -> int:
    what = planned(repo, CONTRACT, runtime=PYTHON, **changes)
    with beside(repo) as stage:
        published.fill(what, stage, "")
        publish(what, stage, settle)
    return what.version


def ask(server: Server, name: str) -> tuple[int, list[float]]:
    """The version that answers, and its scores."""
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    inputs = [InferInput("frames", frames.shape, "UINT8"), InferInput("frame_index", (1,), "INT32")]
    inputs[0].set_data_from_numpy(frames)
    inputs[1].set_data_from_numpy(np.zeros(1, np.int32))
    with InferenceServerClient(server.grpc_url) as client:
        result = client.infer(name, inputs, client_timeout=30)
    return int(result.get_response().model_version), result.as_numpy("scores")[0].tolist()


class Caller:
    """Asks all the time, and keeps every answer."""

    def __init__(self, server: Server, name: str) -> None:
        self.answers: list[tuple[int, list[float]]] = []
        self.errors: list[str] = []
        self._server, self._name = server, name
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask(self._server, self._name))
            except Exception as exc:  # all are looked at in the end
                self.errors.append(f"{time.monotonic():.2f} {exc}")
            time.sleep(0.01)

    @contextmanager
    def calling(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def settle(self, repo: Path) -> Callable[[], None]:
        """Waits until the server has loaded the ensemble as it is in the repository by then."""

        def wait() -> None:
            wanted = step_versions(read_config(repo, self._name))
            deadline = time.monotonic() + 90
            with InferenceServerClient(self._server.grpc_url) as client:
                while step_versions(client.get_model_config(self._name).config) != wanted:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)

        return wait

    def wait_for(self, version: int) -> None:
        """Until it answers, and then for as long as the server takes to look once more."""
        deadline = time.monotonic() + 90
        while not self.answers or self.answers[-1][0] != version:
            assert time.monotonic() < deadline, f"version {version} never came: {self.errors[-3:]}"
            time.sleep(0.05)
        time.sleep(1.5)


@pytest.mark.timeout(300)
def test_a_server_that_polls_answers_every_request_whatever_is_killed(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    live = publish_next(repo)
    published.as_older_releases_did(repo)
    kills = [kill_later(repo, after, runtime=PYTHON) for after in range(OPERATIONS + 1)]
    with serve(repo, ServerOptions(poll_s=1)) as server:
        caller = Caller(server, "tiny")
        with caller.calling():
            live = publish_next(repo, caller.settle(repo))
            for after, kill in enumerate(kills):
                live += after >= COMMIT
                kill(caller.settle(repo))
                caller.wait_for(live)
                recover(repo)
            live = publish_next(repo, caller.settle(repo))
            caller.wait_for(live)
            assert not caller.errors
            # with other settings of the steps nothing may answer for a while, and nothing else
            last = publish_next(repo, max_batch_size=1)
            caller.wait_for(last)
    for version, scores in caller.answers:
        assert scores == [version, version, 0]
    assert {version for version, _ in caller.answers} == set(range(1, last + 1))
    assert last == 2 + (OPERATIONS + 1 - COMMIT) + 2


@pytest.mark.timeout(300)
def test_a_server_that_starts_after_a_kill_answers_with_one_version_whole(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    for after in range(OPERATIONS + 1):
        names = Names(ensemble=f"killed_{after}")
        publish_next(repo, names=names)
        killed(repo, after, runtime=PYTHON, names=names)
    with serve(repo) as server:
        for after in range(OPERATIONS + 1):
            version = 2 if after >= COMMIT else 1
            assert ask(server, f"killed_{after}") == (version, [version, version, 0])
