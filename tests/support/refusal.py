"""A refusal that a test expects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from action_export.errors import ActionExportError


def refusal(kind: type[ActionExportError], act: Callable[[], object]) -> ActionExportError:
    """The error that `act` raises. Whatever it is, it says what and how to go on, in two lines."""
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value
