"""Recognizers of separate images whose backbone and head need no patch."""

from action_export.families._family import Family

RECOGNIZER_2D = Family(
    name="recognizer2d",
    matches=lambda model: model["type"] == "Recognizer2D",
    tolerance=1e-4,
)
