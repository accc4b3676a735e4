// Weights times many tiles of activations, panel by panel.
#pragma once
#include "factor.h"
#if defined(__AMX_BF16__)
#include "amx_blocks.h"
#endif

namespace step3 {

constexpr int64_t AHEAD = HAS_AMX ? 6144 : 4096;  // bytes to prefetch ahead of a stream

// The rows of some tiles times a panel that stays as it is stored, each tile by itself.
template <class Keep>
static inline void multiply_in_place(const Factor &m, const uint32_t *a, const Tiles &tiles, int64_t tile, int64_t begin,
                                     int64_t end, Keep keep) {
    alignas(64) float out[TILE * PANEL];
    const int64_t row = tiles.start(tile);
    const int rows = tiles.size(tile);
    for (int64_t panel = begin; panel < end; panel++) {
        const Product p{a + row * m.pairs, rows, nullptr, m.pairs, nullptr, nullptr, 0, out};
        m.multiply_in_place(panel, panel == begin, panel + 1 == end, p, rows);
        keep(row, rows, panel, out);
    }
}

// All rows of packed activations, or tiles first..last of them, times panels begin..end of a matrix.
// `keep(row, rows, panel, out)` gets each result: `rows` rows from `row` on, [rows][32].
template <class Keep>
static inline void multiply(const Factor &m, const uint32_t *a, const Tiles &tiles, int64_t first, int64_t last,
                            int64_t begin, int64_t end, Buffer &scratch, Keep keep, Upcoming upcoming = {}) {
    const int64_t bytes = m.panel_bytes(), count = last - first;
    if (m.stored && !m.narrow && count == 1 && tiles.size(first) <= ROWS_IN_PLACE)
        return multiply_in_place(m, a, tiles, first, begin, end, keep);
#if defined(__AMX_BF16__)

    if (count > 1 && m.scales) return multiply_blocks<Fp8>(m, a, tiles, first, last, begin, end, scratch, keep, upcoming);
    if (count > 1) return multiply_blocks<Bf16>(m, a, tiles, first, last, begin, end, scratch, keep, upcoming);
#endif
    alignas(64) float out[TILE * PANEL];
    const bool expands = m.scales && !m.narrow && (!EXPANDS_FP8 || count > 2);
    const int64_t laid_out = m.narrow ? narrow_panel_bytes(m.pairs, m.blocks()) : expands ? m.pairs * 128 : 0;
    char *wide = scratch.get<char>(laid_out + m.room());
    char *room = wide + laid_out;
    for (int64_t panel = begin; panel < end; panel++) {
        const Weights weights = m.open(panel, panel == begin, room);
        Product p{nullptr, 0, weights.panel, m.pairs, weights.scales, nullptr, 0, out};
        if (expands) {
            expand_fp8(weights.panel, wide, m.pairs);
            p.panel = wide;
        } else if (m.narrow) {
            narrow_panel(weights.panel, m.pairs, wide);
            p.panel = wide;
        }
        for (int64_t tile = first; tile < last; tile++) {
            const int64_t row = tiles.start(tile), nth = tile - first;
            p.row_step = tiles.size(tile);
            p.a = a + row * m.pairs;
            // One tile: fetch what comes next in the stream. More: the first ones fetch the next panel, the
            // others what comes behind all panels.
            const bool is_fp8 = m.scales && !expands;
            if (count == 1 && !m.stored) {
                p.ahead = weights.panel + AHEAD;
                p.ahead_step = bytes / m.pairs;
            } else if (m.stored && count > 1 && nth < 2) {
                p.ahead = weights.next[nth];
                p.ahead_step = bytes / m.pairs / 2;
            } else if (!m.stored && nth * m.pairs * 64 < bytes) {
                p.ahead = weights.panel + bytes + nth * m.pairs * 64;
                p.ahead_step = 64;
            } else if (upcoming.at < upcoming.end) {
                p.ahead = upcoming.at;
                p.ahead_step = is_fp8 ? 64 : 128;
                upcoming.at += m.pairs * p.ahead_step;
            } else {
                p.ahead = p.panel;
                p.ahead_step = 0;
            }
            if (m.narrow)
                multiply_narrow_tile(p, (int)p.row_step);
            else
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
            if (is_fp8)
                multiply_tile<Fp8>(p, (int)p.row_step);
            else
#endif
                multiply_tile<Bf16>(p, (int)p.row_step);
            keep(row, (int)p.row_step, panel, out);
        }
    }
}
}  // namespace step3
