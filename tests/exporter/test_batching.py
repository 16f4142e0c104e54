"""The default of videos in one execution: what a network's activations leave room for."""

from __future__ import annotations

import pytest
import torch
from action_export import batching

MIB = 2**20


def floats(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MIB // 4)


def test_tensors_count_while_they_are_held() -> None:
    with batching.measured() as found:
        first = floats(2)
        second = first + 1
        assert found.peak == 4 * MIB
        del first
        third = second * 2
        assert found.peak == 4 * MIB
        fourth = third * 2
    assert found.peak == 6 * MIB
    assert fourth.sum() == 8 * len(fourth)


def test_views_and_what_is_computed_in_place_take_no_memory() -> None:
    with batching.measured() as found:
        values = floats(1)
        values.add_(1)
        torch.relu_(values.view(2, -1).t())
    assert found.peak == MIB


def test_weights_that_were_there_are_no_activations() -> None:
    weights = floats(4).view(1024, 1024)
    with batching.measured() as found:
        torch.ones(1, 1024) @ weights.t()
    assert found.peak == 2 * 4 * 1024


def test_activations_grow_with_the_views_and_the_result_stays() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(7200, 4)
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = network(images)
        with batching.measured() as of_two:
            watched = network(images)
        with batching.measured() as of_one:
            network(images[:1])
    assert torch.equal(watched, plain)
    assert of_two.peak == 2 * of_one.peak


@pytest.mark.parametrize(
    ("views", "mebibytes", "videos"),
    [
        (1, 144, 8),  # SlowFast-R50
        (1, 654, 3),  # swin-tiny: 5.1 GiB in a batch of 8
        (1, 4096, 1),
        (8, 90, 4),  # TSM-R50, by the views alone
        (30, 1, 1),
        (1, 0, 8),
    ],
)
def test_a_batch_is_as_large_as_views_and_activations_allow(
    views: int, mebibytes: int, videos: int
) -> None:
    assert batching.videos(views, mebibytes * MIB) == videos
    said = batching.note(videos, views, mebibytes * MIB)
    assert bool(said) == (videos < batching.most_videos(views))
