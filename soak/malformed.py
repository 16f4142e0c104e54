"""Requests that no client of the model sends, made of one that it does; a seed repeats them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tritonclient.grpc import service_pb2

DTYPES = ("BOOL", "UINT8", "UINT16", "INT8", "INT32", "INT64", "FP16", "FP32", "BF16", "BYTES", "X")
NUMBERS = (0, -1, 1, 3, 16, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))

Request = Any
Spoil = Callable[[Request, random.Random], None]


def malformed(
    requests: dict[str, Request], *, count: int, seed: int
) -> Iterator[tuple[str, Request]]:
    """(what was done to which, the request). requests: of each model one that is right."""
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choice(sorted(requests))
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(requests[name])
        spoilers = [*SPOILERS, *(JPEG_SPOILERS * 2 if _is_jpeg(request) else ())]
        chosen = [rng.choice(spoilers) for _ in range(rng.choice((1, 1, 1, 2)))]
        for spoil in chosen:
            spoil(request, rng)
        yield f"{name}: {', '.join(spoil.__name__ for spoil in chosen)}", request


def _is_jpeg(request: Request) -> bool:
    return bool(request.inputs) and request.inputs[0].datatype == "BYTES"


def _input(request: Request, rng: random.Random) -> Any:
    return rng.choice(request.inputs) if request.inputs else request.inputs.add(name="frames")


def dtype(request: Request, rng: random.Random) -> None:
    _input(request, rng).datatype = rng.choice(DTYPES)


def dim(request: Request, rng: random.Random) -> None:
    shape = _input(request, rng).shape
    if shape:
        shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)


def shape(request: Request, rng: random.Random) -> None:
    tensor = _input(request, rng)
    del tensor.shape[:]
    tensor.shape.extend(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 3, 4, 5, 40))))


def overflowing_shape(request: Request, rng: random.Random) -> None:
    """The core's product of the dims is 0, or what is sent."""
    tensor = request.inputs[0] if request.inputs else _input(request, rng)
    dims, sent = rng.choice(
        (([8, 2**32, 2**32, 3], 0), ([0, 2**40, 2**40, 3], 0), ([2**62, 2, 2, 3], 0),
         ([4, -4, -4, 3], 192), ([-1, -1, 1, 3], 3), ([2**63 - 1, 0, 1, 3], 0))
    )  # fmt: skip
    del tensor.shape[:]
    tensor.shape.extend(dims)
    if request.raw_input_contents:
        request.raw_input_contents[0] = bytes(sent)


def bytes_missing_or_added(request: Request, rng: random.Random) -> None:
    if request.raw_input_contents:
        at = rng.randrange(len(request.raw_input_contents))
        content = request.raw_input_contents[at]
        shorter = content[: rng.randrange(len(content) + 1)]
        request.raw_input_contents[at] = rng.choice((shorter, content + b"\0" * rng.randint(1, 99)))


def contents_missing(request: Request, rng: random.Random) -> None:
    del request.raw_input_contents[rng.randrange(2) :]


def contents_twice(request: Request, rng: random.Random) -> None:
    _input(request, rng).contents.bytes_contents.append(b"\1\2\3")


def input_missing(request: Request, rng: random.Random) -> None:
    if request.inputs:
        at = rng.randrange(len(request.inputs))
        del request.inputs[at]
        del request.raw_input_contents[at : at + rng.randrange(2)]


def input_added(request: Request, rng: random.Random) -> None:
    name = rng.choice(("more", "frames", "frame_index", "clips", "", "x" * 10_000))
    request.inputs.add(name=name, datatype=rng.choice(DTYPES), shape=[1])
    request.raw_input_contents.append(b"\0" * rng.randrange(9))


def input_renamed(request: Request, rng: random.Random) -> None:
    _input(request, rng).name = rng.choice(("", "clips", "scores", "FRAMES", "frames\n", "ä"))


def index(request: Request, rng: random.Random) -> None:
    if len(request.raw_input_contents) > 1:
        count = len(request.raw_input_contents[1]) // 4
        values = [rng.choice((-1, 10**6, 2**31 - 1, -(2**31))) for _ in range(count)]
        request.raw_input_contents[1] = struct.pack(f"<{count}i", *values)


def output(request: Request, rng: random.Random) -> None:
    wanted = request.outputs.add(name=rng.choice(("scores", "clips", "", "no such")))
    wanted.parameters["classification"].int64_param = rng.choice(NUMBERS)


def version(request: Request, rng: random.Random) -> None:
    request.model_version = rng.choice(("0", "-1", "99", "one", "9" * 40, "1.0"))


def model(request: Request, rng: random.Random) -> None:
    """The steps behind the ensemble may be called, too."""
    name = request.model_name
    request.model_name = rng.choice(
        (f"{name}_preprocess", f"{name}_recognizer", "", "../x", "no such", "x" * 10_000)
    )


def memory_of_others(request: Request, rng: random.Random) -> None:
    tensor = _input(request, rng)
    tensor.parameters["shared_memory_region"].string_param = "a region"
    tensor.parameters["shared_memory_byte_size"].int64_param = rng.choice(NUMBERS)
    tensor.parameters["shared_memory_offset"].int64_param = rng.choice(NUMBERS)


def parameters(request: Request, rng: random.Random) -> None:
    name = rng.choice(("sequence_id", "sequence_start", "priority", "binary_data", "x", ""))
    request.parameters[name].int64_param = rng.choice(NUMBERS)
    request.id = "i" * rng.choice((0, 10, 100_000))


SPOILERS: tuple[Spoil, ...] = (
    dtype, dim, shape, overflowing_shape, bytes_missing_or_added, contents_missing, contents_twice,
    input_missing, input_added, input_renamed, index, output, version, model, memory_of_others,
    parameters,
)  # fmt: skip


# --- JPEG ---------------------------------------------------------------------------------------


def jpeg_cut(request: Request, rng: random.Random) -> None:
    _change_a_file(request, rng, lambda file: file[: rng.randrange(len(file))])


def jpeg_bomb(request: Request, rng: random.Random) -> None:
    """A few hundred bytes that declare up to 65535 x 65535 pixels."""
    _change_a_file(request, rng, lambda file: declare(file, *rng.choices((26_700, 65_535, 1), k=2)))


def jpeg_noise(request: Request, rng: random.Random) -> None:
    def spoil(file: bytes) -> bytes:
        changed = bytearray(file)
        for _ in range(rng.randint(1, 50)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)

    _change_a_file(request, rng, spoil)


def no_jpeg(request: Request, rng: random.Random) -> None:
    files = (b"", b"\xff\xd8\xff\xd9", b"GIF89a", b"\x89PNG\r\n\x1a\n", rng.randbytes(1000))
    _change_a_file(request, rng, lambda _: rng.choice(files))


JPEG_SPOILERS: tuple[Spoil, ...] = (jpeg_cut, jpeg_bomb, jpeg_noise, no_jpeg)


def _change_a_file(request: Request, rng: random.Random, change: Callable[[bytes], bytes]) -> None:
    if not request.raw_input_contents:
        return
    files = unpack(request.raw_input_contents[0])
    if files:
        at = rng.randrange(len(files))
        files[at] = change(files[at]) if files[at] else files[at]
        request.raw_input_contents[0] = pack(files)


def unpack(content: bytes) -> list[bytes]:
    """The strings of a BYTES tensor; those that are whole."""
    files, at = [], 0
    while at + 4 <= len(content):
        (size,) = struct.unpack_from("<I", content, at)
        files.append(content[at + 4 : at + 4 + size])
        at += 4 + size
    return files


def pack(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def declare(file: bytes, height: int, width: int) -> bytes:
    """The JPEG file with another size in its frame header (ITU-T T.81, B.2.2)."""
    changed = bytearray(file)
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"):
        if (at := file.find(marker)) >= 0 and at + 9 <= len(file):
            struct.pack_into(">HH", changed, at + 5, height, width)
    return bytes(changed)
