"""`step3 attention` and `step3 ffn`: what they ask for, and what the instance gets."""

import os

import pytest
from typer.testing import CliRunner

import step3.cluster.instance
from step3.cli.join import read_cores
from step3.cli.main import app
from step3.cluster.instance import InstanceSettings, RefusedError
from step3.errors import Step3Error

SECRET = "a secret of more than sixteen bytes"
USABLE = sorted(os.sched_getaffinity(0))


class Exited(Exception):
    """What stands for the end of the process."""


def joined(
    monkeypatch: pytest.MonkeyPatch, *flags: str, secret: str | None = SECRET, error: Exception | None = None
) -> tuple[InstanceSettings | None, int, str]:
    """The settings that a command line gives an instance, the exit status, and what was printed."""
    found: list[InstanceSettings] = []
    statuses: list[int] = []

    def run(settings: InstanceSettings) -> None:
        found.append(settings)
        if error is not None:
            raise error

    def leave(status: int) -> None:
        statuses.append(status)
        raise Exited

    monkeypatch.setattr(step3.cluster.instance, "run_instance", run)
    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    environment = {} if secret is None else {"STEP3_CLUSTER_SECRET": secret}
    result = CliRunner().invoke(app, flags, env=environment)
    if isinstance(result.exception, Step3Error):
        raise result.exception
    assert isinstance(result.exception, Exited), result.output
    return (found[0] if found else None), statuses[0], result.stderr


def test_an_attention_instance_gets_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("attention", "/models/step3", "--join", "10.0.0.1:7000", "--threads", "3", "--device", "cpu")
    settings, status, _ = joined(monkeypatch, *flags)
    assert settings == InstanceSettings(
        "attention", "10.0.0.1:7000", SECRET.encode(), "/models/step3", "cpu", threads=3
    )
    assert status == 0


def test_an_ffn_instance_may_be_bound_and_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("ffn", "--join", "host:7000", "--cores", str(USABLE[0]), "--advertise", "10.0.0.2")
    settings, _, _ = joined(monkeypatch, *flags)
    assert settings is not None
    assert (settings.role, settings.cores, settings.advertise) == ("ffn", (USABLE[0],), "10.0.0.2")
    assert settings.model is None


def test_a_refusal_is_an_exit_status_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RefusedError("the coordinator refuses: it has another checkpoint")
    _, status, printed = joined(monkeypatch, "ffn", "--join", "host:7000", error=error)
    assert status == 1
    assert "another checkpoint" in printed


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, status, _ = joined(monkeypatch, "ffn", "--join", "host:7000", error=KeyboardInterrupt())  # type: ignore[arg-type]
    assert status == 0


@pytest.mark.parametrize(
    ("secret", "address", "said"),
    [
        (None, "host:7000", "Set STEP3_CLUSTER_SECRET"),
        ("short", "host:7000", "has 5 bytes, at least 16"),
        (SECRET, "host", "is no address: write HOST:PORT"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, secret: str | None, address: str, said: str
) -> None:
    with pytest.raises(Step3Error, match=said):
        joined(monkeypatch, "attention", "--join", address, secret=secret)


def test_cores_are_read_as_ranges_and_numbers() -> None:
    first, last = USABLE[0], USABLE[-1]
    assert read_cores(f"{first}") == (first,)
    if list(range(first, last + 1)) == USABLE:
        assert read_cores(f"{first}-{last},{first}") == tuple(USABLE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must look like 0-3,8"),
        ("a-b", "must look like"),
        ("1,,2", "must look like"),
        ("0-99999", "more cores than any host"),
        ("4095", "core 4095, which cannot be used here"),
    ],
)
def test_cores_that_cannot_be_are_errors(text: str, said: str) -> None:
    with pytest.raises(Step3Error, match=said):
        read_cores(text)
