"""The contract is what the config says, or the config is refused by name and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from action_export import preprocess, source
from action_export.config_file import zoo_configs
from action_export.errors import ActionExportError, ConfigError, UnsupportedError
from action_export.mmaction_compat import import_mmaction, quiet
from action_export.preprocess import Preprocessing, derive
from action_export.source import RecognizerConfig
from action_export.types import Crops, Modality, ViewOptions
from action_runtime.spec import (
    Contract,
    Crop,
    DenseSampleFrames,
    FixedResize,
    KeepRatioResize,
    SampleFrames,
    Sampler,
    UniformSample,
)
from action_runtime.transforms import target_size
from support.tiny import (
    MODEL_2D,
    MODEL_3D,
    MODEL_FLOW_2D,
    MODEL_FLOW_3D,
    PIPELINE_2D,
    PIPELINE_3D,
    PIPELINE_FLOW_2D,
    PIPELINE_FLOW_3D,
    VIDEOS,
    changed,
    with_step,
    write_config,
)

ZOO = zoo_configs()
INIT, SAMPLE, DECODE, RESIZE, CROP, FORMAT, PACK = range(7)
"""Positions in the tiny pipelines."""


def config_of(
    pipeline: Sequence[Mapping[str, Any]] = PIPELINE_3D,
    model: Mapping[str, Any] = MODEL_3D,
    key: str = "test_pipeline",
    modality: Modality = "RGB",
) -> RecognizerConfig:
    return RecognizerConfig(
        name="tiny",
        path=Path("tiny.py"),
        sha256="",
        model=model,
        pipeline=tuple(pipeline),
        modality=modality,
        pipeline_key=key,
    )


def derived(
    pipeline: Sequence[Mapping[str, Any]],
    views: ViewOptions = ViewOptions(),
    model: Mapping[str, Any] = MODEL_3D,
) -> Preprocessing:
    return derive(config_of(pipeline, model), views)


def contract_of(pipeline: Sequence[Mapping[str, Any]], model: Mapping[str, Any]) -> Contract:
    config = config_of(pipeline, model)
    return derive(config, ViewOptions()).contract(config, labels=(), provenance={})


def sampling(**sampler: Any) -> list[dict[str, Any]]:
    """The 3D pipeline with another sampler."""
    pipeline = deepcopy(PIPELINE_3D)
    pipeline[SAMPLE] = dict(test_mode=True, **sampler)
    return pipeline


def inserted(position: int, **transform: Any) -> list[dict[str, Any]]:
    return [*PIPELINE_3D[:position], transform, *PIPELINE_3D[position:]]


def without(position: int) -> list[dict[str, Any]]:
    return [*PIPELINE_3D[:position], *PIPELINE_3D[position + 1 :]]


def swapped(a: int, b: int) -> list[dict[str, Any]]:
    pipeline = deepcopy(PIPELINE_3D)
    pipeline[a], pipeline[b] = pipeline[b], pipeline[a]
    return pipeline


# --- The zoo ------------------------------------------------------------------------------------

NO_TEST_PIPELINE = {
    "uniformerv2-base-p16-res224_clip-pre_u8_kinetics710-rgb",
    "uniformerv2-large-p14-res224_clip-pre_u8_kinetics710-rgb",
    "uniformerv2-large-p14-res336_clip-pre_u8_kinetics710-rgb",
}
OPTICAL_FLOW = {
    "slowonly_r50_8xb16-16x4x1-256e_kinetics400-flow",
    "tsn_imagenet-pretrained-r50_8xb32_5x1x3-110e_kinetics400-flow",
}


@pytest.mark.parametrize("name", sorted(ZOO.keys() - NO_TEST_PIPELINE))
def test_a_zoo_config_gives_a_contract(name: str) -> None:
    config = source.load_config(name)
    contract = derive(config, ViewOptions()).contract(config, labels=(), provenance={})
    assert Contract.from_json(contract.to_json()) == contract
    assert contract.config_views is None
    assert min(contract.clips_shape) > 0
    assert contract.takes_flow == (name in OPTICAL_FLOW)


def test_the_zoo_configs_that_are_not_served_are_refused_by_their_reason() -> None:
    assert set(ZOO) >= NO_TEST_PIPELINE | OPTICAL_FLOW
    for name in NO_TEST_PIPELINE:
        with pytest.raises(ConfigError, match="neither test_dataloader"):
            source.load_config(name)


# --- What is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (
            dict(type="SampleFrames", clip_len=4),
            SampleFrames(clip_len=4),
        ),
        (
            dict(
                type="SampleFrames",
                clip_len=4,
                frame_interval=2,
                num_clips=3,
                twice_sample=True,
                out_of_bound_opt="repeat_last",
                target_fps=30,
                temporal_jitter=False,
                keep_tail_frames=True,
            ),
            SampleFrames(
                clip_len=4,
                frame_interval=2,
                num_clips=3,
                twice_sample=True,
                out_of_bound="repeat_last",
                target_fps=30.0,
            ),
        ),
        (
            dict(type="DenseSampleFrames", clip_len=4, frame_interval=2),
            DenseSampleFrames(clip_len=4, frame_interval=2),
        ),
        (
            dict(
                type="DenseSampleFrames",
                clip_len=4,
                num_clips=2,
                sample_range=32,
                num_sample_positions=5,
                out_of_bound_opt="repeat_last",
                twice_sample=True,  # DenseSampleFrames never reads it
            ),
            DenseSampleFrames(
                clip_len=4,
                num_clips=2,
                sample_range=32,
                num_sample_positions=5,
                out_of_bound="repeat_last",
            ),
        ),
        (dict(type="UniformSample", clip_len=4), UniformSample(clip_len=4)),
        (
            dict(type="UniformSample", clip_len=4, num_clips=2),
            UniformSample(clip_len=4, num_clips=2),
        ),
    ],
)
def test_every_argument_of_a_sampler_is_read(sampler: dict[str, Any], expected: Sampler) -> None:
    assert derived(sampling(**sampler)).sampler == expected


DECODERS = {
    "decord": ("DecordInit", "DecordDecode"),
    "pyav": ("PyAVInit", "PyAVDecode"),
    "opencv": ("OpenCVInit", "OpenCVDecode"),
    "frames": (None, "RawFrameDecode"),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_is_accepted_and_only_decord_tells_the_frame_rate(decoder: str) -> None:
    init, decode = DECODERS[decoder]
    start = [dict(type=init, io_backend="disk", num_threads=2)] if init else []
    decoded = dict(type=decode, io_backend="disk")
    pipeline = [*start, PIPELINE_3D[SAMPLE], decoded, *PIPELINE_3D[RESIZE:]]
    assert derived(pipeline).reads_fps == (decoder == "decord")
    assert derived(pipeline).decoder == ("decord" if decoder == "frames" else decoder)


def test_pims_is_refused_because_no_client_can_follow_it() -> None:
    pipeline = [dict(type="PIMSInit"), *PIPELINE_3D[SAMPLE:]]
    with pytest.raises(
        UnsupportedError, match=r"test_pipeline\[0\], PIMSInit, .* no client"
    ) as caught:
        derived(pipeline)
    assert "PyAVInit" in caught.value.hint


def test_frame_files_that_pillow_reads_are_refused_because_it_would_resize_too() -> None:
    files = [PIPELINE_3D[SAMPLE], dict(type="RawFrameDecode", decoding_backend="pillow")]
    with pytest.raises(UnsupportedError, match="decoding_backend='pillow', so Resize is Pillow's"):
        derived([*files, *PIPELINE_3D[RESIZE:]])


@pytest.mark.parametrize("init", [None, "PyAVInit"])
def test_a_decoder_without_its_own_opener_is_refused(init: str | None) -> None:
    start = [dict(type=init)] if init else []
    told = f"DecordDecode, reads what DecordInit opens, and the pipeline has {init or 'none'}"
    with pytest.raises(UnsupportedError, match=told):
        derived([*start, *PIPELINE_3D[SAMPLE:]])


def test_a_config_of_frame_files_is_told_that_the_client_decodes() -> None:
    files = [PIPELINE_3D[SAMPLE], dict(type="RawFrameDecode"), *PIPELINE_3D[RESIZE:]]
    (note,) = preprocess.decoder_notes(derived(files))
    assert "RawFrameDecode" in note
    assert "decord" in note
    assert not preprocess.decoder_notes(derived(PIPELINE_3D))


PETREL = dict(io_backend="petrel", path_mapping={"data/": "s3://bucket/"}, enable_mc=True)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_storage_that_is_not_here_is_no_reason_to_refuse(decoder: str) -> None:
    init, decode = DECODERS[decoder]
    start = [dict(type=init, num_threads=2, **PETREL)] if init else []
    decoded = dict(type=decode, **({} if init else PETREL))
    pipeline = [*start, PIPELINE_3D[SAMPLE], decoded, *PIPELINE_3D[RESIZE:]]
    served = derived(pipeline)
    if init:
        assert served.pipeline[INIT] == dict(type=init, num_threads=2)
        assert served.sampler == derived(PIPELINE_3D).sampler


@pytest.mark.parametrize("init", ["DecordInit", "PyAVInit", "OpenCVInit"])
def test_the_frame_rate_is_read_where_mmaction2_reads_it(init: str) -> None:
    import_mmaction()
    from mmaction.registry import TRANSFORMS

    results = TRANSFORMS.build(dict(type=init))({"filename": str(VIDEOS[1])})
    pipeline = deepcopy(PIPELINE_3D)
    pipeline[INIT], pipeline[DECODE] = dict(type=init), dict(type=init.replace("Init", "Decode"))
    assert derived(pipeline).reads_fps == ("avg_fps" in results)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        (dict(scale=(-1, 32)), KeepRatioResize(short=32)),
        (dict(scale=(32, -1)), KeepRatioResize(short=32)),
        (dict(scale=(np.inf, 32)), KeepRatioResize(short=32)),
        (dict(scale=(64, 32)), KeepRatioResize(short=32, long=64)),
        (dict(scale=(32, 64)), KeepRatioResize(short=32, long=64)),
        (dict(scale=(64, 32), keep_ratio=False), FixedResize(width=64, height=32)),
        (
            dict(scale=(-1, 32), interpolation="area", lazy=False),
            KeepRatioResize(short=32, interpolation="area"),
        ),
    ],
)
def test_every_form_of_a_scale_is_read(resize: dict[str, Any], expected: object) -> None:
    pipeline = deepcopy(PIPELINE_3D)
    pipeline[RESIZE] = dict(type="Resize", **resize)
    pipeline[CROP] = dict(type="CenterCrop", crop_size=32)
    assert derived(pipeline).resize == expected


@pytest.mark.parametrize("scale", [(-1, 256), (256, -1), (340, 256), (256, 340), (224, 224)])
def test_the_resized_size_is_mmaction2s_on_any_frame(scale: tuple[int, int]) -> None:
    import_mmaction()
    from mmaction.datasets.transforms import Resize

    pipeline = with_step(PIPELINE_3D, RESIZE, scale=scale)
    pipeline[CROP] = dict(type="CenterCrop", crop_size=2)
    ours = derived(pipeline).resize
    rng = np.random.default_rng(0)
    for height, width in rng.integers(16, 2200, (400, 2)).tolist():
        theirs = Resize(scale=scale).transform({"img_shape": (height, width)})["img_shape"]
        assert target_size(height, width, ours) == theirs


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (dict(type="CenterCrop", crop_size=32), Crop(kind="center", width=32, height=32)),
        (dict(type="CenterCrop", crop_size=(16, 24)), Crop(kind="center", width=16, height=24)),
        (dict(type="ThreeCrop", crop_size=32), Crop(kind="three", width=32, height=32)),
        (dict(type="ThreeCrop", crop_size=(24, 32)), Crop(kind="three", width=24, height=32)),
        (dict(type="TenCrop", crop_size=28), Crop(kind="ten", width=28, height=28)),
    ],
)
def test_every_crop_is_read(crop: dict[str, Any], expected: Crop) -> None:
    pipeline = deepcopy(PIPELINE_3D)
    pipeline[CROP] = crop
    assert derived(pipeline).crop == expected


def test_a_fixed_resize_needs_no_crop() -> None:
    pipeline = with_step(without(CROP), RESIZE, scale=(48, 32), keep_ratio=False)
    contract = contract_of(pipeline, MODEL_3D)
    assert contract.crop is None
    assert contract.frame_size == (32, 48)


def test_a_flip_that_never_flips_changes_nothing() -> None:
    flip = dict(type="Flip", flip_ratio=0, direction="horizontal")
    assert derived(inserted(FORMAT, **flip)).crop == derived(PIPELINE_3D).crop


def test_a_whole_contract_is_what_the_config_says() -> None:
    model = changed(MODEL_2D, cls_head__average_clips="score", cls_head__num_classes=7)
    assert contract_of(PIPELINE_2D, model) == Contract(
        sampler=SampleFrames(clip_len=1, num_clips=3),
        resize=KeepRatioResize(short=36),
        crop=Crop(kind="center", width=32, height=32),
        classes=7,
        average="score",
        reads_fps=True,
    )


@pytest.mark.parametrize(
    ("model", "pipeline", "clips_shape"),
    [
        (MODEL_FLOW_3D, PIPELINE_FLOW_3D, (6, 4, 32, 32, 2)),
        (MODEL_FLOW_2D, PIPELINE_FLOW_2D, (30, 2, 32, 32, 2)),
    ],
    ids=["3d", "2d"],
)
@pytest.mark.parametrize("means", ["each channel's", "one for all", "none"])
def test_optical_flow_has_two_channels(
    model: dict[str, Any], pipeline: list[dict[str, Any]], clips_shape: tuple[int, ...], means: str
) -> None:
    if means != "each channel's":
        given = [128] if means == "one for all" else None
        model = changed(model, data_preprocessor__mean=given, data_preprocessor__std=given)
    config = config_of(pipeline, model, modality="Flow")
    contract = derive(config, ViewOptions()).contract(config, labels=(), provenance={})
    assert contract.clips_shape == clips_shape
    assert Contract.from_json(contract.to_json()).takes_flow


# --- What is refused ----------------------------------------------------------------------------

REFUSALS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "temporal_jitter": (
        with_step(PIPELINE_3D, SAMPLE, temporal_jitter=True),
        r"test_pipeline\[1\], SampleFrames, has temporal_jitter=True",
    ),
    "training": (
        with_step(PIPELINE_3D, SAMPLE, test_mode=False),
        r"test_pipeline\[1\], SampleFrames, has test_mode=False",
    ),
    "training by default": (
        [*PIPELINE_3D[:1], dict(type="SampleFrames", clip_len=4), *PIPELINE_3D[2:]],
        r"test_pipeline\[1\], SampleFrames, has test_mode=False",
    ),
    "no clip_len": (sampling(type="SampleFrames"), "SampleFrames, lacks clip_len"),
    "clip_len is no number": (
        with_step(PIPELINE_3D, SAMPLE, clip_len=dict(RGB=4)),
        r"has clip_len=\{'RGB': 4\}; a positive whole number",
    ),
    "no clips": (with_step(PIPELINE_3D, SAMPLE, num_clips=0), "has num_clips=0"),
    "unknown out_of_bound_opt": (
        with_step(PIPELINE_3D, SAMPLE, out_of_bound_opt="mirror"),
        "has out_of_bound_opt='mirror'; served are 'loop', 'repeat_last'",
    ),
    "twice_sample with one clip": (
        with_step(PIPELINE_3D, SAMPLE, num_clips=1, twice_sample=True),
        "twice_sample with one clip",
    ),
    "second sampler": (
        inserted(2, type="UniformSample", clip_len=4, test_mode=True),
        r"test_pipeline\[2\], UniformSample, is a second sampler",
    ),
    "argument of another sampler": (
        sampling(type="UniformSample", clip_len=4, frame_interval=2),
        "UniformSample, has frame_interval=2, which has no serving equivalent",
    ),
    "key frames": (
        [
            dict(type="PyAVInit"),
            PIPELINE_3D[SAMPLE],
            dict(type="PyAVDecode", mode="efficient"),
            *PIPELINE_3D[RESIZE:],
        ],
        r"test_pipeline\[2\], PyAVDecode, has mode='efficient'",
    ),
    "decoded before sampled": (swapped(SAMPLE, DECODE), "DecordDecode, comes before the sampler"),
    "resized before decoded": (swapped(DECODE, RESIZE), "Resize, comes before a decoder"),
    "lazy Resize": (with_step(PIPELINE_3D, RESIZE, lazy=True), "Resize, has lazy=True"),
    "one number as scale": (with_step(PIPELINE_3D, RESIZE, scale=0.5), "has scale=0.5"),
    "no scale": ([*PIPELINE_3D[:3], dict(type="Resize"), *PIPELINE_3D[4:]], "Resize, lacks scale"),
    "fixed scale without a side": (
        with_step(PIPELINE_3D, RESIZE, scale=(-1, 32), keep_ratio=False),
        r"has scale=\(-1, 32\)",
    ),
    "unknown interpolation": (
        with_step(PIPELINE_3D, RESIZE, interpolation="cubic"),
        "has interpolation='cubic'",
    ),
    "second Resize": (
        inserted(CROP, type="Resize", scale=(-1, 32)),
        r"test_pipeline\[4\], Resize, must be the only Resize",
    ),
    "Resize after the crop": (swapped(RESIZE, CROP), "Resize, must .* come before the crop"),
    "lazy crop": (
        [*PIPELINE_3D[:4], dict(type="CenterCrop", crop_size=32, lazy=True), *PIPELINE_3D[5:]],
        "CenterCrop, has lazy=True",
    ),
    "second crop": (
        inserted(FORMAT, type="CenterCrop", crop_size=16),
        r"test_pipeline\[5\], CenterCrop, is a second crop",
    ),
    "crop_size is no number": (
        with_step(PIPELINE_3D, CROP, crop_size="32"),
        "has crop_size='32'",
    ),
    "empty crop": (with_step(PIPELINE_3D, CROP, crop_size=0), "has crop_size=0"),
    "crop larger than the frame": (
        with_step(PIPELINE_3D, CROP, type="CenterCrop", crop_size=33),
        r"has crop_size=\(33, 33\); it must fit",
    ),
    "three crops that slide along no side": (
        with_step(PIPELINE_3D, CROP, crop_size=28),
        r"ThreeCrop, has crop_size=\(28, 28\); it must fit .* as wide or as high",
    ),
    "Flip by default": (
        inserted(FORMAT, type="Flip"),
        r"test_pipeline\[5\], Flip, has flip_ratio=0.5",
    ),
    "Flip with a ratio": (inserted(FORMAT, type="Flip", flip_ratio=1), "Flip, has flip_ratio=1"),
    "collapse": (with_step(PIPELINE_3D, FORMAT, collapse=True), "FormatShape, has collapse=True"),
    "heatmaps": (
        with_step(PIPELINE_3D, FORMAT, input_format="NCTHW_Heatmap"),
        "has input_format='NCTHW_Heatmap'; served are 'NCHW', 'NCTHW'",
    ),
    "no input_format": (
        [*PIPELINE_3D[:5], dict(type="FormatShape"), PIPELINE_3D[PACK]],
        "FormatShape, lacks input_format",
    ),
    "crop after FormatShape": (swapped(CROP, FORMAT), "ThreeCrop, comes after FormatShape"),
    "packed keys": (
        with_step(PIPELINE_3D, PACK, collect_keys=("imgs",)),
        r"PackActionInputs, has collect_keys=\('imgs',\)",
    ),
    "after the end": (
        [*PIPELINE_3D, dict(type="Flip", flip_ratio=0)],
        r"test_pipeline\[7\], Flip, comes after PackActionInputs",
    ),
    "unread argument": (
        with_step(PIPELINE_3D, RESIZE, backend="pillow"),
        r"test_pipeline\[3\], Resize, has backend='pillow', which has no serving equivalent",
    ),
    "no sampler": (without(SAMPLE)[:1], "samples and decodes no frames"),
    "no decoder": (PIPELINE_3D[:2], "samples and decodes no frames"),
    "no FormatShape": (without(FORMAT), "does not end with FormatShape and PackActionInputs"),
    "not packed": (PIPELINE_3D[:PACK], "does not end with FormatShape and PackActionInputs"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_serving_equivalent_is_refused_with_its_place(case: str) -> None:
    pipeline, told = REFUSALS[case]
    with pytest.raises(UnsupportedError, match=told) as caught:
        derived(pipeline)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("FiveCrop", "TenCrop"),
        ("CentreCrop", "CenterCrop"),
        ("UntrimmedSampleFrames", "SampleFrames"),
        ("PyAVDecodeMotionVector", "PyAVDecode"),
        ("Rescale", "Resize"),
    ],
)
def test_an_unknown_transform_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        derived(inserted(CROP, type=name))
    assert caught.value.message.startswith(f"test_pipeline[{CROP}] is {name!r}")
    assert f"nearest that is served is {nearest!r}" in caught.value.hint


def test_no_crop_with_a_kept_ratio_has_no_one_size() -> None:
    with pytest.raises(UnsupportedError, match="only a fixed resize") as caught:
        contract_of(without(CROP), MODEL_3D)
    assert "CenterCrop" in caught.value.hint


def test_another_layout_than_the_models_says_the_option_that_fixes_it() -> None:
    model = changed(MODEL_3D, data_preprocessor__format_shape="NCHW")
    with pytest.raises(ConfigError, match="FormatShape makes NCTHW") as caught:
        derived(PIPELINE_3D, model=model)
    assert caught.value.hint == "--cfg-options model.data_preprocessor.format_shape=NCTHW"


@pytest.mark.parametrize("average", [None, "median"])
def test_scores_that_are_not_averaged_are_refused(average: str | None) -> None:
    model = changed(MODEL_3D, cls_head__average_clips=average)
    with pytest.raises(UnsupportedError, match="average_clips") as caught:
        contract_of(PIPELINE_3D, model)
    assert caught.value.hint == "--cfg-options model.cls_head.average_clips=prob"


@pytest.mark.parametrize("head", [None, dict(type="I3DHead")])
def test_a_model_that_scores_no_classes_is_refused(head: dict[str, Any] | None) -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        contract_of(PIPELINE_3D, changed(MODEL_3D, cls_head=head))


@pytest.mark.parametrize(
    ("model", "pipeline", "modality", "told"),
    [
        (MODEL_FLOW_3D, PIPELINE_3D, "RGB", "normalises 2 channels; RGB frames .* model 3"),
        (MODEL_FLOW_2D, PIPELINE_2D, "RGB", "normalises 4 channels; RGB frames .* model 3"),
        (MODEL_3D, PIPELINE_FLOW_3D, "Flow", "normalises 3 channels; Flow frames .* model 2"),
        (MODEL_2D, PIPELINE_FLOW_2D, "Flow", "normalises 3 channels; Flow frames .* model 4"),
        (
            changed(MODEL_FLOW_2D, data_preprocessor__mean=[128, 128]),
            PIPELINE_FLOW_2D,
            "Flow",
            "normalises 2 channels; Flow frames in NCHW give the model 4",
        ),
    ],
)
def test_means_of_another_number_of_channels_are_refused(
    model: dict[str, Any], pipeline: list[dict[str, Any]], modality: Modality, told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        derive(config_of(pipeline, model, modality=modality), ViewOptions())
    assert "modality of the test dataset" in caught.value.hint


def test_swapping_the_colours_of_optical_flow_is_refused() -> None:
    model = changed(MODEL_FLOW_3D, data_preprocessor__to_rgb=True)
    with pytest.raises(ConfigError, match="no colours") as caught:
        derive(config_of(PIPELINE_FLOW_3D, model, modality="Flow"), ViewOptions())
    assert caught.value.hint == "--cfg-options model.data_preprocessor.to_rgb=False"


def test_a_decoder_of_rgb_frames_is_refused_for_optical_flow() -> None:
    with pytest.raises(UnsupportedError, match=r"DecordDecode, reads RGB .* modality='Flow'"):
        derive(config_of(PIPELINE_3D, MODEL_FLOW_3D, modality="Flow"), ViewOptions())


TSM = changed(MODEL_2D, backbone__num_segments=4)


def test_segments_in_whole_groups_are_served() -> None:
    pipeline = with_step(PIPELINE_2D, SAMPLE, num_clips=4, twice_sample=True)
    assert derived(pipeline, model=TSM).sampler.total_clips == 8


@pytest.mark.parametrize("part", ["backbone", "cls_head"])
def test_segments_that_do_not_fill_a_group_are_refused(part: str) -> None:
    model = changed(MODEL_2D, **{f"{part}__num_segments": 4})
    pipeline = with_step(PIPELINE_2D, SAMPLE, num_clips=4)
    with pytest.raises(ConfigError, match=f"6 frames .* model.{part} mixes groups of 4") as caught:
        derived(pipeline, ViewOptions(num_clips=6), model)
    assert caught.value.hint == "take --num-clips 4 or a multiple of it"


def test_a_stack_of_flow_is_one_of_the_segments_that_a_model_mixes() -> None:
    model = changed(MODEL_FLOW_2D, backbone__num_segments=4)
    config = config_of(PIPELINE_FLOW_2D, model, modality="Flow")
    assert derive(config, ViewOptions(num_clips=4)).sampler.total_clips == 4
    with pytest.raises(ConfigError, match=r"2 stacks of frames .* mixes groups of 4"):
        derive(config, ViewOptions(num_clips=2))


@pytest.mark.parametrize(
    ("dataset", "key"),
    [
        (None, "test_pipeline"),
        (lambda p: dict(pipeline=p), "test_dataloader.dataset.pipeline"),
        (
            lambda p: dict(type="ConcatDataset", datasets=[dict(pipeline=p)]),
            "test_dataloader.dataset.datasets.0.pipeline",
        ),
    ],
)
def test_the_hint_names_the_option_that_mends_the_pipeline(
    tmp_path: Path, dataset: Any, key: str
) -> None:
    lazy = with_step(PIPELINE_3D, RESIZE, lazy=True)
    loader = {} if dataset is None else dict(test_dataloader=dict(dataset=dataset(lazy)))
    path = write_config(tmp_path / "c.py", model=MODEL_3D, test_pipeline=lazy, **loader)
    with pytest.raises(UnsupportedError) as caught:
        derive(source.load_config(str(path)), ViewOptions())
    assert f"--cfg-options {key}.{RESIZE}.ARGUMENT=VALUE" in caught.value.hint
    mended = source.load_config(str(path), (f"{key}.{RESIZE}.lazy=False",))
    assert derive(mended, ViewOptions()).resize == KeepRatioResize(short=32)


# --- Other views than the config's --------------------------------------------------------------

TWICE = with_step(PIPELINE_3D, SAMPLE, num_clips=2, twice_sample=True)
DENSE = sampling(type="DenseSampleFrames", clip_len=4, num_clips=1)
UNIFORM = sampling(type="UniformSample", clip_len=4, num_clips=5)


@pytest.mark.parametrize(
    ("pipeline", "clips", "expected", "config_clips"),
    [
        (PIPELINE_3D, 5, SampleFrames(clip_len=4, frame_interval=8, num_clips=5), 2),
        (TWICE, 3, SampleFrames(clip_len=4, frame_interval=8, num_clips=3), 4),
        (DENSE, 2, DenseSampleFrames(clip_len=4, num_clips=2, num_sample_positions=1), 10),
        (UNIFORM, 1, UniformSample(clip_len=4, num_clips=1), 5),
    ],
    ids=["SampleFrames", "twice", "dense", "uniform"],
)
def test_num_clips_are_all_clips_and_the_config_is_recorded(
    pipeline: list[dict[str, Any]], clips: int, expected: Sampler, config_clips: int
) -> None:
    served = derived(pipeline, ViewOptions(num_clips=clips))
    assert served.sampler == expected
    assert served.sampler.total_clips == clips
    assert served.config_views == {"num_clips": config_clips, "crops": "three"}
    # the proof runs mmaction2 with the very same views
    assert derived(served.pipeline).sampler == expected


@pytest.mark.parametrize(("pipeline", "clips"), [(PIPELINE_3D, 2), (TWICE, 4), (DENSE, 10)])
def test_as_many_clips_as_the_config_has_are_the_configs(
    pipeline: list[dict[str, Any]], clips: int
) -> None:
    served = derived(pipeline, ViewOptions(num_clips=clips))
    assert served == derived(pipeline)
    assert served.config_views is None


@pytest.mark.parametrize(("crops", "count"), [("center", 1), ("three", 3), ("ten", 10)])
def test_crops_replace_the_configs_and_are_recorded(crops: Crops, count: int) -> None:
    served = derived(PIPELINE_3D, ViewOptions(crops=crops))
    assert served.crop is not None
    assert (served.crop.kind, served.crop.count) == (crops, count)
    assert (served.crop.width, served.crop.height) == (32, 32)
    expected = None if crops == "three" else {"num_clips": 2, "crops": "three"}
    assert served.config_views == expected


def test_crops_of_a_pipeline_without_a_crop_are_refused() -> None:
    pipeline = with_step(without(CROP), RESIZE, scale=(32, 32), keep_ratio=False)
    with pytest.raises(UnsupportedError, match="no crop for --crops three"):
        derived(pipeline, ViewOptions(crops="three"))


def test_three_crops_in_place_of_a_smaller_centre_crop_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="as wide or as high"):
        derived(PIPELINE_2D, ViewOptions(crops="three"), MODEL_2D)


def test_what_is_refused_as_too_large_is_what_mmaction2_fails_on() -> None:
    """The two refusals about crop_size are no invention: mmaction2 asserts, or cuts nothing."""
    from mmaction.registry import TRANSFORMS

    frames = [np.zeros((32, 48, 3), np.uint8)]
    with quiet():
        three = TRANSFORMS.build(dict(type="ThreeCrop", crop_size=28))
        center = TRANSFORMS.build(dict(type="CenterCrop", crop_size=50))
    with pytest.raises(AssertionError):
        three({"imgs": list(frames), "img_shape": (32, 48)})
    cut = center({"imgs": list(frames), "img_shape": (32, 48)})["imgs"][0]
    assert cut.shape[:2] != (50, 50)


def test_every_refusal_is_two_lines() -> None:
    for pipeline, _ in REFUSALS.values():
        with pytest.raises(ActionExportError) as caught:
            derived(pipeline)
        assert str(caught.value).count("\n") == 1


def test_nothing_is_changed_in_the_config() -> None:
    config = config_of(deepcopy(PIPELINE_3D))
    derive(config, ViewOptions(num_clips=7, crops="center"))
    assert list(config.pipeline) == PIPELINE_3D
    assert preprocess.class_count(config) == 10
