// What the machine can do at most, measured: the lines that the benchmark's figures are held against.
#include <algorithm>
#include <chrono>
#include "multiply.h"

using namespace step3;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// All threads read their part of the memory once, from front to back; whichever way is the fastest counts. Some
// processors read fastest by themselves, others when told what comes.
template <int AHEAD_LINES, int HINT>
static double read_once(const char *memory, int64_t share, int64_t threads) {
    const double begin = now();
#pragma omp parallel num_threads((int)threads)
    {
        const char *at = memory + omp_get_thread_num() * share;
        Floats sums[4] = {zero(), zero(), zero(), zero()};
        for (const char *end = at + share; at < end; at += 256) {
            if (AHEAD_LINES)
                for (int line = 0; line < 4; line++) _mm_prefetch(at + 64 * (AHEAD_LINES + line), (_mm_hint)HINT);
            for (int i = 0; i < 256 / (LANES * 4); i++)
                sums[i % 4] = either(sums[i % 4], load((const float *)at + i * LANES));
        }
        float out[4][LANES];
        for (int i = 0; i < 4; i++) store(out[i], sums[i]);
        // The result counts as used, so that the compiler leaves nothing out.
        asm volatile("" : : "r"(out) : "memory");
    }
    return (double)(share * threads) / (now() - begin) / 1e9;
}

extern "C" double step3_read_bandwidth(const char *memory, int64_t bytes, int64_t threads) {
    const int64_t share = bytes / threads / 4096 * 4096;
    return std::max({read_once<0, 0>(memory, share, threads), read_once<16, _MM_HINT_T0>(memory, share, threads),
                     read_once<32, _MM_HINT_NTA>(memory, share, threads), read_once<64, _MM_HINT_NTA>(memory, share, threads)});
}

constexpr int64_t PAIRS = 128;

// Operands that stay in the first-level cache, and with vectors sums that stay in registers; all threads read the same ones, as
// thread-local ones of a loaded library took 2.7 times as long. With zeros a processor draws less power and is faster than it ever is.
struct PeakOperands {
    alignas(64) char panel[PAIRS * 128];
    alignas(64) Pair a[PAIRS * ROWS];
    PeakOperands() {
        uint32_t state = 1;
        auto fill = [&state](void *to, size_t bytes) {
            for (size_t at = 0; at < bytes; at += 2) {
                state = state * 1664525u + 1013904223u;
                // Of either sign, between 1 and 2.
                const uint16_t value = (uint16_t)(0x3f80 | (state >> 16 & 0x807f));
                memcpy((char *)to + at, &value, 2);
            }
        };
        fill(panel, sizeof panel);
        fill(a, sizeof a);
    }
};

// All products of the operands, once.
static void multiply_operands(const PeakOperands &operands, [[maybe_unused]] bool of_integers) {
#if defined(__AMX_BF16__)
    // Sums are not stored: a register is not loaded before they have reached the cache, which costs a fifth of the products.
    for (int64_t pair = 0; pair < PAIRS; pair += STEP)
        multiply_step<true>((const char *)operands.a + pair * ROWS * 4, operands.panel + pair * 128);
#elif defined(__AVX512BW__)
    alignas(64) float out[TILE * PANEL];
    const Product p{operands.a, ROWS, operands.panel, PAIRS, nullptr, operands.panel, 0, out};
    multiply_tile_of_bf16(p, ROWS);
    // The result counts as used, so that the compiler leaves nothing out.
    asm volatile("" : : "r"(out) : "memory");
#else
    // Sums are stored once: block by block, as products do it, costs a twelfth.
    for (int strip = 0; strip < 2; strip++) {
        const char *at = operands.panel + strip * 64, *strips[1] = {at};
        alignas(32) float out[ROWS * STRIP];
        if (of_integers) {
            __m256i sums[ROWS][2];
            multiply_integers<ROWS>(sums, (const uint32_t *)operands.a, ROWS, at, PAIRS, {at, 0});
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < 2; v++) store_lanes((char *)(out + r * STRIP + v * LANES), sums[r][v]);
        } else {
            Floats sums[ROWS][2];
            clear(sums);
            accumulate<ROWS, 1>(sums, operands.a, ROWS, strips, 128, PAIRS, {at, 0});
            store_sums(sums, out, STRIP);
        }
        asm volatile("" : : "r"(out) : "memory");
    }
#endif
}

extern "C" double step3_peak_flops(int64_t threads, double seconds, int64_t integers) {
    static const PeakOperands operands;
    double begin = now();
    int64_t total = 0;
#pragma omp parallel num_threads((int)threads) reduction(+ : total)
    {
        const MatrixUnit unit;
        while (now() - begin < seconds)
            for (int i = 0; i < 1000; i++) {
                multiply_operands(operands, integers == 16);
                total += PAIRS * ROWS * PANEL * 4;
            }
    }
    return (double)total / (now() - begin) / 1e9;
}
