"""Attention on one host and FFN on another, as two network namespaces, whose link or connections are cut."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from certificates import make_files
from deployments import PATIENCE
from engine_requests import GOLDEN

TESTS = Path(__file__).parents[1]
SECRET = "0123456789abcdef0123456789abcdef"
CUT_SECONDS = 2.0

FRONT = """
import sys
sys.path[:0] = [{system!r}, {engine!r}]
from deployments import PATIENCE, Stream, params, prompts, start

secret = {secret!r}.encode()
llm = start("1A1F", listen="10.77.0.1:7000", local_attention=1, secret=secret, lease=1.0, **{tls!r})

def answers(tell):
    streams = [Stream(llm, prompt, params(i, {tokens})) for i, prompt in enumerate(prompts({streams}))]
    while not all(len(one.tokens) > 5 or one.error for one in streams):
        streams[0].ended.wait(0.01)
    tell()
    assert all(one.ended.wait(PATIENCE) for one in streams)
    assert [one.error for one in streams] == [None] * {streams}
    return [(one.text, one.tokens) for one in streams]

def say(what):
    print(what, flush=True)

before = answers(lambda: None)
say("undisturbed")
after = answers(lambda: say("running"))
say("same" if after == before else "different")
lost = llm.cluster.describe()["attention"][0]["link"]["lost"]
say(f"lost {{lost}}")
llm.shutdown()
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Hosts:
    """Two hosts and the cable between them."""

    def __init__(self) -> None:
        self._names = [f"step3-{os.getpid()}-{side}" for side in "ab"]
        self._cables = [f"s3{side}{os.getpid() % 100000}" for side in "ab"]

    def make(self) -> None:
        for name in self._names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", self._cables[0], "type", "veth", "peer", "name", self._cables[1])
        for number, (name, cable) in enumerate(zip(self._names, self._cables, strict=True), 1):
            run("ip", "link", "set", cable, "netns", name)
            run("ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", cable, "up")

    def start(self, host: int, *command: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "STEP3_CLUSTER_SECRET": SECRET, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self._names[host], *command],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def set_link(self, state: str) -> None:
        run("ip", "-n", self._names[1], "link", "set", self._cables[1], state)

    def reset_connections(self) -> None:
        """Ends every TCP connection between the hosts, under both sides' feet."""
        run("ip", "netns", "exec", self._names[0], "ss", "--kill", "--tcp", "dst", "10.77.0.2")

    def remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        made.make()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield made
    made.remove()


def check_survival(
    hosts: Hosts, cut: Callable[[], None], streams: int, tokens: int, tls: Mapping[str, str]
) -> None:
    """Fails unless all texts are those of an undisturbed run though `cut` is called while they come."""
    paths = {"system": str(TESTS / "system"), "engine": str(TESTS / "engine")}
    options = {f"tls_{name}": file for name, file in tls.items()}
    program = FRONT.format(**paths, secret=SECRET, tls=options, streams=streams, tokens=tokens)
    front = hosts.start(0, sys.executable, "-c", program)
    flags = [text for name, file in tls.items() for text in (f"--cluster-tls-{name}", file)]
    step3 = "from step3.cli.main import main; main()"
    joining = ["ffn", str(GOLDEN / "text"), "--join", "10.77.0.1:7000", *flags]
    ffn = hosts.start(1, sys.executable, "-c", step3, *joining)
    try:
        assert front.stdout is not None
        assert front.stdout.readline() == "undisturbed\n"
        assert front.stdout.readline() == "running\n"
        cut()
        assert front.stdout.readline() == "same\n"
        assert int(front.stdout.readline().removeprefix("lost ")) >= 1
        assert front.wait(PATIENCE) == 0
    finally:
        for process in (front, ffn):
            process.kill()
            process.wait()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_link_that_is_cut_and_comes_back_costs_no_request(
    hosts: Hosts, tmp_path: Path, encrypted: bool
) -> None:
    def cut() -> None:
        hosts.set_link("down")
        time.sleep(CUT_SECONDS)
        hosts.set_link("up")

    check_survival(hosts, cut, 6, 300, asdict(make_files(tmp_path)) if encrypted else {})


def test_connections_that_are_cut_cost_no_request(hosts: Hosts) -> None:
    def cut() -> None:
        try:
            hosts.reset_connections()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"connections cannot be ended from outside here: {error}")

    check_survival(hosts, cut, 32, 100, {})
