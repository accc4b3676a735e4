// Rows of activations into tiles, as tile.h wants them.
#pragma once
#include <algorithm>
#include "numbers.h"
#include "tile.h"

namespace step3 {

// Floats to bf16; a loop by itself, so that the compiler turns it into vectors.
static inline void round_to_bf16(const float *x, int64_t size, uint16_t *out) {
    for (int64_t i = 0; i < size; i++) out[i] = (uint16_t)bf16_bits(x[i]);
}

static inline void pack_floats(const float *x, int64_t size, int64_t pairs, const Place &to) {
    constexpr int64_t AT_ONCE = 128, FETCHED = 64;  // pairs ahead, whose lines are far from each other
    alignas(64) uint16_t rounded[AT_ONCE];
    uint32_t *at = to.at;
    const int64_t even = size / 2 * 2;
    for (int64_t begin = 0; begin < even; begin += AT_ONCE) {
        const int64_t count = std::min(AT_ONCE, even - begin);
        round_to_bf16(x + begin, count, rounded);
        for (int64_t i = 0; i < count; i += 2, at += to.step) {
            _mm_prefetch((const char *)(at + FETCHED * to.step), _MM_HINT_T0);
            memcpy(at, rounded + i, 4);
        }
    }
    if (size % 2) {
        *at = bf16_bits(x[size - 1]);
        at += to.step;
    }
    for (int64_t i = (size + 1) / 2; i < pairs; i++, at += to.step) *at = 0;
}

// Runs task(row) for all rows, shared among the threads. Where there are tiles enough a thread takes a whole one:
// rows of a tile lie in the same cache lines, which two threads would take from each other.
template <class Task>
static inline void each_row(Worker &worker, const Tiles &tiles, Task task) {
    if (tiles.count < 4 * worker.size()) return worker.each(tiles.rows, task);
    worker.each(tiles.count, [&](int64_t tile) {
        for (int64_t row = tiles.start(tile); row < tiles.start(tile + 1); row++) task(row);
    });
}

// Rows of bf16 that make a whole tile: written from front to back.
static inline void pack_tile(const uint16_t *const *rows, int count, int64_t size, int64_t pairs, uint32_t *to) {
    for (int64_t i = 0; i < size / 2; i++, to += count)
        for (int r = 0; r < count; r++) memcpy(to + r, rows[r] + 2 * i, 4);
    if (size % 2)
        for (int r = 0; r < count; r++) *to++ = rows[r][size - 1];
    std::fill(to, to + (pairs - (size + 1) / 2) * count, 0);
}

// A product's columns that begin at `column`, without the padding of the last panel.
static inline int columns_left(int64_t columns, int64_t column) {
    return (int)(columns - column < PANEL ? columns - column : PANEL);
}

// Copies what a panel gives of a row. A matrix that is larger than the caches is written past them, as nobody
// reads it before it is whole; the barrier behind the product, a locked instruction, makes all wait for it.
constexpr int64_t BEYOND_CACHES = 16 << 20;  // bytes
static inline void keep_columns(float *to, const float *sums, int size, bool is_large) {
    if (!is_large || size < PANEL || (uintptr_t)to % 64) {
        memcpy(to, sums, (size_t)size * 4);
        return;
    }
    for (size_t at = 0; at < PANEL * 4; at += sizeof(Lanes)) {
        Lanes part;
        memcpy(&part, (const char *)sums + at, sizeof part);
        stream_lanes((char *)to + at, part);
    }
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
    const Factor factor(m, 0);
    const int64_t share = worker.first_run(m.num_panels);
    worker.expect(factor.begin(worker.id() * share), share * factor.panel_bytes());
}

// Makes the tiles those that the product with `m` takes.
static inline void narrow_tiles(Worker &worker, const step3_matrix &m, uint32_t *a, const Tiles &tiles) {
    if (!is_narrow(m, tiles.rows)) return;
    worker.each(tiles.count, [&](int64_t tile) {
        narrow_tile(a + tiles.start(tile) * m.pairs, tiles.size(tile), m.pairs, worker.own());
    });
}

// packed rows, which may be made narrow, times the whole matrix, shared among the threads.
template <class Keep>
static inline void multiply_all(Worker &worker, const step3_matrix &m, uint32_t *a, int64_t rows, Keep keep) {
    Tiles tiles(rows);
    narrow_tiles(worker, m, a, tiles);
    Chunks chunks(tiles);
    Factor factor(m, rows);
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
