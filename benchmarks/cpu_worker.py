"""One engine of `benchmarks/cpu.py`: loads a checkpoint, then measures a case for each line that it is sent.

    python cpu_worker.py step3|vllm CHECKPOINT DTYPE BATCH_INVARIANT

Both engines answer to the same calls of `LLM`. What a case is `cpu_cases.py` says.
"""

import json
import os
import sys
import time

from cpu_cases import answer_cases

STARTED = time.time()
if sys.argv[1] == "vllm":
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams
else:
    from step3 import LLM, SamplingParams


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = {}
    if sys.argv[1] == "step3":
        options = {"kv_cache_memory_bytes": 2 << 30, "quiet": True, "batch_invariant": sys.argv[4] == "1"}
    llm = LLM(
        sys.argv[2],
        dtype=sys.argv[3],
        max_model_len=4096,
        max_num_seqs=64,
        enable_prefix_caching=True,
        **options,
    )

    def seconds(prompts: list[list[int]], new: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        begin = time.perf_counter()
        llm.generate(given, params, use_tqdm=False)
        return time.perf_counter() - begin

    seconds([[5, 6, 7]], 1)
    print(json.dumps({"start": time.time() - STARTED}), file=answers)
    answer_cases(seconds, answers)


if __name__ == "__main__":
    main()
