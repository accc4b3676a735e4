// The weights of a product, packed or as they are stored.
#pragma once
#include "panels.h"
#include "range.h"
#if defined(__AMX_BF16__)
#include "int8_registers.h"
#elif defined(__AVX512BW__)
#include "int8_vectors.h"
#include "vector_product.h"
#else
#include "int16_product.h"
#include "widened_product.h"
#endif

namespace step3 {

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
    bool may_be_nan;
    Factor(const step3_matrix &m, int64_t rows, int64_t expert = 0)
        : panels(m.panels + expert * m.bytes),
          scales(m.scales ? m.scales + expert * m.num_scales : nullptr),
          pairs(m.pairs),
          stored(m.stored),
          expert(expert),
          narrow(is_narrow(m, rows)),
          may_be_nan(m.may_be_nan) {}
    int64_t pair_bytes() const { return scales ? 64 : 128; }
    int64_t panel_bytes() const { return pairs * pair_bytes(); }
    int64_t blocks() const { return (pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS; }

    // Where the panels from this one on begin in memory.
    const char *begin(int64_t panel) const {
        return stored ? find_strip(*stored, expert, 2 * panel).data : panels + panel * panel_bytes();
    }

    Range range(int64_t first, int64_t last) const { return {begin(first), (last - first) * panel_bytes()}; }
    // What may be fetched of panels: those that stay as they are stored do not lie side by side.
    Range upcoming(int64_t first, int64_t last) const { return stored ? Range{} : range(first, last); }

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
}  // namespace step3
