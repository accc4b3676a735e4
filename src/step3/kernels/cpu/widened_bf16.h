// The product of widened rows with weights of bf16. A part of a panel is a strip.
#pragma once
#include "widened_sums.h"

namespace step3 {

// Of eight pairs.
static inline __attribute__((always_inline)) Floats first_values(const char *pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(pairs), 16));
}
static inline __attribute__((always_inline)) Floats second_values(const char *pairs, Floats upper) {
    Floats values;
    asm("vandps %1, %2, %0" : "=x"(values) : "m"(*(const Pairs *)pairs), "x"(upper));
    return values;
}

// sums += R rows of a tile times P strips of pairs, which go on by `step` bytes a pair.
template <int R, int P>
static inline __attribute__((always_inline)) void accumulate(Sums<R, P> &sums, const Pair *a, int64_t row_step, const char *const (&strips)[P],
                                                             int64_t step, int64_t pairs, PairsAhead ahead) {
    Floats upper = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    asm("" : "+x"(upper));  // left in its register
    const char *at[P];
    for (int p = 0; p < P; p++) at[p] = strips[p];
    for (int64_t pair = 0; pair < pairs; pair++) {
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) add_rows(sums, p, first_values(at[p]), first_values(at[p] + 32), a, &Pair::first);
        for (int p = 0; p < P; p++) _mm_prefetch(ahead.at + 64 * p, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) add_rows(sums, p, second_values(at[p], upper), second_values(at[p] + 32, upper), a, &Pair::second);
        a += row_step;
        for (int p = 0; p < P; p++) at[p] += step;
        ahead.at += ahead.step;
    }
}

template <int R, int V>
static inline __attribute__((always_inline)) void load_sums(Floats (&sums)[R][V], const float *from, int64_t step) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = load(from + r * step + v * LANES);
}

template <int R, int V>
static inline __attribute__((always_inline)) void store_sums(const Floats (&sums)[R][V], float *to, int64_t step) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(to + r * step + v * LANES, sums[r][v]);
}

// out += the sums of a block, each strip's times its scale.
template <int R, int V>
static inline __attribute__((always_inline)) void add_scaled(const Floats (&sums)[R][V], float *out, const float *scales) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const Floats scale = splat(scales[v / 2]);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            float *to = out + r * PANEL + v * LANES;
            store(to, multiply_add(sums[r][v], scale, load(to)));
        }
    }
}

// A tile times a panel, block by block; block_at(begin, pairs) gives those pairs of both strips by turns. IS_SCALED: they have been fp8,
// and blocks have scales.
template <bool IS_SCALED, class BlockAt>
static inline __attribute__((always_inline)) void multiply_blocks_of_bf16(const Product &p, int rows, BlockAt block_at) {
    memset(p.out, 0, (size_t)(rows * PANEL) * sizeof(float));
    for (int64_t begin = 0; begin < p.pairs; begin += BLOCK_PAIRS) {
        const int64_t pairs = std::min(BLOCK_PAIRS, p.pairs - begin);
        const char *block = block_at(begin, pairs);
        each_part(rows, [&](auto r, auto s, int strip, int64_t done) __attribute__((always_inline)) {
            constexpr int R = decltype(r)::value, P = decltype(s)::value;
            float *out = p.out + done * PANEL + strip * STRIP;
            const char *strips[P];
            for (int i = 0; i < P; i++) strips[i] = block + (strip + i) * 64;
            PairsAhead ahead{p.ahead + begin * p.ahead_step + strip * 64, p.ahead_step};
            if (done || !p.ahead) ahead = {block, 0};
            Sums<R, P> sums;
            if constexpr (IS_SCALED)
                clear(sums);
            else
                load_sums(sums, out, PANEL);
            accumulate<R, P>(sums, p.a + begin * p.row_step + done, p.row_step, strips, 128, pairs, ahead);
            if constexpr (IS_SCALED)
                add_scaled(sums, out, p.scales + begin / BLOCK_PAIRS * 2 + strip);
            else
                store_sums(sums, out, PANEL);
        });
    }
}

template <bool IS_SCALED>
static __attribute__((noinline)) void multiply_panel_of_bf16(const Product &p, int rows) {
    multiply_blocks_of_bf16<IS_SCALED>(p, rows, [&p](int64_t begin, int64_t) { return p.panel + begin * 128; });
}

// A tile times two strips as they are stored, which are laid out in the first-level cache.
static __attribute__((noinline)) void multiply_strips_of_bf16(const Product &p, int rows, const Strip (&strips)[2], const Fetch &fetch) {
    constexpr int64_t STEP = 16;
    alignas(64) char block[BLOCK_PAIRS * 128];
    multiply_blocks_of_bf16<false>(p, rows, [&](int64_t begin, int64_t pairs) {
        for (int64_t pair = 0; pair < pairs; pair += STEP)
            fill_pairs<false>(strips, (begin + pair) / STEP * BLOCK_BYTES, std::min(STEP, pairs - pair), false, fetch, block + pair * 128);
        return (const char *)block;
    });
}
}  // namespace step3
