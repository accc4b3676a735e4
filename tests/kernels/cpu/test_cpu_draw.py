"""Draws with the compiled library: what torch draws, from any logits."""

import pytest
import torch

from step3.engine.sampling import drawing
from step3.engine.sampling.drawing import Draws
from step3.kernels.cpu.draw import draw_tokens, likeliest


def draws(rows, temperature, **options):
    generator = torch.Generator().manual_seed(rows)
    return Draws(
        temperature=temperature.expand(rows).contiguous(),
        top_k=torch.full((rows,), options.get("top_k", 0)),
        top_p=torch.full((rows,), options.get("top_p", 1.0), dtype=torch.float64),
        min_p=torch.full((rows,), options.get("min_p", 0.0)),
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        choice=torch.arange(rows) % 5,
        position=torch.randint(0, 2**32 - 1, (rows,), generator=generator),
        filtered=bool(options),
    )


def drawn(monkeypatch, library, logits, made):
    monkeypatch.setattr(drawing, "open_library", lambda: library)
    return drawing.draw(logits, logits.amax(dim=-1), made)


@pytest.mark.parametrize("vocab", [1, 2, 5, 100, 2048, 5000])
def test_draws_are_what_torch_draws(library, monkeypatch, vocab):
    logits, made = 3 * torch.randn(1000, vocab), draws(1000, torch.tensor(0.8))
    assert torch.equal(drawn(monkeypatch, library, logits, made), drawn(monkeypatch, None, logits, made))


@pytest.mark.parametrize(
    "options", [{"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.8}]
)
def test_filtered_draws_are_what_torch_draws(library, monkeypatch, options):
    logits, made = 3 * torch.randn(1000, 300), draws(1000, torch.tensor(1.3), **options)
    assert torch.equal(drawn(monkeypatch, library, logits, made), drawn(monkeypatch, None, logits, made))


def test_what_is_ruled_out_is_never_drawn(library, monkeypatch):
    logits = torch.full((2000, 70), -torch.inf)
    logits[:, [3, 69]] = 0.0
    assert set(drawn(monkeypatch, library, logits, draws(2000, torch.tensor(5.0))).tolist()) == {3, 69}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_no_numbers_leave_the_others_alone(library, monkeypatch, bad):
    logits, made = torch.randn(8, 50), draws(8, torch.tensor(1.0))
    expected = drawn(monkeypatch, library, logits, made)
    logits[2, 7] = bad
    tokens = drawn(monkeypatch, library, logits, made)
    assert 0 <= tokens[2] < 50
    others = torch.arange(8) != 2
    assert torch.equal(tokens[others], expected[others])


def test_a_large_batch_draws_on_several_threads_as_each_row_alone(library, monkeypatch):
    logits, made = torch.randn(40, 10_000), draws(40, torch.tensor(1.0))
    together = drawn(monkeypatch, library, logits, made)
    alone = [drawn(monkeypatch, library, logits[i : i + 1], made.of(slice(i, i + 1))) for i in range(40)]
    assert together.tolist() == [int(token) for token in alone]


def test_columns_need_not_lie_side_by_side(library):
    logits, made = torch.randn(50, 6).t(), draws(6, torch.tensor(1.0))
    arguments = logits.amax(dim=-1), made.temperature, made.seed, made.choice, made.position, 8
    assert torch.equal(
        draw_tokens(library, logits, *arguments), draw_tokens(library, logits.contiguous(), *arguments)
    )


@pytest.mark.parametrize("vocab", [1, 7, 2048, 5001])
def test_the_likeliest_is_the_first_of_equals(library, vocab):
    logits = torch.randint(0, 5, (50, vocab)).float()
    best, tokens = likeliest(library, logits)
    assert torch.equal(best, logits.amax(-1))
    assert tokens.tolist() == logits.numpy().argmax(-1).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_likeliest_of_what_is_no_number(library, value):
    logits = torch.randn(3, 40)
    logits[1, 17] = value
    logits[2] = value
    best, tokens = likeliest(library, logits)
    expected = logits.numpy().argmax(-1)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(best, logits[range(3), expected], equal_nan=True)
