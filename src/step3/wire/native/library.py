"""Finds the compiled library, and tells ctypes what is in it."""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from ctypes import POINTER, c_char, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path

HEADER_BYTES = 88
MOST_READY = 64


class Writer(ctypes.Structure):
    """`step3_writer` of step3_wire.h."""

    _fields_ = (("ring", c_void_p), ("entries", c_int64), ("sent", c_uint64), ("bell", c_int64))


class Reader(ctypes.Structure):
    """`step3_reader`."""

    _fields_ = (("ring", c_void_p), ("entries", c_int64), ("received", c_uint64))


class Found(ctypes.Structure):
    """`step3_found`."""

    _fields_ = (
        ("reader", c_int32),
        ("torn", c_int32),
        ("next", c_int32),
        ("num_ready", c_int32),
        ("has_more", c_int32),
        ("looked_ns", c_int64),
        ("ready", c_int32 * MOST_READY),
        ("header", c_char * HEADER_BYTES),
    )


_POINTER, _NUMBER = c_void_p, c_int64
_FUNCTIONS = {
    "step3_wire_ring_bytes": (c_int64, (_NUMBER,)),
    "step3_wire_send": (None, (_POINTER, ctypes.c_char_p, _POINTER, _POINTER, _NUMBER)),
    "step3_wire_send_call": (
        None,
        (
            *(_POINTER, ctypes.c_char_p, _POINTER, _POINTER, _NUMBER),
            *(_POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER, _NUMBER, _NUMBER),
        ),
    ),
    "step3_wire_take_experts": (
        c_int64,
        (_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _POINTER),
    ),
    "step3_wire_take": (c_int64, (_POINTER, _POINTER)),
    "step3_wire_wait": (
        None,
        (POINTER(c_void_p), _NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _POINTER),
    ),
    "step3_wire_encode": (None, (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _POINTER)),
    "step3_wire_decode": (None, (_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER)),
}


@cache
def open_library() -> ctypes.CDLL | None:
    """The functions of step3_wire.h, which release the interpreter's lock; None where there are none (see
    `why_not`)."""
    file = _file()
    if file is None or not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


def why_not() -> str:
    """What is lost where there is no library, for a person."""
    return (
        "the wire's library was not compiled: frames between processes of a host go over sockets, which "
        "takes several times as long, and torch encodes fp8; install g++, then install step3 anew"
    )


def _file() -> Path | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        file = Path(__file__).parent / f"_wire{suffix}"
        if file.is_file():
            return file
    return None
