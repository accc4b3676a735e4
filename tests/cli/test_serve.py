import json
from typing import Any

import pytest
from typer.testing import CliRunner

from step3.cli import serve as module
from step3.cli.main import app
from step3.errors import Step3Error

VLLM = (
    "/models/step3 --tensor-parallel-size 1 --data-parallel-size 1 --reasoning-parser step3 "
    "--enable-auto-tool-choice --tool-call-parser step3 --trust-remote-code --max-num-batched-tokens 4096 "
    '--limit-mm-per-prompt {"image":4} --gpu-memory-utilization 0.85 --port 9000 --host 0.0.0.0 '
    "--api-key secret --served-model-name step3 --max-model-len 8192"
)
SGLANG = (
    "--model-path /models/step3 --tp 1 --nnodes 1 --node-rank 0 --reasoning-parser step3 "
    "--tool-call-parser step3 --trust-remote-code --context-length 8192 --port 9000"
)


def options(monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, Any]:
    """What a command line makes of the server."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(module, "_run", lambda **given: found.update(given))
    result = CliRunner().invoke(app, ["serve", *flags])
    if isinstance(result.exception, Step3Error):
        raise result.exception
    assert result.exit_code == 0, result.output
    return found


def test_vllms_command_works_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(monkeypatch, *VLLM.split())
    assert (found["host"], found["port"], found["api_keys"]) == ("0.0.0.0", 9000, ("secret",))
    assert found["served_model_names"] == ("step3",)
    expected = {"model": "/models/step3", "max_num_batched_tokens": 4096, "max_model_len": 8192}
    expected.update(gpu_memory_utilization=0.85, limit_mm_per_prompt={"image": 4})
    assert {name: found["engine"][name] for name in expected} == expected


def test_sglangs_command_works_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options(monkeypatch, *SGLANG.split())
    assert (found["engine"]["model"], found["engine"]["max_model_len"]) == ("/models/step3", 8192)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--tensor-parallel-size 8", "--tensor-parallel-size 8 cannot be honoured"),
        ("--tp 4", "--tensor-parallel-size 4 cannot be honoured"),
        ("--data-parallel-size 2", "--data-parallel-size 2 cannot be honoured"),
        ("--nnodes 2 --node-rank 1", "--nnodes 2 cannot be honoured"),
        ("--node-rank 1", "--node-rank"),
        ("--dist-init-addr 10.0.0.1:5000", "--dist-init-addr"),
        ("--reasoning-parser deepseek_r1", "--reasoning-parser can only be step3"),
        ("--tool-call-parser hermes", "--tool-call-parser can only be step3"),
        ("--no-enable-auto-tool-choice", "leave the tools out"),
        ("--limit-mm-per-prompt four", "--limit-mm-per-prompt must look like"),
        ("--speculative-config [1]", "--speculative-config must be a JSON object"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, flags: str, said: str
) -> None:
    with pytest.raises(Step3Error, match=said):
        options(monkeypatch, *flags.split())


def test_limits_and_hosts_of_pictures_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"max-waiting": 3, "max-n": 4, "max-output-tokens": 5, "max-pixels": 6, "request-seconds": 7.0}
    limits.update({"body-seconds": 8.0, "idle-seconds": 9.0, "write-seconds": 10.0})
    flags = [part for name, value in limits.items() for part in (f"--{name}", str(value))]
    found = options(
        monkeypatch,
        *flags,
        *("--max-body-mib", "2", "--allowed-origins", "https://a.org", "--media-seconds", "3"),
        *("--allowed-media-domains", "a.org, b.org", "--allowed-media-domains", "*.c.org"),
    )
    assert {name: found[name.replace("-", "_")] for name in limits} == limits
    assert (found["max_body_bytes"], found["allowed_origins"]) == (2 << 20, ("https://a.org",))
    fetch = found["fetch_options"]
    assert (fetch["hosts"], fetch["seconds"]) == (("a.org", "b.org", "*.c.org"), 3)


def test_drafts_are_asked_for_in_vllms_words(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"method": "ngram", "num_speculative_tokens": 4}
    found = options(monkeypatch, "--speculative-config", json.dumps(asked))
    assert found["engine"]["speculative_config"] == asked


def test_weights_may_stay_in_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch)["engine"]["load"] == "packed"
    assert options(monkeypatch, "--load", "mmap")["engine"]["load"] == "mmap"


def test_activations_may_be_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not options(monkeypatch)["engine"]["int8_activations"]
    assert options(monkeypatch, "--int8-activations")["engine"]["int8_activations"]


def test_batch_invariance_may_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options(monkeypatch)["engine"]["batch_invariant"]
    assert not options(monkeypatch, "--no-batch-invariant")["engine"]["batch_invariant"]
