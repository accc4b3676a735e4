// Products of many rows are of integers where that takes less time: of 8 bits, where the caller allows it (int8.h), or of 16 bits on
// processors that multiply nothing but floats (int16_vectors.h). Tiles of activations, and panels, become narrow in the cache.
#pragma once
#include "activations.h"
#include "step3_cpu.h"

namespace step3 {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
constexpr int64_t NARROW_BITS = 8, NARROW_ROWS = 48;  // fewer are multiplied as they are
#elif defined(__AVX512BW__)
constexpr int64_t NARROW_BITS = 0, NARROW_ROWS = 0;
#else
constexpr int64_t NARROW_BITS = 16, NARROW_ROWS = 24;
#endif

// Whether a product of so many rows takes narrow tiles and panels. A tile must have room for its scales.
static inline bool is_narrow(const step3_matrix &m, int64_t rows) {
    return NARROW_BITS && m.integers == NARROW_BITS && (NARROW_BITS == 16 || m.scales) && rows >= NARROW_ROWS && m.pairs > 16 - NARROW_BITS;
}
}  // namespace step3
