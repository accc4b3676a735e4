// Activations of vectors: between products there is no time for what a compiler makes of a loop.
#pragma once
#include "numbers.h"
#include "vectors.h"

namespace step3 {

// x / (1 + e^exponent), as `fast_exp` computes it. NaN stays NaN.
static inline Floats divided_by_one_and_exp(Floats x, Floats exponent) {
    const Floats clamped = smaller(splat(MOST_EXPONENT), larger(splat(LEAST_EXPONENT), exponent));
    const Floats shifted = multiply_add(clamped, splat(LOG2_E), splat(TO_WHOLE));
    const Floats rest = multiply_add(clamped, splat(REST_OF_LOG2_E), multiply_add(clamped, splat(LOG2_E), splat(TO_WHOLE) - shifted));
    Floats y = splat(EXP2_POLYNOMIAL[0]);
    for (int i = 1; i < 6; i++) y = multiply_add(y, rest, splat(EXP2_POLYNOMIAL[i]));
    return x / (splat(1.f) + times_power(y, shifted));
}

// x * sigmoid(x)
static inline Floats silu(Floats x) { return divided_by_one_and_exp(x, -x); }

// x * sigmoid(1.702 x)
static inline Floats quick_gelu(Floats x) { return divided_by_one_and_exp(x, splat(-1.702f) * x); }
}  // namespace step3
