"""The tree in the docstring is the tree of classes."""

from __future__ import annotations

import re

from action_client import ActionClientError, _errors


def kinds(root: type[ActionClientError] = ActionClientError) -> list[type[ActionClientError]]:
    return [kind for each in root.__subclasses__() for kind in (each, *kinds(each))]


def test_every_error_is_in_the_docstring_with_its_exit_code() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d+)", _errors.__doc__ or ""))
    classes = {cls.__name__: str(cls.exit_code) for cls in kinds()}
    assert drawn == classes


def test_exit_codes_are_distinct_and_apart_from_the_exporters() -> None:
    codes = [cls.exit_code for cls in kinds()]
    assert len(set(codes)) == len(codes)
    assert min(codes) >= 20


def test_the_text_has_the_fact_and_the_next_step() -> None:
    assert str(ActionClientError("it broke", hint="mend it")) == "it broke\nmend it"
    assert str(ActionClientError("it broke")) == "it broke"
