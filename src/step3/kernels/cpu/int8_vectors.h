// Tiles and panels of 8-bit integers for vectors. A vpdpbusd takes unsigned bytes times signed ones: 128 is added to
// activations, and sums begin at -128 times the sum of their weights, which takes it away again.
#pragma once
#include "int8.h"
#include "product.h"
#include "team.h"

namespace step3 {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
// Bytes of a panel and its offsets.
static inline int64_t narrow_panel_bytes(int64_t pairs, int64_t blocks) { return pairs * 64 + blocks * 128; }

// A panel of fp8 to one of int8: quad after quad of columns, four values of 16 + 16 rows; behind it what the
// sums of each block begin at, [blocks][2][16].
static inline void narrow_panel(const char *panel, const float *, bool, int64_t pairs, char *to) {
    const Int8Narrower narrow;
    const __m512i ones = _mm512_set1_epi8(1);
    char *offsets = to + pairs * 64;
    for (int64_t begin = 0; begin < pairs; begin += BLOCK_PAIRS, offsets += 128) {
        __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int64_t pair = begin; pair < std::min(pairs, begin + BLOCK_PAIRS); pair += 2) {
            const __m512i a = narrow(panel + 64 * pair), b = narrow(panel + 64 * pair + 64);
            const __m512i quads[2] = {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)};
            for (int s = 0; s < 2; s++) {
                _mm512_storeu_si512(to + 64 * (pair + s), quads[s]);
                sums[s] = _mm512_dpbusd_epi32(sums[s], ones, quads[s]);
            }
        }
        for (int s = 0; s < 2; s++)
            _mm512_storeu_si512(offsets + 64 * s, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums[s], 7)));
    }
}

// A tile of pairs of bf16 to one of quads of bytes, in the same memory: [quads][rows], then [blocks][rows] of
// scales, which are those of the products.
static inline void narrow_tile(Pair *tile, int rows, int64_t pairs, Buffer &own) {
    const int64_t blocks = (pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS;
    const __mmask16 mask = (__mmask16)((1 << rows) - 1);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000), byte = _mm512_set1_epi32(0xff);
    float *scales = own.get<float>(blocks * 16);
    Pair *to = tile;
    for (int64_t block = 0; block < blocks; block++) {
        const Pair *from = tile + block * BLOCK_PAIRS * rows;
        const int64_t count = std::min(BLOCK_PAIRS, pairs - block * BLOCK_PAIRS);
        __m512 most = _mm512_setzero_ps();
        auto load = [&](int64_t pair, __m512(&x)[2]) {
            const __m512i both = _mm512_maskz_loadu_epi32(mask, from + pair * rows);
            x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            x[1] = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
        };
        for (int64_t pair = 0; pair < count; pair++) {
            __m512 x[2];
            load(pair, x);
            most = _mm512_max_ps(most, _mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])));
        }
        const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(127.f), most);
        _mm512_storeu_ps(scales + block * 16, _mm512_mul_ps(most, _mm512_set1_ps(1.f / (127.f * INT8_OF_FP8))));
        for (int64_t pair = 0; pair < count; pair += 2, to += rows) {
            __m512i quad = _mm512_setzero_si512();
            for (int half = 0; half < 2; half++) {
                __m512 x[2];
                load(pair + half, x);
                for (int i = 0; i < 2; i++) {
                    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
                    quad = _mm512_or_si512(quad, _mm512_slli_epi32(_mm512_and_si512(whole, byte), 16 * half + 8 * i));
                }
            }
            _mm512_mask_storeu_epi32(to, mask, _mm512_xor_si512(quad, _mm512_set1_epi32((int)0x80808080)));
        }
    }
    for (int64_t block = 0; block < blocks; block++) memcpy(to + block * rows, scales + block * 16, (size_t)rows * 4);
}

// As _mm512_dpbusd_epi32, for whose sums GCC keeps copies in memory.
static inline __m512i dot_quads(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
}

// sums[r] += rows r of a narrow tile times quads of a narrow panel.
template <int R>
static inline __attribute__((always_inline)) void accumulate_quads(__m512i (&sums)[R][2], const Pair *tile,
                                                                   const char *panel, int64_t quads,
                                                                   const char *ahead, int64_t ahead_step) {
    for (int64_t i = 0; i < quads; i++) {
        const __m512i first = _mm512_loadu_si512(panel), second = _mm512_loadu_si512(panel + 64);
        _mm_prefetch(ahead, _MM_HINT_T1);
        _mm_prefetch(ahead + ahead_step, _MM_HINT_T1);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const __m512i x = _mm512_set1_epi32((int)tile[r]);
            sums[r][0] = dot_quads(sums[r][0], x, first);
            sums[r][1] = dot_quads(sums[r][1], x, second);
        }
        tile += R;
        panel += 128;
        ahead += 2 * ahead_step;
    }
}

// out [R][32] float = a narrow tile times a narrow panel, whose blocks have `scales` [blocks][2]. Meanwhile the
// lines at `ahead` are fetched, `ahead_step` bytes for each pair.
template <int R>
static void multiply_narrow(const Pair *tile, const char *panel, const float *scales, int64_t pairs,
                            const char *ahead, int64_t ahead_step, float *out) {
    const float *row_scales = (const float *)(tile + pairs / 2 * R);
    const char *offsets = panel + pairs * 64;
    for (int64_t begin = 0; begin < pairs; begin += BLOCK_PAIRS, offsets += 128, row_scales += R, scales += 2) {
        const __m512i first = _mm512_loadu_si512(offsets), second = _mm512_loadu_si512(offsets + 64);
        __m512i sums[R][2];
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) sums[r][0] = first, sums[r][1] = second;
        accumulate_quads<R>(sums, tile + begin / 2 * R, panel + begin * 64, std::min(BLOCK_PAIRS, pairs - begin) / 2,
                            ahead + begin * ahead_step, ahead_step);
        const __m512 scale[2] = {_mm512_set1_ps(scales[0]), _mm512_set1_ps(scales[1])};
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const __m512 of_row = _mm512_set1_ps(row_scales[r]);
#pragma GCC unroll 2
            for (int s = 0; s < 2; s++) {
                const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][s]), scale[s]);
                float *to = out + r * PANEL + s * STRIP;
                const __m512 before = begin ? _mm512_load_ps(to) : _mm512_setzero_ps();
                _mm512_store_ps(to, _mm512_fmadd_ps(product, of_row, before));
            }
        }
    }
}

static inline void multiply_narrow_tile(const Product &p, int rows) {
    each_group<TILE>(rows, [&p](auto group, int64_t) {
        multiply_narrow<group()>(p.a, p.panel, p.scales, p.pairs, p.ahead, p.ahead_step, p.out);
    });
}
#else
static inline int64_t narrow_panel_bytes(int64_t, int64_t) { return 0; }
static inline void narrow_panel(const char *, const float *, bool, int64_t, char *) {}
static inline void narrow_tile(Pair *, int, int64_t, Buffer &) {}
static inline void multiply_narrow_tile(const Product &, int) {}
#endif
}  // namespace step3
