from pathlib import Path
from typing import Any

import pytest
import torch
from small import IMAGE, padded, pictures, prompt, tokens, vl_model
from transformers import AutoModel, AutoModelForImageTextToText

from step3.errors import Step3Error
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration, Step3VLModel


@pytest.fixture(scope="module")
def model() -> Step3VLForConditionalGeneration:
    return vl_model()


def test_features_are_the_crops_then_the_whole_picture(model: Any) -> None:
    given = pictures(2, 0, 1)
    with torch.no_grad():
        features = model.get_image_features(**{k: v for k, v in given.items() if k != "patch_newline_mask"})
        whole = model.model.encode_pictures(given["pixel_values"])
        crops = model.model.encode_pictures(given["patch_pixel_values"])

    assert [tuple(rows.shape) for rows in features] == [(6, 16), (4, 16), (5, 16)]
    assert torch.equal(features[0], torch.cat((crops[0], crops[1], whole[0])))
    assert torch.equal(features[1], whole[1])
    assert torch.equal(features[2], torch.cat((crops[2], whole[2])))


def test_features_replace_the_placeholders_and_nothing_else(model: Any) -> None:
    given, ids = pictures(1), torch.tensor([prompt(3, [1], 4)])
    embeds: list[torch.Tensor] = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: embeds.append(args[0])
    )
    with torch.no_grad():
        model(input_ids=ids, **given)
        features = model.get_image_features(given["pixel_values"], given["patch_pixel_values"], [1])
        words = model.get_input_embeddings()(ids)
    hook.remove()
    assert torch.equal(embeds[0][0, 3:8], features[0])
    assert torch.equal(embeds[0][0, :3], words[0, :3])
    assert torch.equal(embeds[0][0, 8:], words[0, 8:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_with_pictures_gives_what_each_sequence_does_alone(model: Any, side: str) -> None:
    rows = [prompt(2, [1, 0], 2), prompt(9, seed=1), prompt(1, [2], 7, seed=2)]
    given = pictures(1, 0, 2)
    batch = padded(rows, side)
    with torch.no_grad():
        together = model(**batch, **given).logits
        own = [
            {
                "pixel_values": given["pixel_values"][:2],
                "patch_pixel_values": given["patch_pixel_values"][:1],
            },
            {},
            {
                "pixel_values": given["pixel_values"][2:],
                "patch_pixel_values": given["patch_pixel_values"][1:],
            },
        ]
        for number, (row, counts) in enumerate(zip(rows, ([1, 0], None, [2]), strict=True)):
            alone = model(input_ids=torch.tensor([row]), num_patches=counts, **own[number]).logits[0]
            kept = batch["attention_mask"][number].bool()
            torch.testing.assert_close(together[number][kept], alone, atol=1e-4, rtol=0)


def test_pictures_of_one_row_never_reach_another(model: Any) -> None:
    ids = torch.tensor([prompt(2, [0], 3), prompt(2, [0], 3, seed=1)])
    given = pictures(0, 0)
    other = {**given, "pixel_values": given["pixel_values"].flip(0)}
    same = {**given, "pixel_values": torch.cat((given["pixel_values"][:1], other["pixel_values"][:1] * 2))}
    with torch.no_grad():
        first, second = (model(input_ids=ids, **pixels).logits for pixels in (given, same))
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3


def test_too_few_places_name_the_sequence(model: Any) -> None:
    ids = torch.tensor([prompt(2, [0], 3), prompt(9)])
    with pytest.raises(Step3Error, match="2 pictures are given"):
        model(input_ids=ids, **pictures(0, 0))


def test_places_cut_off_by_truncation_name_the_sequence(model: Any) -> None:
    with pytest.raises(Step3Error, match="sequence 0 has 3 places"):
        model(input_ids=torch.tensor([[7, IMAGE, IMAGE, IMAGE]]), **pictures(0))


def test_crops_that_no_picture_counts(model: Any) -> None:
    given = {**pictures(2), "num_patches": torch.tensor([1])}
    with pytest.raises(Step3Error, match=r"num_patches \[1\] .* 2 crops are given"):
        model(input_ids=torch.tensor([prompt(2, [2])]), **given)


def test_pictures_without_tokens(model: Any) -> None:
    with pytest.raises(ValueError, match="pictures need input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 16), **pictures(0))


def test_text_alone_needs_no_picture(model: Any) -> None:
    ids = tokens(2, 5)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        empty = model(input_ids=ids, **{name: t[:0] for name, t in pictures(1).items()}).logits
    assert torch.equal(plain, empty)


def test_auto_classes_give_the_network_with_and_without_its_head(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    given = {"input_ids": torch.tensor([prompt(2, [1], 3)]), **pictures(1)}
    with torch.no_grad():
        expected = model(**given, output_hidden_states=True)
        with_head = AutoModelForImageTextToText.from_pretrained(tmp_path, torch_dtype=torch.float32)
        # Weights that lie elsewhere in memory may be summed in another order: the last bits differ.
        torch.testing.assert_close(with_head(**given).logits, expected.logits, atol=1e-5, rtol=0)
        without = AutoModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
        assert type(without) is Step3VLModel
        last = without(**given).last_hidden_state
        torch.testing.assert_close(last, expected.hidden_states[-1], atol=1e-5, rtol=0)


def test_parts_take_the_dtype_of_the_whole() -> None:
    config = vl_model().config
    config.text_config.torch_dtype = torch.bfloat16
    model = Step3VLForConditionalGeneration(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_attention_asked_for_reaches_the_decoder() -> None:
    given = {"input_ids": torch.tensor([prompt(2, [1], 3)]), **pictures(1)}
    eager = vl_model(attention="eager")
    with torch.no_grad():
        out = eager(**given, output_attentions=True)
        torch.testing.assert_close(out.logits, vl_model()(**given).logits, atol=1e-5, rtol=0)
    assert [tuple(a.shape) for a in out.attentions] == [(1, 2, 10, 10)] * 3
