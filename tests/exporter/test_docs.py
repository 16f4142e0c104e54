"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import errors_page
import pytest
from action_client import cli as client_cli
from action_client.bench import cli as bench_cli
from action_export.cli import export as export_cli
from action_export.cli import serve as serve_cli
from action_export.serve import ServerOptions
from action_export.serve.access import access_flags

ROOT = Path(__file__).parents[2]
NOT_OURS = {  # docker's and tritonserver's
    "--rm",
    "--shm-size",
    "--model-repository",
    "--grpc-restricted-protocol",
    "--http-restricted-api",
    "--exit-on-error",
}


def test_errors_page_is_current() -> None:
    """scripts/write_docs writes it."""
    assert (ROOT / "docs" / "errors.md").read_text("utf-8") == errors_page.page()


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/preprocessing.md",
        "docs/architecture.md",
        "docs/openvino.md",
        "docs/checkpoints.md",
        "docs/config.md",
    ],
)
def test_every_option_that_is_named_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (export_cli.main, serve_cli.main, client_cli.main, bench_cli.main):
        with pytest.raises(SystemExit):
            command(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) | NOT_OURS
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / page).read_text("utf-8")))
    assert named <= known


def test_the_container_has_the_doors_shut_that_the_embedded_server_shuts() -> None:
    command = (ROOT / "README.md").read_text("utf-8").partition("docker run")[2].partition("```")[0]
    flags = access_flags(ServerOptions(admin_key="KEY"))
    assert len(flags) == 2
    for flag in flags:
        assert flag.replace("=KEY", '="$key"') in command
    ports = re.findall(r"-p (\S+)", command)
    assert ports == [f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)]


def test_every_test_that_is_named_exists() -> None:
    there = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"\btest_[a-z0-9_]{12,}\b(?!\.py)", page.read_text("utf-8")))
        assert not [name for name in named if f"def {name}(" not in there], page.name


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
