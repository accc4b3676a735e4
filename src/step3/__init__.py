"""Step3: StepFun's vision-language mixture-of-experts model, its serving and its cost.

`import step3` is light: it loads no torch, and makes Transformers' Auto classes know Step3.

    from step3 import LLM, SamplingParams
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from step3.auto_classes import register as _register_auto_classes

if TYPE_CHECKING:
    from step3.cluster.llm import LLM
    from step3.engine.async_llm import AsyncLLM
    from step3.engine.sampling.params import RequestOutputKind, SamplingParams
    from step3.engine.sampling.structured_params import StructuredOutputsParams

__all__ = ["LLM", "AsyncLLM", "RequestOutputKind", "SamplingParams", "StructuredOutputsParams"]
__version__ = "0.1.0"

_register_auto_classes()

_HOME = {
    "AsyncLLM": "step3.engine.async_llm",
    "LLM": "step3.cluster.llm",
    "RequestOutputKind": "step3.engine.sampling.params",
    "SamplingParams": "step3.engine.sampling.params",
    "StructuredOutputsParams": "step3.engine.sampling.structured_params",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'step3' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
