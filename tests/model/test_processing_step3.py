import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import step3  # noqa: F401 (registers the Auto classes)
from step3.errors import Step3Error
from step3.model.messages import PromptError
from step3.model.pictures import PictureError
from step3.model.processing_step3 import Step3Processor

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "vl"
CASES = json.loads((GOLDEN / "golden.json").read_text())["cases"]
PROMPT = (
    "<｜begin▁of▁sentence｜>You are a helpful assistant.<|BOT|>user\n{}<|EOT|><|BOT|>assistant\n<think>\n"
)


@pytest.fixture(scope="module")
def published() -> Step3Processor:
    return Step3Processor.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def small(published: Step3Processor) -> Step3Processor:
    """As the published processor, but with few tokens and pixels."""
    image_processor = type(published.image_processor)(picture_side=28, crop_side=14)
    return Step3Processor(image_processor, published.tokenizer, image_token_len=3, patch_token_len=2)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = (
        x * 255 // max(width - 1, 1),
        y * 255 // max(height - 1, 1),
        ((x // (17 + seed) + y // (13 + seed)) % 2) * 255,
    )
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


SMALL = picture(20, 20)
LARGE = picture(800, 700)
SMALL_TEXT = "<im_start>" + "<im_patch>" * 3 + "<im_end>"
CROP_TEXT = "<patch_start>" + "<im_patch>" * 2 + "<patch_end>"
LARGE_TEXT = CROP_TEXT * 2 + "<patch_newline>" + CROP_TEXT * 2 + SMALL_TEXT


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["images"]))
def test_prompts_are_as_long_as_the_independent_engines(published: Step3Processor, case: dict) -> None:
    pictures = [
        picture(*size, seed) for size, seed in zip(case["images"], case["picture_seeds"], strict=True)
    ]
    inputs = published(text=case["prompt"], images=pictures, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, case["num_prompt_tokens"])
    counted = sum(published.num_image_tokens(*size) - 1 for size in case["images"])
    plain = published.tokenizer(case["prompt"], add_special_tokens=False)["input_ids"]
    assert len(plain) + counted == case["num_prompt_tokens"]


def test_a_placeholder_becomes_the_crops_and_then_the_whole(small: Step3Processor) -> None:
    assert CROP_TEXT.count("<im_patch>") == small.patch_token_len
    inputs = small(text="a<im_patch>b<im_patch>", images=[LARGE, SMALL], return_tensors="pt")
    expected = small.tokenizer(f"a{LARGE_TEXT}b{SMALL_TEXT}", return_tensors="pt")["input_ids"]
    assert torch.equal(inputs["input_ids"], expected)
    assert inputs["num_patches"].tolist() == [4, 0]
    assert inputs["patch_newline_mask"].tolist() == [False, True, False, False]
    assert set(inputs) == set(small.model_input_names)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_different_numbers_of_pictures(small: Step3Processor, side: str) -> None:
    texts = ["one <im_patch>", "none", "two <im_patch> and <im_patch>."]
    pictures = [[SMALL], [], [LARGE, SMALL]]
    batch = small(text=texts, images=pictures, padding=True, padding_side=side, return_tensors="pt")
    assert batch["num_patches"].tolist() == [0, 4, 0]
    for row, (text, own) in enumerate(zip(texts, pictures, strict=True)):
        alone = small(text=text, images=own or None, return_tensors="pt")["input_ids"][0]
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone)
        assert set(batch["input_ids"][row][~kept].tolist()) <= {small.tokenizer.pad_token_id}
        assert kept[0 if side == "right" else -1]


def test_a_flat_list_is_dealt_out_in_order(small: Step3Processor) -> None:
    texts = ["<im_patch>", "<im_patch><im_patch>"]
    nested = small(text=texts, images=[[SMALL], [LARGE, SMALL]])
    flat = small(text=texts, images=[SMALL, LARGE, SMALL])
    assert flat["input_ids"] == nested["input_ids"]
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("<im_patch>", None, "1 <im_patch>, but 0 pictures"),
        ("none", [SMALL], "0 <im_patch>, but 1 pictures"),
        ("<im_patch>", [SMALL, SMALL], "1 <im_patch>, but 2 pictures"),
        (["<im_patch>", "a"], [[], [SMALL]], "text 0 has 1 <im_patch>, but 0 pictures"),
        (["<im_patch>", "a"], [[SMALL]], "2 texts, but lists of pictures for 1"),
        (None, None, "give text, images or both"),
        ([["a"]], None, "list of strings"),
    ],
)
def test_texts_and_pictures_that_do_not_fit_are_refused(
    small: Step3Processor, text: object, images: object, said: str
) -> None:
    with pytest.raises(PromptError, match=said):
        small(text=text, images=images)  # type: ignore[arg-type]


def test_truncation_may_not_cut_a_picture(small: Step3Processor) -> None:
    assert (
        len(small(text="<im_patch>a b c", images=SMALL, truncation=True, max_length=6)["input_ids"][0]) == 6
    )
    with pytest.raises(PromptError, match="truncation cuts a picture of text 0"):
        small(text="<im_patch>a b c", images=SMALL, truncation=True, max_length=3, return_tensors="pt")


def test_pictures_alone_and_text_alone(small: Step3Processor) -> None:
    assert set(small(images=LARGE)) == set(small.image_processor.model_input_names)
    assert small(text="a b")["input_ids"] == [small.tokenizer("a b")["input_ids"]]
    assert set(small(text=["a b"], images=[])) == {"input_ids", "attention_mask"}


def test_numpy_on_request(small: Step3Processor) -> None:
    inputs = small(text="<im_patch>", images=LARGE, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_cropping_can_be_turned_off_for_a_call(small: Step3Processor) -> None:
    inputs = small(text="<im_patch>", images=LARGE, do_crop=False)
    assert inputs["input_ids"] == small(text="<im_patch>", images=SMALL)["input_ids"]
    assert small.num_image_tokens(800, 700, do_crop=False) == 5
    assert small.num_image_tokens(800, 700) == 4 * 4 + 1 + 5


def test_the_first_token_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = json.loads((GOLDEN / "tokenizer.json").read_text())
    bos = "<｜begin▁of▁sentence｜>"
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}},
    }
    folder = copy_of_golden(tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    processor = Step3Processor.from_pretrained(folder)
    assert processor(text="a")["input_ids"][0].count(0) == 1
    assert processor(text=bos + "a")["input_ids"] == processor(text="a")["input_ids"]


def copy_of_golden(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / name, folder / name)
    return folder


class TestChat:
    def test_the_model_cards_snippet(self, published: Step3Processor, tmp_path: Path) -> None:
        path = tmp_path / "bee.png"
        picture(300, 200).save(path)
        processor = AutoProcessor.from_pretrained(str(GOLDEN), trust_remote_code=True)
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": str(path)},
                    {"type": "text", "text": "What is in this picture?"},
                ],
            }
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to("cpu")
        expected = published(text=CASES[0]["prompt"], images=picture(300, 200), return_tensors="pt")
        assert set(inputs) == set(expected)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)
        decoded = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
        assert decoded == processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)[0]
        assert decoded.endswith("user\nWhat is in this picture?assistant\n\n")

    def test_text_content(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        assert small.apply_chat_template(messages, add_generation_prompt=True) == PROMPT.format("Hello")

    def test_text_is_kept_to_the_letter(self, small: Step3Processor) -> None:
        text = "  <b>&amp; {{ x }} {% y %}\n\n "
        for content in (text, [{"type": "text", "text": text}]):
            messages = [{"role": "user", "content": content}]
            assert small.apply_chat_template(messages, add_generation_prompt=True) == PROMPT.format(text)

    def test_the_messages_are_left_as_they_were(self, small: Step3Processor) -> None:
        messages = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}, "b"], "x": None}
        ]
        before = json.dumps(messages)
        small.apply_chat_template(messages)
        assert json.dumps(messages) == before

    def test_a_system_text_takes_the_place_of_the_default(self, small: Step3Processor) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert small.apply_chat_template(messages) == "<｜begin▁of▁sentence｜>Be brief.<|BOT|>user\nHi<|EOT|>"

    def test_tool_calls_are_written_as_the_model_writes_them(self, small: Step3Processor) -> None:
        calls = [
            {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Tokyo"}'}},
            {"function": {"name": "add", "arguments": {"a": 1, "b": [True, "é"]}}},
            {"function": {"name": "now", "arguments": ""}},
        ]
        messages = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "sunny"},
        ]
        assert small.apply_chat_template(messages, add_generation_prompt=True) == (
            "<｜begin▁of▁sentence｜>You are a helpful assistant."
            "<|BOT|>user\nWeather?<|EOT|><|BOT|>assistant\n"
            "<｜tool_calls_begin｜>\n"
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">\n'
            '<steptml:parameter name="city">Tokyo</steptml:parameter>\n'
            "</steptml:invoke><｜tool_call_end｜>\n"
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="add">\n'
            '<steptml:parameter name="a">1</steptml:parameter>\n'
            '<steptml:parameter name="b">[true, "é"]</steptml:parameter>\n'
            "</steptml:invoke><｜tool_call_end｜>\n"
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="now">\n'
            "</steptml:invoke><｜tool_call_end｜>\n"
            "<｜tool_calls_end｜><|EOT|><|BOT|>tool\nsunny<|EOT|><|BOT|>assistant\n<think>\n"
        )

    def test_tools_stand_behind_the_system_text(self, small: Step3Processor) -> None:
        tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
        prompt = small.apply_chat_template([{"role": "user", "content": "Hi"}], tools=[tool])
        system, _, user = prompt.partition("<|BOT|>")
        assert system.startswith("<｜begin▁of▁sentence｜>You are a helpful assistant.\n\n# Tools\n")
        assert f"\n{json.dumps(tool)}\n" in system
        assert '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="' in system
        assert user == "user\nHi<|EOT|>"

    def test_a_python_function_is_a_tool(self, small: Step3Processor) -> None:
        def square(number: int) -> int:
            """Squares.

            Args:
                number: what to square
            """
            return number**2

        prompt = small.apply_chat_template([{"role": "user", "content": "Hi"}], tools=[square])
        assert '"name": "square"' in prompt
        assert "what to square" in prompt

    def test_reasoning_is_shown_again_only_behind_the_last_question(self, small: Step3Processor) -> None:
        messages = [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": "old", "reasoning_content": "gone"},
            {"role": "assistant", "content": "gone too\n</think>\n\nolder"},
            {"role": "user", "content": "2"},
            {"role": "assistant", "content": "new", "reasoning_content": "kept"},
            {"role": "assistant", "content": "<think>\nkept too\n</think>\nnewer"},
        ]
        assert small.apply_chat_template(messages).partition("user\n")[2] == (
            "1<|EOT|><|BOT|>assistant\nold<|EOT|><|BOT|>assistant\nolder<|EOT|><|BOT|>user\n2<|EOT|>"
            "<|BOT|>assistant\n<think>\nkept\n</think>\nnew<|EOT|>"
            "<|BOT|>assistant\n<think>\nkept too\n</think>\nnewer<|EOT|>"
        )

    def test_the_last_turn_can_be_left_open(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
        prompt = small.apply_chat_template(messages, continue_final_message=True)
        assert prompt.endswith("<|BOT|>assistant\nWell")

    def test_pictures_in_several_turns_and_conversations(self, small: Step3Processor) -> None:
        first = [
            {
                "role": "user",
                "content": [{"type": "image", "image": LARGE}, {"type": "text", "text": "this?"}],
            },
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": ["and ", {"type": "image", "image": SMALL}]},
        ]
        second = [{"role": "user", "content": "none"}]
        inputs = small.apply_chat_template(
            [first, second],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        prompt = (
            "<｜begin▁of▁sentence｜>You are a helpful assistant.<|BOT|>user\n<im_patch>this?<|EOT|>"
            "<|BOT|>assistant\nYes.<|EOT|><|BOT|>user\nand <im_patch><|EOT|><|BOT|>assistant\n<think>\n"
        )
        expected = small(text=[prompt, PROMPT.format("none")], images=[[LARGE, SMALL], []], padding=True)
        assert inputs["input_ids"][0].tolist() == expected["input_ids"][0]
        assert inputs["attention_mask"][1, 0] == 0
        assert inputs["num_patches"].tolist() == [4, 0]
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])

    def test_only_tokens_without_return_dict(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        ids = small.apply_chat_template(messages, tokenize=True, return_tensors="pt")
        assert ids.shape[0] == 1
        assert small.decode(ids[0]) == small.apply_chat_template(messages)

    def test_a_typed_image_token_claims_no_picture(self, small: Step3Processor) -> None:
        typed = {"role": "user", "content": [{"type": "image", "image": SMALL}, "what is <im_patch>?"]}
        with pytest.raises(PromptError, match=r"message 0 \(user\) contains the text <im_patch>"):
            small.apply_chat_template([typed], tokenize=True)
        with pytest.raises(PromptError, match="a tool"):
            small.apply_chat_template(
                [{"role": "user", "content": "Hi"}], tools=[{"function": {"name": "<im_patch>"}}]
            )

    def test_an_image_token_made_of_parts_claims_no_picture(self, small: Step3Processor) -> None:
        with pytest.raises(PromptError, match="made 1 <im_patch> for 0 pictures"):
            small.apply_chat_template([{"role": "user", "content": ["<im_", "patch>"]}])

    def test_a_template_that_loses_pictures_is_refused(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": [{"type": "image", "image": SMALL}]}]
        with pytest.raises(PromptError, match="made 0 <im_patch> for 1 pictures"):
            small.apply_chat_template(messages, chat_template="{{ messages[0].role }}")

    def test_no_messages_are_refused(self, small: Step3Processor) -> None:
        for conversation in ([], [[]]):
            with pytest.raises(PromptError, match="no messages"):
                small.apply_chat_template(conversation)

    def test_a_picture_that_cannot_be_read_is_named(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": [{"type": "image", "image": "/nowhere/bee.jpg"}]}]
        with pytest.raises(PictureError, match=r"/nowhere/bee\.jpg"):
            small.apply_chat_template(messages, tokenize=True)

    def test_a_mask_of_the_assistants_tokens_is_refused(self, small: Step3Processor) -> None:
        with pytest.raises(PromptError, match="return_assistant_tokens_mask"):
            small.apply_chat_template([{"role": "user", "content": "Hi"}], return_assistant_tokens_mask=True)

    def test_other_arguments_are_variables_of_the_template(self, small: Step3Processor) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        assert small.apply_chat_template(messages, chat_template="{{ mood }}", mood="calm") == "calm"


class TestTemplates:
    def test_the_checkpoints_template_wins(self, tmp_path: Path) -> None:
        folder = copy_of_golden(tmp_path)
        messages = [{"role": "user", "content": "Hi"}]
        fields = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**fields, "chat_template": "of the tokenizer"})
        )
        assert Step3Processor.from_pretrained(folder).apply_chat_template(messages) == "of the tokenizer"
        (folder / "chat_template.jinja").write_text("of its own")
        assert Step3Processor.from_pretrained(folder).apply_chat_template(messages) == "of its own"

    def test_templates_by_name(self, small: Step3Processor) -> None:
        several = Step3Processor(
            small.image_processor, small.tokenizer, chat_template={"a": "A", "default": "B"}
        )
        messages = [{"role": "user", "content": "Hi"}]
        assert several.apply_chat_template(messages) == "B"
        assert several.apply_chat_template(messages, chat_template="a") == "A"
        assert several.apply_chat_template(messages, chat_template="{{ 1 + 1 }}") == "2"
        unnamed = Step3Processor(small.image_processor, small.tokenizer, chat_template={"a": "A", "b": "B"})
        with pytest.raises(PromptError, match="named a, b"):
            unnamed.apply_chat_template(messages)


class TestFiles:
    def test_save_and_load(self, small: Step3Processor, tmp_path: Path) -> None:
        small.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(str(tmp_path))
        assert isinstance(loaded, Step3Processor)
        assert loaded.chat_template == small.chat_template
        assert loaded.image_processor.picture_side == 28
        before, after = (p(text="a<im_patch>", images=LARGE, return_tensors="pt") for p in (small, loaded))
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_the_models_config_has_the_last_word_on_lengths(
        self, small: Step3Processor, tmp_path: Path
    ) -> None:
        small.save_pretrained(tmp_path)
        loaded = Step3Processor.from_pretrained(tmp_path)
        assert (loaded.image_token_len, loaded.patch_token_len) == (3, 2)
        (tmp_path / "config.json").write_text(json.dumps({"image_token_len": 16, "patch_token_len": 4}))
        loaded = Step3Processor.from_pretrained(tmp_path)
        assert (loaded.image_token_len, loaded.patch_token_len) == (16, 4)

    @pytest.mark.parametrize("nested", [True, False])
    def test_folders_that_another_transformers_wrote(self, tmp_path: Path, nested: bool) -> None:
        folder = copy_of_golden(tmp_path)
        processor = {"processor_class": "Step3Processor", "image_token_len": 169, "patch_token_len": 81}
        image_processor = {"picture_side": 56, "image_processor_type": "Step3ImageProcessor"}
        if nested:
            processor["image_processor"] = image_processor
            tokenizer = {
                "tokenizer_class": "TokenizersBackend",
                "backend": "tokenizers",
                "pad_token": "<｜▁pad▁｜>",
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        else:
            image_processor["processor_class"] = "Step3Processor"
            (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
        (folder / "processor_config.json").write_text(json.dumps(processor))
        loaded = AutoProcessor.from_pretrained(str(folder))
        assert loaded.image_processor.picture_side == 56
        assert loaded.tokenizer.pad_token == "<｜▁pad▁｜>"

    def test_fields_of_the_image_processor_can_be_given(self) -> None:
        loaded = Step3Processor.from_pretrained(GOLDEN, do_crop=False)
        assert loaded(text="<im_patch>", images=LARGE)["num_patches"].tolist() == [0]

    @pytest.mark.parametrize("length", [0, 10**9, "169", None])
    def test_impossible_lengths_are_named(self, tmp_path: Path, length: object) -> None:
        folder = copy_of_golden(tmp_path)
        (folder / "config.json").write_text(
            json.dumps({**json.loads((folder / "config.json").read_text()), "image_token_len": length})
        )
        with pytest.raises(Step3Error, match="image_token_len"):
            Step3Processor.from_pretrained(folder)

    def test_a_tokenizer_without_the_tokens_is_refused(self, tmp_path: Path) -> None:
        folder = copy_of_golden(tmp_path)
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace("<patch_newline>", "<patch_oldline>"))
        with pytest.raises(Step3Error, match="no token <patch_newline>"):
            Step3Processor.from_pretrained(folder)
