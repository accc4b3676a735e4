// Rows of activations into tiles, as activations.h lays them out.
#pragma once
#include <algorithm>
#include <utility>
#include "numbers.h"
#include "multiply.h"

namespace step3 {

// Floats to bf16. Instructions for it make zeros of numbers below 2^-126, as the products do with theirs.
static inline void round_to_bf16(const float *x, int64_t size, uint16_t *out) {
    int64_t i = 0;
#if defined(__AVX512BF16__)
    // Whole lines: what is stored in halves and loaded whole waits until it has reached the cache.
    for (; i + 2 * LANES <= size; i += 2 * LANES)
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(load(x + i + LANES), load(x + i)));
    for (; i + LANES <= size; i += LANES)
        _mm256_storeu_si256((__m256i *)(out + i), (__m256i)_mm512_cvtneps_pbh(load(x + i)));
#endif
    for (; i < size; i++) out[i] = (uint16_t)bf16_bits(x[i]);
}

// Of 16 numbers in vectors.
static inline void round_to_bf16(const Floats (&x)[STRIP / LANES], uint16_t *out) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x[0]));
#else
    alignas(64) float numbers[STRIP];
    for (int i = 0; i < STRIP; i += LANES) store(numbers + i, x[i / LANES]);
    round_to_bf16(numbers, STRIP, out);
#endif
}

// Whole lines of the cache.
template <bool PAST_CACHES>
static inline void put_lines(void *to, const void *from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += sizeof(Lanes)) {
        Lanes part;
        memcpy(&part, (const char *)from + at, sizeof part);
        put<PAST_CACHES>((char *)to + at, part);
    }
}

// Floats into a row's pairs begin..end, behind them zeros. PAST_CACHES: whole runs are not read soon.
template <bool PAST_CACHES = false>
static inline void pack_floats(const float *x, int64_t size, int64_t begin, int64_t end, const Place &to) {
    constexpr int64_t AT_ONCE = 128, FETCHED = 64;  // values; pairs ahead, whose lines are far from each other
    alignas(64) uint16_t rounded[AT_ONCE];
    for (int64_t pair = begin; pair < end; x += AT_ONCE, size -= AT_ONCE) {
        const int64_t count = std::clamp<int64_t>(size, 0, AT_ONCE), until = std::min(end, pair + AT_ONCE / 2);
        if (count < AT_ONCE) memset(rounded, 0, sizeof rounded);
        if (count == AT_ONCE)
            round_to_bf16(x, AT_ONCE, rounded);
        else
            round_to_bf16(x, count, rounded);
        const uint16_t *from = rounded;
        if constexpr (RUN == 1) {
            Pair *at = to.pair(pair);
            for (const int64_t step = to.pair(1) - to.pair(0); pair < until; pair++, from += 2, at += step) {
                _mm_prefetch((const char *)(at + FETCHED * step), _MM_HINT_T0);
                put_values(at, from, 2);
            }
        } else {
            // A head's channels may begin and end in the middle of a run.
            while (pair < until) {
                const int64_t run = std::min(until - pair, RUN - pair % RUN);
                if (run == RUN)
                    put_lines<PAST_CACHES>(to.pair(pair), from, RUN * 4);
                else
                    memcpy(to.pair(pair), from, (size_t)run * 4);
                from += 2 * run;
                pair += run;
            }
        }
    }
}

// 32 floats into a row's pairs from `pair` on, which begins a run.
static inline void pack_panel(const Floats (&x)[VECTORS], int64_t pair, const Place &to) {
    alignas(64) float numbers[PANEL];
    alignas(64) uint16_t rounded[PANEL];
    for (int v = 0; v < VECTORS; v++) store(numbers + v * LANES, x[v]);
    round_to_bf16(numbers, PANEL, rounded);
    for (int i = 0; i < PANEL / 2; i += RUN) put_values(to.pair(pair + i), rounded + 2 * i, 2 * RUN);
}

// Runs task(row) for all rows, shared among the threads. Where there are tiles enough a thread takes a whole one, if
// rows of a tile lie in the same cache lines: two threads would take them from each other.
template <class Task>
static inline void each_row(Worker &worker, const Tiles &tiles, Task task) {
    if (RUN > 1 || tiles.count < 4 * worker.size()) return worker.each(tiles.rows, task);
    worker.each(tiles.count, [&](int64_t tile) {
        for (int64_t row = tiles.start(tile); row < tiles.start(tile + 1); row++) task(row);
    });
}

// Rows of bf16 that make a whole tile: written from front to back.
static inline void pack_tile(const uint16_t *const *rows, int count, int64_t size, int64_t pairs, Pair *to) {
    const int64_t whole = size / (2 * RUN) * RUN, begin = whole * count;
    if constexpr (RUN == 1) {
        for (int64_t i = 0; i < whole; i++)
            for (int r = 0; r < count; r++) put_values(to + i * count + r, rows[r] + 2 * i, 2);
    } else {
        // Some of each row by turns: the processor foresees what comes of a row, and its lines of the tile stay in the cache.
        constexpr int64_t AT_ONCE = 32 * RUN;
        for (int64_t from = 0; from < whole; from += AT_ONCE) {
            const int64_t until = std::min(whole, from + AT_ONCE);
            for (int r = 0; r < count; r++) {
                const char *next = (const char *)(r + 1 < count ? rows[r + 1] + 2 * from : rows[0] + 2 * until) - from * 4;
                for (int64_t i = from; i < until; i += RUN) {
                    _mm_prefetch(next + i * 4, _MM_HINT_T0);
                    memcpy(to + i * count + r * RUN, rows[r] + 2 * i, RUN * 4);
                }
            }
        }
    }
    if (whole == pairs) return;
    memset(to + begin, 0, (size_t)((pairs - whole) * count) * sizeof(Pair));
    for (int r = 0; r < count; r++) {
        const Place place(to, r, count);
        put_values(place.pair(whole), rows[r] + 2 * whole, size - 2 * whole);
    }
}

// Zeros to the pairs begin..end of all rows of a tile: they meet zeros, which do not make a NaN go away.
static inline void pad_tile(Pair *tile, int count, int64_t begin, int64_t end) {
    for (int r = 0; r < count; r++)
        for (int64_t pair = begin; pair < end; pair++) *Place(tile, r, count).pair(pair) = {};
}

// A product's columns that begin at `column`, without the padding of the last panel.
static inline int columns_left(int64_t columns, int64_t column) {
    return (int)(columns - column < PANEL ? columns - column : PANEL);
}

// Copies what a panel gives of a row. A matrix that is larger than the caches is written past them, as nobody
// reads it before it is whole; the barrier behind the product, a locked instruction, makes all wait for it.
constexpr int64_t BEYOND_CACHES = (HAS_AMX ? 2 : 16) << 20;  // bytes
template <class Number>
static inline void keep_columns(Number *to, const Number *sums, int size, bool is_large) {
    if (size < PANEL || !is_large || (uintptr_t)to % 64) {
        memcpy(to, sums, (size_t)size * sizeof(Number));
        return;
    }
    put_lines<true>(to, sums, PANEL * sizeof(Number));
}

// The same in bf16.
static inline void keep_rounded(uint16_t *to, const float *sums, int size, bool is_large) {
    alignas(64) uint16_t rounded[PANEL];
    round_to_bf16(sums, PANEL, rounded);
    keep_columns(to, rounded, size, is_large);
}

// Ranges of the rows of a product: those that stay in the second-level cache while panels pass.
struct Chunks {
    int64_t count, tiles;
    Chunks(const Tiles &all, const step3_matrix &m) : tiles(all.count) {
        const int64_t pairs = slice_of(m.pairs, m.stored), bytes = pairs < m.pairs ? SLICED_CHUNK_BYTES : CHUNK_BYTES;
        const int64_t at_once = std::clamp(bytes / (pairs * (int64_t)sizeof(Pair)), MIN_CHUNK_ROWS, MAX_CHUNK_ROWS);
        count = (all.rows + at_once - 1) / at_once;
    }
    int64_t begin(int64_t chunk) const { return tiles * chunk / count; }
};

// A thread's first panels of `multiply_all` are read next.
static inline void expect(Worker &worker, const step3_matrix &m) {
    const Factor factor(m, 0);
    const int64_t share = worker.first_run(m.num_panels), begin = worker.id() * share;
    worker.expect(factor.range(begin, begin + share));
}

// Makes the tiles those that the product with `m` takes.
static inline void narrow_tiles(Worker &worker, const step3_matrix &m, Pair *a, const Tiles &tiles) {
    if (!is_narrow(m, tiles.rows)) return;
    worker.each(tiles.count, [&](int64_t tile) {
        narrow_tile(a + tiles.start(tile) * m.pairs, tiles.size(tile), m.pairs, worker.own());
    });
}

// packed rows, which may be made narrow, times the whole matrix, shared among the threads.
template <class Keep>
static inline void multiply_all(Worker &worker, const step3_matrix &m, Pair *a, int64_t rows, Keep keep) {
    Tiles tiles(rows);
    narrow_tiles(worker, m, a, tiles);
    Chunks chunks(tiles, m);
    Factor factor(m, rows);
    // The panels of a chunk that the units begin..end begin with.
    auto panels = [&](int64_t begin, int64_t end) {
        const int64_t panel = begin % m.num_panels;
        return std::pair(panel, std::min(panel + end - begin, m.num_panels));
    };
    worker.runs(chunks.count * m.num_panels, [&](int64_t begin, int64_t end, int64_t next, int64_t next_end) {
        while (begin < end) {
            const int64_t chunk = begin / m.num_panels, first = chunks.begin(chunk);
            const auto [panel, last] = panels(begin, end);
            begin += last - panel;
            const auto [then, then_last] = begin < end ? panels(begin, end) : panels(next, next_end);
            const Range upcoming = then < then_last ? factor.upcoming(then, then_last) : worker.expected();
            multiply(factor, a + tiles.start(first) * m.pairs, tiles, first, chunks.begin(chunk + 1), panel, last, worker.own(), keep, upcoming);
        }
    });
}
}  // namespace step3
