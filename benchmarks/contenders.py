"""Those that are measured, one class each; `contender.py` runs one of them in its process."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from action_runtime.spec import PARAMETER, Contract
from numpy.typing import NDArray

from benchmarks import exporting
from benchmarks.by_hand.client import ByHand
from benchmarks.contender import Answer, Ask, Make
from benchmarks.models import SERVED
from benchmarks.server_statistics import ServerStatistics

TIMEOUT_S = 600.0
NOTHING = np.zeros(0, np.float32)


class Runtime:
    """The recognizer alone, on clips that are ready: the limit for whoever serves this graph.

    It is run by the very class that the embedded server runs, with the settings of the published
    config.pbtxt.
    """

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        repo = Path(arguments["repo"])
        self._contract = published_contract(repo)
        config = model_config(repo, f"{SERVED}_recognizer")
        module = _backend(config["backend"])
        self._model = module.TritonPythonModel()
        self._model.initialize(
            {
                "model_config": _json(config),
                "model_name": f"{SERVED}_recognizer",
                "model_repository": str(repo / f"{SERVED}_recognizer"),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        # as served: one execution at a time in each of its instances
        count = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
        self._free = threading.Semaphore(count)

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        from action_client._request import sample_file
        from action_runtime.transforms import make_clips

        sampled = sample_file(Path(ask.video), self._contract)
        clips = make_clips(sampled.frames, sampled.frame_index, self._contract)

        def run() -> Answer:
            with self._free:
                return Answer(scores=self._model.run({"clips": clips})["scores"][0])

        return run


class MMAction:
    """mmaction2's `inference_recognizer`, from the file to the scores."""

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        from action_export import preprocess, source
        from action_export.mmaction_compat import import_mmaction, quiet
        from mmengine.dataset import Compose

        from benchmarks.models import Case

        case = Case.named(arguments["case"])
        config = source.load_config(arguments["config"])
        import_mmaction()
        from mmaction.apis import inference_recognizer, init_recognizer

        self._infer = inference_recognizer
        with quiet():
            self._model = init_recognizer(str(config.path), arguments["checkpoint"], device="cpu")
            pipeline = preprocess.derive(config, case.options).pipeline
            self._pipeline = Compose([dict(transform) for transform in pipeline])

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        def run() -> Answer:
            result = self._infer(self._model, ask.video, self._pipeline)
            return Answer(scores=result.pred_score.cpu().numpy())

        return run


class Ours:
    """`VideoClient` against a tritonserver that this process starts.

    how: "file", or "frames": those of the plan, as they come from the decoder.
    """

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        from action_client import VideoClient
        from action_export.serve import serve

        server = stack.enter_context(serve(Path(arguments["repo"])))
        self._client = stack.enter_context(
            VideoClient(server.grpc_url, SERVED, timeout_s=TIMEOUT_S)
        )
        self._statistics = stack.enter_context(ServerStatistics(server.grpc_url, SERVED))

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        if ask.how == "file":
            classify = partial(self._client.classify, ask.video)
        else:
            frames, index = native_frames(ask.video, self._client.contract)
            classify = partial(self._client.classify_sampled, frames, index)

        def run() -> Answer:
            with self._statistics.parts() as parts:
                started = time.perf_counter()
                answer = classify()
                seconds = time.perf_counter() - started
            parts |= {
                field.name.removesuffix("_ms"): getattr(answer.timings, field.name) / 1e3
                for field in fields(answer.timings)
                if field.name.endswith("_ms")
            }
            parts["network"] = parts["exchange"] - parts.pop("ensemble", parts["exchange"])
            sent = answer.timings.wire_bytes
            return Answer(scores=answer.scores, parts=parts, sent=sent, seconds=seconds)

        # many at once have no parts of their own
        return run if ask.traced else lambda: Answer(scores=classify().scores)


class Preprocess:
    """The preprocess step alone, in a tritonserver, on native frames: its own compute time."""

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        from action_export.serve import serve

        repo = Path(arguments["repo"])
        self._contract = published_contract(repo)
        # without the recognizer, which nothing here needs
        alone = Path(arguments["folder"])
        alone.mkdir(parents=True, exist_ok=True)
        name = f"{SERVED}_preprocess"
        (alone / name).unlink(missing_ok=True)
        (alone / name).symlink_to(repo / name, target_is_directory=True)
        server = stack.enter_context(serve(alone))
        self._statistics = stack.enter_context(ServerStatistics(server.grpc_url, SERVED))

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        from tritonclient.grpc import InferInput

        frames, index = native_frames(ask.video, self._contract)
        inputs = [
            InferInput("frames", frames.shape, "UINT8").set_data_from_numpy(frames),
            InferInput("frame_index", index.shape, "INT32").set_data_from_numpy(index),
        ]

        def run() -> Answer:
            with self._statistics.parts() as parts:
                self._statistics.client.infer(f"{SERVED}_preprocess", inputs)
            return Answer(scores=NOTHING, parts=parts, seconds=parts["preprocess_infer"])

        return run


class OpenCVBound:
    """What OpenCV needs at least for what the preprocess step writes, on one thread.

    Each distinct frame is resized, where it must be, into a buffer that is there, and its crops are
    copied into a buffer that is there, once for each position that shows it.
    """

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._contract = published_contract(Path(arguments["repo"]))

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        import cv2
        from action_runtime.transforms import crop_boxes, target_size

        contract = self._contract
        frames, index = native_frames(ask.video, contract)
        height, width = target_size(frames.shape[1], frames.shape[2], contract.resize)
        boxes = crop_boxes(height, width, contract.crop)
        box_height, box_width = contract.frame_size
        positions = [np.flatnonzero(index == row) for row in range(len(frames))]
        small = np.zeros((height, width, contract.channels), np.uint8)
        shape = (len(boxes), contract.positions, box_height, box_width, contract.channels)
        clips = np.full(shape, 1, np.uint8)  # written once, so that its pages are there
        resizes = frames.shape[1:3] != (height, width)

        def run() -> Answer:
            for frame, shown in zip(frames, positions, strict=True):
                if resizes:
                    cv2.resize(frame, (width, height), dst=small)
                source = small if resizes else frame
                for crops, (top, left, flipped) in zip(clips, boxes, strict=True):
                    window = source[top : top + box_height, left : left + box_width]
                    for position in shown:
                        if flipped:
                            cv2.flip(window, 1, dst=crops[position])
                        else:
                            crops[position] = window
            return Answer(scores=NOTHING)

        return run


class Wire:
    """What our client would send of a video; nothing is sent. contract: a file that holds it."""

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        self._contract = Contract.from_json(Path(arguments["contract"]).read_text("utf-8"))

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        from action_client._request import prepare, sample_file

        sample = partial(sample_file, Path(ask.video))

        def run() -> Answer:
            request = prepare(sample, self._contract, SERVED)
            return Answer(scores=NOTHING, sent=request.wire_bytes)

        return run


class Export:
    """`api.export` with its whole proof, a live server included; in a process that is fresh."""

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        exporting.warm_up(Path(arguments["folder"]))
        self._arguments = arguments

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        return lambda: Answer(scores=NOTHING, parts=exporting.export(self._arguments))


class TorchExport:
    """A bare `torch.onnx.export` of the same network; in a process that is fresh."""

    def __init__(self, arguments: Mapping[str, Any], stack: ExitStack) -> None:
        exporting.warm_up(Path(arguments["folder"]))
        self._run = exporting.bare(arguments)

    def prepare(self, ask: Ask) -> Callable[[], Answer]:
        def run() -> Answer:
            self._run()
            return Answer(scores=NOTHING)

        return run


def native_frames(video: str, contract: Contract) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The distinct frames that the contract samples, as they are decoded, and their index."""
    from action_client._request import plan
    from action_runtime.video import read_frames

    chosen, frames = read_frames(
        Path(video), lambda info: plan(info.total_frames, info.fps, contract)
    )
    return frames, chosen.frame_index


def published_contract(repo: Path) -> Contract:
    parameters = model_config(repo, SERVED)["parameters"]
    return Contract.from_json(parameters[PARAMETER]["string_value"])


def model_config(repo: Path, name: str) -> dict[str, Any]:
    """config.pbtxt as Triton hands it to a Python model: every field, enumerations by name."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    text = (repo / name / "config.pbtxt").read_text("utf-8")
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return {"max_batch_size": 0, **config}


def _json(config: Mapping[str, Any]) -> str:
    import json

    return json.dumps(config)


def _backend(name: str) -> ModuleType:
    """The module that the embedded server runs for models of this backend."""
    import action_export.serve

    path = Path(action_export.serve.__file__).parent / "backends" / name / "model.py"
    # what it takes from the stub it runs in, as far as loading a model needs it
    stub: Any = ModuleType("triton_python_backend_utils")
    stub.TritonModelException = RuntimeError
    stub.Logger = SimpleNamespace(log_info=print, log_warn=print, log_error=print)
    sys.modules["triton_python_backend_utils"] = stub
    spec = importlib.util.spec_from_file_location(f"served_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # backends may import each other's helpers from beside them
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


MAKE: Mapping[str, Make] = {
    "runtime": Runtime,
    "mmaction2": MMAction,
    "ours": Ours,
    "by_hand": ByHand,
    "preprocess": Preprocess,
    "cv2": OpenCVBound,
    "wire": Wire,
    "export": Export,
    "torch_export": TorchExport,
}
