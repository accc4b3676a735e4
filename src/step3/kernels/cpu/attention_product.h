// The two products of attention, of a tile of rows (query heads) with packed pages: scores, and mixed values.
#pragma once
#include "attention.h"

namespace step3 {

// Two pages.
struct Two {
    const char *first, *second;
};

// The values of some pages, and room for them as `lay_values` lays them out.
struct SeenValues {
    const char *const *pages;
    int64_t count, head_dim;
    char *laid;
};

#if defined(__AMX_BF16__)
template <bool MANY>
static void score_tile(const char *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    clear_sums<MANY>();
    Fetched first{ahead.first, 64}, second{ahead.second, 64};
    for (int64_t pair = 0; pair < pairs; pair += RUN, a += rows * REGISTER_LINE) {
        first.fetch();
        second.fetch();
        multiply_two<MANY>(a, keys.first + pair * 64, keys.second + pair * 64, 64);
    }
    store_sums<MANY>(out, out_step);
}

// Scores [rows][32] of two pages of keys; the pages `ahead` are fetched meanwhile.
static void score(const Pair *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    auto *product = rows > REGISTER_ROWS ? score_tile<true> : score_tile<false>;
    product((const char *)a, rows, keys, pairs, ahead, out, out_step);
}

// Panels of values lie `LAID_PANEL` bytes apart.
constexpr int64_t LAID_PANEL = KEYS_AT_ONCE / 2 * 128;

static int64_t bytes_of_laid(int64_t channels) { return channels / PANEL * LAID_PANEL; }

// Values as panels: 8 pairs of tokens of a page would fill half a register.
static void lay_values(const SeenValues &values) {
    constexpr int64_t pairs = PAGE / 2;
    for (int64_t strip = 0; strip < values.head_dim / STRIP; strip++) {
        char *own = values.laid + strip / 2 * LAID_PANEL + strip % 2 * 64;
        for (int64_t page = 0; page < values.count; page++)
            for (int64_t pair = 0; pair < pairs; pair++)
                store_lanes(own + (page * pairs + pair) * 128, _mm512_loadu_si512(values.pages[page] + (strip * pairs + pair) * 64));
        // The last run's rest meets zeros, which do not make a NaN go away.
        for (int64_t pair = values.count * pairs; pair % RUN; pair++) store_lanes(own + pair * 128, _mm512_setzero_si512());
    }
}

template <bool MANY>
static void mix_tile(const char *a, int rows, const char *panel, int64_t pairs, float *out, int64_t out_step) {
    load_sums<MANY>(out, out_step);
    for (int64_t pair = 0; pair < pairs; pair += RUN, a += rows * REGISTER_LINE) multiply_step<MANY>(a, panel + pair * 128);
    store_sums<MANY>(out, out_step);
}

// out [rows][32] += probabilities times values, at the channels from this one on.
static void mix(const Pair *a, int rows, const SeenValues &values, int64_t channel, float *out, int64_t out_step) {
    auto *product = rows > REGISTER_ROWS ? mix_tile<true> : mix_tile<false>;
    product((const char *)a, rows, values.laid + channel / PANEL * LAID_PANEL, values.count * PAGE / 2, out, out_step);
}
#else
// Values are mixed as they lie in their pages.
static int64_t bytes_of_laid(int64_t) { return 0; }
static void lay_values(const SeenValues &) {}

#if defined(__AVX512BW__)
// Scores [rows][32] of two pages of keys; the pages `ahead` are fetched meanwhile.
template <int R>
static void score_panel(const Pair *a, int64_t row_step, Two keys, int64_t pairs, Two ahead, float *out,
                        int64_t out_step) {
    Floats sums[R][VECTORS];
    clear(sums);
    accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, row_step, keys.first, keys.second, 64, pairs, ahead.first,
                                ahead.second - ahead.first, 64);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * out_step + v * LANES, sums[r][v]);
}

template <int R>
static void mix_panel(const Pair *a, int64_t row_step, const char *const *pages, int64_t count, int64_t offset,
                      int64_t second, float *out, int64_t out_step) {
    Floats sums[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = load(out + r * out_step + v * LANES);
    for (int64_t page = 0; page < count; page++) {
        const char *at = pages[page] + offset, *ahead = pages[page + 1 < count ? page + 1 : page] + offset;
        accumulate<R, _MM_HINT_T0>(sums, Bf16(), a, row_step, at, at + second, 64, PAGE / 2, ahead, second, 64);
        a += row_step * (PAGE / 2);
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * out_step + v * LANES, sums[r][v]);
}

static void score(const Pair *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    each_group<ROWS>(rows, [&](auto group, int64_t done) {
        score_panel<group()>(a + done, rows, keys, pairs, ahead, out + done * out_step, out_step);
    });
}

// out [rows][32] += probabilities times values, at the channels from this one on.
static void mix(const Pair *a, int rows, const SeenValues &values, int64_t channel, float *out, int64_t out_step) {
    constexpr int64_t strip = PAGE * STRIP * 2;
    // With 16 channels left the second strip is the first again, and dropped.
    const int64_t second = channel + STRIP < values.head_dim ? strip : 0;
    each_group<ROWS>(rows, [&](auto group, int64_t done) {
        mix_panel<group()>(a + done, rows, values.pages, values.count, channel / STRIP * strip, second, out + done * out_step, out_step);
    });
}
#else
// Scores [rows][32] of two pages of keys; the pages `ahead` are fetched meanwhile.
__attribute__((noinline)) static void score(const Pair *a, int rows, Two keys, int64_t pairs, Two ahead, float *out, int64_t out_step) {
    each_part(rows, [&](auto r, auto s, int strip, int64_t done) __attribute__((always_inline)) {
        constexpr int R = decltype(r)::value, S = decltype(s)::value;
        const char *pages[] = {keys.first, keys.second}, *strips[S];
        for (int i = 0; i < S; i++) strips[i] = pages[strip + i];
        Floats sums[R][2 * S];
        clear(sums);
        accumulate<R, S>(sums, a + done, rows, strips, 64, pairs, {strip ? ahead.second : ahead.first, done ? 0 : 64});
        store_sums(sums, out + done * out_step + strip * STRIP, out_step);
    });
}

// out [rows][32] += probabilities times values, at the channels from this one on.
__attribute__((noinline)) static void mix(const Pair *a, int rows, const SeenValues &values, int64_t channel, float *out, int64_t out_step) {
    constexpr int64_t strip_bytes = PAGE * STRIP * 2;
    // With 16 channels left the second strip is the first again, and dropped.
    const int64_t offsets[] = {channel / STRIP * strip_bytes, (channel / STRIP + (channel + STRIP < values.head_dim)) * strip_bytes};
    each_part(rows, [&](auto r, auto s, int strip, int64_t done) __attribute__((always_inline)) {
        constexpr int R = decltype(r)::value, S = decltype(s)::value;
        float *to = out + done * out_step + strip * STRIP;
        Floats sums[R][2 * S];
        load_sums(sums, to, out_step);
        // A number to the compiler, which would make one piece of a page's pairs, with registers for no more than some of its sums.
        int64_t pairs = PAGE / 2;
        asm("" : "+r"(pairs));
        for (int64_t page = 0; page < values.count; page++) {
            const char *next = values.pages[page + 1 < values.count ? page + 1 : page] + offsets[strip], *strips[S];
            for (int i = 0; i < S; i++) strips[i] = values.pages[page] + offsets[strip + i];
            accumulate<R, S>(sums, a + page * (PAGE / 2) * rows + done, rows, strips, 64, pairs, {next, done ? 0 : 64});
        }
        store_sums(sums, to, out_step);
    });
}
#endif
#endif
}  // namespace step3
