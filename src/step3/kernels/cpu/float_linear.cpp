// Products in float32, for exactness: torch's have another order of sums for each number of rows, and on some
// processors for each place among them.
#include "float_product.h"
#include "step3_cpu.h"

using namespace step3;

extern "C" void step3_linear_float(int64_t threads, const float *x, int64_t rows, int64_t columns,
                                   const float *weights, int64_t num_weights, float *out) {
    constexpr int64_t TASK_ROWS = 64, TASK_WEIGHTS = 32;
    const int64_t row_tasks = (rows + TASK_ROWS - 1) / TASK_ROWS;
    const int64_t tasks = (num_weights + TASK_WEIGHTS - 1) / TASK_WEIGHTS * row_tasks;
    // A product that is done sooner than a thread is woken is done by one.
    constexpr int64_t ALONE = 1 << 16;
    if (rows * columns * num_weights < ALONE) threads = 1;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t weight = task / row_tasks * TASK_WEIGHTS, row = task % row_tasks * TASK_ROWS;
        multiply_floats({x + row * columns, weights + weight * columns, columns}, std::min(TASK_ROWS, rows - row),
                        std::min(TASK_WEIGHTS, num_weights - weight), out + row * num_weights + weight, num_weights);
    }
}
