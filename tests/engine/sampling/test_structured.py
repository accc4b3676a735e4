"""Forms compiled with the bundled tokenizer: what they admit, what they may cost, and what is refused."""

import json
import re
import threading
from concurrent.futures import Future

import pytest
from sampling_forms import EOS, VOCAB, admits, allowed, compiled, written

from step3.engine.sampling import structured
from step3.engine.sampling.errors import ConstraintError
from step3.engine.sampling.structured import GrammarCompiler, GrammarLimits
from step3.engine.sampling.structured_params import StructuredOutputsParams

pytest.importorskip("xgrammar")

THINK_END = 12


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["a", "größer", 'q"']},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age"],
}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_written_fits_a_json_schema(compiler, tokenizer, seed):
    value = json.loads(written(compiled(compiler, json=SCHEMA).start(), tokenizer, seed))
    assert value["name"] in ("a", "größer", 'q"')
    assert 0 <= value["age"] <= 120
    assert all(type(tag) is bool for tag in value.get("tags", []))
    assert set(value) <= {"name", "age", "tags"}


def test_json_without_white_space_is_written_in_one_way(compiler, tokenizer):
    form = {"json": SCHEMA, "disable_any_whitespace": True}
    assert admits(compiled(compiler, **form).start(), tokenizer, '{"name":"a","age":7}')
    assert not admits(compiled(compiler, **form).start(), tokenizer, '{"name": "a", "age": 7}')
    assert admits(compiled(compiler, json=SCHEMA).start(), tokenizer, '{"name": "a", "age": 7}')


def test_white_space_does_not_go_on_for_ever(compiler, tokenizer):
    assert admits(compiled(compiler, json_object=True).start(), tokenizer, '{"a":' + " " * 64 + "1}")
    assert not admits(compiled(compiler, json_object=True).start(), tokenizer, '{"a":' + " " * 65 + "1}")


def test_any_json_object(compiler, tokenizer):
    assert admits(compiled(compiler, json_object=True).start(), tokenizer, '{"a": [1, {"b": null}]}')
    assert not admits(compiled(compiler, json_object=True).start(), tokenizer, "[1]")


def test_a_regex_is_matched_by_the_whole_output(compiler, tokenizer):
    for seed in range(5):
        assert re.fullmatch(
            r"\d{3}-[a-f]+", written(compiled(compiler, regex=r"\d{3}-[a-f]+").start(), tokenizer, seed)
        )


@pytest.mark.parametrize(
    "text", ["yes", "no", 'may"be', "back\\slash", "größer 😀", "two\nlines", "yes, and more"]
)
def test_a_choice_is_written_as_it_stands(compiler, tokenizer, text):
    choice = ["yes", "no", 'may"be', "back\\slash", "größer 😀", "two\nlines", "yes, and more"]
    assert admits(compiled(compiler, choice=choice).start(), tokenizer, text)
    assert not admits(compiled(compiler, choice=choice).start(), tokenizer, text + "!")


def test_a_grammar_begins_at_root(compiler, tokenizer):
    grammar = 'root ::= "(" root ")" | "x"'
    assert admits(compiled(compiler, grammar=grammar).start(), tokenizer, "((x))")
    assert not admits(compiled(compiler, grammar=grammar).start(), tokenizer, "((x)")


def test_special_tokens_are_no_text(compiler, tokenizer):
    constraint = compiled(compiler, regex="[^a]*").start()
    special = set(tokenizer.added_tokens_decoder)
    assert special & set(allowed(constraint)) == {EOS}
    constraint = compiled(compiler, json={"type": "string"}).start()
    assert constraint.advance(tokenizer.encode('"', add_special_tokens=False)[0])
    assert not special & set(allowed(constraint))


def test_a_structural_tag_names_special_tokens(compiler, tokenizer):
    parts = [{"type": "token", "token": "<think>"}, {"type": "const_string", "value": "ok"}]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": parts}}
    constraint = compiled(compiler, structural_tag=tag).start()
    assert allowed(constraint) == tokenizer.encode("<think>", add_special_tokens=False)
    assert admits(constraint, tokenizer, "<think>ok")


def test_a_structural_tag_with_a_token_that_there_is_not_is_refused(compiler):
    tag = {"type": "structural_tag", "format": {"type": "token", "token": "<nothing>"}}
    with pytest.raises(ConstraintError, match="names the token '<nothing>', which the model does not have"):
        compiled(compiler, structural_tag=tag)


def test_only_the_end_follows_a_complete_form_and_it_may_be_repeated(compiler, tokenizer):
    constraint = compiled(compiler, choice=["yes"]).start()
    assert admits(constraint, tokenizer, "yes")
    for _ in range(3):
        assert allowed(constraint) == [EOS]
        assert constraint.advance(EOS)
    constraint.rollback(2)
    assert allowed(constraint) == [EOS]


def test_a_token_that_is_not_allowed_changes_nothing(compiler, tokenizer):
    constraint = compiled(compiler, choice=["yes"]).start()
    before = allowed(constraint)
    assert not constraint.advance(tokenizer.encode("z", add_special_tokens=False)[0])
    assert allowed(constraint) == before


def test_rolling_back_restores_every_earlier_point(compiler, tokenizer):
    constraint = compiled(compiler, json=SCHEMA).start(after_token=THINK_END)
    text = [*tokenizer.encode('well</think>{"name": "a", "age": 7}', add_special_tokens=False), EOS, EOS]
    seen = []
    for token in text:
        seen.append((constraint.active, allowed(constraint) if constraint.active else None))
        assert constraint.advance(token)
    for back in range(1, len(text) + 1):
        constraint.rollback(back)
        assert (constraint.active, allowed(constraint) if constraint.active else None) == seen[
            len(text) - back
        ]
        for token in text[len(text) - back :]:
            assert constraint.advance(token)


def test_an_output_is_free_until_the_token_that_ends_its_reasoning(compiler, tokenizer):
    constraint = compiled(compiler, choice=["yes"]).start(after_token=THINK_END)
    for token in tokenizer.encode("Hello, any text", add_special_tokens=False):
        assert not constraint.active
        assert constraint.advance(token)
    assert constraint.advance(THINK_END)
    assert constraint.active
    assert admits(constraint, tokenizer, "yes")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "wurst"}}, "json cannot be compiled: Unsupported type"),
        ({"json": {"$ref": "#/$defs/missing"}}, "json cannot be compiled: Cannot find field"),
        ({"json": {"$ref": "#"}}, "the form allows no output at all|Circular"),
        (
            {"json": {"type": "array", "uniqueItems": True}},
            "json: the schema uses uniqueItems, which a grammar",
        ),
        ({"regex": "(a"}, "regex cannot be compiled"),
        ({"regex": "(" * 3000 + ")" * 3000}, "regex cannot be compiled"),
        ({"grammar": "root ::= missing"}, "grammar cannot be compiled: .*missing"),
        ({"grammar": "root ::= root"}, "the form allows no output at all"),
        ({"grammar": 'start ::= "a"'}, "grammar cannot be compiled"),
        ({"structural_tag": {"type": "structural_tag"}}, "structural_tag cannot be compiled"),
    ],
)
def test_a_bad_form_fails_with_its_reason_and_the_next_one_is_compiled(compiler, tokenizer, form, message):
    with pytest.raises(ConstraintError, match=message) as caught:
        compiled(compiler, **form)
    assert ".cc:" not in str(caught.value)
    assert admits(compiled(compiler, choice=["yes"]).start(), tokenizer, "yes")


def test_equal_forms_are_compiled_once_and_failures_are_tried_again(compiler, monkeypatch):
    assert compiled(compiler, regex="once[0-9]") is compiled(compiler, regex="once[0-9]")
    forms = []
    monkeypatch.setattr(compiler, "_compile", lambda form: forms.append(form) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ConstraintError, match="division by zero"):
            compiled(compiler, regex="twice")
    assert len(forms) == 2


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tokenizer):
    free = GrammarCompiler(tokenizer, VOCAB, [EOS])
    size = compiled(free, regex="a[0-9]{3}").num_bytes
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS], GrammarLimits(cache_bytes=int(size * 2.5)))
    first, second = (compiled(compiler, regex=f"{name}[0-9]{{3}}") for name in "ab")
    assert compiled(compiler, regex="a[0-9]{3}") is first
    compiled(compiler, regex="c[0-9]{3}")
    assert compiled(compiler, regex="a[0-9]{3}") is first
    assert compiled(compiler, regex="b[0-9]{3}") is not second


def test_a_form_that_takes_too_long_to_compile_fails_while_others_go_on(tokenizer, monkeypatch):
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS], GrammarLimits(compile_seconds=0.05))
    real, release = compiler._compile, threading.Event()

    def slow(form):
        if form.regex == "slow":
            release.wait(10)
        return real(form)

    monkeypatch.setattr(compiler, "_compile", slow)
    with pytest.raises(ConstraintError, match=r"not compiled within 0\.05 s: make it smaller"):
        compiled(compiler, regex="slow")
    monkeypatch.setattr(compiler, "_limits", GrammarLimits())
    assert compiled(compiler, regex="fast")
    release.set()


def test_too_many_waiting_forms_are_refused(tokenizer, monkeypatch):
    compiler = GrammarCompiler(tokenizer, VOCAB, [EOS], GrammarLimits(waiting=2))
    release = threading.Event()
    monkeypatch.setattr(compiler, "_compile", lambda form: release.wait(10) and 1 / 0)
    for name in "ab":
        compiler.compile(StructuredOutputsParams(regex=name))
    with pytest.raises(ConstraintError, match="too many grammars"):
        compiled(compiler, regex="c")
    release.set()


def test_cancelling_one_order_leaves_the_same_form_to_others(compiler, monkeypatch):
    real, release = compiler._compile, threading.Event()
    monkeypatch.setattr(compiler, "_compile", lambda one: release.wait(10) and real(one))
    form = StructuredOutputsParams(regex="shared[0-9]")
    mine, other = compiler.compile(form), compiler.compile(form)
    assert mine.cancel()
    release.set()
    assert isinstance(other, Future)
    assert other.result(timeout=60).start()


def test_an_ambiguous_pattern_is_refused_before_it_can_stall_a_step(compiler):
    with pytest.raises(ConstraintError, match="processor time for a token"):
        compiled(compiler, regex="(a*)*" * 300)


def test_a_form_that_becomes_slow_is_given_up_and_allows_nothing(compiler):
    constraint = compiled(compiler, regex="[ab]*").start()
    ticks = iter([0.0, 0.01, 1.0, 1.5])
    constraint._clock = lambda: next(ticks)
    assert allowed(constraint)
    assert constraint.advance(allowed_letter(constraint))
    assert "takes 0.5 s of processor time" in constraint.failure
    assert allowed(constraint) == []


def allowed_letter(constraint):
    tokens = constraint._compiled.grammar.tokenizer_info.decoded_vocab
    return tokens.index(b"a")


def test_without_xgrammar_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setattr(structured.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConstraintError, match=re.escape("pip install 'step3[structured]'")):
        compiled(GrammarCompiler(tokenizer, VOCAB, [EOS]), regex="a")
