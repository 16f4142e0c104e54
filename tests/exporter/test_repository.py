"""What an export adds to a repository, and what in it stands in the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import action_runtime
import action_templates
import jinja2
import pytest
from action_export import repository
from action_export.errors import ContractChangedError, NameRefusedError, RepositoryError
from action_export.repository import Names, check_name, published_labels
from action_export.types import Device
from action_runtime.spec import PARAMETER, Contract, Crop, Jpeg, KeepRatioResize, SampleFrames
from google.protobuf import text_format
from support.disk import open_folder, without_privileges
from support.published import CONTRACT, NAMES, planned, publish_one, read_config, tree
from tritonclient.grpc import model_config_pb2

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
        "tiny/1/labels.txt",
        "tiny/1/manifest.json",
        "tiny_preprocess/config.pbtxt",
        "tiny_preprocess/1/model.py",
        "tiny_recognizer/config.pbtxt",
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
        ("tiny_preprocess", 1, frames, {"clips": "clips"}),
        ("tiny_recognizer", 1, {"clips": "clips"}, {"scores": "scores"}),
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


def test_the_recognizer_batches(published: Path) -> None:
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
    assert not config.output[0].label_filename


def test_the_contract_is_the_same_string_in_both_parameters(published: Path) -> None:
    strings = {
        read_config(published, name).parameters[PARAMETER].string_value
        for name in ("tiny", "tiny_preprocess")
    }
    assert strings == {CONTRACT.to_json()}
    assert PARAMETER not in read_config(published, "tiny_recognizer").parameters


def test_labels_change_with_the_scores(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    for version in (1, 2):
        publish_one(repo)
        (output,) = read_config(repo, "tiny").output
        assert output.label_filename == f"{version}/labels.txt"
        labels = (repo / "tiny" / output.label_filename).read_text("utf-8")
        assert tuple(labels.splitlines()) == CONTRACT.labels


def test_each_model_names_the_one_version_that_it_loads(published: Path) -> None:
    for name in NAMES:
        assert list(read_config(published, name).version_policy.specific.versions) == [1]


def test_without_labels_no_label_file_is_named(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, replace(CONTRACT, labels=()))
    assert not read_config(repo, "tiny").output[0].label_filename
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
    assert changed == {f"{name}/config.pbtxt" for name in NAMES}
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


def test_jpeg_with_halved_chroma_is_not_continued_with_the_reason(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    publish_one(repo, replace(CONTRACT, wire=Jpeg(quality=95)))
    with pytest.raises(ContractChangedError, match="another contract: wire would") as caught:
        planned(repo, replace(CONTRACT, wire=Jpeg(quality=90, chroma="full")))
    assert "halved chroma" in caught.value.hint
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
    assert read_config(repo, "tiny").output[0].label_filename == "2/labels.txt"
    assert (repo / "tiny/2/labels.txt").read_text("utf-8").split("\n")[:-1] == [*after]


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


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="name too long"):
        planned(tmp_path / ("r" * 300))


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
