"""What an architecture needs beyond the general path: one frozen declaration, in one file each."""

from action_export.families._family import Decision, Family, ModelConfig, decide, family_of, patch
from action_export.families._registry import FAMILIES

__all__ = ["FAMILIES", "Decision", "Family", "ModelConfig", "decide", "family_of", "patch"]
