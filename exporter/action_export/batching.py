"""How many videos share one execution of the recognizer, where the user does not say.

Batching pays where a video has few views, and every video of a batch adds its activations. What
they take depends on the network: a view takes 654 MiB in swin-tiny and 144 in SlowFast-R50. So
they are measured while mmaction2 runs a video, which it does for the proof in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST_VIDEOS = 8
_MOST_VIEWS = 32
_ROOM = 2 * 2**30
"""Bytes that the activations of a batch may take, as torch holds them."""

NOT_MEASURED = (
    "an export measures the activations of the model first, and may take fewer videos in one "
    "execution: --max-batch-size says how many"
)


class Activations:
    """peak: bytes of the tensors that were made, and held, at one time."""

    def __init__(self) -> None:
        self.peak = 0
        self._held = 0

    def made(self, size: int) -> None:
        self._held += size
        self.peak = max(self.peak, self._held)

    def freed(self, size: int) -> None:
        self._held -= size


@contextmanager
def measured() -> Iterator[Activations]:
    """Counts what torch computes within the block: memory that was there before is not counted."""
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode

    found = Activations()
    known: dict[int, Any] = {}

    def watch(storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: Any) -> None:
            del known[key]
            found.freed(size)

        if key not in known:
            known[key] = weakref.ref(storage, forget)
            found.made(size)

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            # what is computed in place, or is a view, has the memory of an argument
            given = {storage._cdata for storage in _storages((args, kwargs))}
            for storage in _storages(result):
                if storage._cdata not in given:
                    watch(storage)
            return result

    with Watching():  # type: ignore[no-untyped-call]
        yield found


def _storages(values: Any) -> Iterator[Any]:
    """The memory of each tensor in nested lists, tuples and dicts."""
    import torch
    from torch.utils._pytree import tree_leaves

    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()


def most_videos(views: int) -> int:
    """Of one execution, by the views of a video alone: with many of them a batch gains nothing."""
    return max(1, min(_MOST_VIDEOS, _MOST_VIEWS // views))


def videos(views: int, activations: int) -> int:
    """Of one execution. activations: what one video takes, in bytes."""
    return max(1, min(most_videos(views), _ROOM // max(1, activations)))


def note(batch: int, views: int, activations: int) -> tuple[str, ...]:
    """Where fewer videos than usual share an execution."""
    if batch == most_videos(views):
        return ()
    share = f"at most {batch} videos share an execution" if batch > 1 else "videos go one by one"
    return (
        f"{share}, because the activations of one take "
        f"{activations / 2**20:.0f} MiB; --max-batch-size sets another number",
    )
