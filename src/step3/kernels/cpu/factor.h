// Weights, packed or as they are stored, times many tiles of activations, panel by panel.
#pragma once
#include "int8.h"
#include "panels.h"
#include "team.h"
#if defined(__AMX_BF16__)
#include "amx_product.h"
#else
#include "vector_product.h"
#endif

namespace step3 {

constexpr int64_t AHEAD = 4096;  // bytes to prefetch ahead of a stream

// A panel of weights as the tiles read it.
struct Weights {
    const char *panel;
    const float *scales;
    const char *next[2];  // where the next panel's two halves lie, if weights stay as they are stored
};

// The weights of one product: a matrix, or that of one expert.
struct Factor {
    const char *panels;
    const float *scales;
    int64_t pairs;
    const step3_stored *stored;
    int64_t expert;
    bool narrow;  // it takes narrow tiles
    Factor(const step3_matrix &m, int64_t rows, int64_t expert = 0)
        : panels(m.panels + expert * m.bytes),
          scales(m.scales ? m.scales + expert * m.num_scales : nullptr),
          pairs(m.pairs),
          stored(m.stored),
          expert(expert),
          narrow(is_narrow(m, rows)) {}
    int64_t panel_bytes() const { return pairs * (scales ? 64 : 128); }
    int64_t blocks() const { return (pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS; }

    // Where the panels from this one on begin in memory.
    const char *begin(int64_t panel) const {
        return stored ? find_strip(*stored, expert, 2 * panel).data : panels + panel * panel_bytes();
    }

    // Bytes that a panel takes that is laid out by `open`.
    int64_t room() const { return stored ? panel_bytes() + 8 * blocks() : 0; }

    // A panel; what stays as it is stored is laid out in `room`. `is_first`: nobody fetched it before.
    Weights open(int64_t panel, bool is_first, char *room) const {
        const int64_t bytes = panel_bytes();
        if (!stored) {
            const char *at = panels + panel * bytes;
            return {at, scales ? scales + panel * blocks() * 2 : nullptr, {}};
        }
        const Strip strips[2] = {find_strip(*stored, expert, 2 * panel), find_strip(*stored, expert, 2 * panel + 1)};
        float *own_scales = scales ? (float *)(room + bytes) : nullptr;
        fill_panel<false>(strips, pairs, scales, {is_first ? IN_ROW : 0, 0}, room);
        if (scales) fill_scales(strips, blocks(), own_scales);
        const int64_t next = to_next_panel(strips);
        return {room, own_scales, {strips[0].data + next, strips[1].data + next}};
    }

    // Bytes from a row to the same one of the next panel, where weights stay as they are stored.
    int64_t to_next_panel(const Strip (&strips)[2]) const {
        return strips[0].stride * (stored->interleave ? STRIP : PANEL);
    }

    // A panel that stays as it is stored times a tile that has no more than ROWS_IN_PLACE rows. The first of a run was
    // fetched by nobody, and behind the last one begins what is another thread's.
    void multiply_in_place(int64_t panel, bool is_first, bool is_last, const Product &p, int rows) const {
        const Strip strips[2] = {find_strip(*stored, expert, 2 * panel), find_strip(*stored, expert, 2 * panel + 1)};
        multiply_stored(p, rows, strips, scales, {is_first ? IN_ROW : 0, is_last ? 0 : to_next_panel(strips)});
    }
};

// What a thread reads next, to be fetched while it has to compute for longer than it has to read.
struct Upcoming {
    const char *at = nullptr, *end = nullptr;
};

// All rows of packed activations, or tiles first..last of them, times panels begin..end of a matrix.
// `keep(row, rows, panel, out)` gets each result: `rows` rows from `row` on, [rows][32].
template <class Keep>
static inline void multiply(const Factor &m, const uint32_t *a, const Tiles &tiles, int64_t first, int64_t last,
                            int64_t begin, int64_t end, Buffer &scratch, Keep keep, Upcoming upcoming = {}) {
    alignas(64) float out[TILE * PANEL];
    const int64_t bytes = m.panel_bytes(), count = last - first;
    const bool expands = m.scales && !m.narrow && (!EXPANDS_FP8 || count > 2);
    const int64_t laid_out = m.narrow ? narrow_panel_bytes(m.pairs, m.blocks()) : expands ? m.pairs * 128 : 0;
    char *wide = scratch.get<char>(laid_out + m.room());
    char *room = wide + laid_out;
    if (m.stored && !m.narrow && count == 1 && tiles.size(first) <= ROWS_IN_PLACE) {
        const int64_t row = tiles.start(first);
        const int rows = tiles.size(first);
        for (int64_t panel = begin; panel < end; panel++) {
            const Product p{a + row * m.pairs, rows, nullptr, m.pairs, nullptr, nullptr, 0, out};
            m.multiply_in_place(panel, panel == begin, panel + 1 == end, p, rows);
            keep(row, rows, panel, out);
        }
        return;
    }
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
