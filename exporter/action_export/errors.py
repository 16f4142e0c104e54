"""Every failure that a user can meet, each kind with its own exit code.

ActionExportError
├── ConfigError            3   the config cannot be read, or is no recognizer
├── CheckpointError        4   the checkpoint cannot be read, or does not fit the config
├── UnsupportedError       5   a transform or model that has no serving equivalent
├── LabelsError            6   the labels do not fit the classes, or the checkpoint's names
├── NameRefusedError       7   a model name that Triton or a file system would refuse
├── TracingError           8   torch could not turn the model into ONNX
├── ParityError            9   the exported graph differs from mmaction2: nothing was published
├── InconclusiveError     10   the comparison could not have told a wrong graph: nothing published
├── RepositoryError       11   the repository cannot be written; it was left as it was
├── ContractChangedError  12   the name is taken by a model with another contract
├── DependencyError       13   an optional package is missing
├── ServeError            14   tritonserver cannot be started, or refuses a model
├── VideoError            15   a video of the proof cannot be read
├── EngineError           16   TensorRT cannot parse or build the graph
└── ModelDiedError        17   the process of a served model has died

2 is argparse's own (a wrong option) and 1 a bug, which prints its traceback.
"""

from __future__ import annotations


class ActionExportError(Exception):
    """A fact with the offending value (`message`), and the next step (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def first_line(exc: BaseException) -> str:
    """What a library's exception says, without the traces and advice that some add below."""
    return str(exc).strip().partition("\n")[0] or type(exc).__name__


class ConfigError(ActionExportError):
    """The config cannot be read, or is no recognizer."""

    exit_code = 3


class CheckpointError(ActionExportError):
    """The checkpoint cannot be read, or its tensors do not fit the config's model."""

    exit_code = 4


class UnsupportedError(ActionExportError):
    """The config asks for a transform or model that has no serving equivalent."""

    exit_code = 5


class LabelsError(ActionExportError):
    """The labels cannot be read, are not one for each class, or differ from the checkpoint's."""

    exit_code = 6


class NameRefusedError(ActionExportError):
    """The model name is one that Triton or a file system would refuse."""

    exit_code = 7


class TracingError(ActionExportError):
    """torch could not turn the model into an ONNX graph."""

    exit_code = 8


class ParityError(ActionExportError):
    """What would be served differs from mmaction2; nothing was published."""

    exit_code = 9


class InconclusiveError(ActionExportError):
    """mmaction2 itself does not tell the test inputs apart; nothing was published."""

    exit_code = 10


class RepositoryError(ActionExportError):
    """The repository cannot be written; it was left as it was."""

    exit_code = 11


class ContractChangedError(ActionExportError):
    """The name is taken by a model whose clients would break."""

    exit_code = 12


class DependencyError(ActionExportError):
    """An optional package is missing, or one that is installed cannot work."""

    exit_code = 13


class ServeError(ActionExportError):
    """tritonserver cannot be started, or refuses a model."""

    exit_code = 14


class VideoError(ActionExportError):
    """A video of the proof cannot be read."""

    exit_code = 15


class EngineError(ActionExportError):
    """TensorRT or OpenVINO cannot read the graph, or build what runs it."""

    exit_code = 16


class ModelDiedError(ActionExportError):
    """The process of a served model has died, and with it the model; the server was stopped."""

    exit_code = 17
