// Products in float32, for exactness: torch's have another order of sums for each number of rows, and on some
// processors for each place among them. Here a product's columns are summed in as many parts as a vector has lanes,
// whatever stands beside it.
#include <algorithm>
#include "step3_cpu.h"
#include "vectors.h"

using namespace step3;

namespace {

constexpr int ROWS_AT_ONCE = 4;
constexpr int WEIGHTS_AT_ONCE = LANES == 16 ? 4 : 2;  // 4 x 4 sums and 8 operands in 32 registers, 4 x 2 and 6 in 16
constexpr int64_t TASK_ROWS = 64, TASK_WEIGHTS = 32;

struct Operands {
    const float *rows, *weights;
    int64_t columns;
};

float sum_of(Floats x) {
    float lanes[LANES];
    store(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// The last columns, fewer than a vector has lanes, and zeros.
Floats load_rest(const float *from, int64_t count) {
    float lanes[LANES] = {};
    std::copy_n(from, count, lanes);
    return load(lanes);
}

// out[r][w] = row r times weight w
template <int R, int W>
void multiply_block(const Operands &o, float *out, int64_t out_step) {
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
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) out[r * out_step + w] = sum_of(sums[r][w]);
}

template <int R>
void multiply_rows(Operands o, int64_t weights, float *out, int64_t out_step) {
    for (; weights >= WEIGHTS_AT_ONCE; weights -= WEIGHTS_AT_ONCE) {
        multiply_block<R, WEIGHTS_AT_ONCE>(o, out, out_step);
        o.weights += WEIGHTS_AT_ONCE * o.columns;
        out += WEIGHTS_AT_ONCE;
    }
    for (; weights > 0; weights--) {
        multiply_block<R, 1>(o, out++, out_step);
        o.weights += o.columns;
    }
}
}  // namespace

extern "C" void step3_linear_float(int64_t threads, const float *x, int64_t rows, int64_t columns,
                                   const float *weights, int64_t num_weights, float *out) {
    const int64_t row_tasks = (rows + TASK_ROWS - 1) / TASK_ROWS;
    const int64_t tasks = (num_weights + TASK_WEIGHTS - 1) / TASK_WEIGHTS * row_tasks;
    // A product that is done sooner than a thread is woken is done by one.
    constexpr int64_t ALONE = 1 << 16;
    if (rows * columns * num_weights < ALONE) threads = 1;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t weight = task / row_tasks * TASK_WEIGHTS, count = std::min(TASK_WEIGHTS, num_weights - weight);
        int64_t row = task % row_tasks * TASK_ROWS;
        const int64_t until = std::min(rows, row + TASK_ROWS);
        auto next = [&](auto multiply, int taken) {
            multiply({x + row * columns, weights + weight * columns, columns}, count, out + row * num_weights + weight, num_weights);
            row += taken;
        };
        while (row + ROWS_AT_ONCE <= until) next(multiply_rows<ROWS_AT_ONCE>, ROWS_AT_ONCE);
        while (row < until) next(multiply_rows<1>, 1);
    }
}
