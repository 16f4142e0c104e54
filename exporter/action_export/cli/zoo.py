"""`action-export --list`: the families, the zoo's configs of each, and what each config needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from action_export import config_file, source
from action_export.errors import ActionExportError
from action_export.families import FAMILIES, ModelConfig, family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One config of the zoo.

    needs: what an export of it takes beside the extra `export`: packages, options, frames.
    refused: why it cannot be exported as it is, or empty.
    """

    config: str
    needs: tuple[str, ...] = ()
    refused: str = ""


def listing() -> dict[str, list[Listed]]:
    """The configs of mmaction2's zoo by family, both in alphabetical order.

    A config that does not load is listed under the family of its folder, with the reason.
    """
    families: dict[str, list[Listed]] = {}
    for name, path in sorted(config_file.zoo_configs().items()):
        family, listed = _entry(name, path)
        families.setdefault(family, []).append(listed)
    return dict(sorted(families.items()))


def _entry(name: str, path: Path) -> tuple[str, Listed]:
    try:
        config = source.load_config(str(path))
    except ActionExportError as exc:
        folder = next(part for part in reversed(path.parts[:-1]) if part in _FOLDERS)
        return _FOLDERS[folder], Listed(config=name, refused=f"{exc.message}; {exc.hint}")
    needs = _backbone_needs(config.model)
    if config.modality == "Flow":
        needs += ("frames of optical flow, 2 channels",)
    return family_of(config.model, FAMILIES).name, Listed(config=name, needs=needs)


def _backbone_needs(model: ModelConfig) -> tuple[str, ...]:
    """Packages, and the options for configs that were written for older ones."""
    backbone = model["backbone"]
    kind = backbone["type"]
    if kind.startswith("mmcls."):
        # the last release of mmcls, 1.0.0rc6, refuses mmcv 2.1
        later = kind.replace("mmcls", "mmpretrain", 1)
        packages = source.required_packages({"backbone": {"type": later}})
        return (*packages, f"--cfg-options model.backbone.type={later}")
    packages = source.required_packages(model)
    if kind.startswith("timm.swin_") and "feature_shape" not in backbone:
        # timm 0.9 changed the order of its axes
        return (*packages, "--cfg-options model.backbone.feature_shape=NHWC")
    return packages


_FOLDERS = {folder: family.name for family in FAMILIES for folder in family.zoo}


def as_text(families: dict[str, list[Listed]]) -> str:
    """Two columns under each family's name."""
    width = max(len(listed.config) for configs in families.values() for listed in configs)
    lines = []
    for family, configs in families.items():
        lines += ["", family]
        for listed in configs:
            needs = "needs " + ", ".join(listed.needs) if listed.needs else ""
            note = f"refused: {listed.refused}" if listed.refused else needs
            lines.append(f"  {listed.config:<{width}}  {note}".rstrip())
    count = sum(map(len, families.values()))
    lines += [
        "",
        f"{count} configs of mmaction2's zoo. Any other Recognizer2D or Recognizer3D is exported",
        "too; docs/adding-a-family.md is for those that torch cannot trace as they are.",
    ]
    return "\n".join(lines[1:])
