"""Every family, the more particular first. Adding one is its file, a line here, and its test."""

from action_export.families._family import Family
from action_export.families.mvit import MVIT
from action_export.families.omnisource import OMNISOURCE
from action_export.families.plain import OTHERS, PLAIN_2D, PLAIN_3D, PYRAMID
from action_export.families.swin import SWIN
from action_export.families.tanet import TANET
from action_export.families.tin import TIN
from action_export.families.trn import TRN

FAMILIES: tuple[Family, ...] = (
    MVIT,
    OMNISOURCE,
    SWIN,
    TANET,
    TIN,
    TRN,
    PYRAMID,
    *PLAIN_2D,
    *PLAIN_3D,
    *OTHERS,
)
