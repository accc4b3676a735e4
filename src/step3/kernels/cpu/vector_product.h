// The product with vectors of AVX-512: up to ROWS rows of activations, whose sums stay in registers, times a panel.
#pragma once
#include "activations.h"
#include "panels.h"
#include "product.h"
#include "team.h"

namespace step3 {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
constexpr int ROWS = 12;  // 12 x 2 sums, two vectors of weights and one of activations fill 27 of 32 registers
constexpr int EXPANDING_TILES = 2;  // so many tiles expand a panel of fp8 each for itself
#else
constexpr int ROWS = 8;
constexpr int EXPANDING_TILES = 0;
#endif
constexpr int ROWS_IN_PLACE = ROWS;     // most rows that are multiplied with weights as they are stored
constexpr int64_t STREAM_AHEAD = 4096;  // bytes from what is read of memory to what is fetched

struct Bf16 {
    static constexpr int64_t PAIR_BYTES = 128;  // of a panel
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
                                                             const Source &source, const Pair *a,
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
    alignas(64) char laid[STEP * 128];
    [[maybe_unused]] alignas(64) char wide[QUANTISED && !EXPANDING_TILES ? STEP * 128 : 64];
    Floats sums[R][VECTORS], totals[R][VECTORS];
    clear(sums);
    clear(totals);
    for (int64_t pair = 0; pair < p.pairs; pair += STEP) {
        const int64_t pairs = std::min(STEP, p.pairs - pair);
        fill_pairs<false>(strips, pair / STEP * BLOCK_BYTES, pairs, QUANTISED, fetch, laid);
        const Pair *a = p.a + pair * p.row_step;
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

template <class Source>
static inline void multiply_tile(const Product &p, int rows) {
    each_group<ROWS>(rows, [&p](auto group, int64_t done) {
        Product own = p;
        own.a += done;
        own.out += done * PANEL;
        multiply_panel<group(), Source>(own);
    });
}

static inline void multiply_tile_of_bf16(const Product &p, int rows) { multiply_tile<Bf16>(p, rows); }

// A tile times a panel of fp8, where processors expand it as they multiply, or of bf16.
static inline void multiply_tile_of(const Product &p, int rows, [[maybe_unused]] bool is_fp8) {
#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
    if (is_fp8) return multiply_tile<Fp8>(p, rows);
#endif
    multiply_tile<Bf16>(p, rows);
}

// Rows as they meet weights of fp8.
static inline const Pair *rows_of_fp8(const Pair *a, int64_t, Buffer &) { return a; }

static inline void multiply_stored(const Product &p, int rows, const Strip (&strips)[2], bool quantised, const Fetch &fetch) {
    each_group<ROWS>(rows, [&](auto group, int64_t) {
        quantised ? multiply_strips<group(), true>(p, strips, fetch) : multiply_strips<group(), false>(p, strips, fetch);
    });
}
}  // namespace step3
