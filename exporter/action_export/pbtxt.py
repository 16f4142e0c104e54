"""config.pbtxt as Triton's protobuf: read, compared, and told which versions it loads and runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LATEST = -1
"""The version of an ensemble's step that runs whichever is the latest that is loaded."""


def parse(text: str) -> Any:
    """The config as protobuf; a field that Triton does not know is an error here already."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read(path: Path) -> Any | None:
    """A config.pbtxt as protobuf; None where the file is missing or is something else."""
    from google.protobuf.text_format import ParseError

    if not path.is_file():
        return None
    try:
        return parse(path.read_text("utf-8"))
    except (ParseError, UnicodeDecodeError):
        return None


def loading(config: Any, versions: Sequence[int]) -> str:
    """The text of this config when it loads these versions and no other."""
    changed = _copy(config)
    changed.version_policy.Clear()
    changed.version_policy.specific.versions.extend(versions)
    return _text(changed)


def pinned(ensemble: Any, version: int) -> str:
    """The text of an ensemble that loads this version, of steps of the same version."""
    changed = _copy(ensemble)
    for step in changed.ensemble_scheduling.step:
        step.model_version = version
    return loading(changed, [version])


def is_pinned(config: Any) -> bool:
    """Whether it names the versions that it loads, so that others may stand beside them."""
    return bool(config.version_policy.HasField("specific"))


def step_versions(ensemble: Any) -> set[int]:
    """What its steps are pinned to; `LATEST` among them where one is not."""
    return {step.model_version for step in ensemble.ensemble_scheduling.step}


def tensors(config: Any) -> tuple[Any, Any]:
    """Inputs and outputs, whether or not the classes have names."""
    bare = _copy(config)
    for output in bare.output:
        output.label_filename = ""
    return list(bare.input), list(bare.output)


def same_settings(one: Any, other: Any, *, apart_from: str) -> bool:
    """Whether a version computes the same under both: versions, labels and one parameter aside."""
    return bool(_settings(one, apart_from) == _settings(other, apart_from))


def _settings(config: Any, parameter: str) -> Any:
    bare = _copy(config)
    bare.version_policy.Clear()
    for output in bare.output:
        output.label_filename = ""
    bare.parameters.pop(parameter, None)
    return bare


def _copy(config: Any) -> Any:
    copy = type(config)()
    copy.CopyFrom(config)
    return copy


def _text(config: Any) -> str:
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config, as_utf8=True)
    return text
