"""Where checkpoints to test with lie, and ways to draw, split and spoil them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from step3.checkpoint.config import parse_config
from step3.checkpoint.layout import layout

DATA = Path(__file__).parent.parent / "data"
GOLDEN = DATA / "golden"
PUBLISHED = DATA / "published"

Header = dict[str, Any]


def draw(folder: Path, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Path:
    """A text-only checkpoint with random weights; `fields` replace those of the golden config."""
    folder.mkdir()
    config = json.loads((GOLDEN / "text" / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        spec.name: torch.randn(spec.shape, generator=generator).to(dtype)
        for spec in layout(parse_config(config, folder)).values()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file as copies, so that the file may be overwritten."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def reshard(folder: Path, shards: int = 3) -> Path:
    """Spread the one weight file of `folder` over several with an index."""
    tensors = read_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[i::shards]
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Let `change` alter the tensors of the one weight file of `folder`."""
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def rewrite_config(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def write_raw(path: Path, header: Header | bytes, data: bytes = b"") -> Path:
    """A safetensors file with exactly this header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    )
