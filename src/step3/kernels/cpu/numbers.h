// Scalar arithmetic that the compiler turns into vectors: conversions, exp, and what is built on it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace step3 {

static inline float float_of_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// To nearest, ties to even; NaN stays NaN.
static inline uint32_t bf16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

// To nearest float8_e4m3fn, ties to even; what is beyond 448 becomes 448.
static inline uint8_t fp8_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff, coded;
    if (magnitude > 0x7f800000) return 0x7f;
    float size;
    memcpy(&size, &magnitude, 4);
    if (size >= 448.f) return (uint8_t)(sign | 0x7e);
    if (size < 0x1p-6f) {
        coded = (uint32_t)std::nearbyint(size * 512.f);
    } else {
        magnitude += 0x7ffff + (magnitude >> 20 & 1);
        coded = (magnitude >> 20) - (120u << 3);
    }
    return (uint8_t)(sign | coded);
}

constexpr float LOG2_E = 1.44269504f, REST_OF_LOG2_E = 1.92596e-8f;
constexpr float LEAST_EXPONENT = -87.f, MOST_EXPONENT = 88.f;
// Adding 1.5 * 2^23 rounds to a whole number, which stands in the lowest bits.
constexpr float TO_WHOLE = 12582912.f;
// 2^x, of -1/2 to 1/2: the polynomial of least relative error, 1e-7; the highest power first.
constexpr float EXP2_POLYNOMIAL[] = {1.326472731e-3f, 9.671512991e-3f, 5.550733581e-2f, 2.402224243e-1f, 6.931470037e-1f, 1.f};

// e^x to about two units in the last place; 0 below -87.
static inline float fast_exp(float x) {
    const float clamped = x < LEAST_EXPONENT ? LEAST_EXPONENT : x > MOST_EXPONENT ? MOST_EXPONENT : x;
    const float shifted = clamped * LOG2_E + TO_WHOLE;
    const float rest = clamped * LOG2_E - (shifted - TO_WHOLE) + clamped * REST_OF_LOG2_E;
    float y = EXP2_POLYNOMIAL[0];
    for (int i = 1; i < 6; i++) y = y * rest + EXP2_POLYNOMIAL[i];
    uint32_t bits, whole;
    memcpy(&bits, &y, 4);
    memcpy(&whole, &shifted, 4);
    bits += whole << 23;
    memcpy(&y, &bits, 4);
    return x < LEAST_EXPONENT ? 0.f : y;
}

// 1 / rms(x)
static inline float inverse_rms(const float *x, int64_t size, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return 1.f / std::sqrt(sum / (float)size + eps);
}
}  // namespace step3
