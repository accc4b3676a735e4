"""The Step3 decoder and its language model for Transformers (arXiv 2507.19427)."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from step3.errors import Step3Error
from step3.kernels.precision import widen
from step3.model.cache_name import CACHE, either
from step3.model.configuration_step3 import Step3TextConfig
from step3.model.layers_step3 import Step3DecoderLayer, Step3RMSNorm, Step3RotaryEmbedding
from step3.model.linear import leave_plain
from step3.model.pretrained_step3 import Step3PreTrainedModel

# Transformers 4 wants the places that a step writes to; Transformers 5 lets the cache count.
_MASK_NEEDS_CACHE_POSITION = "cache_position" in inspect.signature(create_causal_mask).parameters


class Step3TextModel(Step3PreTrainedModel):
    """The decoder: embedding, layers, final norm."""

    def __init__(self, config: Step3TextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Step3DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = Step3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Step3RotaryEmbedding(config)
        self.gradient_checkpointing = False
        leave_plain(self, "model.", config.unquantised_names)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast | tuple:
        """Runs the decoder over a batch of padded sequences.

        Args:
            input_ids: `[batch, tokens]`; or `inputs_embeds` `[batch, tokens, hidden]`, one of the two.
            attention_mask: `[batch, cached + tokens]`, 1 for tokens and 0 for padding on either side; or a
                ready 4D mask.
            position_ids: `[batch, tokens]`; counted from the mask where left out.
            past_key_values, cache: keys and values of earlier tokens, by either name.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden]` and, as asked for, the cache, every layer's hidden
            states, attention probabilities (eager only) and router logits `[batch * tokens, experts]`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        cache = either(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache()
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if output_attentions and config._attn_implementation != "eager":
            raise Step3Error(
                "output_attentions needs attn_implementation='eager': "
                f"{config._attn_implementation!r} never holds the probabilities"
            )
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_router_logits is None:
            output_router_logits = config.output_router_logits

        tokens = inputs_embeds.shape[1]
        if cache_position is None:
            cached = cache.get_seq_length() if cache is not None else 0
            cache_position = torch.arange(tokens, device=inputs_embeds.device) + cached
        if position_ids is None:
            position_ids = _count_positions(attention_mask, cache_position)
        mask_inputs: dict[str, Any] = {CACHE: cache, "position_ids": position_ids}
        if _MASK_NEEDS_CACHE_POSITION:
            mask_inputs["cache_position"] = cache_position
        mask = create_causal_mask(config, inputs_embeds, attention_mask, **mask_inputs)
        position_embeddings = self.rotary_emb(position_ids)

        hidden_states = inputs_embeds
        all_hidden_states: list[Tensor] = []
        attentions: list[Tensor | None] = []
        router_logits: list[Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
            hidden_states, probabilities, logits = layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                cache=cache if use_cache else None,
                cache_position=cache_position,
            )
            if output_attentions:
                attentions.append(probabilities)
            if output_router_logits and logits is not None:
                router_logits.append(logits)
        hidden_states = self.norm(hidden_states)
        all_hidden_states.append(hidden_states)

        outputs = MoeModelOutputWithPast(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            router_logits=tuple(router_logits) if output_router_logits else None,
            **{CACHE: cache if use_cache else None},
        )
        return outputs if _wants_dict(config, return_dict) else outputs.to_tuple()


def _count_positions(attention_mask: Tensor | None, cache_position: Tensor) -> Tensor:
    """`[batch, tokens]`: padding does not count, so a padded row has the positions it has alone."""
    if attention_mask is None or attention_mask.ndim != 2:
        return cache_position[None]
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, cache_position]


def _wants_dict(config: Step3TextConfig, return_dict: bool | None) -> bool:
    if return_dict is not None:
        return return_dict
    return bool(getattr(config, "return_dict", True))


class Step3ForCausalLM(Step3PreTrainedModel, GenerationMixin):
    """A decoder in `self.model` and the head on top of it; base of the text and the vision–language model."""

    _tied_weights_keys = None

    def _valid_auto_compile_criteria(self, *args: Any, **kwargs: Any) -> bool:
        """Never compiles behind the user's back: expert counts steer the shapes of every step."""
        return False

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Callable:
        """Never: Transformers would import `custom_generate/generate.py` from beside the weights.

        Raises:
            OSError: always; Transformers takes it for "there is none".
        """
        raise OSError("Step3 imports no Python files of a checkpoint")

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | tuple:
        """Scores the next token after each place.

        Args:
            input_ids: `[batch, tokens]`; or `inputs_embeds` `[batch, tokens, hidden]`, one of the two.
            attention_mask: `[batch, cached + tokens]`, 0 for padding on either side.
            position_ids: `[batch, tokens]`; counted from the mask where left out.
            past_key_values, cache: keys and values of earlier tokens, by either name.
            labels: `[batch, tokens]`, -100 where nothing is to be learned; shifted here.
            logits_to_keep: how many of the last places to score (0: all), or which.
            num_items_in_batch: what the loss is divided by, instead of the number of labels here.

        Returns:
            `logits` `[batch, kept, vocabulary]`, with `labels` also `loss`: mean cross entropy, and the
            load-balancing loss `aux_loss` in it where router logits are asked for.
        """
        text_config = self.config.get_text_config()
        if output_router_logits is None:
            output_router_logits = text_config.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=either(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache_position=cache_position,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_router_logits=output_router_logits,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = aux_loss = None
        if labels is not None:
            sums = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=text_config.vocab_size, **sums)
        if output_router_logits and outputs.router_logits:
            aux_loss = load_balancing_loss(outputs.router_logits, text_config.moe_top_k, attention_mask)
            if loss is not None:
                loss = loss + text_config.router_aux_loss_coef * aux_loss
        result = MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            **{CACHE: outputs.get(CACHE)},
        )
        return result if _wants_dict(self.config, return_dict) else result.to_tuple()


class Step3TextForCausalLM(Step3ForCausalLM):
    """Step3 without eyes: `model_type` "step3_text"."""

    def __init__(self, config: Step3TextConfig) -> None:
        super().__init__(config)
        self.model = Step3TextModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value


def load_balancing_loss(
    router_logits: tuple[Tensor, ...], top_k: int, attention_mask: Tensor | None = None
) -> Tensor:
    """How unevenly the experts are used: 1.0 when balanced (Switch Transformer, arXiv 2101.03961, eq. 4–6).

    Args:
        router_logits: for each layer `[batch * tokens, experts]`.
        attention_mask: `[batch, tokens]`; padding does not count.
    """
    losses = []
    for logits in router_logits:
        if attention_mask is not None and attention_mask.numel() == logits.shape[0]:
            logits = logits[attention_mask.reshape(-1).bool()]
        probabilities = widen(logits).softmax(dim=-1)
        chosen = probabilities.topk(top_k, dim=-1).indices
        experts = logits.shape[-1]
        used = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        losses.append(experts * (used * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()
