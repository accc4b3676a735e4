// Products of many rows are of integers where that takes less time: of 8 bits, where the caller allows it (int8.h), or of 16 bits on
// processors that multiply nothing but floats (int16.h). Tiles of activations, and panels, become narrow in the cache.
#pragma once
#include "activations.h"
#include "step3_cpu.h"

namespace step3 {

// Bits of the integers, the least rows that are worth it, and the least pairs that have room for their scales.
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
constexpr int64_t NARROW_BITS = 8, NARROW_ROWS = 48, NARROW_PAIRS = 32;
#elif defined(__AVX512BW__)
constexpr int64_t NARROW_BITS = 0, NARROW_ROWS = 0, NARROW_PAIRS = 0;
#else
// A single tile is multiplied as it is, as fast as memory gives the weights.
constexpr int64_t NARROW_BITS = 16, NARROW_ROWS = TILE + 1, NARROW_PAIRS = 0;
#endif

// Whether a product of so many rows takes narrow tiles and panels.
static inline bool is_narrow(const step3_matrix &m, int64_t rows) {
    const bool is_of_fp8 = m.scales != nullptr;
    return NARROW_BITS && m.integers == NARROW_BITS && (NARROW_BITS == 16 || is_of_fp8) && rows >= NARROW_ROWS && m.pairs >= NARROW_PAIRS;
}
}  // namespace step3
