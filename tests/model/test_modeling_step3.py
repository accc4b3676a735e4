import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import padded, prompt, text_config, text_model, tokens
from torch import Tensor
from transformers import AutoModel

from step3.errors import Step3Error
from step3.model.cache_name import CACHE
from step3.model.layers_step3 import Step3RMSNorm
from step3.model.linear import ExpertLinear
from step3.model.modeling_step3 import Step3TextForCausalLM, load_balancing_loss


@pytest.fixture(scope="module")
def model() -> Step3TextForCausalLM:
    return text_model()


def hidden(rows: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


class TestPadding:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_batch_gives_what_each_sequence_does_alone(self, side: str, attention: str) -> None:
        model = text_model(attention=attention)
        rows = [prompt(4), prompt(11, seed=1), prompt(1, seed=2)]
        batch = padded(rows, side)
        with torch.no_grad():
            together = model(**batch).logits
            for number, row in enumerate(rows):
                alone = model(input_ids=torch.tensor([row])).logits[0]
                own = together[number][batch["attention_mask"][number].bool()]
                torch.testing.assert_close(own, alone, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_loss_of_a_padded_batch_has_finite_gradients(self, side: str, attention: str) -> None:
        model = text_model(attention=attention).train()
        batch = padded([prompt(2), prompt(9, seed=1)], side)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_does_not_count_in_the_positions(self, side: str) -> None:
        model = text_model()
        seen: list[Tensor] = []
        model.model.rotary_emb.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        batch = padded([prompt(3), prompt(6, seed=1)], side)
        cache = model(**batch, use_cache=True)[CACHE]
        mask = torch.cat((batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)), dim=1)
        model(input_ids=tokens(2, 1), attention_mask=mask, past_key_values=cache)

        words = batch["attention_mask"].bool()
        assert seen[0][0][words[0]].tolist() == [0, 1, 2]
        assert seen[0][1][words[1]].tolist() == [0, 1, 2, 3, 4, 5]
        assert seen[1].tolist() == [[3], [6]]

    def test_positions_given_count_over_the_mask(self, model: Any) -> None:
        ids = tokens(1, 6)
        with torch.no_grad():
            shifted = model(input_ids=ids, position_ids=torch.arange(6)[None] + 3).logits
            spread = model(input_ids=ids, position_ids=torch.arange(6)[None] * 2).logits
            plain = model(input_ids=ids).logits
        # Rotary attention sees only distances.
        torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=0)
        assert (spread - plain).abs().max() > 1e-3


class TestOutputs:
    def test_sdpa_is_eager(self) -> None:
        batch = padded([prompt(4), prompt(11, seed=1)])
        kept = batch["attention_mask"].bool()
        with torch.no_grad():
            sdpa, eager = (text_model(attention=kind)(**batch).logits for kind in ("sdpa", "eager"))
        torch.testing.assert_close(sdpa[kept], eager[kept], atol=1e-5, rtol=0)

    def test_hidden_states_run_from_the_embeddings_to_the_normed_output(self, model: Any) -> None:
        ids = tokens(2, 5)
        out = model(input_ids=ids, output_hidden_states=True)
        assert [tuple(h.shape) for h in out.hidden_states] == [(2, 5, 16)] * 4
        assert torch.equal(out.hidden_states[0], model.model.embed_tokens(ids))
        assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)

    def test_attentions_of_eager_are_causal_probabilities(self) -> None:
        out = text_model(attention="eager")(input_ids=tokens(2, 5), output_attentions=True)
        assert [tuple(a.shape) for a in out.attentions] == [(2, 2, 5, 5)] * 3
        for probabilities in out.attentions:
            torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 2, 5))
            assert not probabilities.triu(1).any()

    def test_attentions_of_sdpa_are_refused(self, model: Any) -> None:
        with pytest.raises(Step3Error, match="attn_implementation='eager'"):
            model(input_ids=tokens(1, 3), output_attentions=True)

    def test_router_logits_of_every_layer_with_experts(self, model: Any) -> None:
        out = model(input_ids=tokens(2, 5), output_router_logits=True)
        assert [tuple(logits.shape) for logits in out.router_logits] == [(10, 4)] * 2

    def test_nothing_is_kept_that_was_not_asked_for(self, model: Any) -> None:
        out = model(input_ids=tokens(1, 3))
        assert out.hidden_states is out.attentions is out.router_logits is out.aux_loss is out.loss is None

    def test_logits_to_keep_scores_the_last_places_or_those_named(self, model: Any) -> None:
        ids = tokens(2, 7)
        full = model(input_ids=ids).logits
        for kept, places in ((1, [6]), (3, [4, 5, 6]), (torch.tensor([0, 5]), [0, 5])):
            logits = model(input_ids=ids, logits_to_keep=kept).logits
            torch.testing.assert_close(logits, full[:, places], atol=1e-6, rtol=0)

    def test_tuple_where_no_dict_is_wanted(self, model: Any) -> None:
        ids = tokens(1, 3)
        loss, logits, *_ = model(input_ids=ids, labels=ids, return_dict=False)
        out = model(input_ids=ids, labels=ids)
        assert torch.equal(logits, out.logits)
        assert torch.equal(loss, out.loss)

    def test_embeddings_in_place_of_tokens(self, model: Any) -> None:
        ids = tokens(2, 5)
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)

    def test_either_tokens_or_embeddings(self, model: Any) -> None:
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model()

    def test_dtype_of_the_weights_is_that_of_the_logits(self) -> None:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            assert text_model().to(dtype)(input_ids=tokens(1, 4)).logits.dtype == dtype


class TestLoss:
    def test_is_mean_cross_entropy_of_the_next_token(self, model: Any) -> None:
        ids = tokens(2, 6)
        labels = ids.clone()
        labels[0, :4] = -100
        out = model(input_ids=ids, labels=labels)
        expected = [
            -out.logits[row, place].log_softmax(-1)[ids[row, place + 1]]
            for row in range(2)
            for place in range(5)
            if labels[row, place + 1] != -100
        ]
        assert len(expected) == 7
        assert out.loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)

    def test_over_a_given_number_of_items_is_the_sum_divided_by_it(self, model: Any) -> None:
        ids = tokens(2, 6)
        mean = model(input_ids=ids, labels=ids).loss
        shared = model(input_ids=ids, labels=ids, num_items_in_batch=40).loss
        assert shared.item() == pytest.approx(mean.item() * 10 / 40, abs=1e-6)

    def test_holds_the_balancing_loss_where_router_logits_are_asked_for(self) -> None:
        model = text_model(router_aux_loss_coef=0.5)
        ids = tokens(2, 6)
        plain = model(input_ids=ids, labels=ids).loss
        out = model(input_ids=ids, labels=ids, output_router_logits=True)
        expected = load_balancing_loss(out.router_logits, 2)
        assert out.aux_loss.item() == pytest.approx(expected.item())
        assert out.loss.item() == pytest.approx((plain + 0.5 * expected).item(), abs=1e-6)


class TestLoadBalancingLoss:
    def test_is_one_for_experts_that_are_used_alike(self) -> None:
        logits = 5 * torch.eye(4)
        assert load_balancing_loss((logits,), top_k=1).item() == pytest.approx(1.0)

    def test_is_the_number_of_experts_for_one_that_takes_all(self) -> None:
        logits = torch.tensor([[50.0, 0, 0, 0]]).repeat(6, 1)
        assert load_balancing_loss((logits, logits), top_k=1).item() == pytest.approx(4.0)

    def test_is_shares_times_mean_probabilities(self) -> None:
        logits = hidden(3, 4)
        probabilities = logits.softmax(-1)
        share = torch.zeros(4)
        for row in probabilities:
            share[row.topk(2).indices] += 1 / 6
        expected = 4 * (share * probabilities.mean(0)).sum()
        assert load_balancing_loss((logits,), top_k=2).item() == pytest.approx(expected.item())

    def test_does_not_count_padding(self) -> None:
        logits = hidden(6, 4)
        mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
        kept = logits[mask.flatten().bool()]
        assert load_balancing_loss((logits,), 2, mask).item() == pytest.approx(
            load_balancing_loss((kept,), 2).item()
        )


class TestEmbeddings:
    def test_resized_vocabulary_is_counted_everywhere_and_trains(self) -> None:
        model = text_model()
        before = model(input_ids=tokens(1, 4)).logits
        model.resize_token_embeddings(48, mean_resizing=False)
        assert model.config.vocab_size == model.lm_head.out_features == 48
        ids = torch.tensor([[7, 44, 8, 47]])
        assert model(input_ids=ids, labels=ids).loss.isfinite()
        after = model(input_ids=tokens(1, 4)).logits
        torch.testing.assert_close(after[..., :40], before, atol=1e-6, rtol=0)

    def test_head_is_not_the_embedding(self, model: Any) -> None:
        model.tie_weights()
        assert model.get_output_embeddings() is model.lm_head
        assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_fresh_network_is_drawn_with_the_initializer_range() -> None:
    torch.manual_seed(0)
    model = Step3TextForCausalLM(text_config(hidden_size=64, initializer_range=0.05))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | ExpertLinear):
            assert module.weight.std().item() == pytest.approx(0.05, rel=0.15)
        elif isinstance(module, Step3RMSNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
    # Nothing is learned yet: the loss is that of guessing.
    ids = tokens(4, 16)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(math.log(40), abs=0.1)


def test_base_model_of_a_saved_language_model(tmp_path: Path) -> None:
    model = text_model()
    model.save_pretrained(tmp_path)
    decoder = AutoModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    ids = tokens(1, 5)
    assert torch.equal(decoder(input_ids=ids).last_hidden_state, model.model(input_ids=ids).last_hidden_state)
