// Scores to probabilities, between the two products of attention.
#pragma once
#include <limits>
#include "rows.h"

namespace step3 {

// 2^x to about three millionths, of x from -125 to 127: probabilities are rounded to bf16. NaN stays NaN.
static inline Floats power_of_two(Floats x) {
    const Floats shift = splat(TO_WHOLE), shifted = x + shift, rest = x - (shifted - shift);
    // Of -1/2 to 1/2, the polynomial of least relative error.
    Floats y = splat(9.570102207e-3f);
    y = multiply_add(y, rest, splat(5.591785908e-2f));
    y = multiply_add(y, rest, splat(2.402474433e-1f));
    y = multiply_add(y, rest, splat(6.931217909e-1f));
    y = multiply_add(y, rest, splat(9.999992847e-1f));
    return times_power(y, shifted);
}

// A row's scores of `keys` keys: panels of 32, `step` floats apart. The last one is whole, whatever it holds.
struct Scores {
    const float *data;
    int64_t step, keys;
    Floats at(int64_t key, int vector) const { return load(data + key / PANEL * step + vector * LANES); }
};

// The largest of the first `seen`; of NaN it says nothing.
static inline float largest(const Scores &scores, int64_t seen) {
    const Floats least = splat(-std::numeric_limits<float>::infinity());
    Floats most[VECTORS];
    for (auto &vector : most) vector = least;
    int64_t key = 0;
    for (; key + PANEL <= seen; key += PANEL)
        for (int v = 0; v < VECTORS; v++) most[v] = larger(scores.at(key, v), most[v]);
    for (int v = 0; key < seen && v < VECTORS; v++)
        most[v] = larger(first_lanes(scores.at(key, v), seen - key - v * LANES, least), most[v]);
    for (int v = 1; v < VECTORS; v++) most[0] = larger(most[v], most[0]);
    return largest_of(most[0]);
}

struct Softened {
    float sum, largest;  // of probabilities, of scores
};

// e^(scale * score - most) of the first `seen` scores, and zeros behind them, into a row's pairs.
static inline Softened soften(const Scores &scores, int64_t seen, float scale, float most, const Place &to) {
    const Floats factor = splat(scale * LOG2_E), shift = splat(-most * LOG2_E), least = splat(-125.f);
    const Floats nothing = splat(-std::numeric_limits<float>::infinity());
    Floats sums[VECTORS], most_of[VECTORS], y[VECTORS];
    for (int v = 0; v < VECTORS; v++) sums[v] = zero(), most_of[v] = nothing;
    int64_t key = 0;
    auto add = [&](auto first) __attribute__((always_inline)) {
        for (int v = 0; v < VECTORS; v++) {
            const Floats x = scores.at(key, v);
            y[v] = first(power_of_two(larger(least, multiply_add(x, factor, shift))), v, zero());
            sums[v] = sums[v] + y[v];
            most_of[v] = larger(first(x, v, nothing), most_of[v]);
        }
        pack_panel(y, key / 2, to);
        key += PANEL;
    };
    while (key + PANEL <= seen) add([](Floats x, int, Floats) { return x; });
    if (key < seen) add([&](Floats x, int v, Floats rest) { return first_lanes(x, seen - key - v * LANES, rest); });
    for (auto &vector : y) vector = zero();
    for (; key < scores.keys; key += PANEL) pack_panel(y, key / 2, to);
    for (int v = 1; v < VECTORS; v++) sums[0] = sums[0] + sums[v], most_of[0] = larger(most_of[v], most_of[0]);
    return {sum_of(sums[0]), largest_of(most_of[0])};
}
}  // namespace step3
