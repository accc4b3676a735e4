import contextlib
import json

import pytest
import torch
from checkpoints import GOLDEN, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import StoredTensor, encode_header, read_header
from step3.checkpoint.mapped import DTYPES

ENTRY = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_what_the_library_reads():
    path = GOLDEN / "text-fp8" / "model.safetensors"
    infos = read_header(path)
    with safe_open(path, "pt") as file:
        assert set(infos) == set(file.keys())
        for name, info in infos.items():
            assert list(info.shape) == file.get_slice(name).get_shape()
            assert info.dtype == file.get_slice(name).get_dtype()


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("length", [0, 7])
def test_a_file_shorter_than_its_prefix_is_torn(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\1" * length)
    assert "torn" in refusal(path)


def test_a_header_longer_than_the_file_is_torn(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert "torn: expected a header of 1000 bytes, found a file of 10 bytes" in refusal(path)


def test_a_giant_header_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff\xff", b"[" * 50_000, b'{"a": 1, "a": 2}'])
def test_a_header_that_is_no_json_object_is_refused(tmp_path, header):
    refusal(write_raw(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("cut", [1, 11, 12])
def test_missing_data_is_torn(tmp_path, cut):
    path = write_raw(tmp_path / "a.safetensors", {"t": ENTRY}, bytes(12 - cut))
    assert "a.safetensors: t: torn: expected data up to byte" in refusal(path)


def test_bytes_of_no_tensor_are_refused(tmp_path):
    assert "belong to no tensor" in refusal(write_raw(tmp_path / "a.safetensors", {"t": ENTRY}, bytes(13)))


@pytest.mark.parametrize(
    ("second", "fault"),
    [([6, 18], "overlaps t"), ([0, 12], "overlaps t"), ([13, 25], "leaves a gap after t")],
)
def test_overlaps_and_gaps_are_refused(tmp_path, second, fault):
    header = {"t": ENTRY, "u": ENTRY | {"data_offsets": second}}
    assert fault in refusal(write_raw(tmp_path / "a.safetensors", header, bytes(40)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "I64"),
        ("dtype", ["BF16"]),
        ("shape", [2, -3]),
        ("shape", [2, 3.0]),
        ("shape", [True, 6]),
        ("shape", "6"),
        ("shape", [1 << 62] * 16),
        ("shape", [1] * 1000),
        ("data_offsets", [0]),
        ("data_offsets", [12, 0]),
        ("data_offsets", [0, 13]),
        ("data_offsets", [-12, 0]),
        ("data_offsets", None),
        ("data_offsets", [1 << 70, (1 << 70) + 12]),
    ],
)
def test_a_bad_entry_names_the_tensor(tmp_path, field, value):
    header = {"the.tensor": ENTRY | {field: value}}
    assert "the.tensor: " in refusal(write_raw(tmp_path / "a.safetensors", header, bytes(12)))


def test_an_entry_that_is_no_object_is_refused(tmp_path):
    assert "t: entry: expected an object" in refusal(write_raw(tmp_path / "a.safetensors", {"t": 3}))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_garbage_never_does_worse_than_an_error(tmp_path_factory, data, length):
    path = tmp_path_factory.mktemp("garbage") / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + data)
    with contextlib.suppress(CheckpointError):
        read_header(path)


TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_written_headers_are_the_librarys_byte_for_byte(table):
    header, offsets = encode_header(
        StoredTensor(name, tuple(shape), dtype) for name, (dtype, shape) in table.items()
    )
    tensors = {name: torch.zeros(shape).to(DTYPES[dtype]) for name, (dtype, shape) in table.items()}
    expected = save(tensors, metadata={"format": "pt"})
    assert expected[: len(header)] == header
    table = json.loads(header[8:])
    for name in tensors:
        assert offsets[name] == len(header) + table[name]["data_offsets"][0]
