"""The repository holds what DESIGN says, and a publish that fails leaves it as it was."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import action_runtime
import action_templates
import jinja2
import pytest
from action_export import repository
from action_export.errors import (
    ContractChangedError,
    NameRefusedError,
    RepositoryError,
)
from action_export.repository import (
    Names,
    Plan,
    check_name,
    plan,
    publish,
    published_labels,
    staging,
    write,
)
from action_export.types import Device, Tensors
from action_runtime.spec import PARAMETER, Contract, Crop, KeepRatioResize, SampleFrames
from google.protobuf import text_format
from support.disk import file_size_limit, open_folder, small_disk, without_privileges
from tritonclient.grpc import model_config_pb2

CONTRACT = Contract(
    sampler=SampleFrames(clip_len=4, num_clips=2),
    resize=KeepRatioResize(short=32),
    crop=Crop(kind="three", width=32, height=32),
    classes=3,
    average="prob",
    labels=("wave", 'say "hi"', "fête \\ 🎉"),
    provenance={"config": "tiny"},
)
NAMES = Names(ensemble="tiny")


def planned(repo: Path, contract: Contract = CONTRACT, **changes: Any) -> Plan:
    names = changes.pop("names", NAMES)
    tensors = Tensors.of(contract, changes.pop("max_batch_size", 4))
    return plan(repo, names, contract=contract, tensors=tensors, **changes)


def fill(what: Plan, stage: Path, content: str) -> None:
    """Stages everything; the graph and the manifest are stand-ins with this content."""
    write(what, stage)
    (stage / what.graph).write_text(content)
    (stage / what.manifest).write_text(content)


def publish_one(
    repo: Path, contract: Contract = CONTRACT, content: str = "graph", **changes: Any
) -> Plan:
    what = planned(repo, contract, **changes)
    with staging(repo) as stage:
        fill(what, stage, content)
        publish(what, stage)
    return what


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything below `root`; of a folder, that it is there."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def read_config(repo: Path, name: str) -> Any:
    text = (repo / name / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


# --- What is written ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = tmp_path_factory.mktemp("published") / "repo"
    publish_one(repo)
    return repo


def test_the_layout_is_three_models_of_one_version(published: Path) -> None:
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    runtime = {path for path in files if "/action_runtime/" in path}
    assert files - runtime == {
        "tiny/config.pbtxt",
        "tiny/1/manifest.json",
        "tiny_preprocess/config.pbtxt",
        "tiny_preprocess/1/model.py",
        "tiny_recognizer/config.pbtxt",
        "tiny_recognizer/labels.txt",
        "tiny_recognizer/1/model.onnx",
    }
    assert runtime


def test_the_plan_lists_every_file_that_is_written(tmp_path: Path) -> None:
    what = publish_one(tmp_path / "repo")
    written = [str(p.relative_to(what.repo)) for p in what.repo.rglob("*") if p.is_file()]
    assert sorted(written) == list(what.files)


def test_the_runtime_is_copied_verbatim_behind_a_relative_import(published: Path) -> None:
    version = published / "tiny_preprocess" / "1"
    source = Path(str(action_runtime.__file__)).parent
    modules = {path.relative_to(source) for path in source.rglob("*.py")}
    copied = version / "action_runtime"
    assert {path.relative_to(copied) for path in copied.rglob("*")} == modules
    for module in modules:
        assert (copied / module).read_bytes() == (source / module).read_bytes()
    shim = (version / "model.py").read_text()
    assert "from .action_runtime.backend import TritonPythonModel" in shim


def test_the_ensemble_is_frames_in_and_scores_out(published: Path) -> None:
    config = read_config(published, "tiny")
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "ensemble", 0)
    assert not config.instance_group
    tensors = [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)]
    assert tensors == [
        ("frames", model_config_pb2.TYPE_UINT8, [-1, -1, -1, 3]),
        ("frame_index", model_config_pb2.TYPE_INT32, [8]),
        ("scores", model_config_pb2.TYPE_FP32, [1, 3]),
    ]
    steps = [
        (step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    ]
    frames = {"frames": "frames", "frame_index": "frame_index"}
    assert steps == [
        ("tiny_preprocess", -1, frames, {"clips": "clips"}),
        ("tiny_recognizer", -1, {"clips": "clips"}, {"scores": "scores"}),
    ]


def test_the_preprocess_model_runs_in_the_python_backend_on_the_cpu(published: Path) -> None:
    config = read_config(published, "tiny_preprocess")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny_preprocess", "python", 0)
    assert [group.kind for group in config.instance_group] == [
        model_config_pb2.ModelInstanceGroup.KIND_CPU
    ]
    assert [(t.name, list(t.dims)) for t in (*config.input, *config.output)] == [
        ("frames", [-1, -1, -1, 3]),
        ("frame_index", [8]),
        ("clips", [1, 6, 4, 32, 32, 3]),
    ]


def test_the_recognizer_batches_and_knows_its_labels(published: Path) -> None:
    config = read_config(published, "tiny_recognizer")
    assert (config.name, config.backend) == ("tiny_recognizer", "onnxruntime")
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    # core would run two instances on a CPU if it were not told
    assert [group.count for group in config.instance_group] == [1]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "execution_mode": "0",
        "intra_op_thread_count": "0",
    }
    assert [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)] == [
        ("clips", model_config_pb2.TYPE_UINT8, [6, 4, 32, 32, 3]),
        ("scores", model_config_pb2.TYPE_FP32, [3]),
    ]
    assert config.output[0].label_filename == "labels.txt"
    labels = (published / "tiny_recognizer" / "labels.txt").read_text("utf-8")
    assert tuple(labels.splitlines()) == CONTRACT.labels


def test_the_contract_is_the_same_string_in_both_parameters(published: Path) -> None:
    strings = {
        read_config(published, name).parameters[PARAMETER].string_value
        for name in ("tiny", "tiny_preprocess")
    }
    assert strings == {CONTRACT.to_json()}
    assert PARAMETER not in read_config(published, "tiny_recognizer").parameters


def test_only_the_latest_version_is_served(published: Path) -> None:
    for name in NAMES:
        assert read_config(published, name).version_policy.latest.num_versions == 1


def test_without_labels_no_label_file_is_named(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, replace(CONTRACT, labels=()))
    assert not read_config(repo, "tiny_recognizer").output[0].label_filename
    assert not list(repo.rglob("labels.txt"))


def test_a_batch_of_one_is_not_queued(tmp_path: Path) -> None:
    publish_one(tmp_path / "repo", max_batch_size=1)
    config = read_config(tmp_path / "repo", "tiny_recognizer")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu"])
def test_the_device_is_the_kind_of_the_recognizers_instance(tmp_path: Path, device: Device) -> None:
    publish_one(tmp_path / "repo", device=device)
    (group,) = read_config(tmp_path / "repo", "tiny_recognizer").instance_group
    kinds = model_config_pb2.ModelInstanceGroup.Kind
    assert kinds.Name(group.kind) == f"KIND_{device.upper()}"


@pytest.mark.parametrize(
    "label", ['"', "\\", "\\n", "'", "{{ x }}", "#", "\t", "日本語", "e\u0301", "}\n".strip()]
)
def test_any_label_survives_the_text_format(tmp_path: Path, label: str) -> None:
    contract = replace(CONTRACT, labels=(label, "b", "c"))
    publish_one(tmp_path / "repo", contract)
    parameters = read_config(tmp_path / "repo", "tiny").parameters
    assert Contract.from_json(parameters[PARAMETER].string_value) == contract


# --- Templates ----------------------------------------------------------------------------------


def with_template(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[str], str]) -> None:
    """Edits one of the real templates, behind the real environment."""
    real = repository._environment()
    text, *_ = real.loader.get_source(real, name)
    assert change(text) != text
    edited = jinja2.DictLoader({name: change(text)})
    loader = jinja2.ChoiceLoader([edited, real.loader])
    monkeypatch.setattr(repository, "_environment", lambda: real.overlay(loader=loader))


@pytest.mark.parametrize("template", ["ensemble", "preprocess", "recognizer"])
def test_a_misspelt_field_cannot_leave_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    with_template(
        monkeypatch,
        f"{template}.pbtxt.j2",
        lambda text: text.replace("max_batch_size:", "max_batchsize:"),
    )
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        planned(tmp_path / "repo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("template", ["ensemble", "preprocess", "recognizer"])
def test_an_undefined_value_cannot_leave_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    with_template(
        monkeypatch,
        f"{template}.pbtxt.j2",
        lambda text: text.replace(f"names.{template}", "names.nothing"),
    )
    with pytest.raises(jinja2.UndefinedError):
        planned(tmp_path / "repo")


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "tsn", "TSN_r50-8x8.v2", "1x1x3", "a" * 200])
def test_names_that_triton_takes(name: str) -> None:
    assert tuple(check_name(name)) == (f"{name}_preprocess", f"{name}_recognizer", name)


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("", "model"),
        (".", "model"),
        ("..", "model"),
        ("/", "model"),
        ("a/b", "a_b"),
        ("../../etc", "etc"),
        ("a..b", "a_b"),
        (".hidden", "hidden"),
        ("-flag", "flag"),
        ("_a", "a"),
        ("two words", "two_words"),
        ("line\nbreak", "line_break"),
        ("end\n", "end"),
        ("tab\t", "tab"),
        ("a\0b", "a_b"),
        ("fête", "f_te"),
        ("日本", "model"),
        ("a\\b", "a_b"),
        ("a:b", "a_b"),
        ("a%2Fb", "a_2Fb"),
        ("a" * 201, "a" * 200),
    ],
)
def test_names_that_are_refused_with_one_that_is_not(name: str, better: str) -> None:
    with pytest.raises(NameRefusedError) as caught:
        check_name(name)
    assert "\n" not in caught.value.message
    assert caught.value.hint == f"--name {better}"
    assert check_name(better)


# --- Another version ----------------------------------------------------------------------------


def test_the_next_version_is_added_beside_the_first(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, content="one")
    before = tree(repo)
    retrained = replace(CONTRACT, provenance={"config": "tiny", "checkpoint_sha256": "2"})
    what = publish_one(repo, retrained, content="two")
    assert what.version == 2
    after = tree(repo)
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {"tiny/config.pbtxt", "tiny_preprocess/config.pbtxt"}
    assert (repo / "tiny_recognizer/1/model.onnx").read_text() == "one"
    assert (repo / "tiny_recognizer/2/model.onnx").read_text() == "two"
    assert (repo / "tiny_preprocess/2/model.py").is_file()
    assert (repo / "tiny/2/manifest.json").is_file()
    text = read_config(repo, "tiny").parameters[PARAMETER].string_value
    assert Contract.from_json(text) == retrained


def test_a_version_may_be_chosen_and_the_next_follows_it(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    assert publish_one(repo, version=7).version == 7
    assert publish_one(repo).version == 8
    assert (repo / "tiny_recognizer/8/model.onnx").is_file()


@pytest.mark.parametrize("version", [-1, 0, 1, 6, 7])
def test_a_version_that_triton_would_not_serve_is_refused(tmp_path: Path, version: int) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, version=7)
    with pytest.raises(RepositoryError, match=f"version {version} of tiny") as caught:
        planned(repo, version=version)
    assert "--model-version 8" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(classes=4, labels=()), "classes"),
        (dict(sampler=SampleFrames(clip_len=4, num_clips=3)), "sampler"),
        (dict(sampler=SampleFrames(clip_len=4, num_clips=2, frame_interval=2)), "sampler"),
        (dict(resize=KeepRatioResize(short=36)), "resize"),
        (dict(crop=Crop(kind="center", width=32, height=32)), "crop"),
        (dict(average="score"), "average"),
        (dict(reads_fps=False), "reads_fps"),
        (dict(channels=1), "channels"),
        (dict(decoder="pyav", reads_fps=False), "decoder, reads_fps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_contract_is_refused_and_says_the_fix(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    with pytest.raises(ContractChangedError, match=f"another contract: .*{named}") as caught:
        planned(repo, replace(CONTRACT, **change))
    assert "--name" in caught.value.hint


def test_a_decoder_that_earlier_code_did_not_write_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, replace(CONTRACT, reads_fps=False))  # what PyAVInit came to then
    with pytest.raises(ContractChangedError, match="another contract: decoder would") as caught:
        planned(repo, replace(CONTRACT, reads_fps=False, decoder="pyav"))
    assert "an earlier action-export did not look at" in caught.value.hint
    assert "--name" in caught.value.hint


def test_what_does_not_touch_clients_may_change(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    moved = replace(CONTRACT, provenance={}, config_views={"num_clips": 10, "crops": "ten"})
    assert publish_one(repo, moved, max_batch_size=1, device="gpu").version == 2
    assert read_config(repo, "tiny_recognizer").max_batch_size == 1


@pytest.mark.parametrize(
    ("before", "after"), [(("a", "b", "c"), ("c", "b", "a")), ((), ("a", "b", "c"))]
)
def test_labels_may_change_everywhere_a_client_reads_them(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    repo = tmp_path / "repo"
    assert published_labels(repo, Names(ensemble="tiny")) is None
    publish_one(repo, replace(CONTRACT, labels=before))
    assert published_labels(repo, Names(ensemble="tiny")) == before
    publish_one(repo, replace(CONTRACT, labels=after))
    assert published_labels(repo, Names(ensemble="tiny")) == after
    assert read_config(repo, "tiny_recognizer").output[0].label_filename == "labels.txt"
    assert (repo / "tiny_recognizer/labels.txt").read_text("utf-8").split("\n")[:-1] == [*after]


def test_tensors_that_were_edited_by_hand_are_refused(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    config = repo / "tiny_recognizer/config.pbtxt"
    config.write_text(config.read_text("utf-8").replace("TYPE_FP32", "TYPE_FP16"), "utf-8")
    with pytest.raises(ContractChangedError, match="tensors of tiny_recognizer"):
        planned(repo)


def test_another_model_in_the_repository_is_left_alone(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    (repo / "other" / "1").mkdir(parents=True)
    (repo / "other" / "config.pbtxt").write_text("name: 'other'")
    (repo / "README").write_text("ours")
    before = tree(repo)
    publish_one(repo)
    publish_one(repo, names=Names(ensemble="second"))
    after = tree(repo)
    assert before.items() <= after.items()
    assert {path.split("/")[0] for path in after} == {
        *("README", "other"),
        *("tiny", "tiny_preprocess", "tiny_recognizer"),
        *("second", "second_preprocess", "second_recognizer"),
    }


# --- What is in the way -------------------------------------------------------------------------


def foreign_empty(repo: Path) -> None:
    (repo / "tiny").mkdir()


def foreign_config(repo: Path) -> None:
    (repo / "tiny").mkdir()
    (repo / "tiny/config.pbtxt").write_text('name: "tiny" backend: "python"')


def foreign_garbage(repo: Path) -> None:
    (repo / "tiny").mkdir()
    (repo / "tiny/config.pbtxt").write_bytes(b"\xff\xfe no config {")


def foreign_contract(repo: Path) -> None:
    foreign_config(repo)
    with (repo / "tiny/config.pbtxt").open("a") as file:
        file.write(f' parameters {{ key: "{PARAMETER}" value {{ string_value: "no" }} }}')


def foreign_file(repo: Path) -> None:
    (repo / "tiny").write_text("a file")


def foreign_leaf(repo: Path) -> None:
    (repo / "tiny_preprocess").mkdir()


@pytest.mark.parametrize(
    "put",
    [
        foreign_empty,
        foreign_config,
        foreign_garbage,
        foreign_contract,
        foreign_file,
        foreign_leaf,
    ],
)
def test_what_action_export_did_not_write_is_refused_and_left(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    put(repo)
    before = tree(tmp_path)
    with pytest.raises(RepositoryError, match="no part of a published tiny") as caught:
        planned(repo)
    assert str(repo / "tiny") in caught.value.message
    assert "--name" in caught.value.hint
    assert tree(tmp_path) == before


@pytest.mark.parametrize("leaf", ["tiny_preprocess", "tiny_recognizer"])
@pytest.mark.parametrize("content", [None, b"nonsense {", b"\xff\xfe"])
def test_a_published_model_with_a_broken_leaf_is_refused(
    tmp_path: Path, leaf: str, content: bytes | None
) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    config = repo / leaf / "config.pbtxt"
    if content is None:
        config.unlink()
    else:
        config.write_bytes(content)
    with pytest.raises(RepositoryError, match="incomplete") as caught:
        planned(repo)
    assert str(config) in caught.value.message
    assert caught.value.hint


def test_a_file_in_place_of_the_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repo").write_text("a file")
    with pytest.raises(RepositoryError, match="is a file"):
        planned(tmp_path / "repo")


# --- Staging ------------------------------------------------------------------------------------


def test_staging_is_beside_the_repository_and_gone_afterwards(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo)
    before = tree(tmp_path)
    with staging(repo) as stage:
        assert stage.parent == tmp_path
        assert stage.stat().st_dev == repo.stat().st_dev
        (stage / "file").write_text("x")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("way", ["link", "..", "."])
def test_staging_is_never_inside_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    repo = tmp_path / "deep" / "repo"
    (repo / "other").mkdir(parents=True)
    given = {"link": tmp_path / "link", "..": Path(".."), ".": Path()}[way]
    (tmp_path / "link").symlink_to(repo)
    monkeypatch.chdir(repo / "other" if way == ".." else repo)
    with staging(given) as stage:
        assert stage.parent == repo.parent
    what = publish_one(given)
    assert (repo / what.graph).is_file()


def test_missing_parents_are_made_and_stay_with_the_repository(tmp_path: Path) -> None:
    publish_one(tmp_path / "a" / "b" / "repo")
    assert (tmp_path / "a/b/repo/tiny/config.pbtxt").is_file()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["repo"]


class Stopped(Exception):
    """Raised by a test where something else would go wrong."""


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt, RepositoryError("no")])
def test_nothing_is_left_of_parents_when_the_block_fails(
    tmp_path: Path, error: type[BaseException] | BaseException
) -> None:
    repo = tmp_path / "a" / "b" / "repo"

    def export() -> None:
        with staging(repo) as stage:
            fill(planned(repo), stage, "x")
            raise error

    with pytest.raises((Stopped, KeyboardInterrupt, RepositoryError)):
        export()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_parents_that_could_not_all_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(RepositoryError, match="name too long"),
        staging(tmp_path / "a" / ("b" * 300) / "repo"),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file/repo", "file/deep/repo"])
def test_a_file_among_the_parents_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("a file")
    repo = tmp_path / below
    with pytest.raises(RepositoryError, match="Not a directory"), staging(repo):
        pass
    assert (tmp_path / "file").read_text() == "a file"


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="name too long"):
        planned(tmp_path / ("r" * 300))


def test_a_bug_in_the_block_keeps_its_own_exception(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging(tmp_path / "repo"):
        (tmp_path / "nowhere").read_text()


def test_a_repository_that_is_a_mount_point_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with small_disk(tmp_path / "repo", 1024) as repo:
        if repo is None:
            pytest.skip("mounting is not permitted here")
        with pytest.raises(RepositoryError, match="file system of its own") as caught:
            publish_one(repo)
        assert f"--triton-repo {repo / 'models'}" in caught.value.hint
        assert not list(repo.iterdir())
        assert publish_one(repo / "models").version == 1
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


# --- A failure at every step --------------------------------------------------------------------

REAL_STEPS = repository._steps


def new_repository(folder: Path) -> Path:
    return folder / "parent" / "repo"


def new_model(folder: Path) -> Path:
    repo = folder / "repo"
    publish_one(repo, names=Names(ensemble="other"))
    (repo / "empty").mkdir()
    return repo


def second_version(folder: Path) -> Path:
    repo = new_model(folder)
    publish_one(repo)
    return repo


SITUATIONS = {"new repository": new_repository, "new model": new_model, "version 2": second_version}
STEPS = {"new repository": 4, "new model": 3, "version 2": 7}
FAILURES: dict[str, Callable[[], BaseException]] = {
    "disk": lambda: OSError(28, "No space left on device", "somewhere"),
    "interrupt": KeyboardInterrupt,
    "bug": Stopped,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    ("situation", "step"), [(name, step) for name, count in STEPS.items() for step in range(count)]
)
def test_a_failure_at_any_step_leaves_the_repository_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    situation: str,
    step: int,
    failure: str,
    when: str,
) -> None:
    repo = SITUATIONS[situation](tmp_path)
    before = tree(tmp_path)
    reached: list[int] = []

    def failing_steps(what: Plan, stage: Path) -> Iterator[Any]:
        for number, (act, undo) in enumerate(REAL_STEPS(what, stage)):
            yield act if number != step else failing(act), undo

    def failing(act: Callable[[], None]) -> Callable[[], None]:
        def fail() -> None:
            reached.append(step)
            if when == "after":
                act()
            raise FAILURES[failure]()

        return fail

    monkeypatch.setattr(repository, "_steps", failing_steps)
    expected = RepositoryError if failure == "disk" else type(FAILURES[failure]())
    with pytest.raises(expected) as caught:
        publish_one(repo, replace(CONTRACT, provenance={"config": "retrained"}))
    assert reached == [step]
    assert tree(tmp_path) == before
    if isinstance(caught.value, RepositoryError):
        assert "No space left on device" in caught.value.message
        assert "left as it was" in caught.value.hint


@pytest.mark.parametrize("situation", STEPS)
def test_every_step_is_among_those_that_fail_above(tmp_path: Path, situation: str) -> None:
    repo = SITUATIONS[situation](tmp_path)
    what = planned(repo)
    with staging(repo) as stage:
        fill(what, stage, "x")
        count = 0
        for act, _ in REAL_STEPS(what, stage):
            act()
            count += 1
    assert count == STEPS[situation]


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_failure_inside_the_replacement_of_a_file_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    repo = second_version(tmp_path)
    before = tree(tmp_path)
    real, calls = getattr(os, call), 0

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(KeyboardInterrupt):
        publish_one(repo)
    assert calls >= 2
    assert tree(tmp_path) == before


def test_a_file_system_without_hard_links_is_published_to_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*arguments: Any) -> None:
        raise OSError(95, "Operation not supported")

    repo = second_version(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(os, "link", no_links)

    def failing_steps(what: Plan, stage: Path) -> Iterator[Any]:
        yield from REAL_STEPS(what, stage)
        raise Stopped

    monkeypatch.setattr(repository, "_steps", failing_steps)
    with pytest.raises(Stopped):
        publish_one(repo)
    assert tree(tmp_path) == before
    monkeypatch.setattr(repository, "_steps", REAL_STEPS)
    assert publish_one(repo).version == 2


def test_what_cannot_be_put_back_is_named_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = second_version(tmp_path)

    def refuse() -> None:
        raise OSError(5, "Input/output error", "tiny/config.pbtxt")

    def failing_steps(what: Plan, stage: Path) -> Iterator[Any]:
        for number, (act, undo) in enumerate(REAL_STEPS(what, stage)):
            yield act, refuse if number == 4 else undo
        raise OSError(5, "Input/output error", "somewhere")

    monkeypatch.setattr(repository, "_steps", failing_steps)
    with pytest.raises(RepositoryError, match=r"tiny/config.pbtxt cannot be put back") as caught:
        publish_one(repo)
    assert "remove version 2 of tiny_preprocess, tiny_recognizer, tiny" in caught.value.hint
    assert not list(repo.rglob("2"))


# --- Killed outright ----------------------------------------------------------------------------


def killed_after(steps: int, repo: Path) -> None:
    """Publishes in another process, which is killed once `steps` steps are done."""
    child = os.fork()
    if child == 0:
        what = planned(repo)
        with staging(repo) as stage:
            fill(what, stage, "killed")
            for number, (act, _) in enumerate(REAL_STEPS(what, stage)):
                if number == steps:
                    os.kill(os.getpid(), signal.SIGKILL)
                act()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("steps", range(STEPS["version 2"]))
def test_after_a_kill_clients_see_the_old_version_and_the_next_export_goes_through(
    tmp_path: Path, steps: int
) -> None:
    repo = second_version(tmp_path)
    ensemble = (repo / "tiny/config.pbtxt").read_bytes()
    killed_after(steps, repo)
    assert (repo / "tiny/config.pbtxt").read_bytes() == ensemble
    assert (repo / "tiny_recognizer/1/model.onnx").read_text() == "graph"
    what = publish_one(repo, content="next")
    for path in (what.graph, what.manifest):
        assert (repo / path).read_text() == "next"


def test_after_a_kill_a_new_model_is_no_model_and_the_next_export_says_what_to_remove(
    tmp_path: Path,
) -> None:
    repo = new_model(tmp_path)
    killed_after(2, repo)
    assert not (repo / "tiny").exists()
    with pytest.raises(RepositoryError, match="tiny_preprocess exists") as caught:
        planned(repo)
    assert "remove it" in caught.value.hint


# --- Disks that refuse for real -----------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real file system of 64 KiB; the staged runtime alone is more."""
    with small_disk(tmp_path / "disk", 64) as disk:
        if disk is None:
            pytest.skip("mounting is not permitted here")
        with pytest.raises(RepositoryError, match="No space left on device") as caught:
            publish_one(disk / "parent" / "repo", content="x" * 50_000)
        assert "free space" in caught.value.hint
        assert not list(disk.iterdir())


def test_a_disk_that_fills_up_leaves_a_published_model_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        if disk is None:
            pytest.skip("mounting is not permitted here")
        publish_one(disk / "repo")
        before = tree(disk)
        with pytest.raises(RepositoryError, match="No space left on device"):
            publish_one(disk / "repo", content="x" * 600_000)
        assert tree(disk) == before


def test_a_file_that_may_not_grow_leaves_nothing(tmp_path: Path) -> None:
    """The same without a mount: the kernel refuses the bytes beyond a limit (EFBIG)."""
    repo = tmp_path / "parent" / "repo"
    with (
        file_size_limit(20_000),
        pytest.raises(RepositoryError, match="File too large") as caught,
    ):
        publish_one(repo, content="x" * 50_000)
    assert "free space" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("closed", ["parent", "repository", "model"])
def test_a_target_without_permission_is_left_as_it_was(closed: str) -> None:
    with open_folder() as folder:
        repo = folder / "repo"
        publish_one(repo)
        for path in repo.iterdir():
            path.chmod(0o777)
        target = {"parent": folder, "repository": repo, "model": repo / "tiny_recognizer"}[closed]
        target.chmod(0o555)
        before = tree(folder)
        what = planned(repo, names=Names(ensemble="new") if closed == "repository" else NAMES)

        def export() -> None:
            with staging(repo) as stage:
                fill(what, stage, "graph")
                publish(what, stage)

        with without_privileges(), pytest.raises(RepositoryError) as caught:
            export()
        assert "Permission denied" in caught.value.message
        assert str(target) in caught.value.message
        assert caught.value.hint
        assert tree(folder) == before
        for path in (folder, repo, *repo.iterdir()):
            path.chmod(0o777)


def test_a_repository_that_cannot_be_read_is_refused() -> None:
    templates = Path(str(action_templates.__file__))
    with open_folder() as folder, without_privileges():
        if not os.access(templates, os.R_OK, effective_ids=True):
            pytest.skip("the templates are not readable for everybody")
        closed = folder / "closed"
        closed.mkdir(mode=0)
        with pytest.raises(RepositoryError) as caught:
            planned(closed / "repo")
        closed.chmod(0o700)
    assert "cannot be read: Permission denied" in caught.value.message


# --- Two exports at once ------------------------------------------------------------------------


def winner_of(repo: Path, what: Plan) -> set[str]:
    return {(repo / path).read_text() for path in (what.graph, what.manifest)}


@pytest.mark.parametrize("situation", STEPS)
def test_of_two_exports_to_one_version_one_wins_and_the_other_leaves_no_trace(
    tmp_path: Path, situation: str
) -> None:
    repo = SITUATIONS[situation](tmp_path)
    with ExitStack() as stack:
        first, second = planned(repo), planned(repo)
        assert first.version == second.version
        stages = [stack.enter_context(staging(repo)) for _ in range(2)]
        fill(first, stages[0], "first")
        fill(second, stages[1], "second")
        publish(first, stages[0])
        before = tree(repo)
        with pytest.raises(RepositoryError, match="cannot be written") as caught:
            publish(second, stages[1])
        assert str(repo) in caught.value.message
        assert tree(repo) == before
    assert winner_of(repo, first) == {"first"}
    assert not list(repo.parent.glob(".*"))


def test_an_export_does_not_slip_another_contract_into_a_model_that_has_just_appeared(
    tmp_path: Path,
) -> None:
    repo = tmp_path / "repo"
    other = replace(CONTRACT, average="score")
    with staging(repo) as stage:
        late = planned(repo, other, version=2)
        fill(late, stage, "late")
        publish_one(repo)
        before = tree(repo)
        with pytest.raises(RepositoryError):
            publish(late, stage)
        assert tree(repo) == before


@pytest.mark.parametrize("situation", STEPS)
def test_exports_that_race_end_in_one_whole_version(tmp_path: Path, situation: str) -> None:
    for round_ in range(15):
        (tmp_path / str(round_)).mkdir()
        repo = SITUATIONS[situation](tmp_path / str(round_))
        plans = [planned(repo) for _ in range(3)]
        barrier = threading.Barrier(len(plans))
        outcomes: dict[int, BaseException | None] = {}

        def export(
            number: int,
            repo: Path = repo,
            plans: list[Plan] = plans,
            barrier: threading.Barrier = barrier,
            outcomes: dict[int, BaseException | None] = outcomes,
        ) -> None:
            with staging(repo) as stage:
                fill(plans[number], stage, f"export {number}")
                barrier.wait()
                try:
                    publish(plans[number], stage)
                    outcomes[number] = None
                except RepositoryError as exc:
                    outcomes[number] = exc

        threads = [threading.Thread(target=export, args=(number,)) for number in range(len(plans))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [number for number, error in outcomes.items() if error is None]
        assert len(outcomes) == len(plans)
        assert len(winners) == 1, outcomes
        assert winner_of(repo, plans[0]) == {f"export {winners[0]}"}
        assert not list(repo.parent.glob(".*"))
