// Draws tokens: what engine/sampling/drawing.py computes with torch, a row in one pass.
//
// The largest of log p + g, g a Gumbel number -log e, is the smallest of e / p: e = -log u takes one logarithm.
#include <cmath>
#include <limits>
#include "numbers.h"
#include "step3_cpu.h"
#include "team.h"

using namespace step3;

namespace {
constexpr float FAR = 80.f;      // as in engine/sampling/filters.py
constexpr int AT_ONCE = 16;      // counters of Philox side by side
constexpr int64_t ALONE = 1 << 18;  // values that one thread draws from in less time than waking others takes

// Philox-4x32-10 and exponential numbers -log u of it: see engine/sampling/random_numbers.py.
void exponentials(uint64_t seed, uint32_t stream, uint32_t position, int64_t count, double *out) {
    for (int64_t begin = 0; begin * 4 < count; begin += AT_ONCE) {
        uint32_t words[4][AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            words[0][i] = (uint32_t)(begin + i);
            words[1][i] = 0;
            words[2][i] = position;
            words[3][i] = stream;
        }
        uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
#pragma omp simd
            for (int i = 0; i < AT_ONCE; i++) {
                const uint64_t first = (uint64_t)words[0][i] * 0xD2511F53u;
                const uint64_t second = (uint64_t)words[2][i] * 0xCD9E8D57u;
                words[0][i] = (uint32_t)(second >> 32) ^ words[1][i] ^ key0;
                words[1][i] = (uint32_t)second;
                words[2][i] = (uint32_t)(first >> 32) ^ words[3][i] ^ key1;
                words[3][i] = (uint32_t)first;
            }
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        const int64_t left = count - begin * 4;
        for (int i = 0; i < 4 * AT_ONCE && i < left; i++)
            out[begin * 4 + i] = -std::log((words[i % 4][i / 4] + 0.5) * 0x1p-32);
    }
}

struct Row {
    const float *logits;
    int64_t vocab;
    float best, temperature;

    float distance(int64_t token) const {
        const float far = (best - logits[token]) / temperature;
        return far < FAR ? far : FAR;
    }

    // The probability of the tokens of a block, up to a factor that all blocks have in common.
    float mass(int64_t begin, int64_t end) const {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t token = begin; token < end; token++) sum += fast_exp(-distance(token));
        return sum;
    }
};

// A block of `block` ids by its mass, then an id within it.
int64_t draw(const Row &row, int64_t block, const double *noise) {
    const int64_t blocks = (row.vocab + block - 1) / block;
    int64_t chosen = 0;
    double lowest = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t end = (i + 1) * block < row.vocab ? (i + 1) * block : row.vocab;
        const double wait = noise[i] / (double)row.mass(i * block, end);
        if (wait < lowest) lowest = wait, chosen = i;
    }
    const int64_t first = chosen * block, last = first + block < row.vocab ? first + block : row.vocab;
    int64_t token = first;
    lowest = std::numeric_limits<double>::infinity();
    for (int64_t id = first; id < last; id++) {
        const double wait = noise[blocks + id - first] * (double)fast_exp(row.distance(id));
        if (wait < lowest) lowest = wait, token = id;
    }
    return token;
}
}  // namespace

extern "C" void step3_draw(int64_t threads, const float *logits, int64_t rows, int64_t vocab, int64_t block,
                           const float *best, const float *temperature, const int64_t *seeds,
                           const int64_t *streams, const int64_t *positions, int64_t *tokens) {
    Workspace workspace;
    const int64_t numbers = (vocab + block - 1) / block + block;
    run(workspace, rows * vocab < ALONE ? 1 : threads, [&](Worker &worker) {
        double *noise = worker.own().get<double>(numbers);
        worker.each(rows, [&](int64_t i) {
            tokens[i] = 0;
            if (!std::isfinite(best[i])) return;
            exponentials((uint64_t)seeds[i], (uint32_t)streams[i], (uint32_t)positions[i], numbers, noise);
            tokens[i] = draw(Row{logits + i * vocab, vocab, best[i], temperature[i]}, block, noise);
        });
    });
}

extern "C" void step3_likeliest(int64_t threads, const float *logits, int64_t rows, int64_t vocab, float *best,
                                int64_t *tokens) {
    if (rows * vocab < ALONE) threads = 1;
#pragma omp parallel for num_threads((int)threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *own = logits + row * vocab;
        float most = own[0];
        int has_nan = 0;
#pragma omp simd reduction(max : most) reduction(| : has_nan)
        for (int64_t i = 0; i < vocab; i++) {
            most = own[i] > most ? own[i] : most;
            has_nan |= own[i] != own[i];
        }
        int64_t at = 0;
        while (at < vocab && !(has_nan ? own[at] != own[at] : own[at] == most)) at++;
        best[row] = own[at];
        tokens[row] = at;
    }
}
