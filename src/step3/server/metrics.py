"""The engine's and the server's counters in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from step3.server.cluster import metrics as cluster_metrics
from step3.server.errors import error_kind

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name, kind, what it says, field of `step3.engine.statistics.Statistics`
_VALUES = (
    ("num_requests_running", "gauge", "Answers being made.", "running"),
    ("num_requests_waiting", "gauge", "Answers that wait for their turn.", "waiting"),
    ("kv_cache_usage_perc", "gauge", "Part of the KV blocks in use, 0 to 1.", "kv_cache_usage"),
    (
        "prefix_cache_queries_total",
        "counter",
        "Tokens looked for in the prefix cache.",
        "prefix_cache_queries",
    ),
    ("prefix_cache_hits_total", "counter", "Tokens found in the prefix cache.", "prefix_cache_hits"),
    ("computed_tokens_total", "counter", "Tokens that went through the network.", "computed_tokens"),
    ("prompt_tokens_total", "counter", "Tokens of prompts.", "prompt_tokens"),
    ("generation_tokens_total", "counter", "Tokens of answers.", "generation_tokens"),
    ("generation_tokens_per_second", "gauge", "Over ten seconds.", "generation_tokens_per_second"),
    ("num_preemptions_total", "counter", "Answers that gave up their KV blocks.", "preemptions"),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "From arrival to the first token.", "time_to_first_token"),
    ("time_per_output_token_seconds", "Mean time between an answer's tokens.", "time_per_output_token"),
    ("e2e_request_latency_seconds", "From arrival to the end.", "request_time"),
)


def exposition(
    statistics: Mapping[str, Any] | None, responses: Mapping[tuple[str, int], int], restarts: int
) -> str:
    """The page that Prometheus reads.

    Args:
        statistics: `Statistics` as a mapping; None while there is no engine.
        responses: HTTP responses by path and status.
        restarts: how often the engine was replaced.
    """
    return "\n".join(_lines(statistics, responses, restarts)) + "\n"


def _lines(
    statistics: Mapping[str, Any] | None, responses: Mapping[tuple[str, int], int], restarts: int
) -> Iterator[str]:
    yield from _head("engine_up", "gauge", "Whether the engine takes requests.")
    yield f"step3_engine_up {int(statistics is not None)}"
    yield from _head("engine_restarts_total", "counter", "How often a dead engine was replaced.")
    yield f"step3_engine_restarts_total {restarts}"
    yield from _head("http_responses_total", "counter", "HTTP responses by path and status.")
    for (path, status), count in sorted(responses.items()):
        yield f'step3_http_responses_total{{path="{path}",status="{status}"}} {count}'
    yield from _head("request_errors_total", "counter", "Requests that were refused or failed, by kind.")
    errors = Counter[str]()
    for (_, status), count in responses.items():
        if status >= 400:
            errors[error_kind(status)] += count
    for kind, count in sorted(errors.items()):
        yield f'step3_request_errors_total{{kind="{kind}"}} {count}'
    if statistics is None:
        return
    for name, kind, what, field in _VALUES:
        yield from _head(name, kind, what)
        yield f"step3_{name} {statistics[field]}"
    drafted, accepted = statistics["speculation"]["drafted"], statistics["speculation"]["accepted"]
    yield from _head("spec_decode_num_draft_tokens_total", "counter", "Drafts that were tried.")
    yield f"step3_spec_decode_num_draft_tokens_total {drafted}"
    yield from _head("spec_decode_num_accepted_tokens_total", "counter", "Drafts that were right.")
    yield f"step3_spec_decode_num_accepted_tokens_total {accepted}"
    yield from _head("spec_decode_acceptance", "gauge", "Part of the drafts that were right, 0 to 1.")
    yield f"step3_spec_decode_acceptance {accepted / drafted if drafted else 0.0}"
    yield from _head("request_success_total", "counter", "Finished requests by finish reason.")
    for reason, count in sorted(statistics["finished"].items()):
        yield f'step3_request_success_total{{finished_reason="{reason}"}} {count}'
    for name, what, field in _HISTOGRAMS:
        yield from _histogram(name, what, statistics[field])
    if statistics.get("cluster"):
        yield from cluster_metrics(statistics["cluster"])


def _histogram(name: str, what: str, histogram: Mapping[str, Any]) -> Iterator[str]:
    yield from _head(name, "histogram", what)
    total = 0
    bounds = [f"{bound:g}" for bound in histogram["bounds"]]
    for bound, count in zip([*bounds, "+Inf"], histogram["counts"], strict=True):
        total += count
        yield f'step3_{name}_bucket{{le="{bound}"}} {total}'
    yield f"step3_{name}_sum {histogram['sum']}"
    yield f"step3_{name}_count {total}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP step3_{name} {what}"
    yield f"# TYPE step3_{name} {kind}"
