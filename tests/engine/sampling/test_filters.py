"""Top-k, top-p and min-p against a plain restatement, ties and large vocabularies included."""

import math

import pytest
import torch

from step3.engine.sampling.filters import FAR, apply_min_p, apply_top_k, apply_top_p


def distances_of(probabilities):
    probabilities = torch.tensor(probabilities, dtype=torch.float64)
    return (probabilities.max() / probabilities).log().float()[None]


def kept(distances):
    return [(row < FAR).nonzero()[:, 0].tolist() for row in distances]


def filtered(distances, top_k=0, top_p=1.0):
    rows = len(distances)
    changed = distances.clone()
    if top_k:
        apply_top_k(changed, torch.full((rows,), top_k))
    if top_p < 1:
        apply_top_p(changed, torch.full((rows,), top_p, dtype=torch.float64))
    return kept(changed)


def restated(distances, top_k, top_p):
    """Sorted by (distance, id), in float64, one row at a time."""
    distances = distances.tolist()
    order = sorted(range(len(distances)), key=lambda i: (distances[i], i))
    if 0 < top_k < len(order):
        kth = distances[order[top_k - 1]]
        order = [i for i in order if distances[i] <= kth]
    weights = [math.exp(-distances[i]) for i in order]
    total, before, result = sum(weights), 0.0, []
    for token, weight in zip(order, weights, strict=True):
        if before >= top_p * total and result:
            break
        result.append(token)
        before += weight
    return sorted(i for i in result if distances[i] < FAR)


P = [0.1, 0.4, 0.05, 0.2, 0.25]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [1]), (2, [1, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4]), (0, [0, 1, 2, 3, 4])],
)
def test_top_k_keeps_the_k_likeliest(top_k, expected):
    assert filtered(distances_of(P), top_k=top_k) == [expected]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.01, [1]), (0.39, [1]), (0.41, [1, 4]), (0.64, [1, 4]), (0.66, [1, 3, 4]), (0.94, [0, 1, 3, 4])],
)
def test_top_p_keeps_the_fewest_that_reach_p(top_p, expected):
    assert filtered(distances_of(P), top_p=top_p) == [expected]


def test_top_p_applies_to_what_top_k_left():
    # The two likeliest have 0.65 of all, and the best of them 0.615 of that.
    assert filtered(distances_of(P), top_k=2, top_p=0.6) == [[1]]
    assert filtered(distances_of(P), top_p=0.6) == [[1, 4]]


def test_all_tokens_as_likely_as_the_kth_stay():
    assert filtered(distances_of([0.2, 0.3, 0.2, 0.1, 0.2]), top_k=2) == [[0, 1, 2, 4]]


def test_of_equally_likely_tokens_top_p_takes_the_lower_ids():
    assert filtered(torch.zeros(1, 8), top_p=0.5) == [[0, 1, 2, 3]]
    assert filtered(torch.zeros(1, 8), top_p=0.51) == [[0, 1, 2, 3, 4]]


def test_a_flat_row_is_exact():
    assert filtered(torch.zeros(1, 5000), top_p=0.75) == [list(range(3750))]
    assert filtered(torch.zeros(1, 5000), top_k=10) == [list(range(5000))]


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("size", [7, 300, 3000])
def test_rows_of_every_shape_equal_the_restatement(size, scale):
    torch.manual_seed(size)
    logits = (torch.randn(6, size) * scale * 8).round() / 8
    logits[1, : size // 2] = -torch.inf
    distances = (logits.amax(dim=-1, keepdim=True) - logits).clamp(max=FAR)
    for top_k, top_p in (
        (0, 0.3),
        (0, 0.9),
        (5, 0.999),
        (5, 0.5),
        (1, 0.9),
        (size // 2, 0.8),
        (10 * size, 0.7),
    ):
        assert filtered(distances, top_k, top_p) == [restated(row, top_k, top_p) for row in distances]


def test_rows_with_filters_of_their_own_do_not_touch_each_other():
    torch.manual_seed(1)
    logits = torch.randn(5, 1000) * 3
    distances = logits.amax(dim=-1, keepdim=True) - logits
    top_k, top_p = torch.tensor([999, 3, 700, 1, 50]), torch.tensor([0.5, 0.99, 0.9, 0.999, 0.2]).double()
    together = distances.clone()
    apply_top_k(together, top_k)
    apply_top_p(together, top_p)
    for row in range(5):
        alone = distances[row : row + 1].clone()
        apply_top_k(alone, top_k[row : row + 1])
        apply_top_p(alone, top_p[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_min_p_is_relative_to_the_likeliest():
    distances = distances_of(P).repeat(3, 1)
    apply_min_p(distances, torch.tensor([0.0, 0.5, 1.0]))
    assert kept(distances) == [[0, 1, 2, 3, 4], [1, 3, 4], [1]]
