"""lm-eval's chat model against the server: a task of its own, so that nothing is downloaded."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


def test_lm_evals_chat_model_scores_the_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "none")
    questions = [{"question": f"What is {one} + 1?", "answer": str(one + 1)} for one in range(4)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    url = f"{server.http.base_url}/v1/chat/completions"
    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=f"model=golden,base_url={url},num_concurrent=2,max_retries=1,tokenizer_backend=None",
        tasks=[task],
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results["results"]["sums"]["exact_match,none"] == 0
    assert len(results["samples"]["sums"]) == len(questions)
    assert server.metric("prompt_tokens_total") > 0
