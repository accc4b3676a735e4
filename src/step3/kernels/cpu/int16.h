// Panels of weights and tiles of activations as 16-bit integers, in which AVX2 multiplies many rows (int16_product.h).
//
// A block of 128 columns becomes integers that are multiples of a step, which each row of activations and each column of weights has for
// itself. An int32 holds the sum, and any part of it, as a sum of x * w is at most |x| |w| (Cauchy and Schwarz): steps are chosen by
// norms. One is 49,000 steps of activations at most, or 32,767 of bf16's weights; fp8 has steps that are powers of two, of which the
// largest value of a block is less than 4,096 and all together are 43,451. So what rounding costs is 2^-15.5 of a block's norm, where
// bf16 costs 2^-9 of each value; what fp8 stores is exact, but for values below 2^-8 of the largest of their column, and below 1/16.
#pragma once
#include <cmath>
#include "narrow.h"
#include "team.h"
#include "widened_bf16.h"
#include "widened_fp8.h"

namespace step3 {

constexpr float ROWS_NORM = 49000.f, WEIGHTS_NORM = 32767.f;  // steps in a block at most, as norms
constexpr float INT16_MOST = 32767.f;                          // and in a value
constexpr float ROUNDING = 0x1.8p23f;                          // a float that is added to it has its integer in the lowest bits

// A narrow panel: pair after pair of columns, 16 + 16 words of two integers; behind it [blocks][2][16] floats, what the sums of each
// column are scaled by.
static inline int64_t narrow_panel_bytes(int64_t pairs, int64_t blocks) { return pairs * 128 + blocks * PANEL * 4; }

// Words of two integers, of floats that hold them in their lowest bits.
static inline __m256i integer_pairs(Floats first, Floats second) {
    return _mm256_blend_epi16(_mm256_castps_si256(first), _mm256_slli_epi32(_mm256_castps_si256(second), 16), 0xaa);
}

// What a block's integers are steps of, given the least that a step may be, and steps in 1.
struct Steps {
    Floats size, inverse;
    Steps(Floats squares, Floats least) {
        inverse = _mm256_and_ps(_mm256_div_ps(splat(1.f), least), _mm256_cmp_ps(squares, zero(), _CMP_NEQ_UQ));
        // NaN, or what is too large for its square.
        size = _mm256_blendv_ps(splat(NAN), least, _mm256_cmp_ps(squares, splat(INFINITY), _CMP_LT_OQ));
    }
};

// Some pairs of bf16, of up to a block.
static inline void narrow_block_of_bf16(const char *block, int64_t pairs, char *to, float *scales) {
    const Floats upper = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)), rounding = splat(ROUNDING);
    Floats firsts[VECTORS], seconds[VECTORS], inverses[VECTORS];
    for (int v = 0; v < VECTORS; v++) firsts[v] = seconds[v] = zero();
    for (int64_t pair = 0; pair < pairs; pair++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const char *from = block + 128 * pair + 32 * v;
            const Floats first = first_values(from), second = second_values(from, upper);
            firsts[v] = multiply_add(first, first, firsts[v]);
            seconds[v] = multiply_add(second, second, seconds[v]);
        }
    for (int v = 0; v < VECTORS; v++) {
        const Floats squares = firsts[v] + seconds[v];
        const Steps steps(squares, _mm256_sqrt_ps(squares) * splat(1.f / WEIGHTS_NORM));
        store(scales + LANES * v, steps.size);
        inverses[v] = steps.inverse;
    }
    for (int64_t pair = 0; pair < pairs; pair++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const char *from = block + 128 * pair + 32 * v;
            store_lanes(to + 128 * pair + 32 * v, integer_pairs(multiply_add(first_values(from), inverses[v], rounding),
                                                                multiply_add(second_values(from, upper), inverses[v], rounding)));
        }
}

// The power of two, 2^7 at most, that makes integers of 12 bits and a sign of fp8 whose magnitudes, as bytes, are up to `most`.
static inline Floats factor_of_fp8(__m256i most) {
    // What has the exponent e is less than 2^(e - 6). From 2^8 on the power times 2^120 would be infinite.
    const __m256i exponent = _mm256_max_epi32(_mm256_srli_epi32(most, 3), _mm256_set1_epi32(11));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127 + 18), exponent), 23));
}

// Some pairs of fp8, of up to a block; widened_fp8.h tells how they become floats.
static inline void narrow_block_of_fp8(const char *block, int64_t pairs, const float *strip_scales, bool may_be_nan, char *to, float *scales) {
    const Pairs kept = _mm256_set1_epi32((int)0x87f00000), byte = _mm256_set1_epi32(0xff), magnitude = _mm256_set1_epi8(0x7f);
    const Floats rounding = splat(ROUNDING), widening = splat(0x1p120f);
    alignas(32) char first_pair[96];
    memcpy(first_pair + 32, block, 64);
    for (int part = 0; part < 2; part++) {
        __m256i most = _mm256_setzero_si256();
        for (int64_t pair = 0; pair < pairs; pair++)
            most = _mm256_max_epu8(most, _mm256_and_si256(load_pairs(block + 64 * pair + 32 * part), magnitude));
        most = _mm256_max_epu8(most, _mm256_srli_epi16(most, 8));  // of both values of a pair
        const Floats factors[2] = {factor_of_fp8(_mm256_and_si256(most, byte)), factor_of_fp8(_mm256_and_si256(_mm256_srli_epi32(most, 16), byte))};
        const Floats wide[2] = {factors[0] * widening, factors[1] * widening};
        for (int64_t pair = 0; pair < pairs; pair++) {
            const char *at = (pair ? block + 64 * pair : first_pair + 32) + 32 * part;
            auto words = [&](int odd) {
                const char *last = at - 2 + 2 * odd;
                return integer_pairs(multiply_add(upper_bytes(last - 1, kept), wide[odd], rounding),
                                     multiply_add(upper_bytes(last, kept), wide[odd], rounding));
            };
            const __m256i even = words(0), odd = words(1);
            store_lanes(to + 128 * pair + 32 * part, _mm256_unpacklo_epi32(even, odd));
            store_lanes(to + 128 * pair + 64 + 32 * part, _mm256_unpackhi_epi32(even, odd));
        }
        const Floats columns[2] = {_mm256_unpacklo_ps(factors[0], factors[1]), _mm256_unpackhi_ps(factors[0], factors[1])};
        for (int strip = 0; strip < 2; strip++)
            store(scales + STRIP * strip + LANES * part, _mm256_div_ps(splat(strip_scales[strip]), columns[strip]));
    }
    if (may_be_nan) spread_nan(block, pairs, 1, scales);
}

// A panel of bf16, or of fp8 if it has scales.
static inline void narrow_panel(const char *panel, const float *scales, bool may_be_nan, int64_t pairs, char *to) {
    float *own_scales = (float *)(to + pairs * 128);
    for (int64_t begin = 0; begin < pairs; begin += BLOCK_PAIRS, own_scales += PANEL) {
        const int64_t count = std::min(BLOCK_PAIRS, pairs - begin);
        if (scales)
            narrow_block_of_fp8(panel + 64 * begin, count, scales + begin / BLOCK_PAIRS * 2, may_be_nan, to + 128 * begin, own_scales);
        else
            narrow_block_of_bf16(panel + 128 * begin, count, to + 128 * begin, own_scales);
    }
}

// A tile of floats to one of words of two integers, in the same memory: [pairs][rows], then [blocks][rows] of factors.
static inline void narrow_tile(Pair *tile, int rows, int64_t pairs, Buffer &own) {
    constexpr int AT_ONCE = LANES / 2, MOST = TILE / AT_ONCE;
    const int64_t blocks = (pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS;
    const int vectors = (rows + AT_ONCE - 1) / AT_ONCE;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i masks[MOST];  // of the rows of a vector
    for (int v = 0; v < MOST; v++) masks[v] = _mm256_cmpgt_epi32(_mm256_set1_epi32(2 * rows - LANES * v), lanes);
    float *factors = own.get<float>(blocks * TILE);
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t begin = block * BLOCK_PAIRS, count = std::min(BLOCK_PAIRS, pairs - begin);
        auto load_rows = [&](int64_t pair, int v) { return _mm256_maskload_ps((const float *)(tile + (begin + pair) * rows + AT_ONCE * v), masks[v]); };
        Floats inverse[MOST];
        for (int v = 0; v < vectors; v++) {
            Floats squares = zero(), most = zero();
            for (int64_t pair = 0; pair < count; pair++) {
                const Floats x = load_rows(pair, v);
                squares = multiply_add(x, x, squares);
                most = larger(_mm256_andnot_ps(splat(-0.f), x), most);
            }
            // Both values of a pair.
            squares = squares + _mm256_permute_ps(squares, 0xb1);
            most = larger(most, _mm256_permute_ps(most, 0xb1));
            const Steps steps(squares, larger(_mm256_sqrt_ps(squares) * splat(1.f / ROWS_NORM), most * splat(1.f / INT16_MOST)));
            inverse[v] = steps.inverse;
            alignas(32) float of_rows[LANES];
            store(of_rows, steps.size);
            for (int i = 0; i < AT_ONCE && AT_ONCE * v + i < rows; i++) factors[block * rows + AT_ONCE * v + i] = of_rows[2 * i];
        }
        uint32_t *to = (uint32_t *)tile + begin * rows;
        for (int64_t pair = 0; pair < count; pair++, to += rows)
            for (int v = 0; v < vectors; v++) {
                const __m256i whole = _mm256_cvtps_epi32(load_rows(pair, v) * inverse[v]);
                const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
                const int left = std::min(AT_ONCE, rows - AT_ONCE * v);
                if (left == AT_ONCE)
                    _mm_storeu_si128((__m128i *)(to + AT_ONCE * v), _mm256_castsi256_si128(words));
                else
                    memcpy(to + AT_ONCE * v, &words, (size_t)left * 4);
            }
    }
    memcpy((uint32_t *)tile + pairs * rows, factors, (size_t)(blocks * rows) * 4);
}
}  // namespace step3
