"""Random models, cards and demands for the planner's property tests."""

from hypothesis import strategies as st

from step3.plan.attention import (
    Attention,
    GroupedAttention,
    LatentAttention,
    LightningAttention,
    MultiMatrixAttention,
)
from step3.plan.efficiency import Efficiencies, Efficiency
from step3.plan.ffn import FFN, DenseFFN, ExpertFFN
from step3.plan.hardware import Hardware
from step3.plan.precision import Precision
from step3.plan.shape import Layer, ModelShape

heads = st.sampled_from([8, 16, 32, 64, 128])
dims = st.sampled_from([64, 128, 256])


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    query_heads, dim = draw(heads), draw(dims)
    family = draw(st.integers(0, 3))
    if family == 0:
        kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
        return GroupedAttention(query_heads, kv_heads, dim, draw(st.sampled_from([None, 512, 8192])))
    if family == 1:
        return MultiMatrixAttention(query_heads, dim, draw(st.sampled_from([512, 2048])))
    if family == 2:
        return LatentAttention(query_heads, 1536, 512, 128, 64, 128, draw(st.booleans()))
    return LightningAttention(query_heads, dim)


@st.composite
def ffns(draw: st.DrawFn) -> FFN:
    intermediate = 256 * draw(st.integers(1, 72))
    if draw(st.booleans()):
        return DenseFFN(intermediate)
    experts = draw(st.sampled_from([8, 48, 64, 256]))
    shared = draw(st.sampled_from([0, intermediate]))
    return ExpertFFN(experts, draw(st.integers(1, 8)), intermediate, shared)


@st.composite
def models(draw: st.DrawFn) -> ModelShape:
    kinds = draw(st.lists(st.builds(Layer, attentions(), ffns()), min_size=1, max_size=3))
    layers = tuple(layer for layer in kinds for _ in range(draw(st.integers(1, 20))))
    return ModelShape("random", draw(st.sampled_from([2048, 7168])), 128_000, layers, Precision())


shares = st.floats(0.3, 1.0)


@st.composite
def cards(draw: st.DrawFn, name: str = "card") -> Hardware:
    bf16 = draw(st.floats(1e14, 2e15))
    pair = st.builds(Efficiency, shares, shares)
    return Hardware(
        name=name,
        usd_per_hour=draw(st.floats(0.1, 10)),
        bf16_flops=bf16,
        fp8_flops=draw(st.sampled_from([None, 2 * bf16])),
        int8_flops=None,
        fp4_flops=None,
        memory_bandwidth=draw(st.floats(3e11, 8e12)),
        memory_bytes=draw(st.floats(20e9, 200e9)),
        network_bandwidth=draw(st.floats(1e9, 1e11)),
        node_bandwidth=draw(st.floats(1e10, 1e12)),
        cards_per_node=draw(st.sampled_from([1, 4, 8])),
        efficiencies=Efficiencies(draw(pair), draw(pair), draw(pair), draw(shares), draw(shares)),
    )
