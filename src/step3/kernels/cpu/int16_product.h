// The product of 16-bit integers (int16.h), which AVX2 makes of many rows: a vpmaddwd has twice as many products as an FMA of floats, in
// ports that leave the others for the sums.
//
// Sums of integers are exact, and float32 sums go block after block: a row does not depend on those beside it.
#pragma once
#include "int16.h"
#include "product.h"

namespace step3 {

// Two sums += two vectors of weights times x, in one piece for the reason that `add_products` has.
static inline __attribute__((always_inline)) void add_integer_products(__m256i &sum, __m256i &next_sum, __m256i b, __m256i next_b, const uint32_t &x) {
    __m256i first = sum, second = next_sum, all, product;
    asm("vpbroadcastd %6, %2\n\t"
        "vpmaddwd %4, %2, %3\n\t"
        "vpmaddwd %5, %2, %2\n\t"
        "vpaddd %3, %0, %0\n\t"
        "vpaddd %2, %1, %1"
        : "+x"(first), "+x"(second), "=&x"(all), "=&x"(product)
        : "x"(b), "x"(next_b), "m"(x));
    sum = first, next_sum = second;
}

// sums = R rows of a narrow tile, each word `row_step` behind the one before, times some pairs of a strip of a narrow panel.
template <int R>
static inline __attribute__((always_inline)) void multiply_integers(__m256i (&sums)[R][2], const uint32_t *tile, int row_step, const char *strip,
                                                                    int64_t pairs, PairsAhead ahead) {
    constexpr int AT_ONCE = 2;  // pairs, of which a panel has a multiple of 16
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (int64_t pair = 0; pair < pairs; pair += AT_ONCE) {
#pragma GCC unroll 2
        for (int i = 0; i < AT_ONCE; i++) {
            const __m256i first = load_pairs(strip + 128 * i), second = load_pairs(strip + 128 * i + 32);
            _mm_prefetch(ahead.at, _MM_HINT_T0);
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) add_integer_products(sums[r][0], sums[r][1], first, second, tile[r]);
            tile += row_step;
            ahead.at += ahead.step;
        }
        strip += 128 * AT_ONCE;
    }
}

// out [R][32] += sums, times the factors of their rows and the scales of a strip's columns.
template <int R>
static inline __attribute__((always_inline)) void add_integers(const __m256i (&sums)[R][2], const float *factors, const float *scales, float *out) {
    const Floats scale[2] = {load(scales), load(scales + LANES)};
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const Floats factor = splat(factors[r]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            float *to = out + r * PANEL + v * LANES;
            store(to, multiply_add(_mm256_cvtepi32_ps(sums[r][v]), scale[v] * factor, load(to)));
        }
    }
}

// A narrow tile times a narrow panel.
static __attribute__((noinline)) void multiply_narrow_tile(const Product &p, int rows) {
    memset(p.out, 0, (size_t)(rows * PANEL) * sizeof(float));
    const uint32_t *tile = (const uint32_t *)p.a;
    const float *factors = (const float *)(tile + p.pairs * rows), *scales = (const float *)(p.panel + p.pairs * 128);
    for (int64_t begin = 0; begin < p.pairs; begin += BLOCK_PAIRS, factors += rows, scales += PANEL)
        for (int strip = 0; strip < 2; strip++)
            each_group<ROWS>(rows, [&](auto group, int64_t done) __attribute__((always_inline)) {
                const char *at = p.panel + begin * 128 + strip * 64;
                PairsAhead ahead{p.ahead + begin * p.ahead_step, p.ahead_step};
                if (strip || done || !p.ahead) ahead = {at, 0};
                __m256i sums[group()][2];
                multiply_integers<group()>(sums, tile + begin * rows + done, rows, at, std::min(BLOCK_PAIRS, p.pairs - begin), ahead);
                add_integers<group()>(sums, factors + done, scales + strip * STRIP, p.out + done * PANEL + strip * STRIP);
            });
}
}  // namespace step3
