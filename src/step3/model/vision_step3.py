"""Step3's vision tower: a ViT whose norms stand after attention and MLP, inside the residual."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from step3.errors import Step3Error
from step3.kernels.precision import widen
from step3.model.configuration_step3 import Step3VisionConfig
from step3.model.pretrained_step3 import Step3PreTrainedModel, fill

# The class row stands first this many times; its rows are dropped after the last layer.
CLASS_ROWS = 4


class Step3PositionEmbedding(nn.Embedding):
    """A learned row for the class and for each patch of a square picture."""

    def __init__(self, grid: int, hidden_size: int) -> None:
        super().__init__(grid**2 + 1, hidden_size)
        self.grid = grid

    def forward(self, grid: int) -> Tensor:
        """`[1 + grid², hidden]`, resized (bicubic, antialiased, float32) from the grid it was trained on."""
        table = self.weight
        if grid == self.grid:
            return table
        picture = widen(table[1:]).view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(
            picture, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
        )
        return torch.cat((table[:1], resized.flatten(2)[0].T.to(table.dtype)))


class Step3VisionEmbeddings(nn.Module):
    """Patches and class row with their learned positions."""

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = Step3PositionEmbedding(
            config.image_size // config.patch_size, config.hidden_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[pictures, channels, side, side]` → `[pictures, 4 + grid², hidden]`."""
        patches = self.patch_embedding(pixel_values)
        rows = patches.flatten(2).transpose(1, 2)
        class_row = self.class_embedding.expand(rows.shape[0], 1, -1).to(rows.dtype)
        rows = torch.cat((class_row, rows), dim=1) + self.position_embedding(patches.shape[-1]).to(rows.dtype)
        return torch.cat((rows[:, :1].expand(-1, CLASS_ROWS - 1, -1), rows), dim=1)


class Step3VisionAttention(nn.Module):
    """Attention of all rows with all rows; query, key and value from one matrix."""

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        pictures, length, hidden = rows.shape
        qkv = self.qkv_proj(rows).view(pictures, length, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(pictures, length, hidden))


class Step3VisionMLP(nn.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise Step3Error(f"config: vision hidden_act {config.hidden_act!r} is not one of Transformers'")
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(rows)))


class Step3VisionLayer(GradientCheckpointingLayer):
    """`h + norm(attn(h))`, then `h + norm(mlp(h))`."""

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__()
        self.self_attn = Step3VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Step3VisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.layer_norm1(self.self_attn(rows))
        return rows + self.layer_norm2(self.mlp(rows))


class Step3VisionTransformer(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Step3VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


class Step3VisionModel(Step3PreTrainedModel):
    """The tower without what follows it."""

    config_class = Step3VisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Step3VisionConfig) -> None:
        super().__init__(config)
        self.embeddings = Step3VisionEmbeddings(config)
        self.transformer = Step3VisionTransformer(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Step3VisionEmbeddings):
            fill(module.class_embedding, 0.0)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """`[pictures, channels, side, side]` → `[pictures, grid², hidden]`, row by row."""
        rows = self.embeddings(pixel_values.to(self.embeddings.patch_embedding.weight.dtype))
        return self.transformer(rows)[:, CLASS_ROWS:]
