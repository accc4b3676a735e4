"""What `import step3` gives, and what it costs."""

import subprocess
import sys

import pytest

import step3


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("collecting", ["enable", "disable"])
def test_collecting_garbage_is_after_an_import_as_it_was_before(collecting: str) -> None:
    script = f"import gc; gc.{collecting}(); from step3 import SamplingParams; print(gc.isenabled())"
    assert run(script) == str(collecting == "enable")


def test_nothing_is_collected_while_the_engine_is_imported() -> None:
    script = (
        "import gc; gc.collect(); before = gc.get_stats()[2]['collections']\n"
        "from step3 import LLM; print(gc.get_stats()[2]['collections'] - before)"
    )
    assert run(script) == "0"


def test_an_llm_of_one_process_needs_no_wire() -> None:
    script = (
        "import sys; from step3 import LLM\n"
        "print({'step3.wire', 'step3.cluster.coordinator'} & set(sys.modules))"
    )
    assert run(script) == "set()"


def test_unknown_names_are_named() -> None:
    with pytest.raises(AttributeError, match="'step3' has no attribute 'LMM'"):
        step3.LMM  # noqa: B018
