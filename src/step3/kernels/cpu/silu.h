// x / (1 + e^-x), of vectors: between products there is no time for what a compiler makes of a loop.
#pragma once
#include "numbers.h"
#include "vectors.h"

namespace step3 {

// As `fast_exp` computes it. NaN stays NaN.
static inline Floats silu(Floats x) {
    const Floats clamped = smaller(splat(MOST_EXPONENT), larger(splat(LEAST_EXPONENT), -x));
    const Floats shifted = multiply_add(clamped, splat(LOG2_E), splat(TO_WHOLE));
    const Floats rest = multiply_add(clamped, splat(REST_OF_LOG2_E), multiply_add(clamped, splat(LOG2_E), splat(TO_WHOLE) - shifted));
    Floats y = splat(POWER_OF_TWO[0]);
    for (int i = 1; i < 6; i++) y = multiply_add(y, rest, splat(POWER_OF_TWO[i]));
    return x / (splat(1.f) + times_power(y, shifted));
}
}  // namespace step3
