"""The reference is mmaction2's own pipeline and predict, seen as a client and the graph see it."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from action_export.errors import ConfigError, DependencyError, VideoError
from action_export.mmaction_compat import quiet
from action_export.optical_flow import flow_images
from action_export.preprocess import Preprocessing, derive
from action_export.reference import Reference, _pipeline_of, run_mmaction, run_pipeline
from action_export.types import ViewOptions
from support.encode import encode, moving_shapes
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
    Tiny,
    make,
    with_step,
)
from support.videos import decode

VIDEO = VIDEOS[1]
INIT, SAMPLE, DECODE, RESIZE, CROP = range(5)


@pytest.fixture(scope="module")
def tiny_3d(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("3d"), MODEL_3D, PIPELINE_3D)


@pytest.fixture(scope="module")
def tiny_2d(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("2d"), MODEL_2D, PIPELINE_2D)


@pytest.fixture(params=["2d", "3d"])
def tiny(request: pytest.FixtureRequest, tiny_2d: Tiny, tiny_3d: Tiny) -> Tiny:
    return tiny_2d if request.param == "2d" else tiny_3d


@pytest.mark.parametrize("decoder", ["Decord", "PyAV", "OpenCV"])
def test_the_proof_reads_local_files_whatever_storage_the_config_names(
    tiny_3d: Tiny, decoder: str
) -> None:
    def clips(**storage: Any) -> Any:
        pipeline = deepcopy(PIPELINE_3D)
        pipeline[INIT] = dict(type=f"{decoder}Init", **storage)
        pipeline[DECODE] = dict(type=f"{decoder}Decode")
        served = derive(replace(tiny_3d.config, pipeline=tuple(pipeline)), ViewOptions())
        return run_pipeline(served, VIDEO)[1]["inputs"].numpy()

    remote = clips(io_backend="petrel", path_mapping={"/": "s3://nowhere/"}, enable_mc=False)
    np.testing.assert_array_equal(remote, clips())


@pytest.mark.parametrize("decoder", ["Decord", "PyAV", "OpenCV", "RawFrame", "Flow"])
def test_a_name_with_a_colon_is_opened_as_a_file(
    tiny_3d: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    """FFmpeg takes what stands before a colon for a protocol."""
    pipeline = deepcopy(PIPELINE_FLOW_3D if decoder == "Flow" else PIPELINE_3D)
    if decoder == "RawFrame":
        pipeline[INIT : DECODE + 1] = [pipeline[SAMPLE], dict(type="RawFrameDecode")]
    elif decoder != "Flow":
        pipeline[INIT], pipeline[DECODE] = (
            dict(type=f"{decoder}Init"),
            dict(type=f"{decoder}Decode"),
        )
    config = replace(tiny_3d.config, pipeline=tuple(pipeline))
    if decoder == "Flow":
        config = replace(config, modality="Flow", model=MODEL_FLOW_3D)
    served = derive(config, ViewOptions())
    monkeypatch.chdir(tmp_path)
    named = Path("2024-05-01T12:30.mp4")
    named.write_bytes(VIDEO.read_bytes())
    clips, expected = (_pipeline_of(served, path)[1]["inputs"] for path in (named, VIDEO))
    np.testing.assert_array_equal(clips.numpy(), expected.numpy())


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames, less than a clip spans, so that every one is sampled more than once."""
    return encode(tmp_path_factory.mktemp("video") / "short.mp4", moving_shapes(5))


def with_pipeline(tiny: Tiny, pipeline: list[dict[str, Any]]) -> Preprocessing:
    return derive(replace(tiny.config, pipeline=tuple(pipeline)), ViewOptions())


def mmactions_output(preprocessing: Preprocessing, video: Path) -> Any:
    """What mmaction2's Compose of the whole pipeline gives, with nothing in between."""
    from mmengine.dataset import Compose

    with quiet():
        compose = Compose([dict(transform) for transform in preprocessing.pipeline])
        return compose({"filename": str(video), "start_index": 0, "label": -1, "modality": "RGB"})


# --- What a reference holds ---------------------------------------------------------------------


def test_the_clips_are_those_of_format_shape(tiny: Tiny) -> None:
    reference = run_mmaction(tiny.model, tiny.preprocessing, VIDEO)
    inputs = mmactions_output(tiny.preprocessing, VIDEO)["inputs"].numpy()
    assert reference.clips.shape == (1, *tiny.contract.clips_shape)
    assert reference.clips.dtype == np.uint8
    if tiny.preprocessing.layout == "NCTHW":  # [views, C, T, h, w]
        back = reference.clips[0].transpose(0, 4, 1, 2, 3)
    else:  # [views * T, C, h, w]
        back = reference.clips[0].transpose(0, 1, 4, 2, 3).reshape(inputs.shape)
    np.testing.assert_array_equal(back, inputs)
    views = reference.clips[0]
    assert not any(np.array_equal(views[0], view) for view in views[1:])


def test_the_scores_are_those_of_predict(tiny: Tiny) -> None:
    from mmengine.dataset import pseudo_collate

    reference = run_mmaction(tiny.model, tiny.preprocessing, VIDEO)
    model: Any = tiny.model
    with torch.no_grad():
        data = pseudo_collate([mmactions_output(tiny.preprocessing, VIDEO)])
        expected = model.test_step(data)[0].pred_score
    np.testing.assert_array_equal(reference.scores, expected.numpy())
    assert reference.scores.dtype == np.float32
    assert reference.scores.shape == (10,)


def test_the_frames_are_the_distinct_ones_in_the_order_of_the_video(tiny: Tiny) -> None:
    reference = run_mmaction(tiny.model, tiny.preprocessing, VIDEO)
    numbers = sorted(set(reference.sampled.tolist()))
    np.testing.assert_array_equal(reference.frames, decode(VIDEO, max(numbers) + 1)[numbers])
    assert reference.frame_index.dtype == np.int32
    np.testing.assert_array_equal(np.array(numbers)[reference.frame_index], reference.sampled)


def test_frames_that_are_sampled_twice_are_kept_once(tiny_3d: Tiny, short_video: Path) -> None:
    reference = run_mmaction(tiny_3d.model, tiny_3d.preprocessing, short_video)
    assert reference.total_frames == 5
    assert len(reference.sampled) == tiny_3d.contract.positions
    assert len(reference.frames) == len(set(reference.sampled.tolist())) < len(reference.sampled)
    sent = reference.frames[reference.frame_index]
    np.testing.assert_array_equal(sent, decode(short_video, 5)[reference.sampled])


def test_another_video_gives_other_clips_and_scores(tiny: Tiny) -> None:
    a, b = (run_mmaction(tiny.model, tiny.preprocessing, video) for video in VIDEOS)
    assert not np.array_equal(a.clips, b.clips)
    assert np.abs(a.scores - b.scores).max() > 1e-3
    again = run_mmaction(tiny.model, tiny.preprocessing, VIDEOS[0])
    np.testing.assert_array_equal(again.scores, a.scores)


# --- Decoders -----------------------------------------------------------------------------------


def decoded_with(init: str | None, decode_name: str) -> list[dict[str, Any]]:
    start = [dict(type=init)] if init else []
    return [*start, PIPELINE_3D[SAMPLE], dict(type=decode_name), *PIPELINE_3D[RESIZE:]]


def fields(reference: Reference) -> dict[str, Any]:
    return {"sampled": reference.sampled, "frames": reference.frames, "clips": reference.clips}


def test_only_decord_tells_the_frame_rate(tiny_3d: Tiny) -> None:
    decord = run_mmaction(tiny_3d.model, tiny_3d.preprocessing, VIDEO)
    assert decord.fps == pytest.approx(30000 / 1001)
    pyav = with_pipeline(tiny_3d, decoded_with("PyAVInit", "PyAVDecode"))
    assert run_mmaction(tiny_3d.model, pyav, VIDEO).fps is None


def test_a_pipeline_of_frame_files_reads_the_video(tiny_3d: Tiny) -> None:
    files = with_pipeline(tiny_3d, decoded_with(None, "RawFrameDecode"))
    reference = run_mmaction(tiny_3d.model, files, VIDEO)
    assert reference.fps is None
    expected = run_mmaction(tiny_3d.model, tiny_3d.preprocessing, VIDEO)
    for name, value in fields(expected).items():
        np.testing.assert_array_equal(fields(reference)[name], value)


def test_a_pipeline_of_frame_files_samples_without_the_frame_rate(tiny_3d: Tiny) -> None:
    pipeline = with_step(decoded_with(None, "RawFrameDecode"), 0, target_fps=10)
    files = with_pipeline(tiny_3d, pipeline)
    decord = with_pipeline(tiny_3d, with_step(PIPELINE_3D, SAMPLE, target_fps=10))
    assert not files.reads_fps
    a, b = (run_mmaction(tiny_3d.model, p, VIDEO).sampled for p in (files, decord))
    assert not np.array_equal(a, b)


def test_a_missing_decoder_library_is_a_missing_dependency(
    tiny_3d: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(DependencyError, match="DecordInit, whose library is missing") as caught:
        run_mmaction(tiny_3d.model, tiny_3d.preprocessing, VIDEO)
    assert "decord" in caught.value.hint


# --- Optical flow ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["2d", "3d"])
def tiny_flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    model, pipeline = {
        "2d": (MODEL_FLOW_2D, PIPELINE_FLOW_2D),
        "3d": (MODEL_FLOW_3D, PIPELINE_FLOW_3D),
    }[request.param]
    return make(tmp_path_factory.mktemp("flow"), model, pipeline, modality="Flow")


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flow of VIDEO as a flow dataset keeps it, but lossless: x_00001.bmp, y_00001.bmp, ...

    No PNG, whose reader in cv2 fails once decord has brought its old zlib into the process.
    """
    folder = tmp_path_factory.mktemp("flow_images")
    for number, image in flow_images(VIDEO, range(frame_count(VIDEO))).items():
        for axis, name in enumerate("xy"):
            path = folder / f"{name}_{number + 1:05d}.bmp"
            assert cv2.imwrite(str(path), image[..., axis])
    return folder


def frame_count(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def from_flow_files(tiny: Tiny, folder: Path) -> tuple[list[Any], Any]:
    """(what RawFrameDecode reads, what the pipeline ends with), all of it mmaction2's own."""
    from mmaction.registry import TRANSFORMS

    results: dict[str, Any] = {
        "frame_dir": str(folder),
        "filename_tmpl": "{}_{:05d}.bmp",
        "total_frames": len(list(folder.glob("x_*.bmp"))),
        "start_index": 1,
        "label": -1,
        "modality": "Flow",
    }
    read: list[Any] = []
    with quiet():
        for transform in tiny.preprocessing.pipeline:
            results = TRANSFORMS.build(dict(transform))(results)
            if transform["type"] == "RawFrameDecode":
                read = list(results["imgs"])
    return read, results


def test_flow_equals_what_mmaction2_makes_of_flow_files(tiny_flow: Tiny, flow_folder: Path) -> None:
    from mmengine.dataset import pseudo_collate

    read, packed = from_flow_files(tiny_flow, flow_folder)
    with quiet():
        passed, ours = run_pipeline(tiny_flow.preprocessing, VIDEO)
    assert [image.dtype for image in passed["imgs"]] == [image.dtype for image in read]
    np.testing.assert_array_equal(passed["imgs"], read)
    np.testing.assert_array_equal(ours["inputs"].numpy(), packed["inputs"].numpy())
    reference = run_mmaction(tiny_flow.model, tiny_flow.preprocessing, VIDEO)
    model: Any = tiny_flow.model
    with torch.no_grad():
        expected = model.test_step(pseudo_collate([packed]))[0].pred_score
    np.testing.assert_array_equal(reference.scores, expected.numpy())


def test_the_clips_of_flow_are_unstacked_in_the_order_of_format_shape(
    tiny_flow: Tiny, flow_folder: Path
) -> None:
    inputs = from_flow_files(tiny_flow, flow_folder)[1]["inputs"].numpy()
    reference = run_mmaction(tiny_flow.model, tiny_flow.preprocessing, VIDEO)
    assert reference.clips.shape == (1, *tiny_flow.contract.clips_shape)
    for time in range(tiny_flow.contract.sampler.clip_len):
        for axis in range(2):
            ours = reference.clips[0, :, time, :, :, axis]
            # [views, clip_len * 2, h, w] with x, y of each frame in turn, or [views, 2, T, h, w]
            stacked = tiny_flow.preprocessing.layout == "NCHW"
            theirs = inputs[:, 2 * time + axis] if stacked else inputs[:, axis, time]
            np.testing.assert_array_equal(ours, theirs)


def test_flow_frames_are_the_distinct_ones_as_a_client_sends_them(tiny_flow: Tiny) -> None:
    reference = run_mmaction(tiny_flow.model, tiny_flow.preprocessing, VIDEO)
    images = flow_images(VIDEO, reference.sampled.tolist())
    sent = reference.frames[reference.frame_index]
    np.testing.assert_array_equal(sent, [images[n] for n in reference.sampled.tolist()])


# --- Videos that cannot be read -----------------------------------------------------------------


def refused(tiny: Tiny, video: Path, kind: type[Exception] = VideoError) -> Any:
    with pytest.raises(kind) as caught:
        run_mmaction(tiny.model, tiny.preprocessing, video)
    error: Any = caught.value
    assert str(video) in error.message
    assert error.hint
    assert "\n" not in error.message + error.hint
    return error


def test_a_missing_video_is_named(tiny_3d: Tiny, tmp_path: Path) -> None:
    assert "there is no video file" in refused(tiny_3d, tmp_path / "nowhere.mp4").message
    assert "there is no video file" in refused(tiny_3d, tmp_path).message


@pytest.mark.parametrize("content", [b"", b"a note\n" * 200, b"\x00" * 4000])
def test_a_file_that_is_no_video_is_refused_without_noise(
    tiny_3d: Tiny, tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    assert "no video that can be read" in refused(tiny_3d, path).message
    assert capfd.readouterr() == ("", "")


def test_a_truncated_video_is_refused(tiny_3d: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(VIDEO.read_bytes()[:3000])
    refused(tiny_3d, path)


def test_a_file_of_sound_is_refused(tiny_3d: Tiny, tmp_path: Path) -> None:
    import wave

    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(b"\0\0" * 800)
    assert "no video stream" in refused(tiny_3d, path).message


def test_a_video_that_a_crop_does_not_fit_is_refused_by_the_transform(
    tiny_3d: Tiny, short_video: Path
) -> None:
    pipeline = deepcopy(PIPELINE_3D)
    del pipeline[RESIZE]
    tiny = replace(tiny_3d, preprocessing=with_pipeline(tiny_3d, pipeline))
    assert "mmaction2's ThreeCrop fails" in refused(tiny, short_video).message


# --- Configs that mmaction2 does not run --------------------------------------------------------


def test_arguments_that_mmaction2_refuses_are_an_error_of_the_config(tiny_3d: Tiny) -> None:
    # derive takes a list for a pair; mmaction2 wants a tuple
    preprocessing = with_pipeline(tiny_3d, with_step(PIPELINE_3D, RESIZE, scale=[-1, 32]))
    with pytest.raises(ConfigError, match=r"mmaction2 refuses .*Resize") as caught:
        run_mmaction(tiny_3d.model, preprocessing, VIDEO)
    assert caught.value.hint


def test_a_model_that_cannot_run_is_an_error_of_the_config(tiny_3d: Tiny) -> None:
    model: Any = deepcopy(tiny_3d.model)
    model.cls_head.fc_cls = torch.nn.Linear(7, 10)
    error = refused(replace(tiny_3d, model=model), VIDEO, ConfigError)
    assert "cannot run the model" in error.message
    assert "shapes" in error.message


def test_an_unknown_transform_of_a_pipeline_is_an_error_of_the_config(tiny_3d: Tiny) -> None:
    unknown = replace(tiny_3d.preprocessing, pipeline=(dict(type="NoSuchTransform"),))
    with pytest.raises(ConfigError, match="NoSuchTransform"):
        run_pipeline(unknown, VIDEO)
