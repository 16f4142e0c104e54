"""The arguments of one transform, of which none is left unread."""

from __future__ import annotations

from typing import Any, TypeVar

from action_export.errors import UnsupportedError

T = TypeVar("T")


class Arguments:
    """The arguments of one transform; what nobody asked for is refused at the end."""

    def __init__(self, where: str, key: str, values: dict[str, Any]) -> None:
        self._where = where
        self._key = key
        self._values = values

    def require(self, key: str) -> None:
        if key not in self._values:
            raise self.refuse(f"lacks {key}")

    def take(self, key: str, *default: Any) -> Any:
        if not default:
            self.require(key)
        return self._values.pop(key, *default)

    def integer(self, key: str, *default: int) -> int:
        value = self.take(key, *default)
        if not isinstance(value, int) or value < 1:
            raise self.refuse(f"has {key}={value!r}; a positive whole number is served")
        return value

    def choice(self, key: str, choices: tuple[T, ...]) -> T:
        """One of `choices`, the first of which is mmaction2's default."""
        value = self._values.pop(key, choices[0])
        for choice in choices:
            if value == choice:
                return choice
        raise self.refuse(f"has {key}={value!r}; served are {', '.join(map(repr, choices))}")

    def expect(self, key: str, value: Any, *, default: Any = None) -> None:
        """Refuses another value. `default` is mmaction2's, where that is not `value`."""
        have = self._values.pop(key, value if default is None else default)
        if have != value:
            raise self.refuse(f"has {key}={have!r}; served is {key}={value!r}")

    def ignore(self, *keys: str) -> None:
        """Arguments that change no index and no pixel."""
        for key in keys:
            self._values.pop(key, None)

    def ignore_all(self) -> None:
        """Of a transform whose other arguments change no index and no pixel."""
        self._values.clear()

    def finish(self) -> None:
        if self._values:
            unread = ", ".join(f"{key}={value!r}" for key, value in self._values.items())
            raise self.refuse(f"has {unread}, which has no serving equivalent")

    def refuse(self, fact: str, hint: str = "") -> UnsupportedError:
        return UnsupportedError(
            f"{self._where} {fact}",
            hint=hint
            or f"edit the config, or --cfg-options {self._key}.ARGUMENT=VALUE; "
            "docs/preprocessing.md lists what is served",
        )
