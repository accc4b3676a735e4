// A linear layer with a bias, as the vision tower has them: what becomes of a panel's results.
#pragma once
#include "rows.h"
#include "silu.h"

namespace step3 {

// A row's results of a panel with their bias, of which there is a whole panel too.
static inline __attribute__((always_inline)) void add_bias(const TileSums &sums, int r, const float *bias, Floats (&out)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) out[v] = load(sums.of(r) + v * LANES) + load(bias + sums.panel * PANEL + v * LANES);
}

// They become rows of bf16.
struct KeepDense {
    const float *bias;
    uint16_t *out;  // [rows][columns]
    int64_t columns;
    bool is_large;
    KeepDense(const step3_dense &layer, int64_t rows, uint16_t *out)
        : bias(layer.bias), out(out), columns(layer.weight.rows), is_large(rows * columns * 2 > BEYOND_CACHES) {}
    __attribute__((always_inline)) void operator()(const TileSums &sums, int r) const {
        const int64_t column = sums.panel * PANEL;
        Floats biased[VECTORS];
        add_bias(sums, r, bias, biased);
        alignas(64) float numbers[PANEL];
        for (int v = 0; v < VECTORS; v++) store(numbers + v * LANES, biased[v]);
        keep_rounded(out + (sums.row + r) * columns + column, numbers, columns_left(columns, column), is_large);
    }
};

// They go through x * sigmoid(1.702 x) into the tiles of the next layer.
struct KeepActive {
    const float *bias;
    Pair *tiles;
    int64_t pairs;
    __attribute__((always_inline)) void operator()(const TileSums &sums, int r) const {
        Floats biased[VECTORS];
        add_bias(sums, r, bias, biased);
        for (Floats &x : biased) x = quick_gelu(x);
        pack_panel(biased, sums.panel * (PANEL / 2), Place(tiles + sums.row * pairs, r, sums.rows));
    }
};

// Rows of x [rows][columns], of which those `chosen`, or the first ones, into tiles.
static inline void pack_rows(Worker &worker, const uint16_t *x, const int64_t *chosen, int64_t columns, const Tiles &tiles, int64_t pairs,
                             Pair *to) {
    worker.each(tiles.count, [&](int64_t tile) {
        const int64_t first = tiles.start(tile);
        const uint16_t *rows[TILE];
        for (int r = 0; r < tiles.size(tile); r++) rows[r] = x + (chosen ? chosen[first + r] : first + r) * columns;
        pack_tile(rows, tiles.size(tile), columns, pairs, to + first * pairs);
    });
}
}  // namespace step3
