// Weights times many tiles of activations, panel by panel.
#pragma once
#include "factor.h"
#if defined(__AMX_BF16__)
#include "amx_blocks.h"
#include "amx_stream.h"
#else
#include "vector_panels.h"
#endif

namespace step3 {

// One tile times panels that stay as they are stored.
template <class Keep>
static inline void multiply_in_place(const Factor &m, const Pair *a, int64_t row, int rows, int64_t begin, int64_t end,
                                     Keep keep) {
    alignas(64) float out[TILE * PANEL];
    const Product p{a, rows, nullptr, m.pairs, nullptr, nullptr, 0, out, m.may_be_nan};
    for (int64_t panel = begin; panel < end; panel++) {
        m.multiply_in_place(panel, panel == begin, panel + 1 == end, p, rows);
        for (int r = 0; r < rows; r++) keep(TileSums{row, rows, panel, out}, r);
    }
}

// The tiles first..last of packed activations, which begin at `a`, times panels begin..end of a matrix.
// `keep(sums, r)` gets each row's result, r being its number in the tile. `upcoming` is what the thread reads next: it is
// fetched where there is the time for it.
template <class Keep>
static inline void multiply(const Factor &m, const Pair *a, const Tiles &tiles, int64_t first, int64_t last,
                            int64_t begin, int64_t end, Buffer &scratch, Keep keep, Range upcoming = {}) {
    const int64_t row = tiles.start(first);
    const int rows = tiles.size(first);
    const bool is_one = last - first == 1 && !m.narrow;
    if (is_one && m.scales) a = rows_of_fp8(a, rows * m.pairs, scratch);
    if (is_one && m.stored && rows <= ROWS_IN_PLACE) return multiply_in_place(m, a, row, rows, begin, end, keep);
    if (is_one && !m.stored && (!m.scales || EXPANDING_TILES)) return multiply_stream(m, a, row, rows, begin, end, scratch, keep, upcoming);
#if defined(__AMX_BF16__)
    auto *product = m.narrow ? multiply_blocks<Int8, Keep> : m.scales ? multiply_blocks<Fp8, Keep> : multiply_blocks<Bf16, Keep>;
#else
    auto *product = multiply_panels<Keep>;
#endif
    product(m, a, tiles, first, last, begin, end, scratch, keep, upcoming);
}
}  // namespace step3
