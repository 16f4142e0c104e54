"""The preprocess model: Triton's Python backend around `make_clips`.

NumPy 2. The Python backend of Triton 24.10 is built with pybind11 2.10, which reads NumPy 2's array
header as NumPy 1's: every input repeats its first value, in the right shape and dtype, and every
output arrives empty, with no error (seen with NumPy 2.2.6; the notes of 24.10 and 24.11 list it as
a known issue). triton-inference-server/python_backend#384 moved on to pybind11 2.12. So no version
is refused: when the model is loaded, a tensor goes through the server's own types, and the load
fails if it comes back changed.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from . import impossible_shapes, jpeg
from .spec import PARAMETER, Contract, ContractError
from .transforms import BadRequestError, Frames, make_clips, pixel_library


class TritonPythonModel:
    """Inputs `frames` UINT8 [F, H, W, C] and `frame_index` INT32 [positions]; output `clips`.

    Where the contract has a `wire`, `frames_jpeg` BYTES [F] takes the place of `frames`.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads the contract, and fails the load where no request could be answered rightly.

        Raises:
            ContractError: the model's configuration holds no contract that this code can read.
            OpenCVMissingError: the contract's interpolation or wire needs OpenCV, which is not
                installed.
            RuntimeError: this NumPy does not work with this server.
        """
        if not impossible_shapes.survive(_check_tensors_pass_unchanged):
            pb_utils.Logger.log_warn(
                "a request that declares an impossible shape ends this process"
            )
        self._contract = _read_contract(args["model_config"])
        if self._contract.wire is not None:
            jpeg.require_codec()
        library = pixel_library(self._contract.resize)
        if library == "cv2":
            _use_one_thread()
        # Kept, because the first writes to fresh memory take longer than the copy itself. No two
        # requests are in it at once: the stub copies a response into shared memory before it takes
        # more requests (python_backend, src/pb_stub.cc, ProcessRequests).
        self._clips = np.empty((1, *self._contract.clips_shape), np.uint8)
        pb_utils.Logger.log_info(f"{args['model_name']} resizes frames with {library}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; an error of one does not touch the others."""
        if len(requests) == 1:
            return [self._answer(requests[0], self._clips)]
        return [self._answer(request, None) for request in requests]

    def finalize(self) -> None:
        del self._clips

    def _answer(self, request: Any, out: Frames | None) -> Any:
        try:
            frames = self._frames(request)
            frame_index = pb_utils.get_input_tensor_by_name(request, "frame_index").as_numpy()
            clips = make_clips(frames, frame_index, self._contract, out=out)
        except BadRequestError as exc:
            return _error(str(exc), pb_utils.TritonError.INVALID_ARG)
        # A bug must cost its own request only; the server's log has the traceback.
        except Exception as exc:
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"{type(exc).__name__}: {exc}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("clips", clips)])

    def _frames(self, request: Any) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, self._contract.frames_tensor)
        sent = tensor.as_numpy()
        if sent.size == 0 and (declared := list(tensor.shape())) != list(sent.shape):
            raise BadRequestError(f"no array can have the shape of {tensor.name()}: {declared}")
        return sent if self._contract.wire is None else jpeg.decode(sent, self._contract)


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))


def _read_contract(model_config: str) -> Contract:
    parameter = json.loads(model_config).get("parameters", {}).get(PARAMETER)
    if parameter is None:
        raise ContractError(f"the configuration of the model has no parameter {PARAMETER!r}")
    return Contract.from_json(parameter["string_value"])


def _check_tensors_pass_unchanged() -> None:
    sent = np.arange(1, 9, dtype=np.int32)
    tensor = pb_utils.Tensor("probe", sent)
    received = pb_utils.Tensor.from_dlpack("probe", tensor.to_dlpack()).as_numpy()
    if not np.array_equal(sent, received):
        raise RuntimeError(
            f"NumPy {np.__version__} does not work with this server's Python backend, which would "
            'garble every request: install "numpy<2", or use Triton 24.12 or later'
        )


def _use_one_thread() -> None:
    # Triton runs the instances of a model side by side, and the recognizer beside them. A second
    # thread resized 32 frames of 1280x720 in 8.4 ms instead of 11.6, and 320x240 no faster.
    import cv2

    cv2.setNumThreads(1)
