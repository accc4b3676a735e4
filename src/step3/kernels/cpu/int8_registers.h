// Tiles and panels of 8-bit integers for tile registers.
#pragma once
#include "amx_product.h"
#include "int8.h"
#include "team.h"

namespace step3 {

constexpr int64_t INT8_STEP = 2 * STEP;  // pairs that one instruction sums

static inline int64_t int8_steps(int64_t pairs) { return (pairs + INT8_STEP - 1) / INT8_STEP; }

// Some pairs of a panel of fp8 to int8: quad after quad of columns, four values of 16 + 16 rows, and zeros up to a
// whole step.
static inline void narrow_pairs(const char *panel, int64_t pairs, char *to) {
    const Int8Narrower narrow;
    for (int64_t pair = 0; pair < pairs; pair += 2) {
        const __m512i a = narrow(panel + 64 * pair), b = narrow(panel + 64 * pair + 64);
        _mm512_storeu_si512(to + 64 * pair, _mm512_unpacklo_epi16(a, b));
        _mm512_storeu_si512(to + 64 * pair + 64, _mm512_unpackhi_epi16(a, b));
    }
    memset(to + 64 * pairs, 0, (size_t)(64 * (int8_steps(pairs) * INT8_STEP - pairs)));
}

// The scales of a narrow tile's rows, [blocks][rows].
static inline float *row_scales(const Pair *tile, int rows, int64_t pairs) {
    return (float *)(tile + int8_steps(pairs) * rows * STEP);
}

// A tile of pairs of bf16 to one of quads of bytes, 16 of each row side by side, in the same memory; behind it the
// scales, which are those of the products.
static inline void narrow_tile(Pair *tile, int rows, int64_t pairs, Buffer &own) {
    const int64_t blocks = (pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS;
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    float *scales = own.get<float>(blocks * rows);
    for (int r = 0; r < rows; r++) {
        const Place from(tile, r, rows);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t begin = block * BLOCK_PAIRS, steps = std::min(BLOCK_PAIRS, pairs - begin) / STEP;
            __m512 x[BLOCK_PAIRS / STEP][2], most = _mm512_setzero_ps();
            for (int64_t i = 0; i < BLOCK_PAIRS / STEP; i++) {
                const __m512i both = i < steps ? _mm512_loadu_si512(from.pair(begin + i * STEP)) : _mm512_setzero_si512();
                x[i][0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
                x[i][1] = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
                most = _mm512_max_ps(most, _mm512_max_ps(_mm512_abs_ps(x[i][0]), _mm512_abs_ps(x[i][1])));
            }
            const float largest = _mm512_reduce_max_ps(most);
            const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.f / largest : 0.f);
            scales[block * rows + r] = largest * (1.f / (127.f * INT8_OF_FP8));
            // Pairs of a vector are neighbours in the sum: their bytes go side by side.
            for (int64_t i = 0; i < (steps + 1) / 2; i++) {
                __m256i halves[2];
                for (int h = 0; h < 2; h++) {
                    const __m512i even = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * i + h][0], inverse));
                    const __m512i odd = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * i + h][1], inverse));
                    const __m512i mixed = _mm512_or_si512(_mm512_and_si512(even, _mm512_set1_epi32(0xff)), _mm512_slli_epi32(odd, 8));
                    halves[h] = _mm512_cvtepi32_epi16(mixed);
                }
                _mm512_storeu_si512(from.pair((begin / INT8_STEP + i) * STEP), _mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1));
            }
        }
    }
    memcpy(row_scales(tile, rows, pairs), scales, (size_t)(blocks * rows) * 4);
}

// Integer sums of a block, scaled, to the totals in `out`.
static inline void add_scaled(const int32_t *sums, const float *of_rows, int rows, const float *scales, bool is_first, float *out) {
    const __m512 scale[2] = {_mm512_set1_ps(scales[0]), _mm512_set1_ps(scales[1])};
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < 2; s++) {
            const int at = r * PANEL + s * STRIP;
            const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + at)), scale[s]);
            _mm512_store_ps(out + at, _mm512_fmadd_ps(product, _mm512_set1_ps(of_rows[r]), is_first ? zero() : _mm512_load_ps(out + at)));
        }
}
}  // namespace step3
