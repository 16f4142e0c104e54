"""Every family, the more particular first. Adding one is its file, a line here, and its test."""

from action_export.families._family import Family
from action_export.families.recognizer2d import RECOGNIZER_2D
from action_export.families.recognizer3d import RECOGNIZER_3D

FAMILIES: tuple[Family, ...] = (RECOGNIZER_2D, RECOGNIZER_3D)
