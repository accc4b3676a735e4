"""Generation: the cache gives what recomputing gives, at one token a step, for every decoding strategy."""

from typing import Any

import pytest
import torch
import transformers
from small import IMAGE, PAD, VOCABULARY, padded, pictures, prompt, text_model, tokens, vl_model
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from step3.errors import Step3Error
from step3.model.cache_name import CACHE

GREEDY = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}


class CountedTokens:
    """How many tokens each forward pass embeds."""

    def __init__(self, model: nn.Module) -> None:
        self.steps: list[int] = []
        model.get_input_embeddings().register_forward_hook(
            lambda module, given, embedded: self.steps.append(embedded.shape[1])
        )


def logits_of(model: Any, given: dict[str, Tensor], steps: int = 10, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens `[batch, steps]` and their logits `[batch, steps, vocabulary]`."""
    out = model.generate(**given, max_new_tokens=steps, **GREEDY, **kwargs)
    return out.sequences[:, given["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


@pytest.fixture(params=["text", "pictures"])
def model_and_inputs(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Tensor]]:
    if request.param == "text":
        return text_model(), {"input_ids": tokens(2, 9)}
    rows = [prompt(3, [2], 4), prompt(2, [0], 7)]
    return vl_model(), {**padded(rows), **pictures(2, 0)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_generation_is_uncached_generation(
    model_and_inputs: tuple[Any, dict[str, Tensor]], cache: str, attention: str
) -> None:
    model, given = model_and_inputs
    model.set_attn_implementation(attention)
    kind = {"cache_implementation": "static"} if cache == "static" else {}

    cached = logits_of(model, given, **kind)
    recomputed = logits_of(model, given, use_cache=False)

    assert cached[0].tolist() == recomputed[0].tolist()
    torch.testing.assert_close(cached[1], recomputed[1], atol=1e-4, rtol=0)


def test_generate_uses_a_cache_unless_told_otherwise(model_and_inputs: tuple[Any, dict[str, Tensor]]) -> None:
    model, given = model_and_inputs
    counted = CountedTokens(model)

    model.generate(**given, max_new_tokens=6, do_sample=False)

    assert counted.steps == [given["input_ids"].shape[1], 1, 1, 1, 1, 1]


def test_static_cache_computes_one_token_a_step() -> None:
    model = text_model()
    counted = CountedTokens(model)

    model.generate(tokens(1, 7), max_new_tokens=4, do_sample=False, cache_implementation="static")

    assert counted.steps == [7, 1, 1, 1]


def test_tower_runs_once_for_a_whole_answer() -> None:
    model = vl_model()
    runs = []
    model.model.vision_model.register_forward_hook(lambda module, given, rows: runs.append(rows.shape[0]))

    model.generate(**padded([prompt(3, [2], 4)]), **pictures(2), max_new_tokens=6, do_sample=False)

    assert runs == [1, 2]  # one whole picture, its two crops


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prompt_given_in_pieces_gives_the_same_logits(kind: str) -> None:
    model = text_model()
    ids = tokens(2, 12)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = DynamicCache() if kind == "dynamic" else static_cache(model, 16)
        pieces = []
        for piece in ids.split((5, 1, 6), dim=1):
            past = pieces[-1][CACHE] if pieces else cache
            seen = sum(out.logits.shape[1] for out in pieces)
            places = torch.arange(seen, seen + piece.shape[1])
            pieces.append(model(input_ids=piece, past_key_values=past, cache_position=places, use_cache=True))

    torch.testing.assert_close(torch.cat([out.logits for out in pieces], dim=1), whole, atol=1e-5, rtol=0)


def static_cache(model: Any, places: int) -> StaticCache:
    """For a batch of two; only Transformers 4 wants its sizes in advance."""
    if transformers.__version__.startswith("4."):
        return StaticCache(config=model.config, max_batch_size=2, max_cache_len=places, dtype=model.dtype)
    return StaticCache(config=model.config, max_cache_len=places)


def test_cache_holds_one_key_head_and_one_value_head() -> None:
    model = text_model()
    with torch.no_grad():
        cache = model(input_ids=tokens(2, 5))[CACHE]

    bytes_a_token = 2 * model.config.head_dim * 4 * model.config.num_hidden_layers
    parts = [part for layer in range(3) for part in cache_layer(cache, layer)]
    assert sum(part.numel() * part.element_size() for part in parts) == 2 * 5 * bytes_a_token


def test_cache_is_taken_by_its_old_and_its_new_name() -> None:
    model = text_model()
    ids = tokens(1, 7)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, 5:]
        for name in ("past_key_values", "cache"):
            cache = model(input_ids=ids[:, :5], use_cache=True)[CACHE]
            continued = model(input_ids=ids[:, 5:], **{name: cache}).logits
            torch.testing.assert_close(continued, expected, atol=1e-5, rtol=0)


def test_two_caches_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        text_model()(input_ids=tokens(1, 2), cache=DynamicCache(), past_key_values=DynamicCache())


def cache_layer(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    if hasattr(cache, "layers"):
        return cache.layers[layer].keys, cache.layers[layer].values
    return cache.key_cache[layer], cache.value_cache[layer]


def test_batch_padded_on_the_left_generates_what_each_prompt_does_alone() -> None:
    model = text_model()
    rows = [prompt(3), prompt(9, seed=1), prompt(5, seed=2)]

    together = logits_of(model, padded(rows, "left"))

    for number, row in enumerate(rows):
        alone = logits_of(model, {"input_ids": torch.tensor([row])})
        assert together[0][number].tolist() == alone[0][0].tolist()
        torch.testing.assert_close(together[1][number], alone[1][0], atol=1e-4, rtol=0)


def test_rows_with_different_numbers_of_pictures_and_with_none_generate_what_each_does_alone() -> None:
    model = vl_model()
    rows = [prompt(3, [2, 0], 4), prompt(12, seed=1), prompt(2, [1], 2, seed=2), prompt(1, [0], 1, [3], 2)]
    crops = [[2, 0], [], [1], [0, 3]]
    given = pictures(*(count for own in crops for count in own))

    together = logits_of(model, {**padded(rows, "left"), **given})

    first_picture = first_crop = 0
    for number, (row, own) in enumerate(zip(rows, crops, strict=True)):
        alone = {"input_ids": torch.tensor([row])}
        if own:
            picture, crop = (
                slice(first_picture, first_picture + len(own)),
                slice(first_crop, first_crop + sum(own)),
            )
            alone |= {
                "pixel_values": given["pixel_values"][picture],
                "patch_pixel_values": given["patch_pixel_values"][crop],
                "num_patches": given["num_patches"][picture],
            }
        first_picture, first_crop = first_picture + len(own), first_crop + sum(own)
        expected = logits_of(model, alone)
        assert together[0][number].tolist() == expected[0][0].tolist()
        torch.testing.assert_close(together[1][number], expected[1][0], atol=1e-4, rtol=0)


def test_beam_search_over_rows_with_several_pictures_finds_what_each_row_does_alone() -> None:
    model = vl_model()
    rows = [prompt(3, [2, 0], 4), prompt(2, [0], 3, seed=1)]
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}

    together = model.generate(**padded(rows, "left"), **pictures(2, 0, 0), **options)[:, -5:]

    given = pictures(2, 0, 0)
    alone = [
        {name: given[name][:2] for name in ("pixel_values", "patch_pixel_values", "num_patches")},
        {"pixel_values": given["pixel_values"][2:]},
    ]
    for number, (row, own) in enumerate(zip(rows, alone, strict=True)):
        expected = model.generate(torch.tensor([row]), **own, **options)[0, -5:]
        assert together[number].tolist() == expected.tolist()


def test_several_answers_to_one_prompt_see_the_same_pictures() -> None:
    model = vl_model()
    rows = [prompt(3, [1, 0], 2), prompt(1, [2], 3)]
    given = {**padded(rows, "left"), **pictures(1, 0, 2)}
    torch.manual_seed(0)

    out = model.generate(
        **given,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )

    once = logits_of(model, given, steps=1)[1][:, 0]
    torch.testing.assert_close(out.logits[0], once.repeat_interleave(3, dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pictures_given", ["all", "new"])
def test_second_turn_on_the_first_ones_cache_sees_its_own_picture(pictures_given: str) -> None:
    model = vl_model()
    both = pictures(2, 1)
    first = {
        name: tensor[:1] if name in ("pixel_values", "num_patches") else tensor[:2]
        for name, tensor in both.items()
    }
    out = model.generate(
        torch.tensor([prompt(3, [2], 4)]),
        **first,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
    )
    conversation = torch.cat((out.sequences, torch.tensor([prompt(2, [1], 3)])), dim=1)
    new = {
        name: tensor[1:] if name in ("pixel_values", "num_patches") else tensor[2:]
        for name, tensor in both.items()
    }

    expected = logits_of(model, {"input_ids": conversation, **both})
    counted = CountedTokens(model)
    continued = logits_of(
        model,
        {"input_ids": conversation, **(both if pictures_given == "all" else new)},
        past_key_values=out[CACHE],
    )

    assert counted.steps[0] < conversation.shape[1]
    torch.testing.assert_close(continued[1], expected[1], atol=1e-4, rtol=0)


def test_cache_that_ends_inside_a_picture_is_refused() -> None:
    model = vl_model()
    ids = torch.tensor([prompt(3, [2, 1], 4)])
    cache = model(input_ids=ids, **pictures(2, 1))[CACHE]
    cache.crop(3 + 6 + 2 - ids.shape[1])
    with pytest.raises(Step3Error, match="cut no prompt inside a picture"):
        model.generate(ids, **pictures(2, 1), past_key_values=cache, max_new_tokens=2)


def test_placeholder_that_the_model_writes_itself_is_a_token_like_others() -> None:
    given = {**padded([prompt(3, [1], 4)]), **pictures(1)}
    others = [token for token in range(VOCABULARY) if token != IMAGE]

    out = vl_model().generate(**given, max_new_tokens=4, do_sample=False, suppress_tokens=others)

    assert out[0, -4:].tolist() == [IMAGE] * 4


def test_padding_token_never_changes_a_row() -> None:
    model = text_model()
    given = padded([prompt(3), prompt(8, seed=1)], "left")
    other = dict(given, input_ids=given["input_ids"].masked_fill(given["attention_mask"] == 0, PAD + 2))

    # Another token chooses other experts: with other numbers of rows, some processors' products have other
    # sums.
    torch.testing.assert_close(logits_of(model, given)[1], logits_of(model, other)[1], atol=1e-5, rtol=0)
