"""Finds the compiled library that this processor can run, and tells ctypes what is in it."""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from ctypes import POINTER, c_double, c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

_AVX512_BF16 = frozenset(
    {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512vbmi", "avx512_vnni"}
)

LEVELS: dict[str, frozenset[str]] = {
    "amx": _AVX512_BF16 | {"amx_tile", "amx_bf16", "amx_int8", "gfni"},
    "avx512_bf16": _AVX512_BF16,
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
}
"""What each level asks of the processor, by the names of /proc/cpuinfo; best first."""

INTEGER_LEVELS = {8: ("amx", "avx512_bf16"), 16: ("avx2",)}
"""The levels that multiply many rows faster in integers of so many bits (narrow.h)."""


class Source(ctypes.Structure):
    """`step3_source` of step3_cpu.h: rows of weights as they are stored."""

    _fields_ = (
        ("data", c_void_p),
        ("rows", c_int64),
        ("stride", c_int64),
        ("type", c_int64),
        ("scales", c_void_p),
        ("scale_stride", c_int64),
        ("expert_stride", c_int64),
        ("expert_scales", c_int64),
    )


class Stored(ctypes.Structure):
    """`step3_stored`: matrices below each other, or gate and up strip by strip."""

    _fields_ = (
        ("sources", Source * 3),
        ("count", c_int64),
        ("columns", c_int64),
        ("interleave", c_int64),
    )


class Matrix(ctypes.Structure):
    """`step3_matrix`: weights as the kernels take them, or a stack of them."""

    _fields_ = (
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("num_panels", c_int64),
        ("pairs", c_int64),
        ("rows", c_int64),
        ("bytes", c_int64),
        ("num_scales", c_int64),
        ("stored", POINTER(Stored)),
        ("integers", c_int64),
        ("may_be_nan", c_int64),
    )


class Dense(ctypes.Structure):
    """`step3_dense`: a linear layer of the vision tower."""

    _fields_ = (("weight", Matrix), ("bias", c_void_p))


class Attention(ctypes.Structure):
    """`step3_attention`: the attention side of a layer."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("inter_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("router", c_void_p),
        ("qkv", Matrix),
        ("wq", Matrix),
        ("o_proj", Matrix),
    )


class Shape(ctypes.Structure):
    """`step3_shape`: what all layers have in common."""

    _fields_ = (
        ("hidden", c_int64),
        ("share_q", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("experts", c_int64),
        ("top_k", c_int64),
        ("renormalise", c_int64),
        ("block_size", c_int64),
        ("kv_fp8", c_int64),
        ("eps", c_float),
        ("scale", c_float),
    )


class Features(ctypes.Structure):
    """`step3_features`: rows that a picture fills, and what with."""

    _fields_ = (("rows", c_void_p), ("values", c_void_p), ("count", c_int64))


class Batch(ctypes.Structure):
    """`step3_batch`: the tokens of a step."""

    _fields_ = (
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("ids", c_void_p),
        ("lengths", c_void_p),
        ("contexts", c_void_p),
        ("tables", c_void_p),
        ("table_rows", c_void_p),
        ("table_stride", c_int64),
        ("scored", c_void_p),
        ("num_scored", c_int64),
        ("features", c_void_p),
        ("num_features", c_int64),
        ("slots", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("hidden", c_void_p),
    )


class FFN(ctypes.Structure):
    """`step3_ffn`: what a shard holds of a layer."""

    _fields_ = (
        ("always_gate_up", Matrix),
        ("always_down", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("first", c_int64),
        ("experts", c_int64),
        ("hidden", c_int64),
    )


class Layer(ctypes.Structure):
    """`step3_layer`: both sides of a layer, and its keys and values."""

    _fields_ = (("attention", c_void_p), ("ffn", c_void_p), ("keys", c_void_p), ("values", c_void_p))


class Network(ctypes.Structure):
    """`step3_network`: all that a step goes through."""

    _fields_ = (
        ("shape", Shape),
        ("layers", POINTER(Layer)),
        ("num_layers", c_int64),
        ("embedding", c_void_p),
        ("frequencies", c_void_p),
        ("factor", c_float),
        ("final_norm", c_void_p),
        ("head", Matrix),
    )


_FUNCTIONS = {
    "step3_prepare": (c_int64, ()),
    "step3_workspace_new": (c_void_p, ()),
    "step3_workspace_free": (None, (c_void_p,)),
    "step3_allocate": (c_void_p, (c_int64,)),
    "step3_free": (None, (c_void_p, c_int64)),
    "step3_pack": (c_int64, (POINTER(Stored), POINTER(Matrix), c_int64, c_int64, c_int64)),
    "step3_linear": (
        None,
        (c_void_p, c_int64, POINTER(Matrix), c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    ),
    "step3_linear_float": (None, (c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p)),
    "step3_dense_forward": (
        None,
        (c_void_p, c_int64, POINTER(Dense), c_void_p, c_int64, c_int64, c_void_p),
    ),
    "step3_picture_attention": (
        None,
        (c_void_p, c_int64, POINTER(Dense), POINTER(Dense), c_void_p, *(c_int64,) * 3, c_void_p),
    ),
    "step3_picture_mlp": (
        None,
        (c_void_p, c_int64, POINTER(Dense), POINTER(Dense), c_void_p, c_int64, c_void_p),
    ),
    "step3_attend_layer": (
        None,
        (c_void_p, c_int64, POINTER(Shape), POINTER(Attention), POINTER(Batch), *(c_void_p,) * 6),
    ),
    "step3_ffn_forward": (
        None,
        (c_void_p, c_int64, POINTER(FFN), c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p),
    ),
    "step3_draw": (
        None,
        (c_int64, c_void_p, c_int64, c_int64, c_int64, *(c_void_p,) * 6),
    ),
    "step3_likeliest": (None, (c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p)),
    "step3_begin": (None, (c_int64, POINTER(Network), POINTER(Batch))),
    "step3_end": (None, (c_void_p, c_int64, POINTER(Network), POINTER(Batch), *(c_void_p,) * 4)),
    "step3_step": (None, (c_void_p, c_int64, POINTER(Network), POINTER(Batch), *(c_void_p,) * 3)),
    "step3_write_kv": (
        None,
        (POINTER(Shape), c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "step3_attend": (None, (c_void_p, c_int64, POINTER(Shape), POINTER(Batch), *(c_void_p,) * 4)),
    "step3_read_bandwidth": (c_double, (c_void_p, c_int64, c_int64)),
    "step3_peak_flops": (c_double, (c_int64, c_double, c_int64)),
}


@dataclass(frozen=True, eq=False)
class Library:
    """A compiled library.

    Attributes:
        level: of the processor that it was compiled for.
        c: its functions, as step3_cpu.h declares them. Calls release the interpreter's lock.
    """

    level: str
    c: ctypes.CDLL


def supported_levels() -> list[str]:
    """The levels that this processor can run, best first."""
    flags = _processor_flags()
    return [level for level, needed in LEVELS.items() if needed <= flags]


@cache
def open_library(level: str | None = None) -> Library | None:
    """The library of a level, or the best that there is; None where there is none (see `why_not`)."""
    for name in supported_levels():
        if level in (None, name) and (file := _file(name)) is not None:
            try:
                # torch came first, so that both use the OpenMP runtime that it brought.
                library = ctypes.CDLL(str(file))
            except OSError:
                continue
            for function, (result, arguments) in _FUNCTIONS.items():
                declared = getattr(library, function)
                declared.restype, declared.argtypes = result, arguments
            if library.step3_prepare():
                return Library(name, library)
    return None


def why_not() -> str:
    """Why there is no library here, for a person."""
    if not supported_levels():
        return "the CPU kernels need an x86-64 processor with AVX2 under Linux"
    if not any(_file(level) for level in supported_levels()):
        return "the CPU kernels were not compiled: install g++, then install step3 anew"
    return "the CPU kernels cannot be loaded: reinstall step3"


def why_not_int8(library: Library | None, is_quantised: bool) -> str | None:
    """Why activations cannot be rounded to 8 bits, for a person; None if they can.

    Args:
        is_quantised: whether the weights that meet them are block-fp8.
    """
    if not is_quantised:
        return "the checkpoint is not in block-fp8: `step3 quantize` makes one that is"
    if library is None:
        return why_not()
    if library.level in INTEGER_LEVELS[8]:
        return None
    needed = f"{INTEGER_LEVELS[8][-1]} (AVX-512 with bf16 and VNNI)"
    return f"it needs a processor for {needed}, and this is {library.level}"


def _file(level: str) -> Path | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        file = Path(__file__).parent / f"_{level}{suffix}"
        if file.is_file():
            return file
    return None


@cache
def _processor_flags() -> frozenset[str]:
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def num_threads() -> int:
    """Threads of a call: as many as torch uses."""
    return torch.get_num_threads()
