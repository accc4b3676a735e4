// The two products of attention, of a tile of rows (query heads) with packed pages: scores, and mixed values.
#pragma once
#include "attention.h"

namespace step3 {

// Two pages.
struct Two {
    const char *first, *second;
};

#if defined(__AMX_BF16__)
// Registers 5 and 7 are of 8 pairs: half a run of channels, and the 16 tokens of a page of values.
template <bool MANY, int ROWS, int STRIP_>
static inline __attribute__((always_inline)) void multiply_two(const uint32_t *a, const char *first, const char *second) {
    load_register<STRIP_>(first, 64);
    load_register<ROWS>(a, REGISTER_LINE);
    multiply_registers<0, ROWS, STRIP_>();
    load_register<STRIP_>(second, 64);
    multiply_registers<1, ROWS, STRIP_>();
    if (!MANY) return;
    load_register<ROWS>(a + REGISTER_ROWS * RUN, REGISTER_LINE);
    multiply_registers<3, ROWS, STRIP_>();
    load_register<STRIP_>(first, 64);
    multiply_registers<2, ROWS, STRIP_>();
}

template <bool MANY>
static void score_tile(const uint32_t *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    clear_sums<MANY>();
    Fetched first{ahead.first, 64}, second{ahead.second, 64};
    for (int64_t pair = 0; pair < pairs; pair += RUN, a += rows * RUN) {
        const int64_t at = pair * 64;
        first.fetch();
        second.fetch();
        if (pair + RUN <= pairs)
            multiply_two<MANY, 4, 6>(a, keys.first + at, keys.second + at);
        else
            multiply_two<MANY, 5, 7>(a, keys.first + at, keys.second + at);
    }
    store_sums<MANY>(out, out_step);
}

// Scores [rows][32] of two pages of keys; the pages `ahead` are fetched meanwhile.
static void score(const uint32_t *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    auto *product = rows > REGISTER_ROWS ? score_tile<true> : score_tile<false>;
    product(a, rows, keys, pairs, ahead, out, out_step);
}

template <bool MANY>
static void mix_tile(const uint32_t *a, int rows, const char *const *pages, int64_t count, int64_t offset,
                     int64_t second, float *out, int64_t out_step) {
    load_sums<MANY>(out, out_step);
    for (int64_t page = 0; page < count; page++) {
        const char *at = pages[page] + offset;
        multiply_two<MANY, 5, 7>(a + page / 2 * rows * RUN + page % 2 * (PAGE / 2), at, at + second);
    }
    store_sums<MANY>(out, out_step);
}

// out [rows][head_dim] at 32 channels = out * scales[row] + probabilities times the values of some pages.
static void mix(const uint32_t *a, int rows, const char *const *pages, int64_t count, int64_t offset, int64_t second,
                const float *scales, float *out, int64_t out_step) {
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < PANEL; s += STRIP) {
            // A first scale of zero must clear what was there, be it NaN.
            float *to = out + r * out_step + s;
            store(to, scales[r] == 0.f ? zero() : multiply_add(load(to), splat(scales[r]), zero()));
        }
    auto *product = rows > REGISTER_ROWS ? mix_tile<true> : mix_tile<false>;
    product(a, rows, pages, count, offset, second, out, out_step);
}
#else
// Scores [rows][32] of two pages of keys; the pages `ahead` are fetched meanwhile.
template <int R>
static void score_panel(const uint32_t *a, int64_t row_step, Two keys, int64_t pairs, Two ahead, float *out,
                        int64_t out_step) {
    Floats sums[R][VECTORS];
    clear(sums);
    accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, row_step, keys.first, keys.second, 64, pairs, ahead.first,
                                ahead.second - ahead.first, 64);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * out_step + v * LANES, sums[r][v]);
}

// out [rows][head_dim] at 32 channels = out * scales[row] + probabilities times the values of some pages.
template <int R>
static void mix_panel(const uint32_t *a, int64_t row_step, const char *const *pages, int64_t count, int64_t offset,
                      int64_t second, const float *scales, float *out, int64_t out_step) {
    Floats sums[R][VECTORS];
    for (int r = 0; r < R; r++) {
        // A first scale of zero must clear what was there, be it NaN.
        for (int v = 0; v < VECTORS; v++) {
            Floats before = load(out + r * out_step + v * LANES);
            sums[r][v] = scales[r] == 0.f ? zero() : multiply_add(before, splat(scales[r]), zero());
        }
    }
    for (int64_t page = 0; page < count; page++) {
        const char *at = pages[page] + offset, *ahead = pages[page + 1 < count ? page + 1 : page] + offset;
        accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, row_step, at, at + second, 64, PAGE / 2, ahead, second, 64);
        a += row_step * (PAGE / 2);
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * out_step + v * LANES, sums[r][v]);
}

static void score(const uint32_t *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    each_group<ROWS>(rows, [&](auto group, int64_t done) {
        score_panel<group()>(a + done, rows, keys, pairs, ahead, out + done * out_step, out_step);
    });
}

static void mix(const uint32_t *a, int rows, const char *const *pages, int64_t count, int64_t offset, int64_t second,
                const float *scales, float *out, int64_t out_step) {
    each_group<ROWS>(rows, [&](auto group, int64_t done) {
        mix_panel<group()>(a + done, rows, pages, count, offset, second, scales + done, out + done * out_step, out_step);
    });
}
#endif
}  // namespace step3
