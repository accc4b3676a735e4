"""Turns a bf16 checkpoint into block-fp8 in the official layout, in little memory, resumably.

The result is built in `OUT.partial` beside OUT and renamed when it is whole, so OUT is never half-written.
A shard is written under another name, flushed to disk and renamed too: whatever ends the process, the
shards that bear their name are finished, and the next run goes on behind them.

    OUT.partial/source.json     which files this was begun from
    OUT.partial/lock            held while a process writes
    OUT.partial/checkpoint/     becomes OUT
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, uint8

from step3.checkpoint import block_fp8
from step3.checkpoint.bounded_json import parse_object, read_object
from step3.checkpoint.config import BLOCK, MAX_CONFIG_BYTES, BlockFp8, read_config
from step3.checkpoint.durable import UNFINISHED, finish_file, locked, sync_folder, write_at, write_file
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import StoredTensor, encode_header
from step3.checkpoint.layout import TensorSpec, layout
from step3.checkpoint.mapped import MappedFiles
from step3.checkpoint.reader import INDEX_FILE, SINGLE_FILE, Checkpoint

QUANTISATION_CONFIG = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [BLOCK, BLOCK],
}

COMPANIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
)
"""Files that are copied beside the weights. Python files never are."""

SHARD_BYTES = 2_000_000_000
TILE_ELEMENTS = 8 << 20
"""Weights quantised at a time; each takes about 11 bytes meanwhile."""

Progress = Callable[[int], None]
"""Is told the bytes of source weights that are done since it was last told."""


@dataclass(frozen=True)
class Shard:
    """One file of the result."""

    file: str
    specs: tuple[TensorSpec, ...]


class Quantisation:
    """The conversion of one checkpoint: planned and checked when made, carried out by `run`."""

    def __init__(
        self,
        source: str | Path,
        target: str | Path,
        *,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
        tile_elements: int = TILE_ELEMENTS,
    ) -> None:
        """Check everything that can be known before any weight is read.

        Args:
            source: folder of a bf16, fp16 or fp32 checkpoint.
            target: folder to make; what is not quantised keeps the source's dtype.
            overwrite: replace a checkpoint that is at `target`, once the new one is whole.
            shard_bytes: about how large a file of the result may be.
            tile_elements: weights to work on at a time.

        Raises:
            CheckpointError: the source is already quantised, incomplete or malformed; the target exists, is
                the source, or has a partial result of another source.
        """
        self.source = Checkpoint.open(source)
        if self.source.config.quantisation:
            raise CheckpointError(f"{self.source.path}: expected unquantised weights, found block-fp8")
        self.source.check()
        self.target = Path(os.path.abspath(target))
        self._overwrite = overwrite
        self._partial = self.target.with_name(self.target.name + ".partial")
        self._building = self._partial / "checkpoint"
        self._lock = self._partial / "lock"
        self._mark = self._partial / "source.json"
        self._shard_bytes = shard_bytes
        self._tile_elements = tile_elements
        self._require_free_target()
        _require_apart(self._partial, self.source.path)
        config = replace(self.source.config, quantisation=BlockFp8())
        self.shards = tuple(self._plan(list(layout(config).values())))

    @property
    def total_bytes(self) -> int:
        """Bytes of source weights to go through."""
        return sum(info.nbytes for info in self.source.tensors.values())

    @property
    def result_bytes(self) -> int:
        """Bytes of weights and scales that the result holds."""
        return sum(tensor.nbytes for shard in self.shards for tensor in self._stored(shard.specs))

    def run(self, progress: Progress = lambda _: None) -> None:
        """Write the result, or what a stopped run has left of it, and put it in its place.

        Raises:
            CheckpointError: weights that are not finite, another process at work, another source's partial
                result, or a full disk.
        """
        try:
            self._require_own_partial()
            self._building.mkdir(parents=True, exist_ok=True)
            with locked(self._lock):
                self._require_same_source()
                for leftover in self._building.glob("*" + UNFINISHED):
                    leftover.unlink()
                self._require_space()
                for shard in self.shards:
                    self._write_shard(shard, progress)
                self._write_index()
                self._write_config()
                _copy_companions(self.source.path, self._building)
                Checkpoint.open(self._building).check()
                self._put_in_place()
        except OSError as error:
            raise CheckpointError(
                f"{self._partial}: {error}; finished shards are kept, run again to go on"
            ) from error

    def _plan(self, specs: list[TensorSpec]) -> Iterator[Shard]:
        groups: list[list[TensorSpec]] = [[]]
        filled = 0
        for spec in specs:
            nbytes = sum(tensor.nbytes for tensor in self._stored((spec,)))
            if groups[-1] and filled + nbytes > self._shard_bytes:
                groups.append([])
                filled = 0
            groups[-1].append(spec)
            filled += nbytes
        for i, group in enumerate(groups, 1):
            file = SINGLE_FILE if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
            yield Shard(file, tuple(group))

    def _stored(self, specs: tuple[TensorSpec, ...]) -> list[StoredTensor]:
        tensors = []
        for spec in specs:
            if spec.quantised:
                tensors.append(StoredTensor(spec.name, spec.shape, "F8_E4M3"))
                tensors.append(StoredTensor(spec.scale_name, spec.scale_shape, "F32"))
            else:
                tensors.append(StoredTensor(spec.name, spec.shape, self.source.tensors[spec.name].dtype))
        return tensors

    def _require_free_target(self) -> None:
        """Refuse a target whose making or replacing would destroy what the user may want to keep."""
        target = self.target
        _require_apart(target, self.source.path)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise CheckpointError(f"{target}: expected a folder or nothing, found a link or a file")
        if not target.exists() or not any(target.iterdir()):
            return
        if not self._overwrite:
            raise CheckpointError(
                f"{target}: exists already; choose another name, or replace it with --overwrite"
            )
        try:
            read_config(target)
        except CheckpointError as error:
            raise CheckpointError(
                f"{target}: not a Step3 checkpoint, so it is not replaced ({error})"
            ) from None

    def _require_own_partial(self) -> None:
        """Refuse to build in a folder that no run of this command has made."""
        if not self._partial.exists() or self._mark.exists():
            return
        building = self._building.iterdir() if self._building.is_dir() else ()
        if {self._lock, self._building}.issuperset(self._partial.iterdir()) and not any(building):
            return
        raise CheckpointError(f"{self._partial}: not left by a stopped run; move it away")

    def _require_same_source(self) -> None:
        """Refuse to mix shards of two sources: files are told apart by name, size and time of change."""
        files = sorted({info.file for info in self.source.tensors.values()})
        stats = [(file.name, file.stat()) for file in files]
        config = (self.source.path / "config.json").read_bytes()
        mark = {
            "config": hashlib.sha256(config).hexdigest(),
            "shard_bytes": self._shard_bytes,
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }
        if not self._mark.exists():
            write_file(self._mark, json.dumps(mark).encode())
        elif read_object(self._mark, MAX_CONFIG_BYTES) != mark:
            raise CheckpointError(
                f"{self._partial}: left by a run on another source or with another shard size; "
                "repeat that run, or delete the folder to start anew"
            )

    def _require_space(self) -> None:
        done = sum(file.stat().st_size for file in self._building.glob("*.safetensors"))
        needed = self.result_bytes - done
        free = shutil.disk_usage(self._partial).free
        if needed > free:
            raise CheckpointError(
                f"{self._partial}: expected {needed:,} bytes of free disk space, found {free:,}"
            )

    def _write_shard(self, shard: Shard, progress: Progress) -> None:
        path = self._building / shard.file
        stored = self._stored(shard.specs)
        header, offsets = encode_header(stored)
        if path.exists():
            _require_finished(path, header, len(header) + sum(tensor.nbytes for tensor in stored))
            progress(sum(self.source.tensors[spec.name].nbytes for spec in shard.specs))
            return
        unfinished = path.with_name(path.name + UNFINISHED)
        files = MappedFiles()
        with unfinished.open("wb", buffering=0) as out:
            write_at(out.fileno(), header, 0)
            for spec in shard.specs:
                self._write_tensor(out.fileno(), files, spec, offsets, progress)
            os.fsync(out.fileno())
        finish_file(unfinished, path)

    def _write_tensor(
        self, out: int, files: MappedFiles, spec: TensorSpec, offsets: dict[str, int], progress: Progress
    ) -> None:
        info = self.source.tensors[spec.name]
        box = tuple(range(size) for size in spec.shape)
        at = offsets[spec.name]
        scale_at = offsets.get(spec.scale_name, 0)
        for _, weights in files.iter_tiles(info, box, self._tile_elements, row_multiple=BLOCK):
            if spec.quantised:
                q, scale = block_fp8.quantise(weights, f"{info.file}: {spec.name}")
                at += write_at(out, _octets(q), at)
                scale_at += write_at(out, _octets(scale), scale_at)
            else:
                at += write_at(out, _octets(weights), at)
            progress(weights.nbytes)

    def _write_index(self) -> None:
        if len(self.shards) == 1:
            return
        weight_map = {
            tensor.name: shard.file for shard in self.shards for tensor in self._stored(shard.specs)
        }
        index = {"metadata": {"total_size": self.result_bytes}, "weight_map": weight_map}
        write_file(self._building / INDEX_FILE, _json(index))

    def _write_config(self) -> None:
        config = read_object(self.source.path / "config.json", MAX_CONFIG_BYTES)
        config = _without_code(config) | {"quantization_config": QUANTISATION_CONFIG}
        write_file(self._building / "config.json", _json(config))

    def _put_in_place(self) -> None:
        self._require_free_target()
        replaced = self._partial / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self.target.exists():
            self.target.rename(replaced)
        self._building.rename(self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        self._mark.unlink()
        self._lock.unlink()
        with suppress(OSError):  # what is left would be the user's
            self._partial.rmdir()


def _require_apart(folder: Path, source: Path) -> None:
    real, source = Path(os.path.realpath(folder)), Path(os.path.realpath(source))
    if real == source or source in real.parents or real in source.parents:
        raise CheckpointError(f"{folder}: expected a folder apart from the source {source}")


def _require_finished(path: Path, header: bytes, size: int) -> None:
    with path.open("rb") as file:
        if path.stat().st_size != size or file.read(len(header)) != header:
            raise CheckpointError(f"{path}: changed since it was finished; delete it and run again")


def _copy_companions(source: Path, target: Path) -> None:
    for pattern in COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if not file.is_file() or file.suffix == ".py":
                continue
            data = file.read_bytes()
            if file.name.endswith("config.json"):
                data = _json(_without_code(parse_object(data, file)))
            write_file(target / file.name, data)


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    """`values` without `auto_map`, which names Python files that are not copied."""
    return {key: value for key, value in values.items() if key != "auto_map"}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _octets(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(uint8).numpy())
