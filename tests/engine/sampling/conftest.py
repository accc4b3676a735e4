"""The bundled tokenizer and a compiler of forms for it."""

from pathlib import Path

import pytest
from sampling_forms import EOS, VOCAB
from transformers import PreTrainedTokenizerFast

import step3.nano
from step3.engine.sampling.structured import GrammarCompiler


@pytest.fixture(scope="session")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(Path(step3.nano.__file__).parent / "weights")


@pytest.fixture(scope="session")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, VOCAB, [EOS])
