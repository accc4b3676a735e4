// What a step begins with: where the tokens' keys and values go, the angles that queries and keys are rotated by, and
// embeddings.
#include <omp.h>
#include <algorithm>
#include <cmath>
#include "numbers.h"
#include "step3_cpu.h"

using namespace step3;

namespace {

// Cosines and sines of position * frequency, a float32 product as in rotary.py; both are right to float32's last bit or
// the one before it.
void write_angles(float position, const float *frequencies, int64_t count, float factor, float *cos, float *sin) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const double angle = position * frequencies[i];
        const double quarters = std::floor(angle * 0.63661977236758134 + 0.5);
        const double x = (angle - quarters * 1.5707963267948966) - quarters * 6.123233995736766e-17, square = x * x;
        const double of_sin = x * (1 + square * (-1. / 6 + square * (1. / 120 + square * (-1. / 5040 + square * (1. / 362880)))));
        const double of_cos = 1 + square * (-1. / 2 + square * (1. / 24 + square * (-1. / 720 + square * (1. / 40320 - square / 3628800))));
        const int turn = (int)quarters;
        const double first = turn & 1 ? of_sin : of_cos, second = turn & 1 ? of_cos : of_sin;
        cos[i] = (float)((turn + 1) & 2 ? -first : first) * factor;
        sin[i] = (float)(turn & 2 ? -second : second) * factor;
    }
}
}  // namespace

extern "C" void step3_begin(int64_t threads, const step3_network *network, const step3_batch *batch) {
    constexpr int64_t ALONE = 64;  // tokens that one thread does sooner than it wakes others
    const step3_batch &b = *batch;
    const int64_t hidden = network->shape.hidden, half = network->shape.head_dim / 2, block_size = network->shape.block_size;
    if (b.tokens <= ALONE) threads = 1;
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
        const int64_t begin = b.tokens * part / parts, end = b.tokens * (part + 1) / parts;
        for (int64_t s = 0, first = 0; s < b.sequences && first < end; first += b.lengths[s++]) {
            const int64_t *blocks = b.tables + b.table_rows[s] * b.table_stride, until = std::min(end, first + b.lengths[s]);
            for (int64_t token = std::max(begin, first); token < until; token++) {
                const int64_t position = b.contexts[s] - b.lengths[s] + token - first;
                b.slots[token] = blocks[position / block_size] * block_size + position % block_size;
                write_angles((float)position, network->frequencies, half, network->factor, b.cos + token * half, b.sin + token * half);
                const uint16_t *from = network->embedding + b.ids[token] * hidden;
                for (int64_t i = 0; i < hidden; i++) b.hidden[token * hidden + i] = float_of_bf16(from[i]);
            }
        }
    }
    for (int64_t i = 0; i < b.num_features; i++) {
        const step3_features &features = b.features[i];
        for (int64_t row = 0; row < features.count; row++)
            memcpy(b.hidden + features.rows[row] * hidden, features.values + row * hidden, (size_t)hidden * 4);
    }
}
