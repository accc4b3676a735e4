"""The layers of each model family, from the names that its `config.json` uses."""

from collections.abc import Callable

from step3.plan.attention import (
    Attention,
    GroupedAttention,
    LatentAttention,
    LightningAttention,
    MultiMatrixAttention,
)
from step3.plan.ffn import FFN, DenseFFN, ExpertFFN
from step3.plan.fields import Fields

LayerParts = list[tuple[Attention, FFN]]


def _grouped(fields: Fields, window: int | None = None) -> GroupedAttention:
    heads = fields.integer("num_attention_heads")
    groups = "num_attention_groups" if fields.has("num_attention_groups") else "num_key_value_heads"
    return GroupedAttention(heads, fields.integer(groups, heads), _head_dim(fields), window)


def _head_dim(fields: Fields) -> int:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if not fields.has("head_dim") and hidden % heads:
        raise fields.fail(f"head_dim is missing, and hidden_size {hidden} is not a multiple of {heads} heads")
    return fields.integer("head_dim", hidden // heads)


def _latent(fields: Fields) -> LatentAttention:
    if "q_lora_rank" not in fields.values:
        raise fields.fail("q_lora_rank is missing (null says that queries have no bottleneck)")
    return LatentAttention(
        query_heads=fields.integer("num_attention_heads"),
        query_rank=fields.integer("q_lora_rank") if fields.has("q_lora_rank") else None,
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
    )


def _experts(fields: Fields, count: str, chosen: str, intermediate: str, shared: int = 0) -> ExpertFFN:
    experts, top_k = fields.integer(count), fields.integer(chosen)
    if top_k > experts:
        raise fields.fail(f"{chosen} is {top_k}, more than the {experts} experts")
    return ExpertFFN(experts, top_k, fields.integer(intermediate), shared)


def _dense(fields: Fields, name: str = "intermediate_size") -> DenseFFN:
    return DenseFFN(fields.integer(name))


def _numbered_layers(fields: Fields, name: str, count: int) -> set[int]:
    """Layer numbers written as "4,5,6" or as a list."""
    value = fields.values.get(name)
    if value is None:
        raise fields.fail(f"{name} is missing")
    parts = value.split(",") if isinstance(value, str) else fields.items(name)
    try:
        numbers = {int(part) for part in parts if str(part).strip()}
    except (TypeError, ValueError):
        raise fields.fail(f"{name} must hold layer numbers, not {value!r:.60}") from None
    return {number for number in numbers if 0 <= number < count}


def _windowed_layers(fields: Fields, count: int, window: str, kind: str) -> list[bool]:
    """Whether each layer sees a window only, from `layer_types`."""
    types = fields.items("layer_types", count)[:count]
    unknown = {str(entry) for entry in types} - {"full_attention", kind}
    if unknown:
        raise fields.fail(
            f"layer_types names {sorted(unknown)[0]:.60}, which is neither full_attention nor {kind}"
        )
    if kind in types:
        fields.integer(window)
    return [entry == kind for entry in types]


def _llama(fields: Fields, count: int) -> LayerParts:
    """Llama and Mistral: dense; a `sliding_window` holds for every layer."""
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    return [(_grouped(fields, window), _dense(fields))] * count


def _qwen_windows(fields: Fields, count: int) -> list[GroupedAttention]:
    """Qwen's attention: a window, if it is switched on at all, from layer `max_window_layers` on."""
    if not fields.flag("use_sliding_window", False):
        return [_grouped(fields)] * count
    if fields.has("layer_types"):
        windowed = _windowed_layers(fields, count, "sliding_window", "sliding_attention")
    else:
        first = fields.integer("max_window_layers", least=0)
        windowed = [i >= first for i in range(count)]
    narrow = _grouped(fields, fields.integer("sliding_window"))
    return [narrow if window else _grouped(fields) for window in windowed]


def _qwen(fields: Fields, count: int) -> LayerParts:
    """Qwen2 and Qwen3: dense."""
    return [(attention, _dense(fields)) for attention in _qwen_windows(fields, count)]


def _mixtral(fields: Fields, count: int) -> LayerParts:
    """Mixtral: experts in every layer."""
    window = fields.integer("sliding_window") if fields.has("sliding_window") else None
    experts = _experts(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size")
    return [(_grouped(fields, window), experts)] * count


def _qwen_moe(fields: Fields, count: int) -> LayerParts:
    """Qwen2 MoE and Qwen3 MoE: some layers may be dense; Qwen2 MoE has a shared expert."""
    shared = fields.integer("shared_expert_intermediate_size", 0, least=0)
    experts = _experts(fields, "num_experts", "num_experts_per_tok", "moe_intermediate_size", shared)
    dense = _numbered_layers(fields, "mlp_only_layers", count) if fields.has("mlp_only_layers") else set()
    every = fields.integer("decoder_sparse_step", 1)
    return [
        (attention, experts if i not in dense and (i + 1) % every == 0 else _dense(fields))
        for i, attention in enumerate(_qwen_windows(fields, count))
    ]


def _pangu(fields: Fields, count: int) -> LayerParts:
    """Pangu Pro MoE: as Qwen2 MoE. Its second version shares the name, but not the attention."""
    if fields.has("qk_nope_dim"):
        raise fields.fail(
            "qk_nope_dim says openPangu's second version, whose attention the planner does not know"
        )
    return _qwen_moe(fields, count)


def _deepseek(fields: Fields, count: int) -> LayerParts:
    """DeepSeek-V3 and Kimi K2: MLA, the first layers dense."""
    each = fields.integer("moe_intermediate_size")
    shared = each * fields.integer("n_shared_experts", least=0)
    experts = _experts(fields, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", shared)
    first = fields.integer("first_k_dense_replace", least=0)
    return [(_latent(fields), experts if i >= first else _dense(fields)) for i in range(count)]


def _step3(fields: Fields, count: int) -> LayerParts:
    """Step3: MFA; `moe_layers_enum` names the layers with experts and a shared expert."""
    groups = fields.integer("num_attention_groups")
    if groups != 1:
        raise fields.fail(f"num_attention_groups is {groups}: MFA has one key and value head for all queries")
    attention = MultiMatrixAttention(
        fields.integer("num_attention_heads"), fields.integer("head_dim"), fields.integer("share_q_dim")
    )
    shared = fields.integer("share_expert_dim", least=0)
    experts = _experts(fields, "moe_num_experts", "moe_top_k", "moe_intermediate_size", shared)
    with_experts = _numbered_layers(fields, "moe_layers_enum", count)
    return [(attention, experts if i in with_experts else _dense(fields)) for i in range(count)]


def _step3_flash(fields: Fields, count: int) -> LayerParts:
    """Step-3.5 and Step-3.7: full and sliding layers with head counts of their own, gated heads."""
    other = fields.inner("attention_other_setting") if fields.has("attention_other_setting") else None
    windowed = _windowed_layers(fields, count, "sliding_window", "sliding_attention")
    gated = fields.flag("use_head_wise_attn_gate", False)

    def attention(sliding: bool) -> GroupedAttention:
        source = other if sliding and other is not None else fields
        heads = source.integer("num_attention_heads")
        groups = source.first("num_attention_groups", "num_key_value_heads")
        window = fields.integer("sliding_window") if sliding else None
        dim = source.integer("head_dim")
        return GroupedAttention(heads, source.integer(groups), dim, window, heads if gated else 0)

    shared = fields.integer(fields.first("share_expert_dim", "share_expert_dims"), least=0)
    experts = _experts(
        fields,
        fields.first("moe_num_experts", "n_routed_experts"),
        fields.first("moe_top_k", "num_experts_per_tok"),
        "moe_intermediate_size",
        shared,
    )
    with_experts = _numbered_layers(fields, "moe_layers_enum", count)
    return [
        (attention(sliding), experts if i in with_experts else _dense(fields))
        for i, sliding in enumerate(windowed)
    ]


def _llama4(fields: Fields, count: int) -> LayerParts:
    """Llama 4: three chunked layers to one full, experts with a shared one in every `step`-th layer."""
    chunked = _grouped(fields, fields.integer("attention_chunk_size"))
    if fields.has("layer_types"):
        sees_chunk = _windowed_layers(fields, count, "attention_chunk_size", "chunked_attention")
    elif fields.values.get("no_rope_layers"):
        sees_chunk = [bool(entry) for entry in fields.items("no_rope_layers", count)]
    else:
        full_every = fields.integer("no_rope_layer_interval", 4)
        sees_chunk = [(i + 1) % full_every != 0 for i in range(count)]
    shared = fields.integer("intermediate_size")
    experts = _experts(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size", shared)
    if fields.has("moe_layers"):
        with_experts = _numbered_layers(fields, "moe_layers", count)
    else:
        step = fields.integer("interleave_moe_layer_step")
        with_experts = set(range(step - 1, count, step))
    return [
        (
            chunked if sees_chunk[i] else _grouped(fields),
            experts if i in with_experts else _dense(fields, "intermediate_size_mlp"),
        )
        for i in range(count)
    ]


def _minimax(fields: Fields, count: int) -> LayerParts:
    """MiniMax-Text-01 and -M1: lightning attention, and softmax attention in every eighth layer."""
    softmax_mark = {"attn_type_list": 1, "layer_types": "full_attention"}
    name = fields.first("attn_type_list", "layer_types")
    softmax = [entry == softmax_mark[name] for entry in fields.items(name, count)]
    lightning = LightningAttention(fields.integer("num_attention_heads"), _head_dim(fields))
    experts = _experts(fields, "num_local_experts", "num_experts_per_tok", "intermediate_size")
    return [(_grouped(fields) if softmax[i] else lightning, experts) for i in range(count)]


def _ernie(fields: Fields, count: int) -> LayerParts:
    """ERNIE 4.5 MoE: dense layers before `moe_layer_start_index`."""
    each = fields.integer("moe_intermediate_size")
    shared = each * fields.integer("moe_num_shared_experts", 0, least=0)
    experts = _experts(fields, "moe_num_experts", "moe_k", "moe_intermediate_size", shared)
    start = fields.integer("moe_layer_start_index", least=0)
    end = fields.values.get("moe_layer_end_index", -1)
    last = count - 1 if end in (None, -1) else fields.integer("moe_layer_end_index", least=0)
    every = fields.integer("moe_layer_interval", 1)
    return [
        (_grouped(fields), experts if start <= i <= last and (i + 1) % every == 0 else _dense(fields))
        for i in range(count)
    ]


def _gpt_oss(fields: Fields, count: int) -> LayerParts:
    """gpt-oss: sliding and full layers in turn, experts everywhere."""
    windowed = _windowed_layers(fields, count, "sliding_window", "sliding_attention")
    chosen = fields.first("num_experts_per_tok", "experts_per_token")
    experts = _experts(fields, "num_local_experts", chosen, "intermediate_size")
    narrow = _grouped(fields, fields.integer("sliding_window"))
    return [(narrow if sliding else _grouped(fields), experts) for sliding in windowed]


LAYER_READERS: dict[str, Callable[[Fields, int], LayerParts]] = {
    "step3_vl": _step3,
    "step3_text": _step3,
    "step3p5": _step3_flash,
    "step3p7": _step3_flash,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen2_moe": _qwen_moe,
    "qwen3_moe": _qwen_moe,
    "llama": _llama,
    "llama4": _llama4,
    "llama4_text": _llama4,
    "mistral": _llama,
    "mixtral": _mixtral,
    "minimax": _minimax,
    "minimax_text_01": _minimax,
    "minimaxtext01": _minimax,
    "minimax_m1": _minimax,
    "minimaxm1": _minimax,
    "ernie4_5_moe": _ernie,
    "pangupromoe": _pangu,
    "pangu_pro_moe": _pangu,
    "gpt_oss": _gpt_oss,
}

"""How to read the layers of each `model_type` (lower case): (fields of the text model, layers) → layers."""
