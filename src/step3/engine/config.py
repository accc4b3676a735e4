"""How an engine is set up: every option checked once, where it enters."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from step3.errors import Step3Error

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOADS = ("packed", "mmap")
KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "fp8")

# Options of vLLM that ask for what is so anyway, with the values that do; None for any value.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "compilation_config": None,
    "disable_custom_all_reduce": None,
    "swap_space": None,
    "cpu_offload_gb": (0,),
    "load_format": ("auto", "safetensors"),
    "trust_remote_code": (True, False),
    "enforce_eager": (True, False),
    "enable_chunked_prefill": (True, None),
    "disable_log_stats": (True, False),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "quantization": (None, "fp8"),
    "tokenizer_mode": ("auto",),
    "task": ("generate", "auto"),
    "runner": ("generate", "auto"),
    "skip_tokenizer_init": (False,),
}

_SPECULATION = {"num_speculative_tokens": 4, "prompt_lookup_min": 3, "prompt_lookup_max": 16}
_MAX_SPECULATION = 64


class EngineError(Step3Error, ValueError):
    """An engine that cannot be set up so, or that has stopped."""


@dataclass(frozen=True)
class EngineConfig:
    """Options of an engine, with vLLM's names where vLLM has them.

    Attributes:
        model: folder of a checkpoint, or its name on the Hugging Face Hub; None for the bundled model.
        revision: version of a model from the Hub.
        tokenizer: folder of another tokenizer; None for the checkpoint's own.
        dtype: of activations and of weights that are not block-fp8: "float32", "bfloat16", "float16", or
            "auto" for the dtype in config.json.
        kv_cache_dtype: of keys and values: a dtype, "fp8" (float8_e4m3fn without a scale), or "auto" for
            that of the activations.
        load: how weights get to the CPU kernels. "packed" copies them into the order in which they are read
            fastest; "mmap" uses those of bfloat16 and block-fp8 checkpoints where they lie in their files: a
            start takes no longer than opening them, and a model may be larger than memory.
        int8_activations: round activations to 8 bits where the CPU kernels multiply 48 rows or more by
            block-fp8 weights: prompts are read nearly twice as fast, and log-probabilities differ a little
            more (docs/cpu.md), also with what else is in the batch.
        batch_invariant: on a CPU, an answer does not depend on what is computed beside it, to its last bits.
            Where it may, the kernels for AVX2 multiply more than 12 rows in 16-bit integers, about as exactly
            and nearly half as fast again (docs/cpu.md); the others take no notice.
        device: where attention and vision are computed, as torch names devices.
        max_model_len: longest prompt and answer together, in tokens; None for the longest that the model was
            made for and the KV cache can hold.
        max_num_seqs: sequences that run together.
        max_num_batched_tokens: tokens of a step; longer prompts are computed in chunks.
        block_size: tokens of a KV block.
        kv_cache_memory_bytes: memory of the KV cache; None to take it from `gpu_memory_utilization`.
        gpu_memory_utilization: part of the device's memory for weights, activations and KV cache, over 0 to
            1; None for 0.9 on an accelerator and 0.5 on a CPU, which others use too.
        enable_prefix_caching: keep keys and values of finished requests for prompts that begin alike.
        limit_mm_per_prompt: `{"image": n}`, pictures of one prompt at most.
        picture_cache_bytes: memory for features of pictures that were seen before.
        max_logprobs: log-probabilities of a position at most.
        speculative_config: `{"method": "ngram", "num_speculative_tokens": n}` tries up to n tokens at once
            that followed the last ones before, wherever that is faster; "prompt_lookup_min" and
            "prompt_lookup_max" tokens must have stood there. The answers stay the same. None: one at a time.
        seed: of requests that bring none.
        chat_template: Jinja text, or the path of a file with it; None for the checkpoint's.
    """

    model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    load: str = "packed"
    int8_activations: bool = False
    batch_invariant: bool = True
    device: str = "cpu"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    enable_prefix_caching: bool = True
    limit_mm_per_prompt: Mapping[str, int] = field(default_factory=lambda: {"image": 64})
    picture_cache_bytes: int = 512 << 20
    max_logprobs: int = 20
    speculative_config: Mapping[str, Any] | None = None
    seed: int = 0
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            self._need_whole(name, 1)
        for name in ("max_model_len", "kv_cache_memory_bytes"):
            if getattr(self, name) is not None:
                self._need_whole(name, 1)
        for name in ("picture_cache_bytes", "max_logprobs", "seed"):
            self._need_whole(name, 0)
        self._need_one_of("dtype", DTYPES)
        self._need_one_of("kv_cache_dtype", KV_DTYPES)
        self._need_one_of("load", LOADS)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise EngineError(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} must be at least "
                f"max_num_seqs = {self.max_num_seqs}: each running sequence computes a token in each step"
            )
        part = self.gpu_memory_utilization
        if part is not None and (
            isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1
        ):
            raise EngineError(f"gpu_memory_utilization must be a number over 0 up to 1, found {part!r}")
        limits = self.limit_mm_per_prompt
        if not isinstance(limits, Mapping) or any(
            type(limit) is not int or limit < 0 or (name != "image" and limit > 0)
            for name, limit in limits.items()
        ):
            raise EngineError(f'limit_mm_per_prompt must look like {{"image": 4}}, found {limits!r}')
        if self.speculative_config is not None:
            _check_speculation(self.speculative_config)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EngineConfig:
        """The config that keyword arguments ask for; dtypes may be torch's own.

        Raises:
            EngineError: an option that does not exist, or a value that cannot be.
        """
        known = {one.name for one in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in options.items():
            if name in known:
                chosen[name] = value
            elif name not in _HARMLESS:
                close = difflib.get_close_matches(name, sorted(known), n=1)
                mend = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                raise EngineError(f"the engine has no option {name!r}: {mend}")
            elif (harmless := _HARMLESS[name]) is not None and value not in harmless:
                values = " or ".join(map(repr, harmless))
                raise EngineError(f"{name} can only be {values} here, found {value!r}")
        for name in ("dtype", "kv_cache_dtype"):
            if name in chosen:
                chosen[name] = _dtype_name(chosen[name])
        for name in ("model", "tokenizer", "device", "chat_template"):
            if chosen.get(name) is not None:
                chosen[name] = str(chosen[name])
        return cls(**chosen)

    @property
    def max_pictures(self) -> int:
        """Pictures of one prompt at most."""
        return self.limit_mm_per_prompt.get("image", 64)

    @property
    def integers(self) -> int:
        """Bits of the integers that the CPU kernels may multiply many rows in, or 0."""
        return 8 if self.int8_activations else 0 if self.batch_invariant else 16

    @property
    def drafts(self) -> tuple[int, int, int] | None:
        """Drafts of a sequence at most, then the fewest and most tokens that are looked up; None for none."""
        if self.speculative_config is None:
            return None
        options = {**_SPECULATION, **self.speculative_config}
        fewest = options["prompt_lookup_min"]
        return options["num_speculative_tokens"], fewest, max(fewest, options["prompt_lookup_max"])

    def _need_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least:
            raise EngineError(f"{name} must be a whole number from {least}, found {value!r}")

    def _need_one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise EngineError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")


def _check_speculation(options: Any) -> None:
    example = '{"method": "ngram", "num_speculative_tokens": 4}'
    if not isinstance(options, Mapping) or options.get("method", "ngram") != "ngram":
        raise EngineError(f"speculative_config must look like {example}, found {options!r}")
    for name, value in options.items():
        if name == "method":
            continue
        if name not in _SPECULATION:
            known = ", ".join(_SPECULATION)
            raise EngineError(f"speculative_config has no option {name!r}: there are method, {known}")
        if type(value) is not int or not 1 <= value <= _MAX_SPECULATION:
            raise EngineError(
                f"speculative_config: {name} must be a whole number from 1 to {_MAX_SPECULATION}, "
                f"found {value!r}"
            )


def _dtype_name(value: Any) -> Any:
    """vLLM's and torch's names of the dtypes that there are."""
    name = str(value).removeprefix("torch.")
    short = {"float": "float32", "half": "float16", "fp8_e4m3": "fp8", "float8_e4m3fn": "fp8"}
    return short.get(name, name)


def find_model(config: EngineConfig) -> Path:
    """The folder of the model, fetched from the Hugging Face Hub if it is not a folder here.

    Raises:
        EngineError: there is no such folder, and the Hub has no such model or cannot be reached.
    """
    if config.model is None:
        from step3.nano.architecture import BUNDLED

        return BUNDLED
    folder = Path(config.model).expanduser()
    if folder.exists() or config.model.count("/") != 1 or config.model.startswith((".", "/", "~")):
        if not folder.is_dir():
            raise EngineError(f"{config.model}: no such folder; give a checkpoint's folder, or OWNER/NAME")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                config.model,
                revision=config.revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja"],
            )
        )
    except (OSError, ValueError) as error:
        raise EngineError(f"{config.model}: cannot be fetched from the Hugging Face Hub: {error}") from None
