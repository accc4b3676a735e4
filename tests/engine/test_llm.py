"""The offline API: vLLM's names and shapes, and an engine that goes on whatever it is asked."""

import subprocess
import sys
from typing import Any

import pytest
from engine_requests import GOLDEN, make_llm, shared_llm

from step3 import LLM, SamplingParams
from step3.engine.config import EngineError
from step3.engine.engine import Engine
from step3.engine.outputs import RequestOutput
from step3.errors import Step3Error

SHORT = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS: list[Any] = [[5, 6, 8], "import os", {"prompt_token_ids": [20, 21]}, {"prompt": "def"}]


@pytest.fixture
def llm() -> LLM:
    return shared_llm("text")


def generate(llm: LLM, prompt: Any, **options: Any) -> RequestOutput:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, **options})
    return llm.generate(prompt, params, use_tqdm=False)[0]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_step3_loads_no_torch() -> None:
    assert run("import sys, step3; assert 'torch' not in sys.modules; step3.LLM").returncode == 0


def test_step3_has_no_other_names() -> None:
    assert "no attribute 'LLMs'" in run("import step3; step3.LLMs").stderr


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, SHORT, use_tqdm=False)
    assert [output.prompt for output in outputs] == [None, "import os", None, "def"]
    alone = [llm.generate(prompt, SHORT, use_tqdm=False)[0] for prompt in PROMPTS]
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in alone]
    assert [o.prompt_token_ids for o in outputs] == [o.prompt_token_ids for o in alone]


def test_an_output_has_vllms_fields(llm: LLM) -> None:
    output = generate(llm, "import os", logprobs=3, prompt_logprobs=2)
    answer = output.outputs[0]
    assert output.finished
    assert answer.finished()
    assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
    tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(answer.token_ids, skip_special_tokens=True).startswith(answer.text)
    assert answer.logprobs is not None
    assert output.prompt_logprobs is not None
    for token, place in zip(answer.token_ids, answer.logprobs, strict=True):
        assert 3 <= len(place) <= 4
        assert place[token].rank == 1
        assert [entry.rank for entry in place.values()][:3] == [1, 2, 3]
        assert place[token].decoded_token == tokenizer.decode([token])
    assert answer.cumulative_logprob == pytest.approx(
        sum(place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True))
    )
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.metrics is not None
    assert output.metrics.num_generation_tokens == 6


def test_without_logprobs_there_are_none(llm: LLM) -> None:
    output = generate(llm, "import os")
    assert output.prompt_logprobs is None
    assert (output.outputs[0].logprobs, output.outputs[0].cumulative_logprob) == (None, None)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False, priority=[3, 2, 1])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampling_params": [SHORT]}, "there are 2 prompts, but 1 sampling_params"),
        ({"sampling_params": "greedy"}, "sampling_params must be SamplingParams"),
        ({"sampling_params": SHORT, "priority": [1]}, "there are 2 prompts, but 1 priority"),
    ],
)
def test_refuses_lists_that_do_not_fit(llm: LLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        llm.generate(["a", "b"], **arguments, use_tqdm=False)


def test_one_bad_prompt_is_named_and_nothing_is_computed(llm: LLM) -> None:
    before = llm.get_statistics().computed_tokens
    with pytest.raises(Step3Error, match="prompt 1: the prompt holds token 5000"):
        llm.generate([[5], [5000]], SHORT, use_tqdm=False)
    assert llm.get_statistics().computed_tokens == before
    assert not llm.engine.has_requests
    assert len(generate(llm, "and it goes on").outputs[0].token_ids) == 6


def test_whatever_interrupts_it_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = Engine.step

    def interrupted(self: Engine) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, SHORT, use_tqdm=False)
    assert not llm.engine.has_requests
    llm.engine.assert_consistent()
    assert llm.get_statistics().kv_cache_usage == 0


def test_stops_at_the_end_of_sequence(llm: LLM) -> None:
    tokens = generate(llm, [5, 6, 8], max_tokens=20).outputs[0].token_ids
    stopping = make_llm("text")
    stopping._model.intake._stop_token_ids = frozenset({tokens[4]})
    answer = generate(stopping, [5, 6, 8], max_tokens=20, ignore_eos=False).outputs[0]
    assert answer.token_ids == tokens[: tokens.index(tokens[4]) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)


def test_stops_at_a_token_and_does_not_show_it(llm: LLM) -> None:
    whole = generate(llm, [5, 6, 8], max_tokens=20).outputs[0]
    tokenizer = llm.get_tokenizer()
    stop = next(token for token in whole.token_ids[2:] if tokenizer.decode([token]).isalpha())
    answer = generate(llm, [5, 6, 8], max_tokens=20, stop_token_ids=[stop]).outputs[0]
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    kept = generate(
        llm, [5, 6, 8], max_tokens=20, stop_token_ids=[stop], include_stop_str_in_output=True
    ).outputs[0]
    assert not answer.text.endswith(tokenizer.decode([stop]))
    assert kept.text.endswith(tokenizer.decode([stop]))


def test_stops_at_a_string_and_does_not_show_it(llm: LLM) -> None:
    whole = generate(llm, [5, 6, 8], max_tokens=20).outputs[0].text
    stop = whole[4:7]
    answer = generate(llm, [5, 6, 8], max_tokens=20, stop=[stop]).outputs[0]
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_a_stop_string_that_was_only_begun_is_shown_in_the_end(llm: LLM) -> None:
    whole = generate(llm, [5, 6, 8], max_tokens=20).outputs[0].text
    answer = generate(llm, [5, 6, 8], max_tokens=20, stop=[whole[-3:] + "and on"]).outputs[0]
    assert answer.text == whole


def test_does_not_stop_before_min_tokens(llm: LLM) -> None:
    whole = generate(llm, [5, 6, 8], max_tokens=20).outputs[0]
    answer = generate(
        llm, [5, 6, 8], max_tokens=20, stop_token_ids=[whole.token_ids[2]], min_tokens=10
    ).outputs[0]
    assert len(answer.token_ids) >= 10


def test_stops_at_the_longest_length(llm: LLM) -> None:
    short = make_llm("text", max_model_len=20)
    answer = generate(short, [5] * 15, max_tokens=None).outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")


def test_without_detokenising_there_is_no_text(llm: LLM) -> None:
    answer = generate(llm, [5, 6, 8], detokenize=False).outputs[0]
    assert (answer.text, len(answer.token_ids)) == ("", 6)


SEEDED = SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True, n=3)


def drawn(output: RequestOutput) -> list[list[int]]:
    return [answer.token_ids for answer in output.outputs]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_several_answers_differ_and_share_the_prompt(prefix_caching: bool) -> None:
    llm = make_llm("text", enable_prefix_caching=prefix_caching)
    [output] = llm.generate([[*range(20, 70)]], SEEDED, use_tqdm=False)
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(tokens) for tokens in drawn(output)}) == 3
    # The prompt once, the last tokens of it for the further two, and each answer but its last token.
    assert llm.get_statistics().computed_tokens == 50 + 2 * 2 + 3 * 11


def test_a_seed_gives_the_same_tokens_whatever_runs_beside(llm: LLM) -> None:
    prompt = [*range(20, 70)]
    [alone] = llm.generate([prompt], SEEDED, use_tqdm=False)
    busy = make_llm("text", max_num_batched_tokens=32, enable_prefix_caching=False)
    others: list[Any] = [[*range(30 + i, 60 + 3 * i)] for i in range(8)]
    outputs = busy.generate([*others, prompt, *others], SEEDED, use_tqdm=False)
    assert drawn(outputs[8]) == drawn(alone)


def test_a_seed_gives_the_same_tokens_after_being_thrown_out(llm: LLM) -> None:
    prompt = [*range(20, 70)]
    [alone] = llm.generate([prompt], SEEDED, use_tqdm=False)
    one_token = llm.engine.memory.block_bytes // 16
    tight = make_llm("text", block_size=1, max_model_len=70, kv_cache_memory_bytes=70 * one_token)
    [output] = tight.generate([prompt], SEEDED, use_tqdm=False)
    assert tight.get_statistics().preemptions > 0
    assert drawn(output) == drawn(alone)


def test_chat_is_the_template_continued(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hello"}]
    [output] = llm.chat(conversation, SHORT, use_tqdm=False)
    assert output.prompt is not None
    assert output.prompt.startswith("<｜begin▁of▁sentence｜>")
    assert output.prompt.count("<｜begin▁of▁sentence｜>") == 1
    assert "<|BOT|>user\nHello<|EOT|>" in output.prompt
    assert output.prompt_token_ids[0] == 0
    assert output.prompt_token_ids[1] != 0
    several = llm.chat([conversation, conversation], SHORT, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in several] == [output.outputs[0].token_ids] * 2


def test_chat_shows_pictures_to_who_can_see() -> None:
    from PIL import Image

    content = [{"type": "text", "text": "What?"}, {"type": "image", "image": Image.new("RGB", (40, 40))}]
    conversation = [{"role": "user", "content": content}]
    [output] = shared_llm("vl").chat(conversation, SHORT, use_tqdm=False)
    assert output.prompt_token_ids.count(7) == 169
    with pytest.raises(Step3Error, match="no vision tower"):
        shared_llm("text").chat(conversation, SHORT, use_tqdm=False)


@pytest.mark.parametrize("checkpoint", ["text", "vl"])
def test_chat_refuses_a_picture_typed_as_text(checkpoint: str) -> None:
    with pytest.raises(Step3Error, match="<im_patch>"):
        shared_llm(checkpoint).chat([{"role": "user", "content": "<im_patch>"}], SHORT, use_tqdm=False)


def test_chat_knows_tools_and_other_templates(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hello"}]
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    [output] = llm.chat(conversation, SHORT, use_tqdm=False, tools=[tool])
    assert output.prompt is not None
    assert "look_up" in output.prompt
    [output] = llm.chat(
        conversation,
        SHORT,
        use_tqdm=False,
        chat_template="{{ messages[0].content }} {{ word }}",
        chat_template_kwargs={"word": "there"},
    )
    assert output.prompt == "Hello there"


def test_chat_goes_on_with_the_last_message(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    with pytest.raises(Step3Error, match="add_generation_prompt=False"):
        llm.chat(conversation, SHORT, use_tqdm=False, continue_final_message=True)
    [output] = llm.chat(
        conversation, SHORT, use_tqdm=False, continue_final_message=True, add_generation_prompt=False
    )
    assert output.prompt is not None
    assert output.prompt.endswith("The answer")


def test_shows_progress(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], SHORT)
    assert "2/2" in capsys.readouterr().err


def test_shows_progress_with_the_callers_bar(llm: LLM) -> None:
    class Bar:
        def __init__(self, total: int, **options: Any) -> None:
            self.total, self.done, self.is_closed = total, 0, False
            bars.append(self)

        def update(self, count: int) -> None:
            self.done += count

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert "tokens/s" in text

        def close(self) -> None:
            self.is_closed = True

    bars: list[Bar] = []
    llm.generate(["a", "b"], SHORT, use_tqdm=Bar)
    assert [(bar.total, bar.done, bar.is_closed) for bar in bars] == [(2, 2, True)]


def test_tells_where_the_memory_goes(capsys: pytest.CaptureFixture[str]) -> None:
    LLM(str(GOLDEN / "text"), max_model_len=64)
    assert "memory: weights 1.8 MiB, KV cache" in capsys.readouterr().err


def test_cannot_be_used_after_shutdown() -> None:
    with make_llm("text") as llm:
        generate(llm, "a")
    with pytest.raises(EngineError, match="was shut down"):
        generate(llm, "a")


def test_a_prefix_cache_can_be_emptied(llm: LLM) -> None:
    prompt = [*range(20, 70)]
    generate(llm, prompt)
    assert generate(llm, prompt).num_cached_tokens == 48
    llm.reset_prefix_cache()
    assert generate(llm, prompt).num_cached_tokens == 0
    llm.engine.assert_consistent()


def test_statistics_count_what_was_done() -> None:
    llm = make_llm("text")
    llm.generate([[5, 6, 8], [*range(20, 60)]], SHORT, use_tqdm=False)
    llm.generate([[*range(20, 60)]], SHORT, use_tqdm=False)
    got = llm.get_statistics()
    assert (got.waiting, got.running, got.kv_cache_usage) == (0, 0, 0)
    assert (got.prompt_tokens, got.generation_tokens) == (83, 18)
    assert got.computed_tokens == 83 + 3 * 5 - 32
    assert (got.prefix_cache_queries, got.prefix_cache_hits) == (2 + 39 + 39, 32)
    assert got.prefix_cache_hit_rate == 0.4
    assert got.finished == {"length": 3}
    assert got.time_to_first_token.count == got.time_per_output_token.count == 3
    assert got.time_to_first_token.mean > 0


def test_logits_that_are_no_numbers_end_the_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm("text")
    decoder = llm.engine.lanes[0]._decoder
    logits = decoder.logits

    def poisoned(hidden: Any) -> Any:
        rows = logits(hidden)
        rows[0] = float("nan")
        return rows

    monkeypatch.setattr(decoder, "logits", poisoned)
    bad, good = llm.generate([[5, 6], [8, 9]], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert bad.error is not None
    assert "NaN" in bad.error
    assert (good.outputs[0].finish_reason, good.error) == ("length", None)
    llm.engine.assert_consistent()


def test_an_error_within_a_step_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm("text")
    forward, calls = llm.engine.ffn.forward, 0  # type: ignore[union-attr]

    def broken(call: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise MemoryError("no room for activations")
        return forward(call)

    monkeypatch.setattr(llm.engine.ffn, "forward", broken)
    with pytest.raises(MemoryError):
        llm.generate([[5, 6, 8], [9, 10]], SHORT, use_tqdm=False)
    llm.engine.assert_consistent()
    assert llm.get_statistics().kv_cache_usage == 0
    expected = generate(shared_llm("text"), [5, 6, 8]).outputs[0].token_ids
    assert generate(llm, [5, 6, 8]).outputs[0].token_ids == expected


@pytest.mark.parametrize(
    ("options", "reason"), [({}, "length"), ({"stop": ["e"]}, "stop"), ({"stop_token_ids": [38]}, "stop")]
)
def test_an_answer_that_was_complete_already_ends_at_once(
    llm: LLM, options: dict[str, Any], reason: str
) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, **options)
    [token] = llm.get_tokenizer().encode("e", add_special_tokens=False)
    request = llm._model.intake.request([5, 6], params, output_token_ids=[token, token, 38, 38])
    before = llm.get_statistics().computed_tokens
    llm.engine.add(request)
    result = llm.engine.step()
    assert result.ended == request.sequences
    assert request.sequences[0].finish_reason == reason
    assert request.sequences[0].num_output_tokens == (1 if "stop" in options else 3)
    assert not llm.engine.has_requests
    assert llm.get_statistics().computed_tokens == before


def test_without_a_model_the_bundled_one_answers() -> None:
    params = SamplingParams(temperature=0, max_tokens=80)
    question = {"role": "user", "content": "What is 12 + 7?"}
    [output] = LLM(quiet=True, max_num_seqs=2).chat([question], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].text.endswith("19")
