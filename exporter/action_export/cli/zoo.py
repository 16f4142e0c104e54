"""`action-export --list`: the families, the zoo's configs of each, and what each config needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from action_export import source
from action_export.errors import ActionExportError
from action_export.families import FAMILIES, family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One config of the zoo. needs: what an export of it takes beside the extra `export`."""

    config: str
    needs: tuple[str, ...]


def listing() -> dict[str, list[Listed]]:
    """The configs of mmaction2's zoo by family, both in alphabetical order.

    A config that does not load is listed under the family of its folder, with the reason.
    """
    families: dict[str, list[Listed]] = {}
    for name, path in sorted(source.zoo_configs().items()):
        family, needs = _entry(path)
        families.setdefault(family, []).append(Listed(config=name, needs=needs))
    return dict(sorted(families.items()))


def _entry(path: Path) -> tuple[str, tuple[str, ...]]:
    try:
        config = source.load_config(str(path))
    except ActionExportError as exc:
        folder = next(part for part in reversed(path.parts[:-1]) if part in _FOLDERS)
        return _FOLDERS[folder], (exc.hint,)
    needs = list(source.required_packages(config.model))
    if config.modality == "Flow":
        needs.append("frames of optical flow, 2 channels")
    return family_of(config.model, FAMILIES).name, tuple(needs)


_FOLDERS = {folder: family.name for family in FAMILIES for folder in family.zoo}


def as_text(families: dict[str, list[Listed]]) -> str:
    """Two columns under each family's name."""
    width = max(len(listed.config) for configs in families.values() for listed in configs)
    lines = []
    for family, configs in families.items():
        lines += ["", family]
        for listed in configs:
            needs = "needs " + ", ".join(listed.needs) if listed.needs else ""
            lines.append(f"  {listed.config:<{width}}  {needs}".rstrip())
    count = sum(map(len, families.values()))
    lines += [
        "",
        f"{count} configs of mmaction2's zoo. Any other Recognizer2D or Recognizer3D is exported",
        "too; docs/adding-a-family.md is for those that torch cannot trace as they are.",
    ]
    return "\n".join(lines[1:])
