// Rows of activations into tiles, as tile.h wants them.
#pragma once
#include "numbers.h"
#include "tile.h"

namespace step3 {

static inline void pack_floats(const float *x, int64_t size, int64_t pairs, const Place &to) {
    int64_t i = 0;
    for (; i < size / 2; i++) to.at[i * to.step] = pair_of(x[2 * i], x[2 * i + 1]);
    if (size % 2) {
        to.at[i * to.step] = bf16_bits(x[size - 1]);
        i++;
    }
    for (; i < pairs; i++) to.at[i * to.step] = 0;
}

static inline void pack_bf16(const uint16_t *x, int64_t size, int64_t pairs, const Place &to) {
    int64_t i = 0;
    for (; i < size / 2; i++) {
        uint32_t pair;
        memcpy(&pair, x + 2 * i, 4);
        to.at[i * to.step] = pair;
    }
    if (size % 2) {
        to.at[i * to.step] = x[size - 1];
        i++;
    }
    for (; i < pairs; i++) to.at[i * to.step] = 0;
}

// A product's columns that begin at `column`, without the padding of the last panel.
static inline int columns_left(int64_t columns, int64_t column) {
    return (int)(columns - column < PANEL ? columns - column : PANEL);
}

// Rows ranges of a product with many rows: `chunk` goes over them panel by panel, so that the panel stays in
// the cache for some tiles, and the rows of these tiles for all panels.
struct Chunks {
    int64_t count, tiles;
    explicit Chunks(const Tiles &all) : tiles(all.count) {
        count = (all.rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    }
    int64_t begin(int64_t chunk) const { return tiles * chunk / count; }
};

// A thread's first panels of `multiply_all` are read next.
static inline void expect(Worker &worker, const step3_matrix &m) {
    const Factor factor(m);
    const int64_t share = worker.first_run(m.num_panels);
    worker.expect(factor.begin(worker.id() * share), share * factor.panel_bytes());
}

// packed rows times the whole matrix, shared among the threads.
template <class Keep>
static inline void multiply_all(Worker &worker, const step3_matrix &m, const uint32_t *a, int64_t rows,
                                Keep keep) {
    Tiles tiles(rows);
    Chunks chunks(tiles);
    Factor factor(m);
    worker.runs(chunks.count * m.num_panels, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            int64_t chunk = begin / m.num_panels, panel = begin % m.num_panels;
            int64_t last = panel + (end - begin) < m.num_panels ? panel + (end - begin) : m.num_panels;
            multiply(factor, a, tiles, chunks.begin(chunk), chunks.begin(chunk + 1), panel, last,
                     worker.own(), keep);
            begin += last - panel;
        }
    });
}
}  // namespace step3
