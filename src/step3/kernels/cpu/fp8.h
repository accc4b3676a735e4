// How fp8 lies in memory, and how it becomes bf16 (AVX2's products take it as it is: widened_fp8.h).
#pragma once
#include "vectors.h"

namespace step3 {

// fp8 is kept in groups of 64 bytes that expand to two vectors of 16 pairs each. Where byte permutes exist,
// two look-ups (or two matrices of bits) give the upper and the lower bytes of 64 bf16 values, and interleaving them within the four
// 128-bit lanes gives the vectors: so lane n of a group holds pairs 4n..4n+3 of the first vector, then
// those of the second. Pair p (0..31, the second vector's from 16 on) begins at this byte of its group:
static inline int fp8_place(int pair) { return pair % 16 / 4 * 16 + pair / 16 * 8 + pair % 4 * 2; }

static inline uint16_t bf16_of_fp8(uint8_t byte) {
    // float8_e4m3fn: exponents 1..15 are 120 below bf16's; 0 is for multiples of 2^-9, 127 for NaN.
    uint32_t magnitude = byte & 0x7f, bits;
    float tiny = (float)magnitude * 0x1p-9f;
    memcpy(&bits, &tiny, 4);
    bits = magnitude < 8 ? bits : (magnitude << 20) + (120u << 23);
    bits = magnitude == 127 ? 0x7fc00000 : bits;
    return (uint16_t)((bits | (uint32_t)(byte & 0x80) << 24) >> 16);
}

static inline bool is_fp8_nan(char byte) { return (byte & 0x7f) == 0x7f; }

// Whether there was a NaN among all values that were seen, 32 at a time.
class SeenFp8 {
   public:
    inline __attribute__((always_inline)) void see(__m256i values) { most_ = _mm256_max_epu8(most_, _mm256_or_si256(values, sign_)); }
    bool has_nan() const { return _mm256_movemask_epi8(_mm256_cmpeq_epi8(most_, _mm256_set1_epi8(-1))) != 0; }

   private:
    __m256i sign_ = _mm256_set1_epi8((char)0x80), most_ = sign_;
};

static inline bool has_fp8_nan(const char *values, int64_t count) {
    SeenFp8 seen;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) seen.see(_mm256_loadu_si256((const __m256i *)(values + i)));
    bool found = seen.has_nan();
    for (; i < count; i++) found = found || is_fp8_nan(values[i]);
    return found;
}

// Whether products with fp8 give NaN for it by themselves; else it is looked for as weights are packed.
constexpr bool FP8_SHOWS_NAN = LANES == 16;

// Where there is nothing to be done meanwhile.
struct Nothing {
    __attribute__((always_inline)) void operator()(int) const {}
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
struct Fp8Table {
    alignas(64) uint8_t low[128], high[128];
    Fp8Table() {
        for (int i = 0; i < 128; i++) {
            uint16_t wide = bf16_of_fp8((uint8_t)i);
            low[i] = (uint8_t)wide;
            high[i] = (uint8_t)(wide >> 8);
        }
    }
};
static const Fp8Table fp8_table;

// Leaves a constant in a register. Compilers make it anew wherever it is needed, in the port that permutes.
static inline __m512i kept(__m512i x) {
    asm("" : "+v"(x));
    return x;
}

struct Fp8Expander {
    __m512i low0 = _mm512_load_si512(fp8_table.low), low1 = _mm512_load_si512(fp8_table.low + 64);
    __m512i high0 = _mm512_load_si512(fp8_table.high), high1 = _mm512_load_si512(fp8_table.high + 64);
    __m512i sign = _mm512_set1_epi8((char)0x80);
#if defined(__GFNI__)
    __m512i low_bits = kept(_mm512_set1_epi64(0x0000000001020408)), high_bits = kept(_mm512_set1_epi64(0x1020404040404080));
    __m512i minus_16 = kept(_mm512_set1_epi8(-16)), range = kept(_mm512_set1_epi8((char)(252 - 16)));
#endif

    void operator()(const void *from, Pairs &first, Pairs &second) const {
        const __m512i bytes = _mm512_loadu_si512(from);
        __m512i low, high;
#if defined(__GFNI__)
        // Where an exponent is not 0, each bit of the result is one of the byte's or its opposite: the exponent grows
        // by 120, its highest bit b becomes b, !b, !b, !b, !b. Twice a number without its sign is 16 to 252 then.
        const __m512i doubled = _mm512_add_epi8(_mm512_add_epi8(bytes, bytes), minus_16);
        if (__builtin_expect(!_mm512_cmpgt_epu8_mask(doubled, range), true)) {
            low = _mm512_gf2p8affine_epi64_epi8(bytes, low_bits, 0);
            high = _mm512_gf2p8affine_epi64_epi8(bytes, high_bits, 0x3c);
        } else
#endif
        {
            low = _mm512_permutex2var_epi8(low0, bytes, low1);
            high = _mm512_permutex2var_epi8(high0, bytes, high1);
            high = _mm512_ternarylogic_epi32(high, bytes, sign, 0xf8);  // high | (bytes & sign)
        }
        first = _mm512_unpacklo_epi8(low, high);
        second = _mm512_unpackhi_epi8(low, high);
    }
};

// meanwhile(i) is called for each group.
template <class Meanwhile = Nothing>
static inline __attribute__((always_inline)) void expand_fp8(const char *from, char *to, int64_t groups, Meanwhile meanwhile = {}) {
    const Fp8Expander expand;
#pragma GCC unroll 16
    for (int64_t i = 0; i < groups; i++) {
        Pairs first, second;
        meanwhile((int)i);
        expand(from + 64 * i, first, second);
        _mm512_storeu_si512(to + 128 * i, first);
        _mm512_storeu_si512(to + 128 * i + 64, second);
    }
}
#else
// NaN among the pairs of a group, which exponents of bf16 do not show.
static inline void keep_nan(const char *group, char *to) {
    for (int vector = 0; vector < 2; vector++)
        for (int i = 0; i < 2 * 16; i++)
            if (is_fp8_nan(group[fp8_place(vector * 16 + i / 2) + i % 2])) ((uint16_t *)(to + 64 * vector))[i] = 0x7fc0;
}

// A byte's bits between those of a bf16 whose exponent is 120 too small, its tiniest numbers included, times 2^120.
static inline __attribute__((always_inline)) void expand_fp8(const char *from, char *to, int64_t groups) {
    const __m256i none = _mm256_setzero_si256(), kept = _mm256_set1_epi16((int16_t)0x87f0);
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    const __m256 power = _mm256_set1_ps(0x1p120f);
    auto exact = [&](__m256i pairs) __attribute__((always_inline)) {
        const __m256 low = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), power);
        const __m256 high = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, upper)), power);
        return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(low), 16), _mm256_castps_si256(high));
    };
    SeenFp8 seen;
    for (int64_t i = 0; i < groups; i++)
        for (int half = 0; half < 2; half++) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)(from + 64 * i + 32 * half));
            seen.see(bytes);
            const __m256i first = _mm256_and_si256(_mm256_srai_epi16(_mm256_unpacklo_epi8(none, bytes), 4), kept);
            const __m256i second = _mm256_and_si256(_mm256_srai_epi16(_mm256_unpackhi_epi8(none, bytes), 4), kept);
            _mm256_storeu_si256((__m256i *)(to + 128 * i + 32 * half), exact(first));
            _mm256_storeu_si256((__m256i *)(to + 128 * i + 64 + 32 * half), exact(second));
        }
    if (__builtin_expect(seen.has_nan(), false))
        for (int64_t i = 0; i < groups; i++) keep_nan(from + 64 * i, to + 128 * i);
}
#endif
}  // namespace step3
