// The product with vectors, panel by panel. Where many rows meet a panel it is laid out once, and stays in the
// second-level cache while all tiles pass.
#pragma once
#include "factor.h"

namespace step3 {

// One tile times packed panels, which are read once, as fast as memory gives them.
template <class Keep>
static inline void multiply_stream(const Factor &m, const Pair *a, int64_t row, int rows, int64_t begin, int64_t end,
                                   Buffer &, Keep keep, Range) {
    alignas(64) float out[TILE * PANEL];
    const int64_t bytes = m.panel_bytes();
    for (int64_t panel = begin; panel < end; panel++) {
        const Weights weights = m.open(panel, panel == begin, nullptr);
        const Product p{a, rows, weights.panel, m.pairs, weights.scales, weights.panel + STREAM_AHEAD, bytes / m.pairs, out, m.may_be_nan};
        multiply_tile_of(p, rows, m.scales);
        for (int r = 0; r < rows; r++) keep(TileSums{row, rows, panel, out}, r);
    }
}

// As `multiply`.
template <class Keep>
static inline void multiply_panels(const Factor &m, const Pair *a, const Tiles &tiles, int64_t first, int64_t last,
                                   int64_t begin, int64_t end, Buffer &scratch, Keep keep, Range upcoming) {
    alignas(64) float out[TILE * PANEL];
    const int64_t bytes = m.panel_bytes(), count = last - first;
    const bool expands = m.scales && !m.narrow && count > EXPANDING_TILES, is_fp8 = m.scales && !expands;
    const int64_t laid_out = m.narrow ? narrow_panel_bytes(m.pairs, m.blocks()) : expands ? m.pairs * 128 : 0;
    char *wide = scratch.get<char>(laid_out + m.room());
    char *room = wide + laid_out;
    for (int64_t panel = begin; panel < end; panel++) {
        const Weights weights = m.open(panel, panel == begin, room);
        Product p{nullptr, 0, weights.panel, m.pairs, weights.scales, nullptr, 0, out, m.may_be_nan};
        if (expands) {
            expand_fp8(weights.panel, wide, m.pairs);
            p.panel = wide;
        } else if (m.narrow) {
            narrow_panel(weights.panel, weights.scales, m.may_be_nan, m.pairs, wide);
            p.panel = wide;
        }
        for (int64_t tile = first; tile < last; tile++) {
            const int64_t row = tiles.start(tile), nth = tile - first;
            const int rows = tiles.size(tile);
            p.row_step = rows;
            p.a = a + (row - tiles.start(first)) * m.pairs;
            // The first tiles fetch the next panel, the others what comes behind all panels.
            if (m.stored && count > 1 && nth < 2) {
                p.ahead = weights.next[nth];
                p.ahead_step = bytes / m.pairs / 2;
            } else if (!m.stored && nth * m.pairs * 64 < bytes) {
                p.ahead = weights.panel + bytes + nth * m.pairs * 64;
                p.ahead_step = 64;
            } else if (upcoming.bytes > 0) {
                p.ahead = upcoming.at;
                p.ahead_step = is_fp8 ? 64 : 128;
                upcoming.at += m.pairs * p.ahead_step;
                upcoming.bytes -= m.pairs * p.ahead_step;
            } else {
                p.ahead = p.panel;
                p.ahead_step = 0;
            }
            if (m.narrow)
                multiply_narrow_tile(p, rows);
            else
                multiply_tile_of(p, rows, is_fp8);
            for (int r = 0; r < rows; r++) keep(TileSums{row, rows, panel, out}, r);
        }
    }
}
}  // namespace step3
