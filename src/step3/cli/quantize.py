"""`step3 quantize`: bf16 in, block-fp8 out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from step3.cli.quantities import size


def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Folder of a bf16, fp16 or fp32 checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a Step3 checkpoint at OUT once the new one is whole.")
    ] = False,
    shard_gb: Annotated[
        float, typer.Option("--shard-gb", min=0.001, help="About how large a file of OUT may be, in GB.")
    ] = 2.0,
) -> None:
    """Quantise a checkpoint to block-fp8, in the official layout.

    Attention and FFN weights become float8_e4m3fn with one scale a block of
    128 x 128; norms, router, embeddings, lm_head and the vision side stay as
    they are. Tokenizer, chat template and configs are copied, Python files
    are not.

    Needs well under 2 GB of memory for a checkpoint of any size. OUT appears
    only when it is whole; until then it is built in OUT.partial. Stopped or
    killed, the same command goes on after the last finished file.
    """
    from step3.checkpoint.quantisation import Quantisation

    quantisation = Quantisation(source, target, overwrite=overwrite, shard_bytes=int(shard_gb * 1e9))
    console = Console()
    bar = Progress(
        TextColumn("quantising"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        with bar:
            task = bar.add_task("quantising", total=quantisation.total_bytes)
            quantisation.run(lambda done: bar.advance(task, done))
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to go on after the last finished file.")
        raise typer.Exit(130) from None
    before, after = size(quantisation.total_bytes), size(quantisation.result_bytes)
    files = len(quantisation.shards)
    console.print(Text(f"{target}: {after} of block-fp8 from {before}, {files} file(s)."))
