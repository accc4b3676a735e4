"""One server of `benchmarks/cpu.py --served`: starts it, then measures a case for each line that it is sent.

    python cpu_server_worker.py step3 CHECKPOINT DTYPE BATCH_INVARIANT
    python cpu_server_worker.py vllm CHECKPOINT DTYPE BATCH_INVARIANT ENVIRONMENT_OF_VLLM

What `cpu_worker.py` measures through `LLM`, this does through HTTP: a connection for each sequence of a case,
all asked at once, answers streamed. The client shares the machine's cores with the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from cpu_cases import answer_cases
from server import Exchange, completion, free_port, own_server, peer_environment, peer_server, serving

LONGEST = 4096


async def seconds(port: int, prompts: list[list[int]], new: int) -> float:
    """From the first request to the end of the last answer of exactly `new` tokens."""
    loop = asyncio.get_running_loop()
    connections = [await loop.create_connection(Exchange, "127.0.0.1", port) for _ in prompts]
    requests = [completion(port, prompt, new) for prompt in prompts]
    begin = time.perf_counter()
    pairs = zip(connections, requests, strict=True)
    answers = await asyncio.gather(*(exchange.ask(request) for (_, exchange), request in pairs))
    spent = time.perf_counter() - begin
    for transport, _ in connections:
        transport.close()
    if any(tokens != new for _, _, tokens in answers):
        raise RuntimeError(f"an answer does not have {new} tokens: {answers}")
    return spent


def main() -> None:
    kind, checkpoint, dtype, port = sys.argv[1], Path(sys.argv[2]), sys.argv[3], free_port()
    if kind == "step3":
        command, environment = own_server(checkpoint, port, LONGEST), {**os.environ, "HF_HUB_OFFLINE": "1"}
        command += ["--kv-cache-memory-bytes", str(2 << 30)]
        command += [] if sys.argv[4] == "1" else ["--no-batch-invariant"]
    else:
        command, environment = (
            peer_server(Path(sys.argv[5]), checkpoint, port, LONGEST, dtype),
            peer_environment(),
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(command, environment, port, Path(folder) / "server.log") as served,
    ):

        def measure(prompts: list[list[int]], new: int) -> float:
            return asyncio.run(seconds(port, prompts, new))

        measure([[5, 6, 7]], 1)
        print(json.dumps({"start": served.start_seconds}), flush=True)
        answer_cases(measure, sys.stdout)


if __name__ == "__main__":
    main()
