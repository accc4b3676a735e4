// What a step begins with: the tokens' embeddings, and the angles that queries and keys are rotated by.
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

extern "C" void step3_begin(int64_t threads, const int64_t *tokens, const int64_t *positions, int64_t count,
                            const uint16_t *embedding, int64_t hidden, float *out, const float *frequencies,
                            int64_t half, float factor, float *cos, float *sin) {
    constexpr int64_t ALONE = 64;  // tokens that one thread does sooner than it wakes others
    if (count <= ALONE) threads = 1;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t token = 0; token < count; token++) {
        const uint16_t *from = embedding + tokens[token] * hidden;
        for (int64_t i = 0; i < hidden; i++) out[token * hidden + i] = float_of_bf16(from[i]);
        write_angles((float)positions[token], frequencies, half, factor, cos + token * half, sin + token * half);
    }
}
