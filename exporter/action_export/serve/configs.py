"""The config.pbtxt files of a repository, as protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def model_configs(repository: Path) -> Iterator[tuple[str, Any]]:
    """(model, its ModelConfig), by name.

    A config.pbtxt that cannot be parsed is left out: Triton says best what is wrong with it.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    for path in sorted(repository.glob("*/config.pbtxt")):
        config = model_config_pb2.ModelConfig()
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), config)
        except (OSError, UnicodeDecodeError, text_format.ParseError):
            continue
        yield path.parent.name, config
