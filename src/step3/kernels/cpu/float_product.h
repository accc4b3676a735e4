// Products in float32: a product's columns are summed in as many parts as a vector has lanes, whatever stands beside
// it. Weights are rows, as they are stored.
#pragma once
#include <algorithm>
#include "vectors.h"

namespace step3 {

constexpr int FLOAT_ROWS = 4;
constexpr int FLOAT_WEIGHTS = LANES == 16 ? 4 : 2;  // 4 x 4 sums and 8 operands in 32 registers, 4 x 2 and 6 in 16

struct FloatFactors {
    const float *rows, *weights;
    int64_t columns;
};

// The last columns, fewer than a vector has lanes, and zeros.
static inline Floats load_rest(const float *from, int64_t count) {
    float lanes[LANES] = {};
    std::copy_n(from, count, lanes);
    return load(lanes);
}

// out[r][w] = row r times weight w
template <int R, int W>
static void multiply_float_block(const FloatFactors &o, float *out, int64_t out_step) {
    Floats sums[R][W];
    for (auto &row : sums)
        for (auto &sum : row) sum = zero();
    auto add = [&](auto load_at) __attribute__((always_inline)) {
        Floats weights[W];
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) weights[w] = load_at(o.weights + w * o.columns);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            const Floats row = load_at(o.rows + r * o.columns);
#pragma GCC unroll 4
            for (int w = 0; w < W; w++) sums[r][w] = multiply_add(row, weights[w], sums[r][w]);
        }
    };
    int64_t column = 0;
    for (; column + LANES <= o.columns; column += LANES) add([&](const float *from) { return load(from + column); });
    if (column < o.columns) add([&](const float *from) { return load_rest(from + column, o.columns - column); });
    store_sums_of(sums, out, out_step);
}

template <int R>
static void multiply_float_rows(FloatFactors o, int64_t weights, float *out, int64_t out_step) {
    for (; weights >= FLOAT_WEIGHTS; weights -= FLOAT_WEIGHTS) {
        multiply_float_block<R, FLOAT_WEIGHTS>(o, out, out_step);
        o.weights += FLOAT_WEIGHTS * o.columns;
        out += FLOAT_WEIGHTS;
    }
    for (; weights > 0; weights--) {
        multiply_float_block<R, 1>(o, out++, out_step);
        o.weights += o.columns;
    }
}

// out [rows][weights] = each row times each weight
static inline void multiply_floats(FloatFactors o, int64_t rows, int64_t weights, float *out, int64_t out_step) {
    for (; rows >= FLOAT_ROWS; rows -= FLOAT_ROWS) {
        multiply_float_rows<FLOAT_ROWS>(o, weights, out, out_step);
        o.rows += FLOAT_ROWS * o.columns;
        out += FLOAT_ROWS * out_step;
    }
    for (; rows > 0; rows--) {
        multiply_float_rows<1>(o, weights, out, out_step);
        o.rows += o.columns;
        out += out_step;
    }
}
}  // namespace step3
