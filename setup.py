"""Compiles the CPU kernels, once for each level of processor, and the hot path of the wire.

Everything else is in pyproject.toml.

They are loaded with ctypes and use nothing of Python or torch. Where they cannot be compiled the install goes
on: step3 then computes with torch alone, and its processes talk over sockets alone.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("src/step3/kernels/cpu")
WIRE = Path("src/step3/wire/native")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni"]
LEVELS = {
    "amx": [*AVX512_BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-mgfni"],
    "avx512_bf16": AVX512_BF16,
    "avx512": AVX512,
    "avx2": ["-mavx2"],
}
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-mfma", "-mf16c", "-g0", "-Wno-maybe-uninitialized"]


LOST = {
    "kernels": "step3 computes with torch on the CPU, which is slower. The kernels need g++ (Debian: apt "
    "install g++) and x86-64",
    "wire": "attention and FFN instances of a host talk over sockets, which is slower. The wire needs g++ "
    "(Debian: apt install g++) and Linux",
}


class BuildLibraries(build_ext):
    """Says what is lost where a library cannot be compiled, and goes on."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # One library for each core at a time.
        self.parallel = self.parallel or True

    def build_extension(self, ext: Any) -> None:
        # The levels have the same sources, whose objects must not take each other's place.
        own = copy(self)
        own.build_temp = str(Path(self.build_temp) / ext.name)
        try:
            super(BuildLibraries, own).build_extension(ext)
        except Exception as error:
            self.warn(f"{ext.name} was not compiled ({error}): {LOST[ext.name.split('.')[1]]}.")


setup(
    cmdclass={"build_ext": BuildLibraries},
    ext_modules=[
        Extension(
            f"step3.kernels.cpu._{level}",
            sources=sorted(map(str, CPU.glob("*.cpp"))),
            depends=sorted(map(str, CPU.glob("*.h"))),
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for level, flags in LEVELS.items()
    ]
    + [
        Extension(
            "step3.wire.native._wire",
            sources=sorted(map(str, WIRE.glob("*.cpp"))),
            depends=sorted(map(str, WIRE.glob("*.h"))),
            extra_compile_args=["-O3", "-std=c++17", "-g0", "-fno-trapping-math"],
            language="c++",
            optional=True,
        )
    ],
)
