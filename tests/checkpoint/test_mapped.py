import math

import pytest
import torch
from checkpoints import same_bits, write_raw
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import read_header
from step3.checkpoint.mapped import MappedFiles, tiles


@pytest.fixture
def stored(tmp_path):
    tensor = torch.randn(5, 260, 300)
    save_file({"t": tensor, "empty": torch.empty(0, 3)}, tmp_path / "a.safetensors")
    return read_header(tmp_path / "a.safetensors")["t"], tensor


@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(1, 50),
    st.integers(1, 4),
)
def test_tiles_cover_a_tensor_once_in_order(shape, elements, row_multiple):
    numbers = torch.arange(math.prod(shape)).view(shape)
    parts = [numbers[tile].reshape(-1) for tile in tiles(shape, elements, row_multiple)]
    assert torch.cat(parts or [numbers.view(-1)]).equal(numbers.view(-1))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 99))
def test_tiles_keep_to_their_size_and_to_multiples_of_rows(experts, rows, columns, elements):
    for tile in tiles((experts, rows, columns), elements, row_multiple=4):
        piece = torch.empty(experts, rows, columns)[tile]
        assert piece.numel() <= max(elements, 4 * columns)
        assert len(tile) == 1 or tile[1].start % 4 == 0


def test_a_view_has_the_files_values_without_copying(stored):
    info, tensor = stored
    view = MappedFiles().view(info, (range(1, 3), range(260), range(10, 20)))
    assert view.equal(tensor[1:3, :, 10:20])
    with info.file.open("r+b") as file:
        file.seek(info.offset + 4 * (260 * 300 + 10))
        file.write(torch.tensor([42.0]).numpy().tobytes())
    assert view[0, 0, 0] == 42


def test_a_view_outlives_the_files(stored):
    info, tensor = stored
    view = MappedFiles().view(info, (range(5), range(260), range(300)))
    info.file.unlink()
    assert view.equal(tensor)


@pytest.mark.parametrize(
    "box", [(range(5), range(260), range(300)), (range(2, 5), range(7, 250), range(9, 33))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_copy_converts_the_boxed_piece(stored, box, dtype):
    info, tensor = stored
    out = torch.empty([len(r) for r in box], dtype=dtype)
    MappedFiles().copy(info, out, box)
    expected = tensor[tuple(slice(r.start, r.stop) for r in box)]
    assert out.equal(expected.to(dtype))


def test_a_tensor_without_elements_can_be_read(stored):
    info = read_header(stored[0].file)["empty"]
    out = torch.empty(0, 3)
    MappedFiles().copy(info, out, (range(0), range(3)))
    assert MappedFiles().view(info, (range(0), range(3))).shape == (0, 3)


def test_data_that_is_not_aligned_can_be_copied_but_not_mapped(tmp_path):
    values = torch.randn(300, 7)
    octet = {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}
    entry = {"dtype": "F32", "shape": [300, 7], "data_offsets": [1, 1 + 300 * 28]}
    path = write_raw(tmp_path / "a.safetensors", {"o": octet, "t": entry}, b"\0" + values.numpy().tobytes())
    info = read_header(path)["t"]
    assert info.offset % 4
    out = torch.empty(100, 3)
    MappedFiles().copy(info, out, (range(50, 150), range(2, 5)))
    assert same_bits(out, values[50:150, 2:5])
    with pytest.raises(CheckpointError, match=r"t: expected data aligned to 4 bytes"):
        MappedFiles().view(info, (range(300), range(7)))


def test_a_file_that_shrank_since_is_refused(stored):
    info, _ = stored
    with info.file.open("r+b") as file:
        file.truncate(info.offset + 100)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        MappedFiles().view(info, (range(5), range(260), range(300)))


def test_a_file_that_went_away_is_refused(stored):
    info, _ = stored
    info.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        MappedFiles().view(info, (range(5), range(260), range(300)))
