"""The contract survives its JSON, and text that is no contract is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_args

import pytest
from action_runtime.spec import (
    SCHEMA,
    Contract,
    ContractError,
    Crop,
    DenseSampleFrames,
    FixedResize,
    Interpolation,
    Jpeg,
    KeepRatioResize,
    SampleFrames,
    UniformSample,
)
from hypothesis import given
from hypothesis import strategies as st

counts = st.integers(1, 400)
out_of_bound = st.sampled_from(["loop", "repeat_last"])
samplers = st.one_of(
    st.builds(
        SampleFrames,
        clip_len=counts,
        frame_interval=counts,
        num_clips=counts,
        twice_sample=st.booleans(),
        out_of_bound=out_of_bound,
        target_fps=st.none() | st.floats(0.1, 240) | counts,
    ),
    st.builds(
        DenseSampleFrames,
        clip_len=counts,
        frame_interval=counts,
        num_clips=counts,
        sample_range=counts,
        num_sample_positions=counts,
        out_of_bound=out_of_bound,
    ),
    st.builds(UniformSample, clip_len=counts, num_clips=counts),
)
interpolations = st.sampled_from(get_args(Interpolation))
fixed = st.builds(FixedResize, width=counts, height=counts, interpolation=interpolations)
kept = st.builds(
    KeepRatioResize, short=counts, long=st.none() | counts, interpolation=interpolations
)
crops = st.builds(
    Crop, kind=st.sampled_from(["center", "three", "ten"]), width=counts, height=counts
)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    crop = draw(st.none() | crops)
    wire = draw(st.none() | st.builds(Jpeg, quality=st.integers(1, 100)))
    labels = draw(st.just(()) | st.lists(st.text(), min_size=1, max_size=5).map(tuple))
    return Contract(
        sampler=draw(samplers),
        resize=draw(fixed if crop is None else st.none() | fixed | kept),
        crop=crop,
        classes=len(labels) or draw(counts),
        average=draw(st.sampled_from(["prob", "score"])),
        channels=3 if wire else draw(st.integers(1, 10)),
        wire=wire,
        reads_fps=draw(st.booleans()),
        labels=labels,
        config_views=draw(st.none() | st.dictionaries(st.text(), counts | st.text(), max_size=3)),
        provenance=draw(st.dictionaries(st.text(), st.text(), max_size=3)),
    )


@given(contracts())
def test_json_holds_the_whole_contract(contract: Contract) -> None:
    text = contract.to_json()
    assert Contract.from_json(text) == contract
    assert Contract.from_json(text).to_json() == text


@given(contracts())
def test_shapes_follow_from_the_decisions(contract: Contract) -> None:
    views, clip_len, height, width, channels = contract.clips_shape
    assert views == contract.crops * contract.sampler.total_clips
    assert contract.positions == contract.sampler.total_clips * clip_len
    assert (height, width) == contract.frame_size
    assert channels == contract.channels


def test_ten_crops_of_twice_sampled_clips_count_as_views() -> None:
    sampler = SampleFrames(clip_len=1, num_clips=8, twice_sample=True)
    contract = _contract(sampler=sampler, crop=Crop(kind="ten", width=224, height=200))
    assert contract.positions == 16
    assert contract.clips_shape == (160, 1, 200, 224, 3)


def test_equal_contracts_are_equal_strings() -> None:
    one = _contract(provenance={"config": "tsn", "checkpoint": "0af3"})
    other = _contract(provenance={"checkpoint": "0af3", "config": "tsn"})
    assert one.to_json() == other.to_json()


def test_a_contract_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        _contract().classes = 2  # type: ignore[misc]


def test_clips_of_many_sizes_are_refused() -> None:
    with pytest.raises(ContractError, match="without a crop only a fixed resize"):
        _contract(resize=KeepRatioResize(short=256), crop=None)
    with pytest.raises(ContractError, match="without a crop only a fixed resize"):
        _contract(resize=None, crop=None)


def test_labels_of_the_wrong_count_are_refused() -> None:
    with pytest.raises(ContractError, match="2 labels for 400 classes"):
        _contract(labels=("run", "jump"))


def test_a_contract_of_pixels_is_what_it_was_before_there_was_jpeg() -> None:
    assert _contract(labels=("one", "two"), classes=2).to_json() == (
        '{"average": "prob", "channels": 3, "classes": 2, "config_views": null, '
        '"crop": {"height": 224, "kind": "center", "width": 224}, "labels": ["one", "two"], '
        '"provenance": {}, "reads_fps": true, '
        '"resize": {"interpolation": "bilinear", "kind": "keep_ratio", "long": null, "short": 256},'
        ' "sampler": {"clip_len": 8, "frame_interval": 1, "kind": "sample_frames", "num_clips": 1,'
        ' "out_of_bound": "loop", "target_fps": null, "twice_sample": false}, "schema": 1}'
    )


def test_jpeg_is_a_field_that_is_unknown_to_a_client_of_pixels_only() -> None:
    """It refuses unknown fields (below), so it can't send pixels to a model of JPEG."""
    lossy = json.loads(_contract(wire=Jpeg(quality=90)).to_json())
    assert lossy.pop("wire") == {"kind": "jpeg", "quality": 90}
    assert lossy == _plain()
    full = json.loads(_contract(wire=Jpeg(quality=90, chroma="full")).to_json())
    assert full.pop("wire") == {"kind": "jpeg", "quality": 90, "chroma": "full"}
    assert full == _plain()
    assert _contract(wire=Jpeg()).frames_tensor != _contract().frames_tensor


@pytest.mark.parametrize("chroma", ["halved", "full"])
def test_chroma_is_read_back_and_halved_where_nothing_is_said(chroma: Any) -> None:
    contract = _contract(wire=Jpeg(quality=90, chroma=chroma))
    assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize("quality", [0, 101])
def test_a_jpeg_quality_that_there_is_not_is_refused(quality: int) -> None:
    with pytest.raises(ContractError, match=f"from 1 to 100, and is not {quality}"):
        Jpeg(quality=quality)


def test_jpeg_of_optical_flow_is_refused() -> None:
    with pytest.raises(ContractError, match="3 channels, not 2"):
        _contract(channels=2, wire=Jpeg())


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_a_decoder_other_than_decord_is_a_field_that_older_clients_refuse_by_name(
    decoder: Any,
) -> None:
    other = _contract(decoder=decoder, reads_fps=False)
    fields = json.loads(other.to_json())
    assert fields.pop("decoder") == decoder
    assert fields == _plain() | {"reads_fps": False}
    assert Contract.from_json(other.to_json()) == other


def test_a_decoder_that_this_code_does_not_know_is_refused_by_name() -> None:
    text = json.dumps(_plain() | {"decoder": "pims"})
    with pytest.raises(ContractError, match=r"decoded by 'pims', .* install the action-export"):
        Contract.from_json(text)


def _without(field: str) -> dict[str, Any]:
    return {key: value for key, value in _plain().items() if key != field}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no JSON"),
        ('{"schema": 1', "no JSON"),
        ("[]", f"not of schema {SCHEMA}"),
        ("null", f"not of schema {SCHEMA}"),
        (lambda: _plain() | {"schema": SCHEMA + 1}, "install the action-export version"),
        (lambda: _without("schema"), f"not of schema {SCHEMA}"),
        (lambda: _without("sampler"), "incomplete.*sampler"),
        (lambda: _without("classes"), "incomplete.*classes"),
        (lambda: _plain() | {"speed": 2}, "incomplete.*speed"),
        (lambda: _plain() | {"sampler": {"kind": "random", "clip_len": 8}}, "incomplete.*random"),
        (lambda: _plain() | {"sampler": {"clip_len": 8}}, "incomplete.*kind"),
        (lambda: _plain() | {"labels": ["run"]}, "1 labels for 400 classes"),
        (lambda: _plain() | {"wire": {"kind": "webp"}}, "incomplete.*webp"),
        (lambda: _plain() | {"wire": {"kind": "jpeg", "quality": 0}}, "from 1 to 100"),
    ],
)
def test_text_that_is_no_contract_is_refused(text: Any, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        Contract.from_json(text if isinstance(text, str) else json.dumps(text()))


def _plain() -> dict[str, Any]:
    data = json.loads(_contract().to_json())
    assert isinstance(data, dict)
    return data


def _contract(**changes: Any) -> Contract:
    contract = Contract(
        sampler=SampleFrames(clip_len=8),
        resize=KeepRatioResize(short=256),
        crop=Crop(kind="center", width=224, height=224),
        classes=400,
        average="prob",
    )
    return replace(contract, **changes)
