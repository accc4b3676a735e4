"""From a config to everything that answers requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from step3.checkpoint import Checkpoint
from step3.engine.config import EngineConfig, find_model
from step3.engine.engine import Engine
from step3.engine.intake import Intake
from step3.engine.network import default_sampling, read_network
from step3.engine.sampling.params import SamplingParams
from step3.engine.tokens import Tokens


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        sampling: what the model's generation_config.json recommends.
    """

    engine: Engine
    tokens: Tokens
    intake: Intake
    sampling: dict[str, Any]

    def default_sampling_params(self) -> SamplingParams:
        """vLLM's defaults with the model's own recommendations."""
        return SamplingParams(**self.sampling)


def load(config: EngineConfig, *, num_lanes: int = 1, holds_ffn: bool = True) -> Loaded:
    """Reads a checkpoint and its tokenizer, and takes the memory that the config gives.

    Args:
        num_lanes, holds_ffn: see `step3.engine.engine.Engine`.

    Raises:
        Step3Error: not a checkpoint of Step3, no tokenizer, or a memory budget that cannot work.
    """
    folder = find_model(config)
    checkpoint = Checkpoint.open(folder)
    network = read_network(folder, checkpoint.config)
    sees = network.vision is not None
    tokens = Tokens.load(folder, sees, config.tokenizer, config.chat_template)
    engine = Engine(
        config, checkpoint, network, tokens.image_processor, num_lanes=num_lanes, holds_ffn=holds_ffn
    )
    intake = Intake(config, network, tokens, engine.memory.max_model_len)
    return Loaded(engine, tokens, intake, default_sampling(folder))
