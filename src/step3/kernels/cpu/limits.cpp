// What the machine can do at most, measured: the lines that the benchmark's figures are held against.
#include <chrono>
#include "tile.h"

using namespace step3;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

extern "C" double step3_read_bandwidth(const char *memory, int64_t bytes, int64_t threads) {
    double begin = now();
    volatile float sink = 0;
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t share = bytes / threads / 4096 * 4096;
        const char *at = memory + omp_get_thread_num() * share;
        Floats sums[8];
        for (auto &sum : sums) sum = zero();
        for (int64_t i = 0; i < share; i += 8 * LANES * 4) {
            for (int j = 0; j < 8; j++) {
                Floats x = load((const float *)(at + i) + j * LANES);
                sums[j] = multiply_add(x, x, sums[j]);
            }
            for (int64_t line = 0; line < 8 * LANES * 4; line += 64) _mm_prefetch(at + i + AHEAD + line, _MM_HINT_T0);
        }
        float out[LANES];
        for (auto &sum : sums) {
            store(out, sum);
            sink = sink + out[0];
        }
    }
    return (double)(bytes / threads / 4096 * 4096 * threads) / (now() - begin) / 1e9;
}

constexpr int64_t PAIRS = 64;

extern "C" double step3_peak_flops(int64_t threads, double seconds) {
    // A product whose operands stay in registers and the first-level cache; all threads read the same ones, as
    // thread-local ones of a loaded library took 2.7 times as long.
    alignas(64) static const char panel[PAIRS * 128] = {};
    alignas(64) static const uint32_t a[PAIRS * ROWS] = {};
    double begin = now();
    int64_t total = 0;
#pragma omp parallel num_threads((int)threads) reduction(+ : total)
    {
        alignas(64) float out[TILE * PANEL];
        Product p{a, ROWS, panel, PAIRS, nullptr, panel, 0, out};
        while (now() - begin < seconds)
            for (int i = 0; i < 1000; i++) {
                multiply_panel<ROWS, Bf16>(p);
                // The result counts as used, so that the compiler leaves nothing out.
                asm volatile("" : : "r"(out) : "memory");
                total += PAIRS * ROWS * PANEL * 4;
            }
    }
    return (double)total / (now() - begin) / 1e9;
}
