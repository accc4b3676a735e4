"""Random numbers: the published test vectors, uniformity, independence, and independence of the batch."""

import numpy as np
import pytest
import torch

from step3.engine.sampling.random_numbers import (
    as_int64,
    gumbels,
    philox,
    philox_ints,
    philox_numpy,
    request_seed,
    uniforms,
    words,
)

# Random123, kat_vectors, philox4x32 10: counter, key, result.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert tuple(philox(torch.tensor(key), torch.tensor(counter)).tolist()) == expected


def test_numpy_gives_what_torch_gives():
    draw = torch.Generator().manual_seed(0)
    key = torch.randint(0, 2**32, (2, 5, 1), generator=draw)
    counter = torch.randint(0, 2**32, (4, 5, 7), generator=draw)
    given = (one.numpy().view(np.uint64) for one in (key, counter))
    assert philox_numpy(*given).astype(np.int64).tolist() == philox(key, counter).tolist()


def column(*values):
    return torch.tensor(values, dtype=torch.int64)


def drawn(seeds, streams, positions, count=256):
    return uniforms(seeds, streams, positions, count)


def chi_square(values, bins=64):
    counts = torch.histc(values.flatten().float(), bins=bins, min=0, max=1)
    expected = values.numel() / bins
    return float(((counts - expected) ** 2 / expected).sum())


def test_one_counter_is_as_many():
    generator = torch.Generator().manual_seed(3)
    key, counter = (torch.randint(0, 2**32, (size,), generator=generator) for size in (2, 4))
    assert list(philox_ints(tuple(key.tolist()), tuple(counter.tolist()))) == philox(key, counter).tolist()


def test_numbers_are_uniform_over_indices_positions_and_seeds():
    rows = torch.arange(1000)
    zero = torch.zeros_like(rows)
    # 63 degrees of freedom: beyond 113 with a chance of one in ten thousand.
    assert chi_square(drawn(zero, zero, rows)) < 113
    assert chi_square(drawn(rows, zero, zero)) < 113
    assert chi_square(drawn(zero, rows, zero)) < 113


def test_each_index_is_uniform_over_positions():
    positions = torch.arange(20_000)
    zero = torch.zeros_like(positions)
    values = drawn(zero, zero, positions, 8)
    for index in range(8):
        assert chi_square(values[:, index]) < 113


@pytest.mark.parametrize("neighbour", ["index", "position", "seed", "stream"])
def test_neighbouring_numbers_are_independent(neighbour):
    rows = torch.arange(4001)
    zero = torch.zeros_like(rows)
    if neighbour == "index":
        values = drawn(rows, zero, zero, 9)
        left, right = values[:, :8].flatten(), values[:, 1:].flatten()
    else:
        seeds, streams, positions = (
            rows if neighbour == one else zero for one in ("seed", "stream", "position")
        )
        values = drawn(seeds, streams, positions, 8)
        left, right = values[:-1].flatten(), values[1:].flatten()
    # 32,000 pairs on an 8 x 8 grid, 63 degrees of freedom.
    cells = (left * 8).long() * 8 + (right * 8).long()
    counts = torch.bincount(cells, minlength=64).double()
    expected = len(cells) / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 113


def test_gumbel_numbers_have_the_gumbel_distribution():
    values = gumbels(torch.arange(1000), torch.zeros(1000, dtype=torch.int64), column(*[7] * 1000), 100)
    assert chi_square(torch.exp(-torch.exp(-values))) < 113
    assert float(values.mean()) == pytest.approx(0.5772, abs=0.02)


def test_a_row_does_not_depend_on_the_other_rows_or_on_how_many_numbers_are_asked_for():
    seeds, streams, positions = column(5, -9, 2**62), column(0, 3, 1), column(0, 17, 4_000_000_000)
    together = words(seeds, streams, positions, 50)
    for row in range(3):
        alone = words(seeds[row : row + 1], streams[row : row + 1], positions[row : row + 1], 7)
        assert torch.equal(alone[0], together[row, :7])


def test_the_upper_half_of_the_seed_matters():
    low = words(column(1), column(0), column(0), 4)
    high = words(column(1 + 2**32), column(0), column(0), 4)
    assert not torch.equal(low, high)


def test_numbers_are_never_zero_or_one():
    values = (torch.tensor([0, 2**32 - 1]).double() + 0.5) * 2.0**-32
    assert 0 < values[0] < values[1] < 1


def test_seeds_beyond_63_bits_are_kept_apart():
    assert as_int64(2**64 - 1) == -1
    assert as_int64(2**63) == -(2**63)
    assert as_int64(2**63 - 1) == 2**63 - 1


def test_seeds_drawn_for_requests_differ_and_are_a_function_of_the_engines_seed():
    seeds = {request_seed(0, number) for number in range(50)} | {request_seed(1, n) for n in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(1, 3) == request_seed(1, 3)
