// The few operations that differ between processors. Everything else is written once over them, and this
// header is compiled once for each level: AVX-512 with bf16 and byte permutes (Zen 4, Sapphire Rapids),
// AVX-512 (Skylake-X), AVX2 (any x86-64 of the last ten years).
//
// The unit of all products is a pair: two neighbouring values along the summed dimension, as bf16, in 32
// bits. One vdpbf16ps multiplies 16 pairs by 16 pairs and adds both products to 16 float32 sums. The older
// levels widen pairs to two float32 vectors; bf16 to float32 is a shift (AVX2: widened_sums.h).
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace step3 {

#if defined(__AVX512BW__)
constexpr int LANES = 16;
using Floats = __m512;
using Pairs = __m512i;
#else
constexpr int LANES = 8;
using Floats = __m256;
using Pairs = __m256i;
#endif

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
using Operand = __m512i;
static inline Floats dot(Floats sum, Operand b, Operand a) {
    return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)a);
}
static inline Operand operand(Pairs p) { return p; }
#elif defined(__AVX512BW__)
struct Operand {
    Floats low, high;
};
static inline Operand operand(Pairs p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(p, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(p, _mm512_set1_epi32(0xffff0000)))};
}
static inline Floats dot(Floats sum, Operand b, Operand a) {
    return _mm512_fmadd_ps(b.high, a.high, _mm512_fmadd_ps(b.low, a.low, sum));
}
#endif

#if defined(__AVX512BW__)
static inline Floats zero() { return _mm512_setzero_ps(); }
static inline Floats splat(float x) { return _mm512_set1_ps(x); }
static inline Floats load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, Floats x) { _mm512_storeu_ps(p, x); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats either(Floats a, Floats b) { return _mm512_or_ps(a, b); }
// b where one of them is NaN.
static inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
// The first `count` lanes, and behind them `rest`.
static inline Floats first_lanes(Floats x, int64_t count, Floats rest) {
    return _mm512_mask_blend_ps((__mmask16)(count < 0 ? 0 : count < LANES ? (1 << count) - 1 : 0xffff), rest, x);
}
// x * 2^n, n being what the lowest bits of `whole` say.
static inline Floats times_power(Floats x, Floats whole) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(whole), 23)));
}
static inline Pairs load_pairs(const void *p) { return _mm512_loadu_si512(p); }
static inline Operand splat_pair(const uint32_t *p) { return operand(_mm512_set1_epi32((int)*p)); }
#else
static inline Floats zero() { return _mm256_setzero_ps(); }
static inline Floats splat(float x) { return _mm256_set1_ps(x); }
static inline Floats load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, Floats x) { _mm256_storeu_ps(p, x); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats either(Floats a, Floats b) { return _mm256_or_ps(a, b); }
static inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
static inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
static inline Floats first_lanes(Floats x, int64_t count, Floats rest) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), first = _mm256_set1_epi32((int)(count < LANES ? count : LANES));
    return _mm256_blendv_ps(rest, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(first, lanes)));
}
static inline Floats times_power(Floats x, Floats whole) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(whole), 23)));
}
static inline Pairs load_pairs(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
#endif

static inline float largest_of(Floats x) {
    float lanes[LANES];
    store(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
    return lanes[0];
}
// The lanes' sum, halves first.
static inline float sum_of(Floats x) {
    float lanes[LANES];
    store(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#if defined(__AVX512BW__)
// The sums of four vectors of four rows, the same as `sum_of` gives, to out[row * step + vector].
static inline void store_sums_of(const Floats (&x)[4][4], float *out, int64_t step) {
    // Pairs of vectors become one of both halves' sums, and so on; lane n of the last one holds those of row n.
    Floats quarters[4], halves[2];
    for (int v = 0; v < 4; v++) {
        const Floats a = _mm512_shuffle_f32x4(x[0][v], x[1][v], 0x44) + _mm512_shuffle_f32x4(x[0][v], x[1][v], 0xee);
        const Floats b = _mm512_shuffle_f32x4(x[2][v], x[3][v], 0x44) + _mm512_shuffle_f32x4(x[2][v], x[3][v], 0xee);
        quarters[v] = _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    }
    for (int v = 0; v < 2; v++)
        halves[v] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(quarters[2 * v]), _mm512_castps_pd(quarters[2 * v + 1]))) +
                    _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(quarters[2 * v]), _mm512_castps_pd(quarters[2 * v + 1])));
    const Floats sums = _mm512_shuffle_ps(halves[0], halves[1], 0x88) + _mm512_shuffle_ps(halves[0], halves[1], 0xdd);
    _mm_storeu_ps(out, _mm512_extractf32x4_ps(sums, 0));
    _mm_storeu_ps(out + step, _mm512_extractf32x4_ps(sums, 1));
    _mm_storeu_ps(out + 2 * step, _mm512_extractf32x4_ps(sums, 2));
    _mm_storeu_ps(out + 3 * step, _mm512_extractf32x4_ps(sums, 3));
}
#endif
// The same of any number of them.
template <int R, int W>
static inline void store_sums_of(const Floats (&x)[R][W], float *out, int64_t step) {
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) out[r * step + w] = sum_of(x[r][w]);
}

// Rows into columns: words of 32 bits of 16 rows. at[w] holds word w of all rows, in one or two parts.
#if defined(__AVX512BW__)
using Lanes = __m512i;
static inline void store_lanes(char *to, Lanes x) { _mm512_storeu_si512(to, x); }
static inline void stream_lanes(char *to, Lanes x) { _mm512_stream_si512((__m512i *)to, x); }
static inline Lanes unpack_low64(Lanes a, Lanes b) { return _mm512_unpacklo_epi64(a, b); }
static inline Lanes unpack_high64(Lanes a, Lanes b) { return _mm512_unpackhi_epi64(a, b); }
static inline Lanes shuffle_bytes(Lanes x, __m128i order) {
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order));
}

struct Words {
    static constexpr int PARTS = 1;
    Lanes at[16][PARTS];

    // 64 bytes from `rows` on, and of each row `stride` bytes further.
    inline __attribute__((always_inline)) void read(const char *rows, int64_t stride) {
        // Four rows at a time: lane n of four[g][w] holds word 4n + w of the rows 4g..4g+3.
        Lanes four[4][4];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            Lanes row[4];
            for (int r = 0; r < 4; r++) row[r] = _mm512_loadu_si512(rows + (4 * g + r) * stride);
            const Lanes a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpacklo_epi32(row[2], row[3]);
            const Lanes c = _mm512_unpackhi_epi32(row[0], row[1]), d = _mm512_unpackhi_epi32(row[2], row[3]);
            four[g][0] = unpack_low64(a, b);
            four[g][1] = unpack_high64(a, b);
            four[g][2] = unpack_low64(c, d);
            four[g][3] = unpack_high64(c, d);
        }
        // Then lane n of all four become one vector.
#pragma GCC unroll 4
        for (int w = 0; w < 4; w++) {
            const Lanes a = _mm512_shuffle_i32x4(four[0][w], four[1][w], 0x88);
            const Lanes b = _mm512_shuffle_i32x4(four[2][w], four[3][w], 0x88);
            const Lanes c = _mm512_shuffle_i32x4(four[0][w], four[1][w], 0xdd);
            const Lanes d = _mm512_shuffle_i32x4(four[2][w], four[3][w], 0xdd);
            at[w][0] = _mm512_shuffle_i32x4(a, b, 0x88);
            at[4 + w][0] = _mm512_shuffle_i32x4(c, d, 0x88);
            at[8 + w][0] = _mm512_shuffle_i32x4(a, b, 0xdd);
            at[12 + w][0] = _mm512_shuffle_i32x4(c, d, 0xdd);
        }
    }
};
#else
using Lanes = __m256i;
static inline void store_lanes(char *to, Lanes x) { _mm256_storeu_si256((__m256i *)to, x); }
static inline void stream_lanes(char *to, Lanes x) { _mm256_stream_si256((__m256i *)to, x); }
static inline Lanes unpack_low64(Lanes a, Lanes b) { return _mm256_unpacklo_epi64(a, b); }
static inline Lanes unpack_high64(Lanes a, Lanes b) { return _mm256_unpackhi_epi64(a, b); }
static inline Lanes shuffle_bytes(Lanes x, __m128i order) {
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order));
}

struct Words {
    static constexpr int PARTS = 2;
    Lanes at[16][PARTS];

    void read(const char *rows, int64_t stride) {
        for (int part = 0; part < PARTS; part++)
            for (int half = 0; half < 2; half++) {
                // Rows r and r + 4 beside each other, of eight; 32 bytes of each.
                const char *from = rows + 8 * part * stride + 32 * half;
                for (int quarter = 0; quarter < 2; quarter++) {
                    Lanes row[4];
                    for (int r = 0; r < 4; r++) {
                        const char *one = from + r * stride + 16 * quarter;
                        row[r] = _mm256_inserti128_si256(
                            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)one)),
                            _mm_loadu_si128((const __m128i *)(one + 4 * stride)), 1);
                    }
                    const Lanes a = _mm256_unpacklo_epi32(row[0], row[1]), b = _mm256_unpacklo_epi32(row[2], row[3]);
                    const Lanes c = _mm256_unpackhi_epi32(row[0], row[1]), d = _mm256_unpackhi_epi32(row[2], row[3]);
                    auto *words = at + 8 * half + 4 * quarter;
                    words[0][part] = unpack_low64(a, b);
                    words[1][part] = unpack_high64(a, b);
                    words[2][part] = unpack_low64(c, d);
                    words[3][part] = unpack_high64(c, d);
                }
            }
    }
};
#endif

// The lower halves of each lane's words into its lower half, the upper ones into its upper.
static inline Lanes part_words(Lanes x) {
    return shuffle_bytes(x, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}
}  // namespace step3
