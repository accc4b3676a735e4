"""Sampling parameters: vLLM's defaults, one form for what is stored, errors that name field and mend."""

import math
import re

import numpy as np
import pytest

from step3.engine.sampling.errors import ParamsError
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.sampling.structured_params import StructuredOutputsParams


def test_defaults_are_those_of_vllm():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1)
    assert (params.max_tokens, params.min_tokens, params.seed) == (16, 0, None)
    assert params.logprobs is None
    assert params.prompt_logprobs is None
    assert params.skip_special_tokens
    assert params.detokenize
    assert not params.ignore_eos
    assert params.output_kind is RequestOutputKind.CUMULATIVE


def test_lists_are_kept_as_tuples_without_doubles():
    params = SamplingParams(stop="END", stop_token_ids=[3, 1, 3], bad_words=["a", "b", "a"])
    assert params.stop == ("END",)
    assert params.stop_token_ids == (3, 1)
    assert params.bad_words == ("a", "b")
    assert SamplingParams().stop == ()


def test_values_that_mean_nothing_special_become_one():
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(logprobs=True).logprobs == 1
    assert SamplingParams(logprobs=False).logprobs is None


def test_numbers_of_numpy_and_token_ids_written_as_strings_are_understood():
    params = SamplingParams(
        top_k=np.int64(5), temperature=np.float32(0.5), logit_bias={"7": 2, 8: np.float32(-1)}
    )
    assert type(params.top_k) is int
    assert type(params.temperature) is float
    assert params.logit_bias == {7: 2.0, 8: -1.0}


def test_temperature_near_zero_is_greedy():
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-6).greedy
    assert not SamplingParams(temperature=0.001).greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.nan}, "temperature must be from 0 to 2, found nan"),
        ({"temperature": -1}, "temperature must be from 0 to 2, found -1"),
        ({"temperature": math.inf}, "temperature must be from 0 to 2, found inf"),
        ({"temperature": "hot"}, "temperature must be a number, found 'hot'"),
        ({"temperature": 10**400}, "temperature must be from 0 to 2, found a number of over 20 digits"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, found 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, found 1.5"),
        ({"top_k": -2}, "top_k must be from -1"),
        ({"top_k": 2.0}, "top_k must be a whole number, found 2.0"),
        ({"top_k": True}, "top_k must be a whole number, found True"),
        ({"min_p": math.nan}, "min_p must be from 0 to 1, found nan"),
        ({"presence_penalty": 2.5}, "presence_penalty must be from -2 to 2, found 2.5"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be from -2 to 2, found nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"n": 10**9}, "n must be from 1 to 16384, found 1000000000"),
        ({"n": 0}, "n must be from 1 to 16384, found 0"),
        ({"n": 10**30}, "found a number of over 20 digits"),
        ({"n": 2, "temperature": 0}, "set n to 1, or the temperature above 0"),
        ({"seed": 2**64}, "seed must be from"),
        ({"max_tokens": 0}, "max_tokens must be from 1"),
        ({"min_tokens": -1}, "min_tokens must be from 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens must be at most max_tokens, found 5 over 4"),
        ({"stop": ""}, "stop holds an empty string"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop": [1]}, "stop must hold strings, found 1"),
        ({"stop": ["a"] * 300}, "stop holds 300 strings, at most 256"),
        ({"stop": "a" * 2000}, "stop holds a string of 2000 characters, at most 1024"),
        ({"stop": "a", "detokenize": False}, "set detokenize=True, or use stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0] must be from 0"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, found 5"),
        ({"bad_words": [""]}, "bad_words holds an empty string"),
        ({"logprobs": -2}, "logprobs must be from -1"),
        ({"logprobs": 1.5}, "logprobs must be a whole number, found 1.5"),
        ({"prompt_logprobs": "all"}, "prompt_logprobs must be a whole number, found 'all'"),
        ({"logit_bias": {"x": 1}}, "a key of logit_bias must be a whole number, found 'x'"),
        ({"logit_bias": {1: math.nan}}, "logit_bias[1] must be from"),
        ({"logit_bias": {-1: 1}}, "a key of logit_bias must be from 0"),
        ({"logit_bias": [1]}, "logit_bias must map token ids to numbers"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"skip_special_tokens": 1}, "skip_special_tokens must be True or False, found 1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be at least 1"),
        ({"output_kind": "delta"}, "output_kind must be a RequestOutputKind, found 'delta'"),
        ({"structured_outputs": "json"}, "structured_outputs must be StructuredOutputsParams"),
        ({"extra_args": [1]}, "extra_args must be a mapping"),
    ],
)
def test_bad_values_are_named_with_the_mend(options, message):
    with pytest.raises(ParamsError, match=re.escape(message)):
        SamplingParams(**options)


def test_an_error_message_stays_short_whatever_the_value():
    with pytest.raises(ParamsError) as caught:
        SamplingParams(temperature="x" * 10**6)
    assert len(str(caught.value)) < 200


def test_an_unknown_option_names_the_one_meant():
    with pytest.raises(ParamsError, match="did you mean temperature"):
        SamplingParams.from_options({"temprature": 1.0})
    with pytest.raises(ParamsError, match="known are n, "):
        SamplingParams.from_options({"zzz": 1.0})
    assert SamplingParams.from_options({"top_k": 3}).top_k == 3


def test_the_model_bounds_ids_and_logprobs():
    SamplingParams(stop_token_ids=[9], logprobs=10, logit_bias={9: 1}).check_model(10, 20)
    with pytest.raises(ParamsError, match="stop_token_ids holds 10, but the vocabulary ends at 9"):
        SamplingParams(stop_token_ids=[10]).check_model(10, 20)
    with pytest.raises(ParamsError, match="allowed_token_ids holds 12"):
        SamplingParams(allowed_token_ids=[1, 12]).check_model(10, 20)
    with pytest.raises(ParamsError, match="logit_bias holds 11"):
        SamplingParams(logit_bias={11: 1.0}).check_model(10, 20)
    with pytest.raises(
        ParamsError, match="logprobs asks for 21 at each position, this engine gives at most 20"
    ):
        SamplingParams(logprobs=21).check_model(100, 20)
    with pytest.raises(ParamsError, match="prompt_logprobs asks for 100"):
        SamplingParams(prompt_logprobs=-1).check_model(100, 20)


def test_parameters_can_be_keys():
    one = SamplingParams(logit_bias={3: 1.0}, stop=["a"], extra_args={"x": [1]})
    assert {one: 1}[SamplingParams(logit_bias={3: 1.0}, stop=["a"], extra_args={"x": [1]})] == 1


def test_parameters_cannot_be_changed():
    with pytest.raises(AttributeError):
        SamplingParams().n = 2


def test_a_form_given_as_a_mapping_is_read():
    params = SamplingParams(structured_outputs={"choice": ["a", "b"]})
    assert params.structured_outputs == StructuredOutputsParams(choice=["a", "b"])
