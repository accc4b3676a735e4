"""FFN shards of the golden checkpoints: pieces sum to the whole, and the whole is Transformers' FFN."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from step3.checkpoint import Checkpoint
from step3.errors import Step3Error
from step3.ffn import FFNCall, FFNShard, split
from step3.kernels.cpu import open_library

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def calls(layers: int, hidden: int) -> list[FFNCall]:
    torch.manual_seed(0)
    x = torch.randn(5, hidden)
    ids = torch.stack([torch.randperm(8)[:3] for _ in range(5)])
    weights = torch.rand(5, 3)
    return [
        FFNCall(layer, x, ids, weights) if layer in (1, 2) else FFNCall(layer, x) for layer in range(layers)
    ]


@pytest.mark.parametrize("name", ["text", "text-fp8"])
@pytest.mark.parametrize(("experts", "slices"), [(2, 1), (1, 2), (3, 1), (2, 2)])
def test_pieces_sum_to_the_whole(name: str, experts: int, slices: int) -> None:
    checkpoint = Checkpoint.open(GOLDEN / name)
    whole = FFNShard.load(checkpoint, torch.float32)
    pieces = [FFNShard.load(checkpoint, torch.float32, piece=piece) for piece in split(8, experts, slices)]
    for call in calls(4, 128):
        total = sum(piece.forward(call) for piece in pieces)
        torch.testing.assert_close(total, whole.forward(call), rtol=1e-4, atol=1e-5)


def test_equals_the_network_in_transformers() -> None:
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "text", torch_dtype=torch.float32)
    shard = FFNShard.load(Checkpoint.open(GOLDEN / "text"), torch.float32)
    x = torch.randn(6, 128)
    for index, layer in enumerate(model.model.layers):
        with torch.no_grad():
            if layer.is_moe:
                logits = layer.moe.gate(x).softmax(-1)
                weights, ids = logits.topk(3, -1)
                expected = layer.moe(x)[0] + layer.share_expert(x)
                got = shard.forward(FFNCall(index, x, ids, weights))
            else:
                expected, got = layer.mlp(x), shard.forward(FFNCall(index, x))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_block_fp8_stays_as_it_is_stored() -> None:
    quantised = FFNShard.load(Checkpoint.open(GOLDEN / "text-fp8"), torch.float32)
    plain = FFNShard.load(Checkpoint.open(GOLDEN / "text"), torch.bfloat16)
    assert quantised.nbytes < 0.55 * plain.nbytes


@pytest.mark.skipif(open_library() is None, reason="the CPU kernels are not there")
@pytest.mark.parametrize("name", ["text", "text-fp8"])
@pytest.mark.parametrize(("experts", "slices"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_shards_use_mapped_weights_in_place(name: str, experts: int, slices: int) -> None:
    checkpoint = Checkpoint.open(GOLDEN / name)
    for piece in split(8, experts, slices):
        packed, in_place = (
            FFNShard.load(checkpoint, torch.bfloat16, piece=piece, in_place=in_place)
            for in_place in (False, True)
        )
        for call in calls(4, 128):
            assert torch.equal(packed.forward(call), in_place.forward(call))


def test_only_bfloat16_stays_in_place() -> None:
    with pytest.raises(Step3Error, match="by the CPU kernels only, in bfloat16"):
        FFNShard.load(Checkpoint.open(GOLDEN / "text"), torch.float32, in_place=True)
