"""Architectures without a patch of their own, by the part of the config that tells them."""

from action_export.families._family import Family, has, recognizes
from action_export.families._patches import all_views_at_once, contiguous_features, deploy_form

_BACKBONES_3D = {
    "c2d": "C2D",
    "c3d": "C3D",
    "csn": "ResNet3dCSN",
    "i3d": "ResNet3d",
    "r2plus1d": "ResNet2Plus1d",
    "slowfast": "ResNet3dSlowFast",
    "slowonly": "ResNet3dSlowOnly",
    "timesformer": "TimeSformer",
    "uniformer": "UniFormer",
    "uniformerv2": "UniFormerV2",
    "videomae": "VisionTransformer",
    "x3d": "X3D",
}
# Other folders of the zoo whose models are built alike: VideoMAE V2 differs in its training only,
# and C2D without temporal pooling is a TSN.
_ALSO = {"videomae": ("videomaev2",), "tsn": ("c2d",)}

PYRAMID = Family(name="tpn", zoo=("tpn",), matches=has("neck", "TPN"), patches=(all_views_at_once,))

PLAIN_3D = tuple(
    Family(
        name=name,
        zoo=(name, *_ALSO.get(name, ())),
        matches=has("backbone", backbone),
        patches=(all_views_at_once,),
    )
    for name, backbone in _BACKBONES_3D.items()
)

PLAIN_2D = tuple(
    Family(
        name=name,
        zoo=(name, *_ALSO.get(name, ())),
        matches=has("cls_head", head),
        patches=(deploy_form, contiguous_features),
    )
    for name, head in {"tsm": "TSMHead", "tsn": "TSNHead"}.items()
)

# Whatever else mmaction2 can build, for example a backbone of the user's own.
OTHERS = (
    Family(
        name="recognizer2d",
        matches=recognizes("Recognizer2D"),
        patches=(deploy_form, contiguous_features),
    ),
    Family(
        name="recognizer3d",
        matches=recognizes("Recognizer3D"),
        patches=(all_views_at_once,),
    ),
    # derived from BaseRecognizer
    Family(name="recognizer", matches=lambda model: True),
)
