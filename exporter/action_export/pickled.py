"""What a checkpoint's pickle names beside tensors, and the inert objects that stand for it.

A pickle names functions and classes, and has them called: so it can run code. torch's restricted
reading calls only what makes tensors and plain data. Training stores more beside the weights: log
histories, numbers of numpy, paths, dates, settings. Nothing of that is needed, so each such name
gets a class that keeps what it is given and does nothing. Not even numpy's functions are called:
they were not written for data of strangers.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile

# Python's own table of what Python 2 called its modules; pickles of protocol 2 use the old names.
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

PROTOCOL = 2
"""torch.save's default, and the only one that torch's restricted reading knows."""
_LEGACY_PICKLES = 4
"""Magic number, protocol, system, and then what was saved: torch before 1.6 wrote four in a row."""

_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_GETATTR = "builtins.getattr"
_CORES = ("numpy.core", "numpy._core")  # the second is NumPy 2's
_SCALARS = tuple(f"{core}.multiarray.scalar" for core in _CORES)
_ARRAYS = tuple(f"{core}.multiarray._reconstruct" for core in _CORES)

_TORCH = re.compile(
    r"torch\..*|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|builtins\.(bytearray|set|complex)"
)
"""What torch's restricted reading judges itself."""
_OPENMMLAB = re.compile(r"(mmengine|mmcv|mmaction|mmdet|mmpose|mmpretrain)\.[\w.]+")
_PLAIN = re.compile(
    r"builtins\.(bool|bytes|dict|float|frozenset|int|list|object|range|slice|str|tuple)"
    r"|copyreg\._reconstructor"
    r"|datetime\.(date|datetime|time|timedelta|timezone)"
    r"|decimal\.Decimal|fractions\.Fraction|uuid\.(UUID|SafeUUID)"
    r"|argparse\.Namespace|types\.SimpleNamespace"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(dtype|ndarray|bool_?|str_|bytes_|u?int(8|16|32|64)|float(16|32|64)|longdouble)"
    r"|numpy\.(complex(64|128)|datetime64|timedelta64|random\._pickle\.__\w+_ctor)"
    r"|numpy\.(_?core)\.multiarray\.(scalar|_reconstruct)"
    r"|torch\.torch_version\.TorchVersion"
)
_DICTS = re.compile(
    r"collections\.defaultdict|addict\.addict\.Dict|easydict\.EasyDict|yacs\.config\.CfgNode"
    r"|(mmengine\.config\.config|mmcv\.utils\.config)\.ConfigDict"
)
_LISTS = re.compile(r"collections\.deque")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """known: what gets a stand-in. unknown: what a trusted reading would call."""

    known: tuple[str, ...]
    unknown: tuple[str, ...]
    protocol: int


class NoPickleError(ValueError):
    """The file holds no pickle that can be walked to its end: it is damaged, or something else."""


def names_in(path: Path) -> Names:
    """What the pickle of a checkpoint would call; it is walked, and nothing is called.

    Raises:
        NoPickleError: the file is damaged, or no checkpoint.
    """
    found: set[str] = set()
    protocol = 0
    try:
        for stream in _pickles(path):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "PROTO":
                    protocol = max(protocol, int(str(argument)))
                elif opcode.name in ("GLOBAL", "INST"):
                    found.add(_full_name(*str(argument).split(" ", 1)))
    # a damaged pickle makes the disassembler raise nearly anything
    except NoPickleError:
        raise
    except Exception as exc:
        raise NoPickleError(str(exc)) from exc
    if odd := [name for name in found if not re.fullmatch(r"[\w.<>]+", name)]:
        raise NoPickleError(f"it names {odd[0]!r}")
    others = sorted(name for name in found if not _is_torchs(name))
    return Names(
        known=tuple(name for name in others if _is_known(name)),
        unknown=tuple(name for name in others if not _is_known(name)),
        protocol=protocol,
    )


def _is_torchs(name: str) -> bool:
    return _TORCH.fullmatch(name) is not None and not _is_known(name)


def _is_known(name: str) -> bool:
    patterns = (_PLAIN, _OPENMMLAB, _DICTS, _LISTS)
    return name == _GETATTR or any(pattern.fullmatch(name) for pattern in patterns)


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """The file at the start of each of its pickles; a zip archive has one."""
    with ExitStack() as stack:
        if not zipfile.is_zipfile(path):
            file = stack.enter_context(path.open("rb"))
            if file.read(2) == b"PK":
                raise NoPickleError("its zip archive has no end")
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                yield file
            return
        archive = stack.enter_context(zipfile.ZipFile(path))
        members = [PurePosixPath(name) for name in archive.namelist()]
        pickled = [name for name in members if name.name == "data.pkl" and len(name.parts) <= 2]
        if not pickled:
            inside = ", ".join(map(str, members[:3])) or "nothing"
            raise NoPickleError(f"a zip archive of something else ({inside})")
        yield stack.enter_context(archive.open(str(pickled[0])))


def _full_name(module: str, name: str) -> str:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


class StandIn:
    """Keeps what a pickle gives to the function or class `name`, and does nothing."""

    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Any:
        made = super().__new__(cls)
        made.args = args
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _AttributeOf(StandIn):
    def __new__(cls, *args: Any) -> Any:
        # A log's statistics are pickled as getattr(HistoryBuffer, name). Nothing else needs it.
        match args:
            case (type() as owner, str(attribute)) if getattr(
                owner, "name", None
            ) == _HISTORY and not attribute.startswith("_"):
                return super().__new__(cls, *args)
        raise pickle.UnpicklingError(f"getattr of {args[1:]!r}")


class _DictOf(StandIn):
    """An OrderedDict, the kind of dict that torch's reading lets a pickle fill and give state."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict(*(arg for arg in args if isinstance(arg, dict)))


class _ListOf(StandIn):
    def __new__(cls, *args: Any) -> Any:
        return [item for arg in args if isinstance(arg, list) for item in arg]


def stand_ins(names: Names) -> list[Any]:
    """For torch.serialization.safe_globals: (class, name) for each known name."""
    return [
        (type(_base(name).__name__, (_base(name),), {"name": name}), name) for name in names.known
    ]


def _base(name: str) -> type[StandIn]:
    if name == _GETATTR:
        return _AttributeOf
    if _DICTS.fullmatch(name):
        return _DictOf
    return _ListOf if _LISTS.fullmatch(name) else StandIn


def plain(value: Any) -> Any:
    """What numpy's texts, and arrays or lists of them, are as str and list; the rest as it is."""
    match value:
        case list() | tuple():
            return [plain(item) for item in value]
        case StandIn(name=name, args=(StandIn() as kind, bytes(raw))) if name in _SCALARS:
            return _texts(kind, raw, value)
        case StandIn(name=name, state=(_, _, _, _, [*items])) if name in _ARRAYS:
            return plain(items)
        case StandIn(name=name, state=(_, _, StandIn() as kind, _, bytes(raw))) if name in _ARRAYS:
            return _texts(kind, raw, value)
    # a trusted reading made numpy's own
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def _texts(kind: StandIn, raw: bytes, otherwise: Any) -> Any:
    """numpy's fixed-length texts: UTF-32 padded with NULs; one str for a scalar, else a list."""
    match kind.args, kind.state:
        case (str(code), *_), (_, str(order), *_) if re.fullmatch(r"U\d+", code):
            size = 4 * int(code[1:])
            encoding = "utf-32-be" if order == ">" else "utf-32-le"
        case _:
            return otherwise
    texts = [
        raw[at : at + size].decode(encoding, "replace").rstrip("\0")
        for at in range(0, len(raw), size or 1)
    ]
    return "".join(texts) if otherwise.name in _SCALARS else texts
