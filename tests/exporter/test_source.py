"""What is read of a config, and what is refused with the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from action_export import preprocess, source
from action_export.config_file import zoo_configs
from action_export.errors import (
    ActionExportError,
    ConfigError,
    DependencyError,
    UnsupportedError,
)
from action_export.mmaction_compat import import_mmaction
from action_export.source import load_config
from action_export.types import ViewOptions
from action_runtime.spec import SampleFrames
from support import zoo_packages
from support.refusal import refusal
from support.tiny import MODEL_3D, PIPELINE_3D, changed, with_step, write_config

TSN = "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder / "tiny.py", model=MODEL_3D, test_pipeline=PIPELINE_3D)


# --- Configs ------------------------------------------------------------------------------------


def test_a_path_is_read(config_file: Path) -> None:
    config = load_config(str(config_file))
    assert config.name == "tiny"
    assert config.model == MODEL_3D
    assert list(config.pipeline) == PIPELINE_3D
    assert config.sha256 == source.file_sha256(config_file)
    assert config.notes == ()


def test_a_zoo_name_is_read() -> None:
    config = load_config(TSN)
    assert config.name == TSN
    assert config.model["backbone"]["depth"] == 50
    assert config.path.is_file()


def test_an_unknown_name_gets_the_closest_ones() -> None:
    error = refusal(ConfigError, lambda: load_config(TSN.replace("8xb32", "8xb23")))
    assert TSN in error.hint


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("tsn_r50_kinetics", "tsn_"),
        ("slowfast_r50", "slowfast_r50"),
        ("x3d", "x3d_"),
        ("i3d", "i3d"),
    ],
)
def test_a_fragment_of_a_name_gets_those_of_its_family(name: str, family: str) -> None:
    close = refusal(ConfigError, lambda: load_config(name)).hint.removeprefix("did you mean ")
    assert all(suggestion.startswith(family) for suggestion in close.rstrip("?").split(" or "))


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    error = refusal(ConfigError, lambda: load_config("%%%"))
    assert "did you mean" not in error.hint


@pytest.mark.parametrize("missing", ["nowhere.py", "./nowhere", "/nowhere/config.json"])
def test_a_missing_file_is_named(missing: str) -> None:
    assert missing in refusal(ConfigError, lambda: load_config(missing)).message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("model = dict(type='Recognizer3D'", "SyntaxError"),
        ("model = undefined", "NameError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise RuntimeError('no\\nlines')", "RuntimeError"),
        ("_base_ = ['nowhere.py']", "FileNotFoundError"),
        ("model = dict(type='{{ no }}')\nx = {{ broken", "SyntaxError"),
    ],
)
def test_a_config_that_does_not_load_is_named_with_the_reason(
    tmp_path: Path, text: str, kind: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "broken.py" in error.message
    assert kind in error.message


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a note")
    assert "notes.txt" in refusal(ConfigError, lambda: load_config(str(path))).message


@pytest.mark.parametrize("model", [None, "Recognizer3D", dict(backbone=dict(type="ResNet"))])
def test_a_config_without_a_model_is_no_recognizer(tmp_path: Path, model: object) -> None:
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    assert "recognizer" in refusal(ConfigError, lambda: load_config(str(path))).message


@pytest.mark.parametrize("kind", ["FastRCNN", "BMN", "ImageClassifier"])
def test_a_model_of_another_task_is_no_recognizer(tmp_path: Path, kind: str) -> None:
    path = write_config(tmp_path / "c.py", model=dict(type=kind), test_pipeline=PIPELINE_3D)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert f"{kind!r}, which is no recognizer" in error.message


@pytest.mark.parametrize("kind", ["RecognizerGCN", "RecognizerAudio", "MMRecognizer3D"])
def test_a_recognizer_of_something_else_than_frames_is_unsupported(
    tmp_path: Path, kind: str
) -> None:
    path = write_config(tmp_path / "c.py", model=dict(type=kind), test_pipeline=PIPELINE_3D)
    error = refusal(UnsupportedError, lambda: load_config(str(path)))
    assert kind in error.message
    assert "Recognizer2D, Recognizer3D" in error.hint


def test_cfg_options_override_the_config(config_file: Path) -> None:
    options = ("model.cls_head.num_classes=7", "test_pipeline.1.num_clips=5", "extra=[1,2]")
    config = load_config(str(config_file), options)
    assert config.model["cls_head"]["num_classes"] == 7
    assert config.pipeline[1]["num_clips"] == 5
    assert config.sha256 == source.file_sha256(config_file)


@pytest.mark.parametrize(
    "option", ["num_classes", "test_pipeline.99.num_clips=5", "default_scope.inner.value=1"]
)
def test_a_cfg_option_that_does_not_apply_is_refused(config_file: Path, option: str) -> None:
    error = refusal(ConfigError, lambda: load_config(str(config_file), (option,)))
    assert option in error.message
    assert "key=value" in error.hint


# --- The pipeline that is followed --------------------------------------------------------------


def test_the_pipeline_of_the_test_loop_is_followed_and_noted() -> None:
    # This config overrides test_pipeline, and leaves that of the dataset as its base has it.
    config = load_config("tsm_imagenet-pretrained-r50_8xb16-1x1x16-50e_sthv2-rgb")
    assert config.pipeline[1]["num_clips"] == 8
    assert len(config.notes) == 1
    assert "test_dataloader.dataset.pipeline" in config.notes[0]


NEW_STYLE = """
from mmaction.datasets.transforms import (
    CenterCrop, DecordDecode, DecordInit, FormatShape, PackActionInputs, Resize, SampleFrames)
from mmaction.models import ActionDataPreprocessor, I3DHead, Recognizer3D, ResNet3dSlowOnly

model = dict(
    type=Recognizer3D,
    backbone=dict(type=ResNet3dSlowOnly, depth=18, pretrained=None, lateral=False),
    cls_head=dict(type=I3DHead, in_channels=512, num_classes=3, average_clips="prob"),
    data_preprocessor=dict(type=ActionDataPreprocessor, format_shape="NCTHW"),
)
test_pipeline = [
    dict(type=DecordInit),
    dict(type=SampleFrames, clip_len=4, test_mode=True),
    dict(type=DecordDecode),
    dict(type=Resize, scale=(-1, 32)),
    dict(type=CenterCrop, crop_size=32),
    dict(type=FormatShape, input_format="NCTHW"),
    dict(type=PackActionInputs),
]
"""


def test_a_config_that_names_classes_by_themselves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new_style.py"
    path.write_text(NEW_STYLE)
    config = load_config(str(path))
    assert config.recognizer == "Recognizer3D"
    assert [transform["type"] for transform in config.pipeline[:2]] == [
        "DecordInit",
        "SampleFrames",
    ]
    assert preprocess.derive(config, ViewOptions()).sampler == SampleFrames(clip_len=4)
    assert type(source.build_untrained(config)).__name__ == "Recognizer3D"


OWN_PARTS = """
from mmaction.datasets import transforms
from mmaction.models import recognizers

class SampleFrames(transforms.SampleFrames):
    pass

class Recognizer3D(recognizers.Recognizer3D):
    pass
"""


def with_own(folder: Path, name: str) -> Path:
    """NEW_STYLE with a class of the user's by that name, in a module of its own for each test."""
    module = f"own_parts_of_{folder.name}"
    (folder / f"{module}.py").write_text(OWN_PARTS)
    first, *others = NEW_STYLE.split("model = dict(", 1)
    path = folder / "own.py"
    path.write_text("model = dict(".join([f"{first}from {module} import {name}\n", *others]))
    return path


def dumped(config: Path) -> Path:
    """What mmengine leaves in a work_dir: classes as the text of where they are imported from."""
    from mmengine.config import Config

    copy = config.with_name("dumped.py")
    Config.fromfile(config).dump(copy)
    assert "import" not in copy.read_text()
    return copy


def as_it_is(config: Path) -> Path:
    return config


@pytest.mark.parametrize("form", [as_it_is, dumped])
def test_a_recognizer_of_the_users_by_mmaction2s_name_is_the_one_that_is_built(
    tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    config = load_config(str(form(with_own(tmp_path, "Recognizer3D"))))
    assert config.recognizer == f"own_parts_of_{tmp_path.name}.Recognizer3D"
    built = type(source.build_untrained(config))
    assert f"{built.__module__}.{built.__name__}" == config.recognizer


def test_a_part_that_nothing_registered_is_named_with_the_way_to_import_it(tmp_path: Path) -> None:
    model = changed(MODEL_3D, backbone__type="MyNet")
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    error = refusal(ConfigError, lambda: source.build_untrained(config))
    assert "MyNet is not in the mmaction::model registry" in error.message
    assert "custom_imports" in error.hint


@pytest.mark.parametrize("form", [as_it_is, dumped])
def test_a_transform_of_the_users_by_mmaction2s_name_is_refused_by_its_own(
    tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    config = load_config(str(form(with_own(tmp_path, "SampleFrames"))))
    error = refusal(UnsupportedError, lambda: preprocess.derive(config, ViewOptions()))
    own = f"own_parts_of_{tmp_path.name}.SampleFrames"
    assert error.message.startswith(f"test_pipeline[1] is {own!r}, which is not mmaction2's")
    assert "mmaction.datasets.transforms.SampleFrames" in error.hint


def test_the_dump_of_a_pure_python_config_is_read_as_the_config(tmp_path: Path) -> None:
    path = tmp_path / "new_style.py"
    path.write_text(NEW_STYLE)
    config, copy = load_config(str(path)), load_config(str(dumped(path)))
    assert copy.pipeline == config.pipeline
    assert copy.recognizer == config.recognizer
    assert copy.notes == ()
    assert str(source.build_untrained(copy)) == str(source.build_untrained(config))


@pytest.mark.parametrize("entry", ["DecordInit", dict(clip_len=4), None])
def test_an_entry_that_is_no_transform_is_refused(tmp_path: Path, entry: object) -> None:
    pipeline = [PIPELINE_3D[0], entry]
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=pipeline)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert repr(entry) in error.message


def test_equal_pipelines_need_no_note(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dict(type="VideoDataset", pipeline=PIPELINE_3D)),
    )
    assert load_config(str(path)).notes == ()


FOLLOWED = with_step(PIPELINE_3D, 1, num_clips=6)
VIDEO_DATASET = dict(type="VideoDataset", pipeline=FOLLOWED)


@pytest.mark.parametrize(
    "dataset",
    [
        VIDEO_DATASET,
        dict(type="RepeatDataset", times=2, dataset=VIDEO_DATASET),
        dict(type="ConcatDataset", datasets=[VIDEO_DATASET, VIDEO_DATASET]),
        dict(type="RepeatDataset", dataset=dict(type="ConcatDataset", datasets=[VIDEO_DATASET])),
        [VIDEO_DATASET, VIDEO_DATASET],
    ],
    ids=["plain", "repeat", "concat", "nested", "list"],
)
def test_wrappers_of_the_test_dataset_are_unwrapped(tmp_path: Path, dataset: object) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dataset),
    )
    assert list(load_config(str(path)).pipeline) == FOLLOWED


def test_concatenated_datasets_that_are_read_differently_are_refused(tmp_path: Path) -> None:
    other = dict(type="VideoDataset", pipeline=PIPELINE_3D)
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=[VIDEO_DATASET, other])),
    )
    refusal(ConfigError, lambda: load_config(str(path)))


FLOW_DATASET = dict(type="RawframeDataset", modality="Flow", pipeline=FOLLOWED)


@pytest.mark.parametrize(
    ("dataset", "modality"),
    [
        (None, "RGB"),
        (VIDEO_DATASET, "RGB"),
        (FLOW_DATASET, "Flow"),
        (dict(type="RawframeDataset", modality="Flow"), "Flow"),
        (dict(type="RepeatDataset", dataset=FLOW_DATASET), "Flow"),
        (dict(type="ConcatDataset", datasets=[FLOW_DATASET, FLOW_DATASET]), "Flow"),
    ],
    ids=["no dataset", "default", "flow", "no pipeline", "repeat", "concat"],
)
def test_the_modality_is_the_test_datasets(
    tmp_path: Path, dataset: dict[str, Any] | None, modality: str
) -> None:
    loader = {} if dataset is None else dict(test_dataloader=dict(dataset=dataset))
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=PIPELINE_3D, **loader)
    assert load_config(str(path)).modality == modality


def test_a_modality_that_is_not_served_is_refused_by_name_and_place(tmp_path: Path) -> None:
    dataset = dict(type="RepeatDataset", dataset=dict(FLOW_DATASET, modality="Depth"))
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_dataloader=dict(dataset=dataset))
    error = refusal(UnsupportedError, lambda: load_config(str(path)))
    assert "test_dataloader.dataset.dataset.modality of c.py is 'Depth'" in error.message
    assert error.hint == "served are 'RGB' and 'Flow'"


def test_datasets_of_different_modalities_are_refused(tmp_path: Path) -> None:
    datasets = [VIDEO_DATASET, FLOW_DATASET]
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_dataloader=dict(dataset=datasets))
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "different modalities" in error.message


def test_a_dataset_without_a_pipeline_leaves_test_pipeline(tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "c.py",
        model=MODEL_3D,
        test_pipeline=PIPELINE_3D,
        test_dataloader=dict(dataset=dict(type="VideoDataset")),
    )
    config = load_config(str(path))
    assert list(config.pipeline) == PIPELINE_3D
    assert config.notes == ()


def test_no_test_pipeline_at_all_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.py", model=MODEL_3D)
    error = refusal(ConfigError, lambda: load_config(str(path)))
    assert "test_pipeline" in error.message


# --- The model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        changed(MODEL_3D, backbone__type="NoSuchBackbone"),
        changed(MODEL_3D, backbone__depth=19),
        changed(MODEL_3D, cls_head__no_such_argument=1),
        dict(type="Recognizer3D"),
    ],
)
def test_a_model_that_mmaction2_cannot_build_is_an_error_of_the_config(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    error = refusal(ConfigError, lambda: source.build_untrained(config))
    assert "c.py" in error.message


def test_pretrained_weights_are_not_looked_for(tmp_path: Path) -> None:
    model = changed(MODEL_3D, backbone__pretrained="https://nowhere.invalid/resnet18.pth")
    path = write_config(tmp_path / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    built: Any = source.build_untrained(config)
    assert built.backbone.pretrained is None
    assert config.model == model


# --- Backbones of other packages ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("timm.swin_base_patch4_window7_224", ("timm",)),
        ("torchvision.densenet161", ("torchvision",)),
        ("mmpretrain.MobileOne", ("mmpretrain", "torchvision")),
        ("MobileOneTSM", ("mmpretrain", "torchvision")),
        ("mmaction.MobileOneTSM", ("mmpretrain", "torchvision")),
        ("mmcls.ResNeXt", ("mmcls",)),
        ("ResNet", ()),
        ("mmaction.ResNet", ()),
        ("timmy.ResNet", ()),
    ],
)
def test_the_type_of_the_backbone_tells_its_packages(kind: str, packages: tuple[str, ...]) -> None:
    assert source.required_packages(changed(MODEL_3D, backbone__type=kind)) == packages


def test_a_model_without_a_backbone_requires_no_package() -> None:
    assert source.required_packages(dict(type="RecognizerOmni")) == ()


def test_of_tsn_and_tsm_just_the_configs_of_other_packages_require_any() -> None:
    requiring = {
        name
        for name in zoo_configs()
        if name.startswith(("tsn", "tsm")) and source.required_packages(load_config(name).model)
    }
    assert requiring == zoo_packages.CONFIGS.keys()


def package_error(folder: Path, kind: str) -> ActionExportError:
    model = changed(MODEL_3D, backbone=dict(type=kind))
    path = write_config(folder / "c.py", model=model, test_pipeline=PIPELINE_3D)
    config = load_config(str(path))
    error = refusal(DependencyError, lambda: source.build_untrained(config))
    assert f"the backbone {kind} of c.py" in error.message
    return error


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("timm.resnet18", "timm"),
        ("torchvision.resnet18", "torchvision"),
        ("mmpretrain.MobileOne", "mmpretrain"),
        ("mmpretrain.MobileOne", "torchvision"),
        ("MobileOneTSM", "mmpretrain"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, missing: str
) -> None:
    for package in ("mmpretrain", "timm", "torchvision"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    error = package_error(tmp_path, kind)
    assert f"needs the Python package {missing}, which is not installed" in error.message
    assert 'pip install "action-export[zoo]"' in error.hint


def test_a_backbone_of_mmcls_is_referred_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmcls", None)
    error = package_error(tmp_path, "mmcls.ResNeXt")
    assert "--cfg-options model.backbone.type=mmpretrain.ResNeXt " in error.hint


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision"),
        ("assert False, 'MMCV==2.1.0 is used but incompatible.'", "MMCV==2.1.0"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_package_that_does_not_import_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "timm.py").write_text(code)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    error = package_error(tmp_path, "timm.resnet18")
    assert "needs the Python package timm, which does not import" in error.message
    assert reason in error.message


def test_mmaction2_that_does_not_import_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(init_default_scope: bool) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand a trace")

    import_mmaction()
    monkeypatch.setattr("mmaction.utils.register_all_modules", fail)
    error = refusal(DependencyError, import_mmaction)
    assert error.message.endswith("operator torchvision::nms does not exist")
