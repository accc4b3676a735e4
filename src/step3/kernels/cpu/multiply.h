// Weights times many tiles of activations, panel by panel.
#pragma once
#include "factor.h"
#if defined(__AMX_BF16__)
#include "amx_blocks.h"
#else
#include "vector_panels.h"
#endif

namespace step3 {

// Bytes to prefetch ahead of a stream; with tile registers fp8 is fetched into the second-level cache.
constexpr int64_t AHEAD = HAS_AMX ? 6144 : 4096, AHEAD_OF_FP8 = HAS_AMX ? 16384 : AHEAD;

// One tile times panels that stay as they are stored.
template <class Keep>
static inline void multiply_in_place(const Factor &m, const uint32_t *a, int64_t row, int rows, int64_t begin, int64_t end,
                                     Keep keep) {
    alignas(64) float out[TILE * PANEL];
    const Product p{a, rows, nullptr, m.pairs, nullptr, nullptr, 0, out};
    for (int64_t panel = begin; panel < end; panel++) {
        m.multiply_in_place(panel, panel == begin, panel + 1 == end, p, rows);
        for (int r = 0; r < rows; r++) keep(TileSums{row, rows, panel, out}, r);
    }
}

// One tile times packed panels, which are read once, as fast as memory gives them.
template <class Keep>
static inline void multiply_stream(const Factor &m, const uint32_t *a, int64_t row, int rows, int64_t begin, int64_t end,
                                   Keep keep) {
    alignas(64) float out[TILE * PANEL];
    const int64_t bytes = m.panel_bytes(), ahead = m.scales ? AHEAD_OF_FP8 : AHEAD;
    for (int64_t panel = begin; panel < end; panel++) {
        const Weights weights = m.open(panel, panel == begin, nullptr);
        const Product p{a, rows, weights.panel, m.pairs, weights.scales, weights.panel + ahead, bytes / m.pairs, out};
        multiply_tile_of(p, rows, m.scales);
        for (int r = 0; r < rows; r++) keep(TileSums{row, rows, panel, out}, r);
    }
}

// The tiles first..last of packed activations, which begin at `a`, times panels begin..end of a matrix.
// `keep(sums, r)` gets each row's result, r being its number in the tile. `upcoming` is fetched where there is more
// to compute than to read.
template <class Keep>
static inline void multiply(const Factor &m, const uint32_t *a, const Tiles &tiles, int64_t first, int64_t last,
                            int64_t begin, int64_t end, Buffer &scratch, Keep keep, Range upcoming = {}) {
    const int64_t row = tiles.start(first);
    const int rows = tiles.size(first);
    const bool is_one = last - first == 1 && !m.narrow;
    if (is_one && m.stored && rows <= ROWS_IN_PLACE) return multiply_in_place(m, a, row, rows, begin, end, keep);
    if (is_one && !m.stored && (!m.scales || EXPANDS_FP8)) return multiply_stream(m, a, row, rows, begin, end, keep);
#if defined(__AMX_BF16__)
    auto *product = m.narrow ? multiply_blocks<Int8, Keep> : m.scales ? multiply_blocks<Fp8, Keep> : multiply_blocks<Bf16, Keep>;
#else
    auto *product = multiply_panels<Keep>;
#endif
    product(m, a, tiles, first, last, begin, end, scratch, keep, upcoming);
}
}  // namespace step3
