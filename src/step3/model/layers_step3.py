"""One decoder layer of Step3: MFA attention, dense and mixture-of-experts FFNs (arXiv 2507.19427).

Told from the bottom up: norm, rotary embedding, attention, FFNs, layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from step3.kernels.precision import widen
from step3.kernels.rotary import cos_sin, inverse_frequencies, rotate
from step3.kernels.routing import combine, dispatch, route
from step3.model.configuration_step3 import Step3TextConfig
from step3.model.linear import expert_linear, linear


class Step3RMSNorm(nn.Module):
    """Root-mean-square norm: computed in float32, cast back, then multiplied by the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(x)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class Step3RotaryEmbedding(nn.Module):
    """Cosine and sine of the positions in a batch, the same for every layer.

    Nothing is stored: a buffer outside the checkpoint would have to survive meta-device loading.
    """

    def __init__(self, config: Step3TextConfig) -> None:
        super().__init__()
        self.config = config
        # A scaling that cannot work is refused here rather than in the first forward pass.
        inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, torch.device("meta"))

    @torch.no_grad()
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`positions` `[batch, tokens]` to two float32 `[batch, 1, tokens, head_dim / 2]`."""
        config = self.config
        frequencies, attention_factor = inverse_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, positions.device
        )
        return cos_sin(positions[:, None], frequencies, attention_factor)


def eager_attention_forward(
    module: "Step3Attention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out; returns `[batch, tokens, heads, head_dim]` and the probabilities."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    probabilities = widen(scores).softmax(dim=-1).to(query.dtype)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class Step3Attention(nn.Module):
    """Multi-matrix factorization attention (paper section 3.1).

    The query goes through a low rank (`q_proj`, norm, `wq`), and one key head and one value head serve all
    query heads: the KV cache of a token is `2 * head_dim` values a layer.
    """

    def __init__(self, config: Step3TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_attention_groups
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        block = config.weight_block_size
        kv_dim = config.num_attention_groups * config.head_dim
        heads_dim = config.num_attention_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, config.share_q_dim, block)
        self.k_proj = linear(config.hidden_size, kv_dim, block)
        self.v_proj = linear(config.hidden_size, kv_dim, block)
        self.inter_norm = Step3RMSNorm(config.share_q_dim, config.rms_norm_eps)
        self.wq = linear(config.share_q_dim, heads_dim, block)
        self.o_proj = linear(heads_dim, config.hidden_size, block)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden_states` `[batch, tokens, hidden]` → the same shape, and the probabilities if eager."""
        batch, tokens, _ = hidden_states.shape
        heads = (batch, tokens, -1, self.head_dim)
        query = self.wq(self.inter_norm(self.q_proj(hidden_states))).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if cache is not None:
            places = {"cache_position": cache_position}
            key, value = cache.update(key, value, self.layer_idx, places)

        attend: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        mixed, probabilities = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs
        )
        return self.o_proj(mixed.reshape(batch, tokens, -1)), probabilities


class Step3MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`; the dense FFN and the shared expert."""

    def __init__(self, hidden_size: int, intermediate_size: int, block: tuple[int, int] | None) -> None:
        super().__init__()
        self.gate_proj = linear(hidden_size, intermediate_size, block)
        self.up_proj = linear(hidden_size, intermediate_size, block)
        self.down_proj = linear(intermediate_size, hidden_size, block)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Step3Router(nn.Linear):
    """Scores every expert for every token, in float32: a rounding here would choose another expert."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(widen(x), widen(self.weight))


class Step3MoE(nn.Module):
    """The routed experts: each token's `moe_top_k` best by softmax over all of them."""

    def __init__(self, config: Step3TextConfig) -> None:
        super().__init__()
        experts, hidden, inner = config.moe_num_experts, config.hidden_size, config.moe_intermediate_size
        block = config.weight_block_size
        self.num_experts, self.top_k, self.renormalise = experts, config.moe_top_k, config.norm_expert_weight
        self.gate = Step3Router(hidden, experts)
        self.gate_proj = expert_linear(experts, hidden, inner, block)
        self.up_proj = expert_linear(experts, hidden, inner, block)
        self.down_proj = expert_linear(experts, inner, hidden, block)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` `[tokens, hidden]` → the same shape, and router logits `[tokens, experts]`."""
        logits = self.gate(x)
        experts, weights = route(logits, self.top_k, self.renormalise)
        plan = dispatch(experts, self.num_experts)
        rows = x[plan.token]
        gated = nn.functional.silu(self.gate_proj(rows, plan.counts)) * self.up_proj(rows, plan.counts)
        return combine(self.down_proj(gated, plan.counts), weights, plan), logits


class Step3DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and FFN, each added to the residual."""

    def __init__(self, config: Step3TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Step3Attention(config, layer_idx)
        self.is_moe = layer_idx in config.moe_layers
        block = config.weight_block_size
        if self.is_moe:
            self.moe = Step3MoE(config)
            self.share_expert = Step3MLP(config.hidden_size, config.share_expert_dim, block)
        else:
            self.mlp = Step3MLP(config.hidden_size, config.intermediate_size, block)
        self.input_layernorm = Step3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Step3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The hidden states; the attention's probabilities and the router's logits where there are any."""
        mixed, probabilities = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + mixed
        normed = self.post_attention_layernorm(hidden_states)
        if not self.is_moe:
            return hidden_states + self.mlp(normed), probabilities, None
        rows = normed.view(-1, normed.shape[-1])
        routed, router_logits = self.moe(rows)
        update = (routed + self.share_expert(rows)).view_as(hidden_states)
        return hidden_states + update, probabilities, router_logits
