"""Callers of the embedded server reach what they need, and no other program's memory."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
from action_export.cli import serve as command
from action_export.errors import ServeError
from action_export.serve import Server, ServerOptions, serve
from action_export.serve.access import GRPC_HEADER, HEADER, access_flags
from support.serving import plus_one, write_model
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

KEY = "a-key.of/some~kind+1_"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("access")
    write_model(repo)
    return repo


@pytest.fixture(scope="module")
def closed(repository: Path) -> Iterator[Server]:
    with serve(repository, ServerOptions(metrics=False)) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(repository: Path) -> Iterator[Server]:
    with serve(repository, ServerOptions(metrics=False, admin_key=KEY)) as server:
        yield server


@pytest.fixture
def region() -> Iterator[str]:
    """Private memory of this user, as another program's would be."""
    memory = SharedMemory(create=True, size=64)
    yield memory.name
    memory.close()
    memory.unlink()


def over_http(server: Server, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """(status, answer); a POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.http_url}{path}", data, headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.loads(response.read() or "null")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


def register_over_grpc(server: Server, name: str, region: str, headers: Mapping[str, str]) -> None:
    with InferenceServerClient(server.grpc_url) as client:
        client.register_system_shared_memory(name, f"/{region}", 64, headers=headers)
        assert client.get_system_shared_memory_status(headers=headers).regions[name].byte_size == 64


def register_over_http(server: Server, name: str, region: str, **headers: str) -> tuple[int, Any]:
    body = {"key": f"/{region}", "offset": 0, "byte_size": 64}
    return over_http(server, f"/v2/systemsharedmemory/region/{name}/register", body, **headers)


def own_key(server: Server) -> str:
    """As any user of the machine can read it."""
    line = Path(f"/proc/{server.pid}/cmdline").read_text()
    return line.partition("--grpc-restricted-protocol=")[2].partition("=")[2].partition("\0")[0]


def test_nobody_may_register_memory_or_change_settings_without_a_key(
    closed: Server, keyed: Server, region: str
) -> None:
    for server in (closed, keyed):
        for headers in ({}, {GRPC_HEADER: "another"}):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                register_over_grpc(server, "r", region, headers)
            with InferenceServerClient(server.grpc_url) as client:
                for refused in (
                    lambda headers, client=client: client.update_log_settings({}, headers=headers),
                    lambda headers, client=client: client.get_trace_settings(headers=headers),
                    lambda headers, client=client: client.get_cuda_shared_memory_status(
                        headers=headers
                    ),
                ):
                    with pytest.raises(InferenceServerException, match="protocol is restricted"):
                        refused(headers)
        for headers in ({}, {HEADER: "another"}):
            assert register_over_http(server, "r", region, **headers)[0] == 403
            assert over_http(server, "/v2/logging", {"log_file": "/tmp/x"}, **headers)[0] == 403
            assert over_http(server, "/v2/trace/setting", {}, **headers)[0] == 403


def test_the_key_of_a_closed_server_opens_nothing_to_those_who_read_it(
    closed: Server, region: str
) -> None:
    read = own_key(closed)
    assert len(read) > 64
    with pytest.raises(InferenceServerException):
        register_over_grpc(closed, "r", region, {GRPC_HEADER: read})
    with pytest.raises(InferenceServerException, match="This protocol is restricted"):
        register_over_grpc(closed, "r", region, {GRPC_HEADER: read.strip()})
    assert register_over_http(closed, "r", region, **{HEADER: read.strip()})[0] == 403


def test_with_the_key_they_work(keyed: Server, region: str) -> None:
    register_over_grpc(keyed, "over_grpc", region, {GRPC_HEADER: KEY})
    with InferenceServerClient(keyed.grpc_url) as client:
        client.unregister_system_shared_memory(headers={GRPC_HEADER: KEY})
    status, answer = register_over_http(keyed, "over_http", region, **{HEADER: KEY})
    assert status == 200, answer
    assert over_http(keyed, "/v2/logging", {}, **{HEADER: KEY})[0] == 200


def test_what_a_client_needs_is_open_to_all(closed: Server) -> None:
    assert plus_one(closed.grpc_url, 1) == 2
    with InferenceServerClient(closed.grpc_url) as client:
        assert client.is_server_live()
        assert client.is_model_ready("plus_one")
        assert client.get_model_metadata("plus_one").name == "plus_one"
        assert client.get_model_config("plus_one").config.name == "plus_one"
        assert client.get_inference_statistics("plus_one").model_stats
        assert client.get_model_repository_index().models[0].name == "plus_one"
        with pytest.raises(InferenceServerException, match="not allowed"):
            client.unload_model("plus_one")
    for path in ("/v2/health/ready", "/v2/models/plus_one/ready"):
        request = urllib.request.urlopen(f"{closed.http_url}{path}")
        assert request.status == 200
    for path in ("/v2/models/plus_one", "/v2/models/plus_one/config", "/v2/models/plus_one/stats"):
        assert over_http(closed, path)[0] == 200
    assert over_http(closed, "/v2/repository/index", {})[0] == 200


def test_models_under_explicit_control_are_loaded_by_those_with_the_key(repository: Path) -> None:
    explicit = ("--model-control-mode=explicit", "--load-model=plus_one")
    options = ServerOptions(metrics=False, admin_key=KEY, extra_args=explicit)
    with serve(repository, options) as server, InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            client.unload_model("plus_one")
        client.unload_model("plus_one", headers={GRPC_HEADER: KEY})
        client.load_model("plus_one", headers={GRPC_HEADER: KEY})
        assert plus_one(server.grpc_url, 1) == 2
        server.check_running(settle_s=3)


def test_explicit_control_without_a_key_is_refused_unless_all_may() -> None:
    for extra_args in (("--model-control-mode=explicit",), ("--model-control-mode", "explicit")):
        with pytest.raises(ServeError, match="may load and unload models") as caught:
            access_flags(ServerOptions(extra_args=extra_args))
        assert "--admin-key-file" in caught.value.hint
        assert access_flags(ServerOptions(extra_args=extra_args, open_admin=True)) == ()


@pytest.mark.parametrize("key", ["", "two words", "ümlaut", "a=b", "line\n"])
def test_a_key_that_is_no_word_is_refused(key: str) -> None:
    with pytest.raises(ServeError, match="is not one word"):
        access_flags(ServerOptions(admin_key=key))


def test_the_command_reads_the_key_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\nanother line\n")
    args = command._parse(["repo", "--admin-key-file", str(file)])
    assert command._options(args).admin_key == KEY
    assert command._options(command._parse(["repo"])).admin_key is None
    assert command._options(command._parse(["repo", "--open-admin"])).open_admin
    file.unlink()
    with pytest.raises(ServeError, match="cannot be read") as caught:
        command._options(args)
    assert "openssl rand" in caught.value.hint
