"""Calls a model that action-export published: a video goes in, class scores come out.

    from action_client import VideoClient

    with VideoClient("localhost:8001", "NAME") as client:
        for prediction in client.classify("clip.mp4", top_k=5).top:
            ...  # prediction.label, prediction.score

The client reads from the server how the model samples a video, decodes only what that needs, and
sends each sampled frame once. `AsyncVideoClient` is the same for asyncio; `plan` is for services
that decode by their own means.
"""

from action_runtime.limits import Limits
from action_runtime.sampling import Plan
from action_runtime.spec import Contract

from ._async_client import AsyncVideoClient
from ._client import VideoClient, published_models
from ._errors import (
    ActionClientError,
    ClientClosedError,
    DeadlineError,
    DependencyError,
    InvalidRequestError,
    ModelNotFoundError,
    NotPublishedError,
    PerfAnalyzerError,
    ServerError,
    ServerUnavailableError,
    VideoError,
    VideoLimitError,
)
from ._request import plan
from ._types import Classification, Prediction, Timings

__all__ = [
    "ActionClientError",
    "AsyncVideoClient",
    "Classification",
    "ClientClosedError",
    "Contract",
    "DeadlineError",
    "DependencyError",
    "InvalidRequestError",
    "Limits",
    "ModelNotFoundError",
    "NotPublishedError",
    "PerfAnalyzerError",
    "Plan",
    "Prediction",
    "ServerError",
    "ServerUnavailableError",
    "Timings",
    "VideoClient",
    "VideoError",
    "VideoLimitError",
    "plan",
    "published_models",
]
