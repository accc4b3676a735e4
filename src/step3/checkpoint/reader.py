"""Opens a checkpoint, compares it with what its config implies, and reads the part that is wanted.

Opening and checking read headers only and need no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from step3.checkpoint.bounded_json import read_object
from step3.checkpoint.config import CheckpointConfig, read_config
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import TensorInfo, read_header
from step3.checkpoint.layout import TensorSpec, layout, official_name
from step3.checkpoint.part import Part, scale_box

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20

FLOATS = ("BF16", "F16", "F32")
IN_PLACE = ("BF16", "F8_E4M3")
"""What can be multiplied as it is stored."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose headers were read; the weights stay on disk until they are asked for."""

    path: Path
    config: CheckpointConfig
    layout: dict[str, TensorSpec] = field(repr=False)
    """What the config implies, by official name."""
    tensors: dict[str, TensorInfo] = field(repr=False)
    """What the files hold, by official name; block-fp8 weights have `<name>_scale_inv` beside them."""
    unlisted: tuple[TensorInfo, ...] = field(default=(), repr=False)
    """What the files hold but the index does not mention."""

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read config, index and headers of the checkpoint in the folder `path`.

        No code of the checkpoint is run: `auto_map` and Python files are never looked at.

        Raises:
            CheckpointError: not a Step3 checkpoint, a bad config value, a missing or torn file, a header
                or an index that cannot be trusted.
        """
        folder = Path(path)
        config = read_config(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: expected a checkpoint's folder, found a file")
        if (folder / INDEX_FILE).is_file():
            infos, unlisted = _read_shards(folder)
        else:
            infos, unlisted = list(read_header(_single_file(folder)).values()), []
        tensors: dict[str, TensorInfo] = {}
        for info in infos:
            name = official_name(info.name)
            if name in tensors:
                raise CheckpointError(f"{info.file}: {info.name}: {tensors[name].file} holds {name} already")
            tensors[name] = replace(info, name=name)
        return cls(folder, config, layout(config), tensors, tuple(unlisted))

    def problems(self) -> list[str]:
        """How the tensors differ from what the config implies, one line each; empty if they agree."""
        found: list[str] = []
        expected: set[str] = set()
        for spec in self.layout.values():
            expected.add(spec.name)
            found += self._compare(spec.name, spec.shape, ("F8_E4M3",) if spec.quantised else FLOATS)
            if spec.quantised:
                expected.add(spec.scale_name)
                found += self._compare(spec.scale_name, spec.scale_shape, ("F32",))
        for name, info in self.tensors.items():
            if name not in expected:
                found.append(f"{info.file}: {name}: not expected: the config implies no such tensor")
        for info in self.unlisted:
            found.append(f"{info.file}: {info.name}: not expected: {INDEX_FILE} does not list it")
        return found

    def check(self) -> None:
        """Raise if a tensor is missing, extra, of another shape or dtype than the config implies.

        Raises:
            CheckpointError: names the first five differences and how many more there are.
        """
        problems = self.problems()
        if problems:
            rest = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointError("\n".join(problems[:5]) + rest)

    def iter_tensors(
        self,
        part: Part | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        dequantise: bool = False,
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a part, one after another in the order in which they lie on disk.

        Each is read straight onto `device` in its final dtype; besides it a few MiB are in use at any time.

        Args:
            part: what to read; everything if None.
            dtype: the float dtype to convert to; None keeps the stored one. Block-fp8 weights and their
                scales are converted only when `dequantise` is set.
            device: where the tensors go.
            dequantise: give block-fp8 weights as `q * scale` in `dtype` (bfloat16 if None) without
                scales, in place of float8_e4m3fn weights with float32 `<name>_scale_inv`.

        Raises:
            CheckpointError: a tensor of the part is missing or differs from the layout; a cut that the part
                asks for is impossible.
        """
        import torch

        from step3.checkpoint.mapped import DTYPES, MappedFiles

        files = MappedFiles()
        for spec, box in self._select(part or Part()):
            info = self._info(spec)
            shape = [len(r) for r in box]
            if not spec.quantised:
                out = torch.empty(shape, dtype=dtype or DTYPES[info.dtype], device=device)
                files.copy(info, out, box)
                yield spec.name, out
            elif dequantise:
                out = torch.empty(shape, dtype=dtype or torch.bfloat16, device=device)
                files.copy_dequantised(info, self.tensors[spec.scale_name], out, box)
                yield spec.name, out
            else:
                out = torch.empty(shape, dtype=DTYPES[info.dtype], device=device)
                files.copy(info, out, box)
                yield spec.name, out
                scales = scale_box(box)
                out = torch.empty([len(r) for r in scales], dtype=torch.float32, device=device)
                files.copy(self.tensors[spec.scale_name], out, scales)
                yield spec.scale_name, out

    def load(
        self,
        part: Part | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        dequantise: bool = False,
    ) -> dict[str, Tensor]:
        """All tensors of a part by official name; arguments and errors as in `iter_tensors`."""
        return dict(self.iter_tensors(part, dtype=dtype, device=device, dequantise=dequantise))

    def map(self, part: Part | None = None) -> dict[str, Tensor]:
        """The tensors of a part as views of the memory-mapped files: nothing is copied or read ahead.

        Dtypes are as stored, scales included; a piece of `down_proj` is strided. The views are read-only:
        writing to one ends the process. They stay valid while they are referenced, and the kernel pages
        them in and out as it sees fit, so a checkpoint may be larger than memory.

        Raises:
            CheckpointError: as in `iter_tensors`, or data that is not aligned to its dtype.
        """
        from step3.checkpoint.mapped import MappedFiles

        files = MappedFiles()
        views = {}
        for spec, box in self._select(part or Part()):
            views[spec.name] = files.view(self._info(spec), box)
            if spec.quantised:
                views[spec.scale_name] = files.view(self.tensors[spec.scale_name], scale_box(box))
        return views

    def matrices(self, part: Part, in_place: bool = False) -> tuple[dict[str, Tensor], bool]:
        """The weights of a part as stored, and whether they are views as `map` gives them.

        Not every writer aligns its tensors; those that cannot be mapped are read.

        Args:
            in_place: they are to be multiplied where they lie: bfloat16 or block-fp8, and aligned.

        Raises:
            CheckpointError: as in `iter_tensors`; also where `in_place` is impossible.
        """
        if not in_place:
            try:
                return self.map(part), True
            except CheckpointError:
                return self.load(part), False
        for spec, _ in self._select(part):
            info = self._info(spec)
            if info.dtype not in IN_PLACE:
                raise CheckpointError(
                    f"{info.file}: {info.name}: weights that stay in place must be {' or '.join(IN_PLACE)}, "
                    f"found {info.dtype}: load them packed"
                )
        return self.map(part), True

    def _select(self, part: Part) -> list[tuple[TensorSpec, tuple[range, ...]]]:
        count = self.config.text.num_hidden_layers
        if part.layers and not 0 <= min(part.layers) <= max(part.layers) < count:
            raise CheckpointError(f"{self.path}: expected layers within 0..{count - 1}, found {part.layers}")
        chosen = [(spec, box) for spec in self.layout.values() if (box := part.box(spec)) is not None]
        return sorted(chosen, key=lambda choice: (self._info(choice[0]).file, self._info(choice[0]).offset))

    def _info(self, spec: TensorSpec) -> TensorInfo:
        """Where a tensor lies, once it is known to be what the layout wants."""
        problems = self._compare(spec.name, spec.shape, ("F8_E4M3",) if spec.quantised else FLOATS)
        if spec.quantised:
            problems += self._compare(spec.scale_name, spec.scale_shape, ("F32",))
        if problems:
            raise CheckpointError(problems[0])
        return self.tensors[spec.name]

    def _compare(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> list[str]:
        info = self.tensors.get(name)
        wanted = f"expected {' or '.join(dtypes)} {list(shape)}"
        if info is None:
            return [f"{self.path}: {name}: missing: {wanted}, found nothing"]
        if info.shape != shape:
            return [f"{info.file}: {name}: wrong shape: {wanted}, found {info.dtype} {list(info.shape)}"]
        if info.dtype not in dtypes:
            return [f"{info.file}: {name}: wrong dtype: {wanted}, found {info.dtype} {list(info.shape)}"]
        return []


def _single_file(folder: Path) -> Path:
    if (folder / SINGLE_FILE).is_file():
        return folder / SINGLE_FILE
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) == 1:
        return shards[0]
    found = f"{len(shards)} safetensors files" if shards else "no safetensors file"
    raise CheckpointError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found {found} without an index")


def _read_shards(folder: Path) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """The tensors that the index lists, and those that the shards hold besides."""
    index = folder / INDEX_FILE
    weight_map = read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: weight_map: expected an object of file names, found {weight_map!r:.200}"
        )
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or "\0" in file
            or Path(file).name != file
        ):
            raise CheckpointError(
                f"{index}: {name}: expected the name of a safetensors file in its folder, found {file!r:.200}"
            )
    headers = {file: read_header(folder / file) for file in sorted(set(weight_map.values()))}
    listed = []
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(f"{folder / file}: {name}: missing: {INDEX_FILE} says it is here")
        listed.append(headers[file].pop(name))
    return listed, [info for header in headers.values() for info in header.values()]
