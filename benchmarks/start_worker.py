"""One start of `benchmarks/start.py`: loads a checkpoint, generates one token, and says when what was done.

python start_worker.py step3|vllm CHECKPOINT LOAD
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
if sys.argv[1] == "vllm":
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams

    KV_BYTES = None
    options = {}
else:
    from step3 import LLM, SamplingParams

    KV_BYTES = 2 << 30
    options = {"kv_cache_memory_bytes": KV_BYTES, "quiet": True, "load": sys.argv[3]}


def touched(nbytes: int | None) -> int:
    """Bytes in memory of the mappings of exactly `nbytes`: of KV, pages that no token was written to take
    none."""
    size = total = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:") and size == nbytes:
            total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    imported = time.time()
    llm = LLM(sys.argv[2], dtype="bfloat16", max_model_len=4096, max_num_seqs=64, **options)
    loaded = time.time()
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
    told = {
        "imported": imported,
        "loaded": loaded,
        "answered": time.time(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    told["kv_bytes"] = touched(KV_BYTES)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            told["anonymous_bytes"] = int(line.split()[1]) * 1024
    print(json.dumps(told), file=answers)


if __name__ == "__main__":
    main()
