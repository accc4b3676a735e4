// Activations to and from fp8 (e4m3), 128 channels of a token with one scale; codec.py has the definition.
#include <cstring>

#include "step3_wire.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// Compiled for several processors; the loader picks.
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define CLONES
#endif

namespace {

constexpr int64_t BLOCK = 128;
constexpr float FP8_MAX = 448.0f, LEAST_SCALE = 1.17549435e-38f;
constexpr uint32_t INFINITE = 0x7f800000, LEAST_NORMAL = (127 - 6) << 23;
constexpr float SUBNORMAL_STEP_AT = 16384.0f;  // where float32 has steps of 2^-9, as e4m3 has below 2^-6

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return float_of((uint32_t)x << 16); }

// To the nearest, ties to even; of what is at most 448 but for rounding.
inline uint8_t to_e4m3(float x) {
    const uint32_t bits = bits_of(x), size = bits & 0x7fffffff;
    const uint32_t normal = ((size + 0x7ffff + ((size >> 20) & 1)) >> 20) - ((127 - 7) << 3);
    const uint32_t subnormal = bits_of(float_of(size) + SUBNORMAL_STEP_AT) - bits_of(SUBNORMAL_STEP_AT);
    return (uint8_t)((size < LEAST_NORMAL ? subnormal : normal) | ((bits >> 24) & 0x80));
}

// Of every value but NaN, whose block has a scale of NaN.
inline float from_e4m3(uint8_t value) {
    const uint32_t size = value & 0x7f, sign = (uint32_t)(value & 0x80) << 24;
    const float normal = float_of((size << 20) + ((127 - 7) << 23));
    const float subnormal = (float)(int32_t)size * 0x1p-9f;
    return float_of(bits_of(size < 8 ? subnormal : normal) | sign);
}

inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > INFINITE ? (bits >> 16) | 0x40 : rounded);
}

inline void put(float *out, float x) { *out = x; }
inline void put(uint16_t *out, float x) { *out = to_bfloat16(x); }

template <class T>
inline __attribute__((always_inline)) void encode(const T *x, int64_t tokens, int64_t hidden, uint8_t *values,
                                                  float *scales) {
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t first = 0; first < hidden; first += BLOCK) {
            const int64_t size = hidden - first < BLOCK ? hidden - first : BLOCK;
            const T *__restrict from = x + token * hidden + first;
            uint8_t *__restrict to = values + token * hidden + first;
            uint32_t largest = 0;
            for (int64_t i = 0; i < size; i++) {
                const uint32_t one = bits_of(widen(from[i])) & 0x7fffffff;
                largest = one > largest ? one : largest;
            }
            float scale = float_of(largest) / FP8_MAX;
            scale = scale < LEAST_SCALE ? LEAST_SCALE : scale;
            if (largest >= INFINITE) scale = float_of(0x7fc00000);
            *scales++ = scale;
            for (int64_t i = 0; i < size; i++) to[i] = to_e4m3(widen(from[i]) / scale);
        }
}

template <class T>
inline __attribute__((always_inline)) void decode(const uint8_t *values, const float *scales, int64_t tokens,
                                                  int64_t hidden, T *out) {
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t first = 0; first < hidden; first += BLOCK) {
            const int64_t size = hidden - first < BLOCK ? hidden - first : BLOCK;
            const uint8_t *__restrict from = values + token * hidden + first;
            T *__restrict to = out + token * hidden + first;
            const float scale = *scales++;
            for (int64_t i = 0; i < size; i++) put(to + i, from_e4m3(from[i]) * scale);
        }
}

}  // namespace

extern "C" CLONES void step3_wire_encode(const void *x, int64_t is_bfloat16, int64_t tokens, int64_t hidden,
                                         uint8_t *values, float *scales) {
    if (is_bfloat16)
        encode((const uint16_t *)x, tokens, hidden, values, scales);
    else
        encode((const float *)x, tokens, hidden, values, scales);
}

extern "C" CLONES void step3_wire_decode(const uint8_t *values, const float *scales, int64_t tokens, int64_t hidden,
                                         void *out, int64_t is_bfloat16) {
    if (is_bfloat16)
        decode(values, scales, tokens, hidden, (uint16_t *)out);
    else
        decode(values, scales, tokens, hidden, (float *)out);
}
