"""Which tritonserver to run, and what it needs around it."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from action_export.dependencies import NO_TELEMETRY
from action_export.errors import DependencyError, ServeError

PIP_LINE = 'pip install "action-export[serve]"'

OWN_BACKENDS = Path(__file__).parent / "backends"

KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""GLIBC_TUNABLES with which a process keeps memory that it has freed, 16 GiB at most.

A request of video is tens or hundreds of megabytes, and each copy of it that Triton, gRPC and the
Python backend make goes into memory that glibc otherwise maps anew and gives back (`man mallopt`,
M_MMAP_MAX and M_TRIM_THRESHOLD). The kernel zeroes it page by page first, which takes longer than
the copies. M_MMAP_THRESHOLD would not do: glibc takes no more than 32 MiB for it.
"""
PIP_LINES = {"onnxruntime": PIP_LINE, "openvino": 'pip install "action-export[openvino]"'}
"""Of the package that each of our own backends needs, which has the backend's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A tritonserver. Relative paths are in the work folder of the server.

    python_backends: the backends whose models run in a Python process with shared memory.
    other_backends: whether there may be more than those.
    missing: of a backend that it lacks for want of a package, the pip line.
    flags: `{workdir}` stands for the work folder.
    path_variables: folders to put first in an environment variable; `{workdir}` as well.
    """

    program: Path
    python_backends: tuple[str, ...] = ("python",)
    other_backends: bool = True
    missing: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    substitutions: tuple[tuple[str, str], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    path_variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_installation(tritonserver: Path | None) -> Installation:
    """The given program, else the one on PATH, else the one of the nvidia-pytriton wheel.

    ServeError: the given program cannot be run. DependencyError: there is none, or the
    environment is not one that the wheel's server works in.
    """
    if tritonserver is not None:
        program = shutil.which(tritonserver)
        if program is None:
            raise ServeError(
                f"{tritonserver} is not a program that can be run",
                hint="name the tritonserver binary itself, or leave it out to use the wheel's",
            )
        return Installation(program=Path(program).absolute())
    if found := shutil.which("tritonserver"):
        return Installation(program=Path(found).absolute())
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise DependencyError("no tritonserver on PATH, and no nvidia-pytriton", hint=PIP_LINE)
    return wheel_installation(Path(spec.origin).parent)


def wheel_installation(pytriton: Path) -> Installation:
    """The server of the wheel, with our own backends beside its Python backend.

    Triton resolves backend B to BACKENDS/B/libtriton_B.so, else to BACKENDS/B/model.py, which it
    runs with the Python backend. The wheel (release 24.10) has only that one.
    """
    check_numpy(metadata.version("numpy"))
    _require_onnxruntime()
    own = {name: importlib.util.find_spec(name) is not None for name in PIP_LINES}
    root = pytriton / "tritonserver"
    python = root / "backends" / "python"
    utils = "triton_python_backend_utils.py"
    libpython = _libpython()
    return Installation(
        program=root / "bin" / "tritonserver",
        python_backends=("python", *(name for name in own if own[name])),
        other_backends=False,
        missing={name: PIP_LINES[name] for name in own if not own[name]},
        flags=("--backend-directory={workdir}/backends", f"--cache-directory={root / 'caches'}"),
        links={
            f"backends/python/{utils}": str(python / utils),
            "backends/python/triton_python_backend_stub": str(_stub(root)),
            **{
                f"backends/{name}/model.py": str(OWN_BACKENDS / name / "model.py")
                for name in own
                if own[name]
            },
            "python/bin/python3": sys.executable,
            **({f"lib/{libpython.name}": str(libpython)} if libpython else {}),
        },
        # Core resolves links here, and refuses a library that "escapes backend directory".
        copies={"backends/python/libtriton_python.so": str(python / "libtriton_python.so")},
        # The Python backend makes a folder at /tmp/python_env_XXXXXX, and it stays there whenever
        # the server does not end in order. No flag moves it; a path of the same length that is
        # relative to the work folder does.
        substitutions=(("/tmp/python_env_", "././/python_env_"),),
        texts=_python_environment(),
        path_variables={
            "LD_LIBRARY_PATH": (str(pytriton.parent / "nvidia_pytriton.libs"), "{workdir}/lib"),
            "PATH": ("{workdir}/python/bin",),
        },
    )


def _python_environment() -> dict[str, str]:
    """A virtual environment with our packages, for the Python that the stub embeds.

    That Python finds its environment by the python3 on PATH and ignores all variables, so this is
    where it can be told to write no __pycache__: in the repository that is a change, and in poll
    mode Triton then loads the model a second time (tried). This very package comes first: our
    backends import from it, and another copy may be installed.
    """
    packages = f"{Path(__file__).parents[2]}\n" + "".join(
        f"import site; site.addsitedir({path!r})\n" for path in _site_packages()
    )
    folder = f"python/lib/python{_python_version()}/site-packages"
    return {
        "python/pyvenv.cfg": (
            f"home = {sys.base_exec_prefix}/bin\ninclude-system-site-packages = false\n"
        ),
        f"{folder}/action_serve.pth": f"import sys; sys.dont_write_bytecode = True\n{packages}",
    }


def _site_packages() -> list[str]:
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*site.getsitepackages(), *user]


def check_numpy(version: str) -> None:
    """DependencyError for NumPy 2: inputs would be garbage and outputs empty, without an error."""
    if int(version.split(".")[0]) >= 2:
        raise DependencyError(
            f"NumPy {version} is installed, and the Python backend of nvidia-pytriton's "
            "tritonserver reads the arrays of NumPy 2 as garbage",
            hint='pip install "numpy<2"',
        )


def environment(installation: Installation, workdir: Path) -> dict[str, str]:
    """The environment variables that differ from ours."""
    tunables = filter(None, (KEEP_MEMORY, os.environ.get("GLIBC_TUNABLES")))
    paths = {
        name: os.pathsep.join(
            (
                *(folder.replace("{workdir}", str(workdir)) for folder in folders),
                *filter(None, (os.environ.get(name),)),
            )
        )
        for name, folders in installation.path_variables.items()
    }
    name, off = NO_TELEMETRY
    return {
        **paths,
        # of what is named twice, glibc takes the last
        "GLIBC_TUNABLES": ":".join(tunables),
        # for models of the repository that use ONNX Runtime themselves
        name: os.environ.get(name, off),
    }


def _require_onnxruntime() -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise DependencyError("onnxruntime is not installed", hint=PIP_LINE)


def _stub(root: Path) -> Path:
    """The stub that was built for the running Python."""
    stubs = root / "python_backend_stubs"
    stub = stubs / _python_version() / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise DependencyError(
            f"nvidia-pytriton has no Python backend for Python {_python_version()}",
            hint=f"use an environment with one of {have}, or name another --tritonserver",
        )
    return stub


def _libpython() -> Path | None:
    """The shared library of the running Python, which the stub is linked with.

    None where the system's loader finds one by itself. A static build of Python has none, and
    Debian's is in a package of its own. DependencyError: there is none at all.
    """
    name = f"libpython{_python_version()}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    if ctypes.util.find_library(f"python{_python_version()}"):
        return None
    raise DependencyError(
        f"{name} is not installed, and the Python backend of tritonserver is linked with it",
        hint=f"apt-get install libpython{_python_version()}, or use a Python with --enable-shared",
    )


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
