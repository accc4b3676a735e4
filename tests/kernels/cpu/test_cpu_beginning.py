"""Embeddings and angles of a step, against torch."""

import pytest
import torch

from step3.kernels.cpu import Library
from step3.kernels.cpu.beginning import Beginning
from step3.kernels.rotary import cos_sin


@pytest.mark.parametrize("count", [1, 5, 64, 300])
@pytest.mark.parametrize(("hidden", "half"), [(48, 8), (70, 5), (256, 64)])
def test_embeds_and_turns(library: Library, count: int, hidden: int, half: int) -> None:
    embedding, frequencies = torch.randn(500, hidden).bfloat16(), 500000.0 ** -(torch.arange(half) / half)
    tokens, positions = torch.randint(0, 500, (count,)), torch.randint(0, 131072, (count,))
    got = Beginning(library, embedding, frequencies, 1.25).of(tokens, positions)
    assert torch.equal(got[0], embedding[tokens].float())
    for found, expected in zip(got[1:], cos_sin(positions, frequencies, 1.25), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-7)


def test_angles_do_not_depend_on_the_batch(library: Library) -> None:
    beginning = Beginning(library, torch.zeros(2, 16).bfloat16(), torch.rand(64), 1.0)
    positions = torch.arange(200)
    together = beginning.of(torch.zeros_like(positions), positions)
    alone = beginning.of(torch.zeros(1, dtype=torch.int64), positions[77:78])
    assert torch.equal(together[1][77], alone[1][0])
    assert torch.equal(together[2][77], alone[2][0])
