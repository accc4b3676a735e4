"""Does an fp8 wire cost right answers? The bundled model's evaluation, alone and through a deployment.

    python benchmarks/afd_evaluation.py
    python benchmarks/afd_evaluation.py --each 200 --topology 1A2F:ep2 --activations fp8 --partials bfloat16

The same unseen questions as `step3 evaluate-nano` asks, pictures and all, answered greedily by one process
and by attention and FFN instances whose calls travel as fp8. The bar is one point of right answers over all.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor

from step3 import LLM, SamplingParams
from step3.nano.architecture import BUNDLED
from step3.nano.evaluation import evaluation_samples, prompt_and_pictures
from step3.nano.scenes.check import is_right
from step3.nano.scenes.sample import Sample

BAR = 0.01


def answers(asked: list[Sample], model: str | None, **options: Any) -> list[str]:
    """The greedy answers, reasoning and special tokens included."""
    processor = AutoProcessor.from_pretrained(model or BUNDLED)
    prompts: list[Any] = []
    for sample in asked:
        text, pictures = prompt_and_pictures(processor, sample)
        prompts.append({"prompt": text, "multi_modal_data": {"image": pictures}} if pictures else text)
    params = SamplingParams(temperature=0, max_tokens=160, skip_special_tokens=False)
    llm = LLM(model, quiet=True, max_num_seqs=32, **options)
    try:
        return [one.outputs[0].text for one in llm.generate(prompts, params, use_tqdm=False)]
    finally:
        llm.shutdown()


def main(
    model: Annotated[str | None, typer.Argument(help="A checkpoint; the bundled model if none.")] = None,
    each: Annotated[int, typer.Option(help="Questions of each category.")] = 50,
    seed: Annotated[int, typer.Option(help="Which unseen questions.")] = 1,
    dtype: Annotated[str, typer.Option(help="In which is computed.")] = "float32",
    topology: Annotated[str, typer.Option(help="Of the deployment.")] = "1A1F",
    activations: Annotated[str, typer.Option(help="On the wire: fp8, bfloat16 or float32.")] = "fp8",
    partials: Annotated[str, typer.Option(help="Back: bfloat16 or float32.")] = "bfloat16",
    out: Annotated[Path | None, typer.Option(help="Write JSON, too.")] = None,
) -> None:
    """Compare right answers over an fp8 wire with those of one process."""
    asked = evaluation_samples(each, seed)
    alone = answers(asked, model, dtype=dtype)
    wired = answers(asked, model, dtype=dtype, topology=topology, activations=activations, partials=partials)
    right: dict[str, Counter[str]] = {"alone": Counter(), "wired": Counter()}
    total = Counter(sample.category for sample in asked)
    for sample, one, other in zip(asked, alone, wired, strict=True):
        right["alone"][sample.category] += is_right(sample, one)
        right["wired"][sample.category] += is_right(sample, other)
    table = Table("category", "asked", "one process", f"{topology}, {activations} wire")
    for category in sorted(total):
        shares = (f"{right[how][category] / total[category]:.1%}" for how in ("alone", "wired"))
        table.add_row(category, str(total[category]), *shares)
    share = {how: counts.total() / len(asked) for how, counts in right.items()}
    table.add_row("all", str(len(asked)), f"{share['alone']:.2%}", f"{share['wired']:.2%}")
    Console().print(table)
    differ = sum(one != other for one, other in zip(alone, wired, strict=True))
    apart = abs(share["wired"] - share["alone"])
    verdict = "within" if apart <= BAR else "over"
    print(f"{differ} of {len(asked)} answers differ; {100 * apart:.2f} points apart: {verdict} the bar of 1")
    if out is not None:
        out.write_text(json.dumps({"each": each, "share": share, "differ": differ}, indent=1))
    if apart > BAR:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
