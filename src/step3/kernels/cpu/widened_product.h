// The product of a tile of widened rows (AVX2): see widened_sums.h.
#pragma once
#include "widened_bf16.h"
#include "widened_fp8.h"

namespace step3 {

constexpr int ROWS_IN_PLACE = TILE;     // most rows that are multiplied with weights as they are stored
constexpr int EXPANDING_TILES = 1;      // so many tiles read a panel of fp8 as it is
constexpr int64_t STREAM_AHEAD = 2048;  // bytes from what is read of memory to what is fetched

// A tile times a panel of bf16, which may have been expanded and has scales then.
static inline void multiply_tile_of_bf16(const Product &p, int rows) {
    p.scales ? multiply_panel_of_bf16<true>(p, rows) : multiply_panel_of_bf16<false>(p, rows);
}

// A tile times a panel of bf16, or of fp8 (see `rows_of_fp8`).
static inline void multiply_tile_of(const Product &p, int rows, bool is_fp8) {
    is_fp8 ? multiply_panel_of_fp8(p, rows) : multiply_tile_of_bf16(p, rows);
}

// A tile times two strips of weights that stay as they are stored; of fp8 see `rows_of_fp8`.
static inline void multiply_stored(const Product &p, int rows, const Strip (&strips)[2], bool quantised, const Fetch &fetch) {
    quantised ? multiply_strips_of_fp8(p, rows, strips, fetch) : multiply_strips_of_bf16(p, rows, strips, fetch);
}
}  // namespace step3
