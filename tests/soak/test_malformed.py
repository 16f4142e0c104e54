"""Malformed requests: every way of spoiling one occurs, and the seed repeats them."""

from __future__ import annotations

from typing import Any

import numpy as np
from action_runtime import jpeg
from action_runtime.spec import Jpeg
from tritonclient.grpc import service_pb2

from soak.malformed import JPEG_SPOILERS, SPOILERS, declare, malformed, pack, unpack


def right_requests() -> dict[str, Any]:
    raw = service_pb2.ModelInferRequest(model_name="raw")
    raw.inputs.add(name="frames", datatype="UINT8", shape=[2, 4, 4, 3])
    raw.inputs.add(name="frame_index", datatype="INT32", shape=[2])
    raw.raw_input_contents.extend([bytes(96), bytes(8)])
    files = jpeg.encode(np.zeros((2, 16, 16, 3), np.uint8), Jpeg(quality=90))
    lossy = service_pb2.ModelInferRequest(model_name="jpeg")
    lossy.inputs.add(name="frames_jpeg", datatype="BYTES", shape=[2])
    lossy.inputs.add(name="frame_index", datatype="INT32", shape=[2])
    lossy.raw_input_contents.extend([pack(list(files)), bytes(8)])
    return {"raw": raw, "jpeg": lossy}


def made(seed: int) -> list[tuple[str, bytes]]:
    return [
        (what, request.SerializeToString(deterministic=True))
        for what, request in malformed(right_requests(), count=600, seed=seed)
    ]


def test_every_way_occurs_and_nearly_all_differ_from_what_is_right() -> None:
    found = made(1)
    for spoil in (*SPOILERS, *JPEG_SPOILERS):
        assert any(spoil.__name__ in what for what, _ in found)
    right = {r.SerializeToString(deterministic=True) for r in right_requests().values()}
    assert sum(content in right for _, content in found) < 20
    assert len({content for _, content in found}) > 400


def test_the_seed_repeats_them() -> None:
    assert made(1) == made(1)
    assert made(1) != made(2)


def test_a_bomb_declares_another_size_and_stays_as_small() -> None:
    [file] = jpeg.encode(np.zeros((1, 16, 24, 3), np.uint8), Jpeg(quality=90))
    bomb = declare(file, 26_700, 65_535)
    assert len(bomb) == len(file)
    at = bomb.find(b"\xff\xc0")
    assert bomb[at + 5 : at + 9] == (26_700).to_bytes(2, "big") + b"\xff\xff"
    assert declare(file, 16, 24) == file


def test_strings_of_a_tensor_are_taken_apart_and_put_together() -> None:
    files = [b"", b"a", b"bcd"]
    assert unpack(pack(files)) == files
    assert unpack(pack(files)[:-1]) == [b"", b"a", b"bc"]
