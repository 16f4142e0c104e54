"""What is staged, and how a client calls it on a server and reads there what was written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from action_runtime.spec import PARAMETER, Contract
from action_runtime.wire import shrink
from numpy.typing import NDArray

from action_export.errors import ParityError, ServeError
from action_export.reference import Reference
from action_export.repository import Names
from action_export.types import Check, Tensors, TensorSpec
from action_export.wire import pack_as_stated

_TIMEOUT_S = 600.0
_COUNTED_S = 5.0
# tritonclient's own, which these replace, and no proxy of the environment on the way to loopback
_CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Models in a folder, as they will be published."""

    folder: Path
    names: Names
    version: int
    contract: Contract
    tensors: Tensors
    server_flags: tuple[str, ...] = ()

    def frames_of(self, reference: Reference) -> NDArray[Any]:
        """Pixels of full size, which leave all to the server; JPEG of those a client sends."""
        if self.contract.wire is None:
            return reference.frames
        return pack_as_stated(reference.frames, self.contract)

    def shrunk_frames_of(self, reference: Reference) -> NDArray[Any]:
        """What a client sends, which decodes the video as mmaction2 does (`client_path`)."""
        if self.contract.wire is None:
            return shrink(reference.frames, self.contract.resize)
        return self.frames_of(reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Rows, and the executions that they took, of requests together or alone."""

    rows: int
    executions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A client of the staged models on a server at `url`."""

    url: str
    staged: Staged

    def scores(self, reference: Reference, frames: NDArray[Any]) -> NDArray[np.float32]:
        """The ensemble's scores for the frames of one video, [classes]."""
        tensors = self.staged.tensors
        inputs = [(tensors.frames, frames), (tensors.frame_index, reference.frame_index)]
        answer: NDArray[np.float32] = self._infer(self.staged.names.ensemble, inputs, reference)[0]
        return answer

    def names_of_classes(self, reference: Reference) -> dict[int, str]:
        """What a client without the contract is told of each class, by its `class_count`."""
        tensors, classes = self.staged.tensors, self.staged.contract.classes
        inputs = [
            (tensors.frames, self.staged.frames_of(reference)),
            (tensors.frame_index, reference.frame_index),
        ]
        ensemble = self.staged.names.ensemble
        answer = self._infer(ensemble, inputs, reference, class_count=classes)
        # each is SCORE:CLASS, and :NAME where there is one
        parts = [text.decode("utf-8", "replace").split(":", 2) for text in answer.ravel()]
        return {int(index): "".join(name) for _, index, *name in parts}

    def batch(self, rows: list[Reference]) -> NDArray[np.float32]:
        """The recognizer's scores for the clips of several videos in one request."""
        clips = np.concatenate([row.clips for row in rows])
        inputs = [(self.staged.tensors.clips, clips)]
        answer: NDArray[np.float32] = self._infer(self.staged.names.recognizer, inputs, rows[0])
        return answer

    def ran(self, since: Ran | None = None, rows: int = 0) -> Ran:
        """What the recognizer has run; once `rows` more are counted, or a while after.

        Triton counts a batch when its answers are gone, all its rows and its execution together.
        """
        deadline = time.monotonic() + _COUNTED_S
        with self._client() as client:
            while True:
                (stats,) = client.get_inference_statistics(self.staged.names.recognizer).model_stats
                ran = Ran(rows=stats.inference_count, executions=stats.execution_count)
                if since is None or ran.rows - since.rows >= rows:
                    return ran
                if time.monotonic() > deadline:
                    # as if each had run alone
                    return replace(ran, executions=ran.executions + rows)
                time.sleep(0.01)

    def runs_on_gpu(self) -> bool:
        """What the server made of the recognizer's instances, which its config may leave to it."""
        from tritonclient.grpc import model_config_pb2

        kind = model_config_pb2.ModelInstanceGroup.KIND_GPU
        with self._client() as client:
            config = client.get_model_config(self.staged.names.recognizer).config
        return any(group.kind == kind for group in config.instance_group)

    def read_back(self, reference: Reference) -> Check:
        """Contract, labels, tensors and versions, as a client finds them on the server.

        Raises ParityError with whatever is not what was written.
        """
        wrong = [*self._other_labels(reference), *self._other_contracts(), *self._other_tensors()]
        if wrong:
            raise ParityError(
                f"the server does not say what was written: {'; '.join(wrong)}",
                hint="nothing was published; please report the config with this",
            )
        return Check(
            name="what clients read",
            error=0.0,
            bound=0.0,
            unit="differences",
            detail="contract, labels, tensors, versions",
        )

    def _other_contracts(self) -> Iterator[str]:
        names = self.staged.names
        with self._client() as client:
            for name in (names.ensemble, names.preprocess):
                config = client.get_model_config(name).config
                if config.parameters[PARAMETER].string_value != self.staged.contract.to_json():
                    yield f"{name} has another contract"

    def _other_tensors(self) -> Iterator[str]:
        names, tensors = self.staged.names, self.staged.tensors
        public = ((tensors.frames, tensors.frame_index), tensors.scores.unbatched())
        private = ((tensors.clips,), tensors.scores)
        with self._client() as client:
            for name, (inputs, output) in ((names.ensemble, public), (names.recognizer, private)):
                found = client.get_model_metadata(name)
                told = [
                    (t.name, t.datatype, tuple(t.shape)) for t in (*found.inputs, *found.outputs)
                ]
                wanted = [_described(spec) for spec in (*inputs, output)]
                if told != wanted:
                    yield f"{name} has the tensors {told}, not {wanted}"
                if list(found.versions) != [str(self.staged.version)]:
                    yield f"{name} has versions {', '.join(found.versions)}"

    def _other_labels(self, reference: Reference) -> Iterator[str]:
        contract = self.staged.contract
        wanted = dict(enumerate(contract.labels or [""] * contract.classes))
        told = self.names_of_classes(reference)
        for index, name in wanted.items():
            if told.get(index) != name:
                yield f"class {index} is called {told.get(index)!r}, not {name!r}"
                return

    def _infer(
        self,
        model: str,
        inputs: list[tuple[TensorSpec, NDArray[Any]]],
        reference: Reference,
        class_count: int = 0,
    ) -> NDArray[Any]:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        name = self.staged.tensors.scores.name
        sent = []
        for spec, values in inputs:
            sent.append(InferInput(spec.name, values.shape, spec.dtype))
            sent[-1].set_data_from_numpy(values)
        try:
            with self._client() as client:
                outputs = [InferRequestedOutput(name, class_count=class_count)]
                result = client.infer(model, sent, outputs=outputs, client_timeout=_TIMEOUT_S)
        except InferenceServerException as exc:
            raise ServeError(
                f"the staged model does not answer for {reference.video.name}: {exc.message()}",
                hint="nothing was published; --proof graph leaves the server out",
            ) from exc
        answer: NDArray[Any] = result.as_numpy(name)
        return answer

    @contextmanager
    def _client(self) -> Iterator[Any]:
        from tritonclient.grpc import InferenceServerClient

        with InferenceServerClient(self.url, channel_args=_CHANNEL_ARGS) as client:
            yield client


def _described(spec: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    return spec.name, spec.dtype, spec.shape(-1)
