"""Gradients against finite differences in float64, gradient checkpointing, and adapters (PEFT)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small import IMAGE, padded, pictures, prompt, text_model, tokens, vl_model
from torch import Tensor, nn


def inputs_with_pictures() -> dict[str, Tensor]:
    rows = [prompt(2, [2], 4), prompt(6, seed=1), prompt(1, [0], 3, seed=2)]
    batch = padded(rows, "right")
    hidden = (batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE)
    return {**batch, **pictures(2, 0), "labels": batch["input_ids"].masked_fill(hidden, -100)}


def wide(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in given.items()}


def learn(model: nn.Module, given: dict[str, Tensor], steps: int = 12, rate: float = 1e-2) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_gradient_is_that_of_finite_differences(attention: str) -> None:
    """Each tensor is moved along a drawn direction, and the loss's slope is compared with the gradient's."""
    model = vl_model(attention=attention, text={"norm_expert_weight": True}).double()
    given = wide(inputs_with_pictures())
    labels = given.pop("labels")[:, 1:]

    def loss() -> Tensor:
        """Float64 throughout; Transformers' own cross entropy rounds to float32."""
        out = model(**given, output_router_logits=True)
        return nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), labels) + 0.1 * out.aux_loss

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        start, step = parameter.data, 1e-6
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.data = start + sign * step * direction
                losses.append(loss().item())
        parameter.data = start
        slope = (losses[0] - losses[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    given = inputs_with_pictures()
    plain, checkpointed = vl_model().train(), vl_model().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    runs: list[int] = []
    for layer in (
        *checkpointed.model.language_model.layers,
        *checkpointed.model.vision_model.transformer.layers,
    ):
        (layer.mlp if hasattr(layer, "mlp") else layer.share_expert).register_forward_hook(
            lambda *hooked: runs.append(1)
        )
    losses = [model(**given).loss for model in (plain, checkpointed)]
    before = len(runs)
    for loss in losses:
        loss.backward()

    assert len(runs) > before  # layers were computed again
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-5)


def test_whole_network_learns_a_batch() -> None:
    losses = learn(vl_model().train(), inputs_with_pictures(), steps=25)
    assert losses[-1] < 0.2 * losses[0]


def text_batch() -> dict[str, Tensor]:
    ids = tokens(3, 8)
    return {"input_ids": ids, "labels": ids}


ATTENTION = {"target_modules": ["q_proj", "wq", "k_proj", "v_proj", "o_proj"]}
EXPERTS = {
    "target_modules": [],
    "target_parameters": ["moe.gate_proj.weight", "moe.up_proj.weight", "moe.down_proj.weight"],
}
BOTH = {**EXPERTS, **ATTENTION}


def adapted(where: dict[str, Any]) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(text_model(), LoraConfig(r=2, lora_alpha=8, task_type="CAUSAL_LM", **where))


@pytest.mark.parametrize("where", [ATTENTION, EXPERTS, BOTH], ids=["attention", "experts", "both"])
class TestAdapters:
    def test_learn_while_the_network_stays(self, where: dict[str, Any]) -> None:
        model = adapted(where).train()
        frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all("lora_" in name for name in trained)

        losses = learn(model, text_batch(), steps=15, rate=3e-2)

        assert losses[-1] < 0.8 * losses[0]
        after = dict(model.named_parameters())
        assert all(torch.equal(after[name], before) for name, before in frozen.items())
        assert all(not torch.equal(after[name], before) for name, before in trained.items())

    def test_saved_ones_load_onto_the_network_again(self, where: dict[str, Any], tmp_path: Path) -> None:
        model = adapted(where)
        learn(model.train(), text_batch(), steps=3)
        model.save_pretrained(tmp_path)
        ids = tokens(2, 6, seed=1)
        with torch.no_grad():
            expected = model.eval()(input_ids=ids).logits
            assert (expected - text_model()(input_ids=ids).logits).abs().max() > 1e-3
            loaded = PeftModel.from_pretrained(text_model(), tmp_path)
            torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-6, rtol=0)

    def test_merged_ones_are_a_plain_network_that_computes_the_same(
        self, where: dict[str, Any], tmp_path: Path
    ) -> None:
        model = adapted(where)
        learn(model.train(), text_batch(), steps=3)
        ids = tokens(2, 6, seed=1)
        with torch.no_grad():
            expected = model.eval()(input_ids=ids).logits
            merged = model.merge_and_unload()
            torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
        assert {name for name, _ in merged.named_parameters()} == {
            n for n, _ in text_model().named_parameters()
        }
        merged.save_pretrained(tmp_path)
        again = type(merged).from_pretrained(tmp_path, torch_dtype=torch.float32)
        torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-4, rtol=0)

    def test_generate_with_a_cache(self, where: dict[str, Any]) -> None:
        model = adapted(where)
        learn(model.train(), text_batch(), steps=3)
        model.eval()
        ids = tokens(1, 5)
        cached, recomputed = (
            model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
        assert cached.tolist() == recomputed.tolist()


def test_adapters_on_the_network_with_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    where = {"target_modules": r".*language_model.*\.(q_proj|wq|o_proj)|.*vision_model.*qkv_proj"}
    model = get_peft_model(vl_model(), LoraConfig(r=2, task_type="CAUSAL_LM", **where)).train()
    given = inputs_with_pictures()
    losses = learn(model, given, steps=10)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    expected = model.eval()(**given).loss.item()
    assert PeftModel.from_pretrained(vl_model(), tmp_path).eval()(**given).loss.item() == pytest.approx(
        expected
    )
