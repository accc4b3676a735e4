"""Which library is taken, and what is said where there is none."""

import re
from pathlib import Path

import pytest
import torch

from step3.kernels.cpu import LEVELS, Library, library, open_library, why_not
from step3.kernels.cpu.attention import AttentionShape
from step3.kernels.cpu.weights import Arena, Packing


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    def pretend(*flags: str) -> None:
        monkeypatch.setattr(library, "_processor_flags", lambda: frozenset(flags))
        open_library.cache_clear()

    yield pretend
    monkeypatch.undo()
    open_library.cache_clear()


def test_takes_the_best_that_the_processor_can_run(processor) -> None:
    processor(*LEVELS["avx2"], *LEVELS["avx512"], *LEVELS["amx"])
    assert library.supported_levels() == ["amx", "avx512_bf16", "avx512", "avx2"]
    processor(*LEVELS["avx2"], *LEVELS["avx512"], *LEVELS["avx512_bf16"])
    assert library.supported_levels() == ["avx512_bf16", "avx512", "avx2"]
    processor(*LEVELS["avx2"], "avx512f")
    assert library.supported_levels() == ["avx2"]


def test_an_unknown_processor_has_none_and_says_so(processor) -> None:
    processor("neon")
    assert open_library() is None
    assert "AVX2" in why_not()


def test_a_level_that_the_system_forbids_gives_way_to_the_next(
    processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if {"avx512_bf16", "avx512"} - set(library.supported_levels()):
        pytest.skip("this processor has no two levels")
    load = library.ctypes.CDLL

    def refuse(name: str) -> object:
        loaded = load(name)
        if "avx512_bf16" in name:
            loaded.step3_prepare = lambda: 0
        return loaded

    monkeypatch.setattr(library.ctypes, "CDLL", refuse)
    processor(*LEVELS["avx512"], *LEVELS["avx512_bf16"])
    found = open_library()
    assert found is not None
    assert found.level == "avx512"


def test_kernels_that_were_not_compiled_are_said_to_be_missing(
    processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(*LEVELS["avx2"])
    monkeypatch.setattr(library, "_file", lambda level: None)
    assert open_library() is None
    assert "install g++" in why_not()


def test_one_openmp_runtime_runs(library: Library) -> None:
    del library
    loaded = set(re.findall(r"\S*lib(?:gomp|iomp5|omp)\S*\.so\S*", Path("/proc/self/maps").read_text()))
    assert len(loaded) == 1, loaded


def test_an_arena_aligns_and_gives_zeros(library: Library) -> None:
    arena = Arena(library)
    addresses = [arena.take(size) for size in (1, 100, 64, 1 << 20)]
    assert all(address % 64 == 0 for address in addresses)
    assert addresses == sorted(addresses)


def test_weights_keep_their_memory(library: Library) -> None:
    packed = Packing(library).take((torch.ones(32, 32).bfloat16(),))
    assert packed.matrix.panels
    assert packed.nbytes == 32 * 32 * 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"head_dim": 40}, "head_dim = 40 is not a multiple of 16"),
        ({"share_q": 24}, "share_q = 24 is not a multiple of 16"),
        ({"block_size": 8}, "block_size = 8 is not a multiple of 16"),
        ({"kv_dtype": torch.float32}, "keys and values are torch.float32"),
    ],
)
def test_says_what_it_cannot_compute(change: dict[str, object], problem: str) -> None:
    fields = {"hidden": 64, "share_q": 64, "heads": 4, "head_dim": 32, "eps": 1e-5}
    fields |= {"kv_dtype": torch.bfloat16, "block_size": 16, **change}
    assert AttentionShape(**fields).problem() == problem


def test_measures_what_the_machine_can_do(library: Library) -> None:
    arena = Arena(library)
    memory = arena.take(1 << 20)
    assert library.c.step3_read_bandwidth(memory, 1 << 20, 1) > 0
    assert library.c.step3_peak_flops(1, 0.001, 0) > 0
    assert library.c.step3_peak_flops(1, 0.001, 16) > 0
