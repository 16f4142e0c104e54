"""Patches that several families share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def all_views_at_once(model: torch.nn.Module) -> None:
    """Drops `max_testing_views`: mmaction2 then loops over views and asserts a batch of one.

    The loop saves memory on a GPU; views are independent, so the numbers stay the same.
    """
    recognizer: Any = model
    if recognizer.test_cfg is not None:
        recognizer.test_cfg = {
            key: value for key, value in recognizer.test_cfg.items() if key != "max_testing_views"
        }


def contiguous_features(model: torch.nn.Module) -> None:
    """Lays out the features of timm's channels-last backbones as mmaction2 pools them.

    mmaction2 permutes them, and of a permuted tensor torch's pooling restates the strides
    (as_strided), which is a loop in a graph.
    """
    recognizer: Any = model
    if getattr(recognizer, "feature_shape", None) != "NHWC":
        return
    features = recognizer.backbone.forward_features
    recognizer.backbone.forward_features = lambda images: (
        features(images).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    )


def rebind(module: torch.nn.Module, **functions: Callable[..., Any]) -> None:
    """Lets this module's forward call these instead of the functions of their names in its file.

    Other modules of the process keep mmaction2's own.
    """
    rebound: Any = module
    forward = type(rebound).forward
    known = {**forward.__globals__, **functions}
    bound = FunctionType(
        forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__
    )
    rebound.forward = MethodType(bound, module)


def deploy_form(model: torch.nn.Module) -> None:
    """Fuses the training branches of reparameterised blocks into the one convolution they equal.

    MobileOne (Vasu et al., 2023) and its kin bring the method with them.
    """
    for module in list(model.modules()):
        fuse = getattr(module, "switch_to_deploy", None)
        if fuse is None or getattr(module, "deploy", False):
            continue
        # MobileOne fuses no norm but BatchNorm, and asserts that: others are exported as they are
        with suppress(AssertionError):
            fuse()
