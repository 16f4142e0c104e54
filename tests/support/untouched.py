"""mmaction2's own functions, while families that replace them are applied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from action_export.mmaction_compat import import_mmaction


@contextmanager
def mmaction_untouched() -> Iterator[None]:
    """Puts back, at its end, what TIN and Swin replace for the whole process.

    Fails where they are replaced already: what is compared with mmaction2 would be compared with
    itself.
    """
    import_mmaction()
    from mmaction.models.backbones import resnet_tin, swin

    with pytest.MonkeyPatch.context() as monkeypatch:
        for module, name in ((resnet_tin, "linear_sampler"), (swin, "compute_mask")):
            own = getattr(module, name)
            while hasattr(own, "__wrapped__"):  # Swin's is cached
                own = own.__wrapped__
            assert own.__module__ == module.__name__, f"{name} is not mmaction2's"
            monkeypatch.setattr(module, name, getattr(module, name))
        yield
