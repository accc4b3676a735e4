import pytest
import torch

from step3.nano.architecture import FEATURES, SIDE, load_processor
from step3.nano.batches import IGNORED, Batch, batches, encode, encode_lesson
from step3.nano.evaluation import prompt_and_pictures
from step3.nano.scenes.sample import Sample, completion_text
from step3.nano.scenes.stream import lesson, sample


@pytest.fixture(scope="module")
def processor():
    return load_processor()


@pytest.fixture(scope="module")
def drawn():
    return [sample(5, index) for index in range(60)]


def test_a_sample_is_encoded_as_a_user_s_request_would_be(processor, drawn):
    for one in drawn[:20]:
        text, pictures = prompt_and_pictures(processor, one)
        inputs = processor(text=text, images=pictures or None)
        assert encode(processor, one).prompt == inputs["input_ids"][0]
        assert processor.tokenizer.decode(encode(processor, one).answer) == completion_text(one)


def _batches(processor, drawn: list[Sample]) -> list[Batch]:
    return batches(processor, [encode(processor, one) for one in drawn], 2048)


def _crops(processor, one):
    return processor.image_processor.plan(one.scene.width, one.scene.height).num_crops


def test_only_the_answer_is_learned(processor, drawn):
    for batch in _batches(processor, drawn):
        for row in range(len(batch.input_ids)):
            learned = batch.labels[row] != IGNORED
            assert processor.tokenizer.decode(batch.input_ids[row][learned]).endswith("<|EOT|>")
            assert torch.equal(batch.labels[row][learned], batch.input_ids[row][learned])
            assert not learned[: int((batch.input_ids[row] == processor.tokenizer.bos_token_id).sum())].any()


def test_what_stands_behind_the_list_weighs_more(processor):
    for index in range(20):
        one = sample(5, index, mix={"colour": 1.0, "count": 1.0})
        example = encode(processor, one)
        behind = [token for token, weight in zip(example.answer, example.weights, strict=True) if weight > 1]
        text = processor.tokenizer.decode(behind)
        assert completion_text(one).endswith(text)
        assert text.endswith(f"</think>\n{one.answer}<|EOT|>")
        assert len(behind) < len(example.answer)


def test_of_a_lesson_only_what_is_found_is_learned(processor):
    for index in range(8):
        one = lesson(5, index)
        (batch,) = batches(processor, [encode_lesson(processor, one)], 2048)
        assert processor.tokenizer.decode(batch.input_ids[0]) == one.text
        learned = processor.tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORED])
        assert learned == "".join(part for part, is_learned in one.parts if is_learned)
        assert torch.equal(batch.weights[0] > 0, batch.labels[0] != IGNORED)


def test_every_sample_is_in_one_batch_of_bounded_size(processor, drawn):
    made = _batches(processor, drawn)
    assert sum(len(batch.input_ids) for batch in made) == len(drawn)
    assert all(batch.input_ids.numel() <= 2048 for batch in made)


def test_pictures_and_their_places_agree(processor):
    drawn = [sample(5, index, mix={"describe": 1.0}) for index in range(80)]
    assert any(_crops(processor, one) for one in drawn), "the draw must hold a picture that is cut"
    places = 0
    for batch in _batches(processor, drawn):
        assert batch.pixel_values.shape[1:] == (3, SIDE, SIDE)
        crops = 0 if batch.crops is None else len(batch.crops)
        assert sum(batch.num_patches) == crops
        count = int((batch.input_ids == processor.tokenizer.convert_tokens_to_ids("<im_patch>")).sum())
        assert count == FEATURES * (len(batch.pixel_values) + crops)
        places += count
    assert places > FEATURES * len(drawn)
