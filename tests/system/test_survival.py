"""Under running streams instances are killed and frozen; no request fails, and no text changes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from deployments import PATIENCE, Stream, is_gone, is_whole, kill, params, pid_of, prompts, start, until

from step3 import LLM

STREAMS, TOKENS = 8, 200


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    one = start("2A2F:ep1xr2")
    yield one
    one.shutdown()


@pytest.fixture(scope="module")
def undisturbed(llm: LLM) -> list[tuple[str, list[int]]]:
    streams = [Stream(llm, prompt, params(i, TOKENS)) for i, prompt in enumerate(prompts(STREAMS))]
    for one in streams:
        assert one.ended.wait(PATIENCE)
        assert one.error is None
    return [(one.text, one.tokens) for one in streams]


@pytest.mark.parametrize(
    ("role", "how"),
    [
        ("ffn", signal.SIGKILL),
        ("attention", signal.SIGKILL),
        ("ffn", signal.SIGSTOP),
        ("attention", signal.SIGSTOP),
    ],
)
def test_streams_go_on_as_if_nothing_had_happened(
    llm: LLM, undisturbed: list[tuple[str, list[int]]], role: str, how: signal.Signals
) -> None:
    until(lambda: is_whole(llm, 2, 2), "the deployment's start")
    streams = [Stream(llm, prompt, params(i, TOKENS)) for i, prompt in enumerate(prompts(STREAMS))]
    until(lambda: all(len(one.tokens) > 5 for one in streams), "the first tokens")
    victim = pid_of(llm, role, 0)
    assert not any(one.ended.is_set() for one in streams)
    kill(victim, how)
    for one in streams:
        assert one.ended.wait(PATIENCE)
        assert one.error is None
    assert [(one.text, one.tokens) for one in streams] == undisturbed
    until(lambda: is_gone(victim), "the end of the victim")
    until(lambda: is_whole(llm, 2, 2), "the replacement")
    found = llm.cluster.describe()
    assert found["restarts"][role] >= 1
    if role == "attention":
        assert found["moved_requests"] > 0


def test_instances_end_with_the_one_that_started_them() -> None:
    code = (
        "import sys; sys.path[:0] = ['tests/system', 'tests/engine']\n"
        "from deployments import start\n"
        "llm = start('1A1F')\n"
        "found = llm.cluster.describe()\n"
        "print(*(one['pid'] for role in ('attention', 'ffn') for one in found[role]), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGSTOP)
    before = set(os.listdir("/dev/shm"))
    parent.kill()
    parent.wait()
    until(lambda: all(is_gone(pid) for pid in pids), "the end of the orphans")
    assert set(os.listdir("/dev/shm")) <= before
