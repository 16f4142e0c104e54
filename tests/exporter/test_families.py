"""Which family a config belongs to, and the patches that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from action_export import config_file, source
from action_export.errors import ConfigError
from action_export.families import FAMILIES, family_of, patch
from action_export.source import RecognizerConfig
from support.tiny import MODEL_3D, changed
from support.zoo import PIPELINES, kind_of

ZOO = config_file.zoo_configs()


def zoo_folder(path: Path) -> str:
    """The folder right under configs/recognition."""
    return path.parts[path.parts.index("recognition") + 1]


def build(model: Mapping[str, Any]) -> Any:
    config = RecognizerConfig(
        name="tiny", path=Path("tiny.py"), sha256="", model=model, pipeline=()
    )
    torch.manual_seed(0)
    return source.build_untrained(config)


# --- The registry -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo() -> dict[str, RecognizerConfig]:
    """The zoo's configs that load: three of UniFormerV2 have no pipeline to test with."""
    loaded = {}
    for name in ZOO:
        with suppress(ConfigError):
            loaded[name] = source.load_config(name)
    assert sum("clip-pre_u8" in name for name in ZOO.keys() - loaded.keys()) == 3
    assert len(ZOO) - len(loaded) == 3
    return loaded


def test_the_folders_of_the_zoo_are_those_that_the_families_name() -> None:
    named = [folder for family in FAMILIES for folder in family.zoo]
    assert set(named) == set(map(zoo_folder, ZOO.values()))


def test_every_zoo_config_belongs_to_a_family_that_names_its_folder(
    zoo: dict[str, RecognizerConfig],
) -> None:
    strays = {
        name: family.name
        for name, config in zoo.items()
        if zoo_folder(config.path) not in (family := family_of(config.model, FAMILIES)).zoo
    }
    assert not strays


def test_every_family_with_a_folder_has_a_config_of_the_zoo(
    zoo: dict[str, RecognizerConfig],
) -> None:
    reached = {family_of(config.model, FAMILIES).name for config in zoo.values()}
    assert reached == {family.name for family in FAMILIES if family.zoo}


def test_each_kind_of_pipeline_in_the_zoo_is_served_by_a_test(
    zoo: dict[str, RecognizerConfig],
) -> None:
    kinds = {kind_of(config) for config in zoo.values() if config.modality == "RGB"}
    assert [kind_of(zoo[name]) for name in PIPELINES] == list(
        dict.fromkeys(kind_of(zoo[name]) for name in PIPELINES)
    )
    assert kinds == {kind_of(zoo[name]) for name in PIPELINES}


def test_a_name_belongs_to_one_family() -> None:
    names = [family.name for family in FAMILIES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("kind", "family"), [("Recognizer2D", "recognizer2d"), ("Recognizer3D", "recognizer3d")]
)
@pytest.mark.parametrize(
    "parts",
    [
        dict(backbone=dict(type="MyNet"), cls_head=dict(type="MyHead")),
        # names are compared whole
        dict(backbone=dict(type="MViTish"), cls_head=dict(type="MyTSNHead")),
        dict(backbone=dict(type="MyNet"), neck=None),
        {},
    ],
    ids=["unknown", "alike by name", "no neck", "nothing"],
)
def test_an_architecture_of_nobody_else_falls_to_its_recognizer(
    kind: str, family: str, parts: dict[str, Any]
) -> None:
    assert family_of({"type": kind, **parts}, FAMILIES).name == family


@pytest.mark.parametrize(
    ("part", "kind", "family"),
    [
        ("backbone", "TANet", "tanet"),
        ("backbone", "mmaction.TANet", "tanet"),
        ("backbone", "mmaction.models.ResNetTIN", "tin"),
        ("neck", "mmaction.TPN", "tpn"),
        ("cls_head", "mmaction.TRNHead", "trn"),
    ],
)
def test_a_type_matches_in_any_scope(part: str, kind: str, family: str) -> None:
    model = {"type": "Recognizer2D", "cls_head": {"type": "TSNHead"}, part: {"type": kind}}
    assert family_of(model, FAMILIES).name == family


@pytest.mark.parametrize("part", ["backbone", "cls_head", "neck"])
def test_a_class_of_the_users_that_only_has_the_name_matches_nothing(part: str) -> None:
    name = {"backbone": "TANet", "cls_head": "TRNHead", "neck": "TPN"}[part]
    model = {"type": "Recognizer2D", part: {"type": type(name, (), {})}}
    assert family_of(model, FAMILIES).name == "recognizer2d"


def test_a_class_of_the_users_belongs_where_its_base_does() -> None:
    from mmaction.models import BaseRecognizer, Recognizer3D, TANet

    mine = {"type": "Recognizer2D", "backbone": {"type": type("Mine", (TANet,), {})}}
    assert family_of(mine, FAMILIES).name == "tanet"
    assert family_of({"type": type("Mine", (Recognizer3D,), {})}, FAMILIES).name == "recognizer3d"
    assert family_of({"type": type("Mine", (BaseRecognizer,), {})}, FAMILIES).name == "recognizer"


# --- Views --------------------------------------------------------------------------------------


def features(model: Any, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.extract_feat(clips, test_mode=True)[0]
    return found


def views(batch: int) -> torch.Tensor:
    """Three views of each video."""
    return torch.randn(batch, 3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(batch))


def test_views_that_were_looped_over_have_the_same_features_at_once() -> None:
    model = build({**MODEL_3D, "test_cfg": dict(max_testing_views=2, fcn_test=True)})
    looped = features(model, views(1))
    patch(model, family_of(MODEL_3D, FAMILIES))
    torch.testing.assert_close(features(model, views(1)), looped)
    assert not torch.allclose(looped[0], looped[2])


def test_a_batch_works_once_the_loop_over_views_is_gone() -> None:
    model = build({**MODEL_3D, "test_cfg": dict(max_testing_views=2)})
    with pytest.raises(AssertionError, match="max_testing_views"):
        features(model, views(2))
    patch(model, family_of(MODEL_3D, FAMILIES))
    torch.testing.assert_close(
        features(model, views(2)),
        torch.cat([features(model, video[None]) for video in views(2)]),
    )


@pytest.mark.parametrize("test_cfg", [None, dict(fcn_test=True)])
def test_settings_of_the_test_other_than_the_loop_stay(test_cfg: dict[str, Any] | None) -> None:
    model = build({**MODEL_3D, "test_cfg": test_cfg and {**test_cfg, "max_testing_views": 2}})
    patch(model, family_of(MODEL_3D, FAMILIES))
    assert model.test_cfg == test_cfg


# --- OmniSource ---------------------------------------------------------------------------------


def test_features_of_an_omnisource_model_come_with_options_for_its_head() -> None:
    settings = changed(MODEL_3D, type="RecognizerOmni", data_preprocessor=None)
    model = build(settings)
    with torch.no_grad():
        alone = model.extract_feat(views(2), test_mode=True)
        patch(model, family_of(settings, FAMILIES))
        found, options = model.extract_feat(views(2), test_mode=True)
    assert options == {}
    torch.testing.assert_close(found, alone, rtol=0, atol=0)
    assert model.cls_head(found, **options).shape == (6, 10)
