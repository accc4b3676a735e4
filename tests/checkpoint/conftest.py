import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import GOLDEN, draw


@pytest.fixture
def copy_golden(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a golden checkpoint to where it may be spoilt."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / name))

    return copy


@pytest.fixture(scope="session")
def hundred_megabytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 checkpoint of 103 MB, whose largest tensors have 25 MB each."""
    return draw(
        tmp_path_factory.mktemp("memory") / "bf16",
        num_hidden_layers=2,
        hidden_size=1024,
        intermediate_size=2048,
        moe_layers_enum="1",
        moe_num_experts=12,
        moe_intermediate_size=1024,
        share_expert_dim=1024,
        share_q_dim=256,
        num_attention_heads=8,
        head_dim=64,
        vocab_size=1024,
    )
