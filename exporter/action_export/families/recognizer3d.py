"""Recognizers of clips whose backbone and head need no patch."""

from action_export.families._family import Family

RECOGNIZER_3D = Family(
    name="recognizer3d",
    matches=lambda model: model["type"] == "Recognizer3D",
    tolerance=1e-4,
)
