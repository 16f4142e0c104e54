"""The published files, loaded in-process the way the stub of Triton's Python backend loads them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from action_export import repository
from action_export.types import Tensors
from action_runtime import jpeg, wire
from action_runtime.spec import (
    PARAMETER,
    Contract,
    ContractError,
    Crop,
    FixedResize,
    Interpolation,
    Jpeg,
    KeepRatioResize,
    SampleFrames,
)
from action_runtime.transforms import make_clips
from numpy.typing import NDArray
from support.videos import decode, real_videos

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=2, num_clips=2),
    resize=KeepRatioResize(short=64),
    crop=Crop(kind="three", width=64, height=64),
    classes=3,
    average="prob",
)
LOSSY = replace(CONTRACT, wire=Jpeg(quality=90))
FRAME_INDEX = np.array([0, 2, 2, 1], np.int32)


class Tensor:
    """What the stub's C++ adds to triton_python_backend_utils; NumPy in, NumPy out."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array
        self.declared: list[int] | None = None

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array

    def shape(self) -> list[int]:
        return self.declared or list(self._array.shape)

    def to_dlpack(self) -> Tensor:
        return self

    @staticmethod
    def from_dlpack(name: str, capsule: Tensor) -> Tensor:
        return Tensor(name, np.array(capsule._array))


class GarblingTensor(Tensor):
    """Reads as pybind11 2.10 reads an array of NumPy 2: the first value, over and over."""

    @staticmethod
    def from_dlpack(name: str, capsule: Tensor) -> Tensor:
        return Tensor(name, np.full_like(capsule._array, capsule._array.flat[0]))


class TritonError:
    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"

    def __init__(self, message: str, code: str) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._output_tensors, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    def __init__(self, frames: Any, frame_index: Any = FRAME_INDEX, name: str = "frames") -> None:
        self._inputs = [Tensor(name, frames), Tensor("frame_index", frame_index)]

    def inputs(self) -> list[Tensor]:
        return self._inputs


class Log:
    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def log_info(self, message: str) -> None:
        self.infos.append(message)

    def log_warn(self, message: str) -> None:
        self.warnings.append(message)

    def log_error(self, message: str) -> None:
        self.errors.append(message)


@pytest.fixture
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The real Python file of the server, completed by what the stub sets on it."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    name = "triton_python_backend_utils"
    path = Path(spec.origin).parent / "tritonserver/backends/python" / f"{name}.py"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    for value in (Tensor, TritonError, InferenceResponse):
        setattr(module, value.__name__, value)
    module.Logger = Log()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def model_class(
    pb_utils: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type]:
    """TritonPythonModel of the files that are published; the stub imports `1.model` as here."""
    tensors = Tensors.of(CONTRACT, max_batch_size=1)
    names = repository.check_name("example")
    plan = repository.plan(tmp_path / "none", names, contract=CONTRACT, tensors=tensors)
    repository.write(plan, tmp_path)
    monkeypatch.syspath_prepend(tmp_path / names.preprocess)
    before = set(sys.modules)
    yield importlib.import_module("1.model").TritonPythonModel
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "1":
            del sys.modules[name]


@pytest.fixture(autouse=True)
def opencv_threads() -> Iterator[None]:
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


Load = Callable[..., Any]


@pytest.fixture
def load(model_class: type) -> Load:
    def load(contract: Contract = CONTRACT, **config: Any) -> Any:
        parameters = {PARAMETER: {"string_value": contract.to_json()}}
        model = model_class()
        model_config = json.dumps({"parameters": parameters} | config)
        model.initialize({"model_name": "example_preprocess", "model_config": model_config})
        return model

    return load


def _frames(video: int = 0) -> NDArray[np.uint8]:
    return decode(real_videos()[video], 3)


def test_the_published_copy_is_what_runs(model_class: type, tmp_path: Path) -> None:
    module = sys.modules[model_class.__module__]
    assert module.__name__ == "1.action_runtime.backend"
    assert module.__file__ is not None
    assert tmp_path in Path(module.__file__).parents
    used = [sys.modules[f"1.action_runtime.{name}"] for name in ("spec", "transforms")]
    assert all(tmp_path in Path(str(module.__file__)).parents for module in used)


def test_frames_become_clips(load: Load) -> None:
    model = load()
    [response] = model.execute([InferenceRequest(_frames())])
    assert response.error() is None
    [tensor] = response.output_tensors()
    assert tensor.name() == "clips"
    assert tensor.as_numpy().shape == (1, *CONTRACT.clips_shape)
    np.testing.assert_array_equal(tensor.as_numpy(), make_clips(_frames(), FRAME_INDEX, CONTRACT))
    model.finalize()


def test_one_request_after_the_other_goes_into_the_same_memory(load: Load) -> None:
    """The stub has copied a response before it comes with the next request."""
    model = load()
    memory = []
    for video in (0, 1):
        [response] = model.execute([InferenceRequest(_frames(video))])
        clips = response.output_tensors()[0].as_numpy()
        expected = make_clips(_frames(video), FRAME_INDEX, CONTRACT)
        np.testing.assert_array_equal(clips, expected)
        memory.append(clips)
    assert np.shares_memory(*memory)


def test_requests_of_one_execution_do_not_share_memory(load: Load) -> None:
    responses = load().execute([InferenceRequest(_frames(video)) for video in (0, 1)])
    clips = [response.output_tensors()[0].as_numpy() for response in responses]
    assert not np.shares_memory(*clips)


def test_bad_requests_leave_the_others_of_their_execution_alone(
    load: Load, pb_utils: ModuleType
) -> None:
    frames = _frames()
    requests = [
        InferenceRequest(frames),
        InferenceRequest(frames, FRAME_INDEX + 1),
        InferenceRequest(frames, FRAME_INDEX[:3]),
        InferenceRequest(frames[0]),
        InferenceRequest(frames[:0]),
        InferenceRequest(None),  # stands for a bug
        InferenceRequest(_frames(1)),
    ]
    responses = load().execute(requests)
    first, *refused, broken, last = responses
    for response, video in ((first, 0), (last, 1)):
        assert response.error() is None
        expected = make_clips(_frames(video), FRAME_INDEX, CONTRACT)
        np.testing.assert_array_equal(response.output_tensors()[0].as_numpy(), expected)

    assert [response.error().code() for response in refused] == ["INVALID_ARG"] * 4
    assert [response.error().message() for response in refused] == [
        "frame_index[1] is 3; with 3 frames each value must be from 0 to 2",
        "frame_index must have one value for each of the 4 sampled positions; got shape [3]",
        "frames must be of rank 4, [F, H, W, C]; got shape [720, 1280, 3]",
        "frames must have at least one frame and pixel; got shape [0, 720, 1280, 3]",
    ]
    assert broken.error().code() == "INTERNAL"
    assert broken.error().message().startswith("AttributeError: 'NoneType' object has no")
    assert "Traceback" in pb_utils.Logger.errors[0]
    assert len(pb_utils.Logger.errors) == 1
    assert not any(response.output_tensors() for response in (*refused, broken))


def test_an_array_without_the_shape_of_its_tensor_is_no_request(
    load: Load, pb_utils: ModuleType
) -> None:
    """In place of a shape that no array can have, the stub makes an empty array."""
    request = InferenceRequest(np.zeros((0, 0, 0, 0), np.uint8))
    request.inputs()[0].declared = [8, 2**32, 2**32, 3]
    [response] = load().execute([request])
    assert response.error().code() == "INVALID_ARG"
    assert response.error().message() == (
        "no array can have the shape of frames: [8, 4294967296, 4294967296, 3]"
    )
    assert pb_utils.Logger.errors == []


def test_a_stub_that_impossible_shapes_would_end_is_told_of(
    load: Load, pb_utils: ModuleType
) -> None:
    load()  # no stub is here whose arrays could be made by other means
    assert pb_utils.Logger.warnings == [
        "a request that declares an impossible shape ends this process"
    ]


def test_jpeg_is_decoded_and_a_bad_file_is_named(load: Load, pb_utils: ModuleType) -> None:
    small = wire.shrink(_frames(), LOSSY.resize)
    files = jpeg.encode(small, Jpeg(quality=90))
    bad = files.copy()
    bad[2] = b"\xff\xd8 and nothing"
    requests = [InferenceRequest(sent, name="frames_jpeg") for sent in (files, bad)]
    answered, refused = load(LOSSY).execute(requests)
    expected = make_clips(jpeg.decode(files, LOSSY), FRAME_INDEX, CONTRACT)
    np.testing.assert_array_equal(answered.output_tensors()[0].as_numpy(), expected)
    assert refused.error().code() == "INVALID_ARG"
    assert refused.error().message().startswith("frames_jpeg[2] is cut short")
    assert pb_utils.Logger.errors == []


def test_without_opencv_a_model_of_jpeg_fails_its_load(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeError, match=r"as JPEG.*pip install opencv-python-headless"):
        load(LOSSY)


def test_the_load_fails_where_the_server_garbles_tensors(
    load: Load, pb_utils: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pb_utils, "Tensor", GarblingTensor)
    with pytest.raises(RuntimeError, match=r'NumPy .* does not work .* install "numpy<2"'):
        load()


def test_the_load_fails_without_a_contract(load: Load) -> None:
    with pytest.raises(ValueError, match=f"no parameter '{PARAMETER}'") as caught:
        load(parameters={})
    assert type(caught.value).__name__ == ContractError.__name__


@pytest.mark.parametrize(
    ("interpolation", "fails"), [("bilinear", False), ("nearest", False), ("bicubic", True)]
)
def test_without_opencv_the_load_fails_only_where_numpy_cannot_resize(
    load: Load,
    pb_utils: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    interpolation: Interpolation,
    fails: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    resize = FixedResize(width=64, height=64, interpolation=interpolation)
    contract = Contract(
        sampler=CONTRACT.sampler, resize=resize, crop=None, classes=3, average="prob"
    )
    if fails:
        with pytest.raises(RuntimeError, match="bicubic resizing needs OpenCV"):
            load(contract)
    else:
        [response] = load(contract).execute([InferenceRequest(_frames())])
        assert response.error() is None
        assert pb_utils.Logger.infos == ["example_preprocess resizes frames with numpy"]


def test_opencv_gets_one_thread(load: Load, pb_utils: ModuleType) -> None:
    cv2.setNumThreads(2)
    load()
    assert cv2.getNumThreads() == 1
    assert pb_utils.Logger.infos == ["example_preprocess resizes frames with cv2"]
