"""What an architecture needs beyond the general path: one frozen declaration, in one file each."""

from action_export.families._family import Family, Patch, family_of, patched
from action_export.families._registry import FAMILIES

__all__ = ["FAMILIES", "Family", "Patch", "family_of", "patched"]
