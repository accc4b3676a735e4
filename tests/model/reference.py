"""Step3 written plainly from its published description: one sequence, no cache, loops over heads and tokens.

It takes a checkpoint's tensors under their official names and computes in their dtype. Nothing is shared with
the package.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = Mapping[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: Tensor, theta: float) -> Tensor:
    """`x` [tokens, head_dim] at positions 0, 1, ...: channel i and i + half are one complex number."""
    tokens, size = x.shape
    half = size // 2
    turns = torch.tensor(
        [[p * theta ** (-2 * i / size) for i in range(half)] for p in range(tokens)], dtype=torch.float64
    )
    pairs = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(
        torch.ones_like(turns), turns
    )
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


def attention(x: Tensor, config: Mapping[str, Any], tensors: Tensors, name: str) -> Tensor:
    low_rank = rms_norm(
        x @ tensors[f"{name}.q_proj.weight"].T, tensors[f"{name}.inter_norm.weight"], config["rms_norm_eps"]
    )
    queries = low_rank @ tensors[f"{name}.wq.weight"].T
    size, theta = config["head_dim"], config["rope_theta"]
    keys = (x @ tensors[f"{name}.k_proj.weight"].T).split(size, dim=-1)
    values = (x @ tensors[f"{name}.v_proj.weight"].T).split(size, dim=-1)
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = []
    for head, query in enumerate(queries.split(size, dim=-1)):
        group = head * len(keys) // config["num_attention_heads"]
        scores = rotated(query, theta) @ rotated(keys[group], theta).T / math.sqrt(size)
        mixed.append(scores.masked_fill(future, -math.inf).softmax(-1) @ values[group])
    return torch.cat(mixed, dim=-1) @ tensors[f"{name}.o_proj.weight"].T


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gated = x @ gate.T
    return (gated * gated.sigmoid() * (x @ up.T)) @ down.T


def dense(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    return swiglu(x, *(tensors[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))


def experts(x: Tensor, config: Mapping[str, Any], tensors: Tensors, name: str) -> Tensor:
    """Each token on its own: softmax over all experts, the best k, their weighted sum."""
    rows = []
    for token in x:
        probabilities = (tensors[f"{name}.gate.weight"] @ token).softmax(-1)
        best = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[
            : config["moe_top_k"]
        ]
        weights = [probabilities[expert] for expert in best]
        if config["norm_expert_weight"]:
            weights = [weight / sum(weights) for weight in weights]
        parts = [tensors[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")]
        rows.append(
            sum(w * swiglu(token, *(part[e] for part in parts)) for e, w in zip(best, weights, strict=True))
        )
    return torch.stack(rows)


def decode(embeddings: Tensor, config: Mapping[str, Any], tensors: Tensors) -> Tensor:
    """`[tokens, hidden]` embeddings → `[tokens, vocabulary]` logits."""
    h, eps = embeddings, config["rms_norm_eps"]
    moe_layers = [int(layer) for layer in config["moe_layers_enum"].split(",") if layer]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        normed = rms_norm(h, tensors[f"{name}.input_layernorm.weight"], eps)
        h = h + attention(normed, config, tensors, f"{name}.self_attn")
        normed = rms_norm(h, tensors[f"{name}.post_attention_layernorm.weight"], eps)
        if layer in moe_layers:
            h = h + experts(normed, config, tensors, f"{name}.moe")
            h = h + dense(normed, tensors, f"{name}.share_expert")
        else:
            h = h + dense(normed, tensors, f"{name}.mlp")
    return rms_norm(h, tensors["model.norm.weight"], eps) @ tensors["lm_head.weight"].T


def positions(table: Tensor, grid: int) -> Tensor:
    """The class row and the grid's rows, resized from the grid that the table was trained on."""
    trained = math.isqrt(len(table) - 1)
    if grid == trained:
        return table
    square = table[1:].float().T.reshape(1, -1, trained, trained)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat((table[:1], resized[0].flatten(1).T.to(table.dtype)))


def tower(picture: Tensor, config: Mapping[str, Any], tensors: Tensors) -> Tensor:
    """`[channels, side, side]` → `[features, hidden]` as they stand in the prompt."""
    vision, name = config["vision_config"], "vision_model"

    def linear(x: Tensor, part: str) -> Tensor:
        return x @ tensors[f"{part}.weight"].T + tensors[f"{part}.bias"]

    def layer_norm(x: Tensor, part: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + vision["layer_norm_eps"]).sqrt()
        return scaled * tensors[f"{part}.weight"] + tensors[f"{part}.bias"]

    patch, heads = vision["patch_size"], vision["num_attention_heads"]
    kernel = tensors[f"{name}.embeddings.patch_embedding.weight"].flatten(1)
    squares = picture.unfold(1, patch, patch).unfold(2, patch, patch)
    grid = squares.shape[1]
    patches = squares.permute(1, 2, 0, 3, 4).reshape(grid * grid, -1) @ kernel.T
    patches = patches + tensors[f"{name}.embeddings.patch_embedding.bias"]
    h = torch.cat((tensors[f"{name}.embeddings.class_embedding"].reshape(1, -1), patches))
    h = h + positions(tensors[f"{name}.embeddings.position_embedding.weight"], grid)
    h = torch.cat((h[:1], h[:1], h[:1], h))
    for layer in range(vision["num_hidden_layers"]):
        part = f"{name}.transformer.layers.{layer}"
        q, k, v = linear(h, f"{part}.self_attn.qkv_proj").chunk(3, dim=-1)
        size = q.shape[-1] // heads
        mixed = [
            (one @ k[:, at : at + size].T / math.sqrt(size)).softmax(-1) @ v[:, at : at + size]
            for at, one in zip(range(0, q.shape[-1], size), q.split(size, dim=-1), strict=True)
        ]
        mixed = linear(torch.cat(mixed, dim=-1), f"{part}.self_attn.out_proj")
        h = h + layer_norm(mixed, f"{part}.layer_norm1")
        inner = linear(h, f"{part}.mlp.fc1")
        h = h + layer_norm(
            linear(inner * (1.702 * inner).sigmoid(), f"{part}.mlp.fc2"), f"{part}.layer_norm2"
        )
    square = h[4:].T.reshape(1, -1, grid, grid)
    for part, stride, padding in (
        ("vit_downsampler", config["understand_projector_stride"], 0),
        ("vit_downsampler2", 2, 1),
    ):
        square = F.conv2d(
            square, tensors[f"{part}.weight"], tensors[f"{part}.bias"], stride=stride, padding=padding
        )
    features = square[0].flatten(1).T @ tensors["vit_large_projector.weight"].T
    return features + tensors.get("vit_large_projector.bias", features.new_zeros(()))


def logits(
    input_ids: Sequence[int], config: Mapping[str, Any], tensors: Tensors, pictures: Sequence[Tensor] = ()
) -> Tensor:
    """Of one sequence `[tokens, vocabulary]`; `pictures` in the order of their places, crops first."""
    embeddings = tensors["model.embed_tokens.weight"][list(input_ids)]
    if pictures:
        places = [i for i, token in enumerate(input_ids) if token == config["image_token_id"]]
        embeddings[places] = torch.cat([tower(picture, config, tensors) for picture in pictures])
    return decode(embeddings, config.get("text_config", config), tensors)
