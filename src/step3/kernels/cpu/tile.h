// The product that everything is made of: up to 12 rows of activations times a panel of 32 columns.
//
// Weights [rows, columns] lie in panels of 32 rows (32 columns of the product). A panel is two strips of 16
// and holds, pair of columns after pair of columns, 16 + 16 pairs: two vectors of bf16, or one of fp8. So a
// panel is read from front to back, whatever is multiplied. Activations lie in tiles of up to 12 rows, pair
// after pair, a pair of each row: they too are read from front to back, and rows whose distance is a
// multiple of 4096 bytes do not throw each other out of the cache.
//
// A row's sums are made in the same order however many rows stand beside it: answers do not depend on the
// batch.
#pragma once
#include "int8.h"
#include "panels.h"
#include "team.h"

namespace step3 {

constexpr int TILE = 12;                       // most rows of a tile
constexpr int VECTORS = PANEL / LANES;         // of a panel
constexpr int64_t AHEAD = 4096;                // bytes to prefetch ahead of a stream
constexpr int64_t ROWS_AT_ONCE = 24 * TILE;    // rows that pass a panel while it is in the cache

// How `rows` rows are cut into tiles whose sizes differ by one at most.
struct Tiles {
    int64_t rows, count;
    explicit Tiles(int64_t rows) : rows(rows), count((rows + TILE - 1) / TILE) {}
    int64_t start(int64_t tile) const { return rows * tile / count; }
    int size(int64_t tile) const { return (int)(start(tile + 1) - start(tile)); }
    // The tile of a row.
    int64_t of(int64_t row) const {
        int64_t tile = row * count / rows;
        while (start(tile + 1) <= row) tile++;
        return tile;
    }
};

// Where row `row` begins in packed activations, and the distance of its pairs.
struct Place {
    uint32_t *at;
    int64_t step;
    Place(uint32_t *at, int64_t step) : at(at), step(step) {}
    Place(uint32_t *packed, const Tiles &tiles, int64_t row, int64_t pairs) {
        int64_t tile = tiles.of(row), start = tiles.start(tile);
        step = tiles.size(tile);
        at = packed + start * pairs + (row - start);
    }
};

struct Bf16 {
    static constexpr int64_t PAIR_BYTES = 128;  // of a panel
    static constexpr int64_t STRIP_BYTES = 64;
    void operator()(const char *first, const char *second, Operand (&b)[VECTORS]) const {
        for (int v = 0; v < VECTORS / 2; v++) {
            b[v] = operand(load_pairs(first + v * LANES * 4));
            b[VECTORS / 2 + v] = operand(load_pairs(second + v * LANES * 4));
        }
    }
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
struct Fp8 {
    static constexpr int64_t PAIR_BYTES = 64;
    Fp8Expander expand;
    void operator()(const char *first, const char *, Operand (&b)[VECTORS]) const {
        expand(first, b[0], b[1]);
    }
};
#endif

// sums[r] += rows r of `a` times the strips at `first` and `second`, which go on by `step` bytes a pair.
// Meanwhile the lines at `ahead` and `gap` bytes behind it are fetched into the cache.
template <int R, _mm_hint CACHE, class Source>
static inline __attribute__((always_inline)) void accumulate(Floats (&sums)[R][VECTORS],
                                                             const Source &source, const uint32_t *a,
                                                             int64_t row_step, const char *first,
                                                             const char *second, int64_t step, int64_t pairs,
                                                             const char *ahead, int64_t gap, int64_t ahead_step) {
    for (int64_t i = 0; i < pairs; i++) {
        Operand b[VECTORS];
        source(first, second, b);
        _mm_prefetch(ahead, CACHE);
        if (Source::PAIR_BYTES == 128) _mm_prefetch(ahead + gap, CACHE);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            Operand x = splat_pair(a + r);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sums[r][v] = dot(sums[r][v], b[v], x);
        }
        a += row_step;
        first += step;
        second += step;
        ahead += ahead_step;
    }
}

template <int R>
static inline __attribute__((always_inline)) void clear(Floats (&sums)[R][VECTORS]) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = zero();
}

// A product of one tile; `out` is [rows][32] float.
struct Product {
    const uint32_t *a;
    int64_t row_step;
    const char *panel;
    int64_t pairs;
    const float *scales;  // [blocks][2] or null
    const char *ahead;
    int64_t ahead_step;
    float *out;
};

// One row or two wait for memory alone, and want it as near as it gets. With more, lines on their way into the
// first-level cache would hold up those that come from the second: they are fetched to there.
template <int R>
constexpr _mm_hint CACHE_OF_ROWS = R > 4 ? _MM_HINT_T1 : _MM_HINT_T0;

template <int R, class Source>
static void multiply_panel(const Product &p) {
    constexpr _mm_hint CACHE = CACHE_OF_ROWS<R>;
    Source source;
    Floats sums[R][VECTORS];
    if (!p.scales) {
        clear(sums);
        accumulate<R, CACHE>(sums, source, p.a, p.row_step, p.panel, p.panel + 64, Source::PAIR_BYTES, p.pairs,
                             p.ahead, 64, p.ahead_step);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++) store(p.out + r * PANEL + v * LANES, sums[r][v]);
        return;
    }
    Floats totals[R][VECTORS];
    clear(totals);
    for (int64_t begin = 0, block = 0; begin < p.pairs; begin += BLOCK_PAIRS, block++) {
        int64_t pairs = p.pairs - begin < BLOCK_PAIRS ? p.pairs - begin : BLOCK_PAIRS;
        const char *at = p.panel + begin * Source::PAIR_BYTES;
        clear(sums);
        accumulate<R, CACHE>(sums, source, p.a + begin * p.row_step, p.row_step, at, at + 64, Source::PAIR_BYTES,
                             pairs, p.ahead + begin * p.ahead_step, 64, p.ahead_step);
        for (int v = 0; v < VECTORS; v++) {
            Floats scale = splat(p.scales[2 * block + v * 2 / VECTORS]);
            for (int r = 0; r < R; r++) totals[r][v] = multiply_add(sums[r][v], scale, totals[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(p.out + r * PANEL + v * LANES, totals[r][v]);
}

// A tile times two strips of weights that stay as they are stored: they are laid out a few pairs at a time, in
// the first-level cache, and the sums are those of `multiply_panel`.
template <int R, bool QUANTISED>
static void multiply_strips(const Product &p, const Strip (&strips)[2], const Fetch &fetch) {
    constexpr int64_t STEP = QUANTISED ? 32 : 16;  // pairs
    alignas(64) char laid[STEP * 128], wide[QUANTISED && !EXPANDS_FP8 ? STEP * 128 : 64];
    Floats sums[R][VECTORS], totals[R][VECTORS];
    clear(sums);
    clear(totals);
    for (int64_t pair = 0; pair < p.pairs; pair += STEP) {
        const int64_t pairs = std::min(STEP, p.pairs - pair);
        fill_pairs<false>(strips, pair / STEP * BLOCK_BYTES, pairs, QUANTISED, fetch, laid);
        const uint32_t *a = p.a + pair * p.row_step;
        if constexpr (!QUANTISED) {
            accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, p.row_step, laid, laid + 64, 128, pairs, laid, 64, 0);
            continue;
        }
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
        accumulate<R, _MM_HINT_T0>(sums, Fp8(), a, p.row_step, laid, laid, 64, pairs, laid, 64, 0);
#else
        expand_fp8(laid, wide, pairs);
        accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, p.row_step, wide, wide + 64, 128, pairs, wide, 64, 0);
#endif
        if ((pair + pairs) % BLOCK_PAIRS && pair + pairs < p.pairs) continue;
        for (int v = 0; v < VECTORS; v++) {
            const Strip &strip = strips[v * 2 / VECTORS];
            const Floats scale = splat(strip.rows ? strip.scales[pair / BLOCK_PAIRS] : 0.f);
            for (int r = 0; r < R; r++) totals[r][v] = multiply_add(sums[r][v], scale, totals[r][v]);
        }
        clear(sums);
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(p.out + r * PANEL + v * LANES, QUANTISED ? totals[r][v] : sums[r][v]);
}

// Calls `Function<R>::call(arguments...)` for groups of at most ROWS of a tile's rows.
#define STEP3_EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

template <class Source>
static inline void multiply_tile(Product p, int rows) {
    while (rows > 0) {
        int now = rows < ROWS ? rows : ROWS;
        switch (now) {
#define STEP3_CASE(R)                                                \
    case R:                                                          \
        if constexpr (R <= ROWS) multiply_panel<R, Source>(p);       \
        break;
            STEP3_EACH_ROWS(STEP3_CASE)
#undef STEP3_CASE
        }
        rows -= now;
        p.a += now;
        p.out += now * PANEL;
    }
}

static inline void multiply_stored(const Product &p, int rows, const Strip (&strips)[2], bool quantised, const Fetch &fetch) {
    switch (rows) {
#define STEP3_CASE(R)                                                                              \
    case R:                                                                                        \
        if constexpr (R <= ROWS)                                                                   \
            quantised ? multiply_strips<R, true>(p, strips, fetch) : multiply_strips<R, false>(p, strips, fetch); \
        break;
        STEP3_EACH_ROWS(STEP3_CASE)
#undef STEP3_CASE
    }
}

static inline void multiply_narrow_tile(const Product &p, int rows) {
    switch (rows) {
#define STEP3_CASE(R)                                                                             \
    case R:                                                                                       \
        multiply_narrow<R>(p.a, p.panel, p.scales, p.pairs, p.ahead, p.ahead_step, p.out);        \
        break;
        STEP3_EACH_ROWS(STEP3_CASE)
#undef STEP3_CASE
    }
}

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

    // A panel that stays as it is stored times a tile that has no more than ROWS rows. The first of a run was
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
    if (m.stored && !m.narrow && count == 1 && tiles.size(first) <= ROWS) {
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
