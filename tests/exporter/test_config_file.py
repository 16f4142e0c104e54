"""A config is found and read, or what is given in its place is called what it is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from action_export.config_file import find
from action_export.errors import ConfigError, DependencyError
from action_export.source import load_config
from support.tiny import MODEL_3D, PIPELINE_3D, changed, with_step, write_config

OWN = """
from mmaction.registry import MODELS
from mmaction.models import I3DHead

@MODELS.register_module(force=True)
class {name}(I3DHead):
    pass
"""


def own_head(folder: Path, name: str) -> Path:
    """A config with a head of its own, in a module beside it."""
    (folder / f"{name.lower()}.py").write_text(OWN.format(name=name))
    return write_config(
        folder / "config.py",
        custom_imports=dict(imports=[name.lower()]),
        model={**MODEL_3D, "cls_head": {**MODEL_3D["cls_head"], "type": name}},
        test_pipeline=PIPELINE_3D,
    )


# --- What is given in place of a config ---------------------------------------------------------


@pytest.mark.parametrize("name", ["epoch_3.pth", "best.pt", "weights.bin"])
def test_a_checkpoint_in_place_of_the_config_is_called_that(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(ConfigError, match=r"is a checkpoint, where the config") as caught:
        find(str(path))
    assert "CONFIG CHECKPOINT" in caught.value.hint


def test_a_checkpoint_that_is_not_there_is_no_name_of_the_zoo() -> None:
    with pytest.raises(ConfigError, match=r"there is no config file nowhere\.pth"):
        find("nowhere.pth")


def test_mmengines_note_of_the_last_checkpoint_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "last_checkpoint"
    path.write_text("/work_dirs/slowfast/epoch_7.pth")
    with pytest.raises(ConfigError, match="mmengine's note of its last checkpoint") as caught:
        find(str(path))
    assert caught.value.hint.endswith("/work_dirs/slowfast/epoch_7.pth")


def test_a_folder_is_called_that_and_the_config_in_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        find(str(tmp_path))
    config = write_config(tmp_path / "slowfast.py", model=MODEL_3D)
    with pytest.raises(ConfigError, match="is a folder") as caught:
        find(str(tmp_path))
    assert str(config) in caught.value.hint


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ""])
def test_a_name_that_no_file_system_takes_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        find(name)


def test_a_config_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom action_export.config_file import find\n"
        "from action_export.errors import ConfigError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        find(name)\n    except ConfigError:\n        pass\n"
        "sys.exit('torch' in sys.modules or 'mmengine' in sys.modules)"
    )
    names = ["tsn_r50_of_the_zoo", "nowhere.py", str(tmp_path)]
    assert subprocess.run([sys.executable, "-c", program, *names], check=False).returncode == 0


# --- What a config imports ----------------------------------------------------------------------


def test_modules_beside_the_config_are_found(tmp_path: Path) -> None:
    before = list(sys.path)
    config = load_config(str(own_head(tmp_path, "HeadBeside")))
    assert config.model["cls_head"]["type"] == "HeadBeside"
    assert sys.path == before


def test_modules_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_head(tmp_path, "HeadInRoot")
    (tmp_path / "configs").mkdir()
    moved = config.rename(tmp_path / "configs" / "config.py")
    monkeypatch.chdir(tmp_path)
    assert load_config(str(moved)).model["cls_head"]["type"] == "HeadInRoot"


def test_a_module_beside_the_config_does_not_stand_in_for_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong one')")
    path = write_config(
        tmp_path / "c.py",
        custom_imports=dict(imports=["colorsys"]),
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
    )
    load_config(str(path))


def test_another_configs_module_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    load_config(str(own_head(first, "HeadOfTwo")))
    path = own_head(second, "HeadOfTwo")
    with pytest.raises(ConfigError, match="another headoftwo already") as caught:
        load_config(str(path))
    assert str(first / "headoftwo.py") in caught.value.message
    assert "process of its own" in caught.value.hint
    # the same file again is the same module
    load_config(str(first / "config.py"))


def test_a_module_that_is_not_found_is_named_with_the_whole_command(tmp_path: Path) -> None:
    config = own_head(tmp_path, "HeadAbove")
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = config.rename(tmp_path / "a" / "b" / "config.py")
    with pytest.raises(ConfigError, match="imports headabove, which is not found") as caught:
        load_config(str(moved))
    assert f"PYTHONPATH={tmp_path} action-export {moved}" in caught.value.hint
    assert str(moved.parent) in caught.value.hint


def test_a_module_of_a_pure_python_config_that_is_not_found_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new_style.py"
    path.write_text("from my_project.models import Net\nmodel = dict(type=Net)\n")
    with pytest.raises(ConfigError, match="imports my_project, which is not found") as caught:
        load_config(str(path))
    assert "PYTHONPATH=FOLDER_THAT_HAS_my_project action-export" in caught.value.hint


@pytest.mark.parametrize("what", ["model", "transform"])
def test_a_module_of_a_dotted_type_that_is_not_found_is_named(tmp_path: Path, what: str) -> None:
    kind = "my_project.models.Mine"
    path = write_config(
        tmp_path / "dumped.py",
        model=changed(MODEL_3D, type=kind) if what == "model" else MODEL_3D,
        test_pipeline=with_step(PIPELINE_3D, 1, type=kind) if what != "model" else PIPELINE_3D,
    )
    with pytest.raises(ConfigError, match="imports my_project, which is not found") as caught:
        load_config(str(path))
    assert "PYTHONPATH=FOLDER_THAT_HAS_my_project action-export" in caught.value.hint


def test_a_module_of_a_dotted_type_that_fails_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "fails_to_import.py").write_text("raise RuntimeError('on purpose')")
    model = changed(MODEL_3D, type="fails_to_import.Net")
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    with pytest.raises(ConfigError, match="fails_to_import: on purpose"):
        load_config(str(path))


def test_what_a_module_of_the_config_needs_is_told_from_the_module(tmp_path: Path) -> None:
    (tmp_path / "half_there.py").write_text("import not_installed_here")
    path = write_config(tmp_path / "c.py", custom_imports=dict(imports=["half_there"]))
    with pytest.raises(ConfigError, match="needs not_installed_here") as caught:
        load_config(str(path))
    assert "install" in caught.value.hint


# --- Configs that are built on mmaction2's ------------------------------------------------------

TSN = "recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb.py"


def test_a_config_on_top_of_an_installed_one_is_read_without_a_note(tmp_path: Path) -> None:
    path = tmp_path / "based.py"
    path.write_text(f"_base_ = 'mmaction::{TSN}'\nmodel = dict(cls_head=dict(num_classes=7))\n")
    config = load_config(str(path))
    plain = load_config(Path(TSN).stem)
    assert config.model["cls_head"]["num_classes"] == 7
    assert config.pipeline == plain.pipeline
    assert config.notes == plain.notes == ()


def test_a_missing_pkg_resources_is_named_with_the_setuptools_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "based.py"
    path.write_text(f"_base_ = 'mmaction::{TSN}'\n")
    monkeypatch.setitem(sys.modules, "pkg_resources", None)  # as if it were not installed
    with pytest.raises(DependencyError, match="needs pkg_resources") as caught:
        load_config(str(path))
    assert 'pip install "setuptools>=77.0.3,<81"' in caught.value.hint
