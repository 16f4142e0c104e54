"""mmdeploy as a contender; this file runs in the environment that mmdeploy.md describes.

    PYTHON benchmarks/mmdeploy_contender.py JSON_ARGS

It prints `{"ready": true, "made": "converter", "versions": {...}}`, and then for each path of a
video on its standard input `{"seconds": s, "top1": i, "scores": [...], "crashes": n}`, or
`{"error": "..."}`. JSON_ARGS has the fields of `Arguments`.

The converter and the model have processes of their own: the SDK crashes now and then, and must not
carry torch's memory. A crashed one is replaced and asked again; `crashes` counts them since the
start, and `seconds` is the call that was answered. Wrong scores are handed on as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

Reply = dict[str, Any]
Recognize = Callable[[str], list[float]]

_PACKAGES = ("mmdeploy", "mmdeploy-runtime", "mmaction2", "torch", "onnxruntime", "opencv-python")
_TRIES = 5
# mmdeploy's wheel has no configs: this is video-recognition_onnxruntime_static.py, bases included.
_DEPLOY: dict[str, Any] = {
    "onnx_config": {
        "type": "onnx",
        "export_params": True,
        "keep_initializers_as_inputs": False,
        "opset_version": 11,
        "save_file": "end2end.onnx",
        "input_names": ["input"],
        "output_names": ["output"],
        "input_shape": None,
        "optimize": True,
    },
    "codebase_config": {"type": "mmaction", "task": "VideoRecognition"},
    "backend_config": {"type": "onnxruntime"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """config: a name of mmaction2's zoo, or a path. folder: where the converted model is kept.

    runtime: "sdk" is the C++ VideoRecognizer, "python" the model that mmdeploy's own tools run.
    """

    config: str
    checkpoint: str
    folder: str
    threads: int = 2
    views: str = "one"
    runtime: str = "sdk"

    @classmethod
    def parse(cls, text: str) -> Arguments:
        """Raises ValueError for what is not there or not known."""
        given = json.loads(text)
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{', '.join(unknown)}: not known, only {', '.join(known)}")
        if missing := sorted({"config", "checkpoint", "folder"} - set(given)):
            raise ValueError(f"{', '.join(missing)}: missing")
        arguments = cls(**given)
        if arguments.views != "one":
            raise ValueError(f"views is {arguments.views!r}, and only 'one' is possible")
        if arguments.runtime not in _RECOGNIZERS:
            raise ValueError(f"runtime is {arguments.runtime!r}, not 'sdk' or 'python'")
        return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """interval: from one frame of a clip to the next."""

    length: int
    interval: int
    count: int


def one_view(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test pipeline with one clip (for a 2D model all its segments) and the centre crop."""
    return [_one_view(transform) for transform in pipeline]


def _one_view(transform: dict[str, Any]) -> dict[str, Any]:
    match transform["type"]:
        case "SampleFrames" if transform["clip_len"] > 1:
            return {**transform, "num_clips": 1}
        case "ThreeCrop" | "TenCrop":
            return {**transform, "type": "CenterCrop"}
        case _:
            return transform


def clips_of(pipeline: list[dict[str, Any]]) -> Clips:
    """Raises ValueError where the pipeline samples otherwise than mmdeploy's demo."""
    for transform in pipeline:
        if transform["type"] == "SampleFrames":
            return Clips(
                length=transform["clip_len"],
                interval=transform.get("frame_interval", 1),
                count=transform.get("num_clips", 1),
            )
    raise ValueError("the test pipeline has no SampleFrames")


def sampled(total: int, clips: Clips) -> list[int]:
    """Frame numbers [count * length] as in demo/python/video_recognition.py of mmdeploy.

    They are mmaction2's for 2D models, and for one clip of an interval of 2 in a longer video.
    """
    span = clips.length * clips.interval
    stride = (total - span + 1) / clips.count
    starts = [int(clip * stride + stride / 2) for clip in range(clips.count)]
    if total < span:
        return [step % total for _ in starts for step in range(clips.length)]
    steps = range(0, span, clips.interval)
    return [(start + step) % total for start in starts for step in steps]


class Worker:
    """A child process that answers lines, and is replaced when it crashes."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.crashes = 0
        self._child = self._start()

    def ask(self, line: str) -> Reply:
        for _ in range(_TRIES):
            reply = self._try(line)
            if reply is not None:
                return {**reply, "crashes": self.crashes}
            self.crashes += 1
            how = self._child.wait()
            self._child = self._start()
            # the first call of a process takes longer; that of others falls into the warm-up
            self._try(line)
        return {"error": f"crashed {_TRIES} times, at last with {how}", "crashes": self.crashes}

    def stop(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _start(self) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        if not child.stdout.readline():  # its word that it is ready
            raise RuntimeError(f"the model does not load: exit code {child.wait()}")
        return child

    def _try(self, line: str) -> Reply | None:
        """None: the child is gone."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return None
        # what is left of a line that a crash cut off has no end
        answer = self._child.stdout.readline()
        return json.loads(answer) if answer.endswith("\n") else None


def contend(arguments: Arguments, text: str) -> None:
    out = _own_stdout()
    if not _is_converted(arguments):
        subprocess.run([sys.executable, __file__, "convert", text], check=True)
    worker = Worker([sys.executable, __file__, "serve", text])
    _print(out, {"ready": True, "made": "converter", "versions": versions()})
    for line in sys.stdin:
        _print(out, worker.ask(line.strip()))
    worker.stop()


def serve(arguments: Arguments) -> None:
    """Answers each video that standard input names, until its end."""
    # Neither the SDK nor mmdeploy's wrapper of ONNX Runtime can be told how many threads to use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    out = _own_stdout()
    recognize = _RECOGNIZERS[arguments.runtime](arguments)
    _print(out, {"ready": True})
    for line in sys.stdin:
        _print(out, _answer(recognize, line.strip()))


def _answer(recognize: Recognize, video: str) -> Reply:
    started = time.perf_counter()
    try:
        scores = recognize(video)
    except Exception as exc:  # an answer, too: whoever asks decides what a failure means
        return {"error": f"{type(exc).__name__}: {exc}"}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "top1": scores.index(max(scores)), "scores": scores}


def convert(arguments: Arguments) -> None:
    """What `tools/deploy.py --dump-info` does, but for its pictures of the results."""
    from functools import partial

    import torch

    _import_mmaction()
    # mmdeploy 1.3.1 is of 2023: it needs the exporter that is no longer torch's default.
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    from mmdeploy.apis import torch2onnx
    from mmdeploy.backend.sdk.export_info import export2SDK
    from mmengine import Config

    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(arguments.config)
    video = _sample_video(folder / "sample.avi")
    # each call gets configs of its own, because they change them
    args = (Config(_DEPLOY), config, arguments.checkpoint, "cpu")
    torch2onnx(str(video), str(folder), "end2end.onnx", *args)
    export2SDK(Config(_DEPLOY), _config(arguments.config), str(folder), *args[2:])
    video.unlink()
    _ask_for_all_scores(folder / "pipeline.json", config.model.cls_head.num_classes)
    (folder / "clips.json").write_text(json.dumps(asdict(clips_of(config.test_pipeline))))
    _stamp(arguments).write_text(_wanted(arguments))


def _ask_for_all_scores(pipeline: Path, classes: int) -> None:
    """The converter writes `topk` 1, and has no option for it."""
    value = json.loads(pipeline.read_text())
    value["pipeline"]["tasks"][-1]["params"]["topk"] = classes
    pipeline.write_text(json.dumps(value, indent=4))


def _sdk(arguments: Arguments) -> Recognize:
    import cv2
    from mmdeploy_runtime import VideoRecognizer

    cv2.setNumThreads(arguments.threads)
    recognizer = VideoRecognizer(arguments.folder, "cpu", 0)
    clips = Clips(**json.loads((Path(arguments.folder) / "clips.json").read_text()))

    def recognize(video: str) -> list[float]:
        frames = _frames(cv2, video, clips)
        found = dict(recognizer(frames, (clips.length, clips.count)))
        return [float(found[label]) for label in range(len(found))]

    return recognize


def _frames(cv2: ModuleType, video: str, clips: Clips) -> list[Any]:
    """The sampled frames in BGR, read in order; those between are not converted, unlike the demo's.

    Raises OSError where the video cannot be read.
    """
    capture = cv2.VideoCapture(video)
    if not capture.isOpened():
        raise OSError(f"{video} cannot be opened")
    numbers = sampled(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), clips)
    wanted = set(numbers)
    frames = {}
    for number in range(max(numbers) + 1):
        if not capture.grab():
            raise OSError(f"{video} ends before frame {number}")
        if number in wanted:
            frames[number] = capture.retrieve()[1]
    return [frames[number] for number in numbers]


def _python(arguments: Arguments) -> Recognize:
    import torch

    torch.set_num_threads(arguments.threads)
    _import_mmaction()
    from mmdeploy.apis.utils import build_task_processor
    from mmengine import Config

    config = _config(arguments.config)
    task = build_task_processor(config, Config(_DEPLOY), "cpu")
    # mmdeploy's inference_model passes one argument more than this task takes
    model = task.build_backend_model([str(Path(arguments.folder) / "end2end.onnx")])

    def recognize(video: str) -> list[float]:
        data, _ = task.create_input(video, None)
        with torch.no_grad():
            scores: list[float] = model.test_step(data)[0].pred_scores.item.tolist()
        return scores

    return recognize


_RECOGNIZERS: Mapping[str, Callable[[Arguments], Recognize]] = {"sdk": _sdk, "python": _python}


def _config(name: str) -> Any:
    """The config of that path or name, with one view."""
    from mmengine import Config

    path = Path(name)
    if not path.is_file():
        zoo = Path(_import_mmaction().__file__ or "").parent / ".mim" / "configs" / "recognition"
        path = next(zoo.rglob(f"{path.stem if path.suffix == '.py' else name}.py"))
    config = Config.fromfile(str(path))
    config.test_pipeline = one_view([dict(transform) for transform in config.test_pipeline])
    return config


def _import_mmaction() -> ModuleType:
    """Its wheel of 1.2.0 lacks a folder that no recognizer uses."""
    missing = "mmaction.models.localizers.drn"
    for name in (missing, f"{missing}.drn"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules[f"{missing}.drn"].DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    import mmaction

    module: ModuleType = mmaction
    return module


def _sample_video(path: Path) -> Path:
    """Noise of 90 frames: the converter runs the test pipeline for the shape that it traces."""
    import cv2
    import numpy as np

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (340, 256))
    noise = np.random.default_rng(0)
    for _ in range(90):
        writer.write(noise.integers(0, 256, (256, 340, 3), dtype=np.uint8))
    writer.release()
    return path


def _is_converted(arguments: Arguments) -> bool:
    stamp = _stamp(arguments)
    return stamp.is_file() and stamp.read_text() == _wanted(arguments)


def _stamp(arguments: Arguments) -> Path:
    return Path(arguments.folder) / "converted-from.json"


def _wanted(arguments: Arguments) -> str:
    file = Path(arguments.checkpoint).stat()
    wanted = (arguments.config, arguments.checkpoint, file.st_size, file.st_mtime_ns)
    return json.dumps([*wanted, arguments.views, versions()])


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _own_stdout() -> TextIO:
    """Standard output for the protocol alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _print(out: TextIO, reply: Reply) -> None:
    out.write(json.dumps(reply) + "\n")
    out.flush()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["convert", text]:
            convert(Arguments.parse(text))
        case ["serve", text]:
            serve(Arguments.parse(text))
        case [text]:
            contend(Arguments.parse(text), text)
        case _:
            sys.exit("usage: mmdeploy_contender.py JSON_ARGS")
