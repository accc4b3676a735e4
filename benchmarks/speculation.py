"""What prompt lookup saves: tokens a second with and without drafts, where they are right and where not.

    python benchmarks/speculation.py CHECKPOINT --sequences 1 --sequences 16

"repeats" are greedy answers of three tokens, which go round in circles; "varied" ones are drawn at
temperature 1 from the whole vocabulary. Every answer is checked to be the same with and without drafts.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from step3 import LLM, SamplingParams

WORKLOADS: dict[str, dict[str, Any]] = {
    "repeats": {"temperature": 0.0, "allowed_token_ids": [30, 31, 32]},
    "varied": {"temperature": 1.0, "seed": 1},
}


def run(llm: LLM, sequences: int, tokens: int, options: dict[str, Any]) -> tuple[float, list[list[int]]]:
    """Tokens a second, and the answers."""
    prompts = [
        {"prompt_token_ids": [20 + (7 * i + j * j) % 200 for j in range(64)]} for i in range(sequences)
    ]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, **options)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return sequences * tokens / seconds, [output.outputs[0].token_ids for output in outputs]


def main(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder; the bundled model if none.")
    ] = None,
    sequences: Annotated[list[int], typer.Option(help="Sequences that decode together.")] = [1, 16],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="Length of each answer.")] = 400,
    drafts: Annotated[int, typer.Option(help="Drafts of a sequence at most.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
) -> None:
    """Measure speculation on one machine."""
    torch.set_num_threads(threads)
    table = Table("answers", "sequences", "tokens/s", "with drafts", "faster", "drafts right", "same answers")
    for name, options in WORKLOADS.items():
        for count in sequences:
            rates, answers, acceptance = [], [], 0.0
            for speculation in (None, {"method": "ngram", "num_speculative_tokens": drafts}):
                llm = LLM(
                    checkpoint,
                    max_model_len=64 + tokens,
                    max_num_seqs=count,
                    speculative_config=speculation,
                    enable_prefix_caching=False,
                    quiet=True,
                )
                run(llm, count, 16, options)
                rate, answer = run(llm, count, tokens, options)
                rates.append(rate)
                answers.append(answer)
                acceptance = llm.get_statistics().speculation.acceptance
                llm.shutdown()
            table.add_row(
                name,
                str(count),
                f"{rates[0]:.0f}",
                f"{rates[1]:.0f}",
                f"x {rates[1] / rates[0]:.2f}",
                f"{acceptance:.0%}",
                "yes" if answers[0] == answers[1] else "no",
            )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
