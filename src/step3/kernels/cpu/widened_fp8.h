// The product of widened rows with weights of block-fp8, which become floats by a shift and a mask: a byte in the upper bits of a word
// has its exponent where a float has the lower half of its own, so that the float is 2^-120 of the value, tiny numbers included. The
// rows that meet it, and the scales, are 2^60 times as large.
//
// A word of a panel holds four bytes, of two columns and both values of a pair. Read from one, two and three bytes further up, each
// of them is in a word's upper bits. So a part of a panel are 8 columns of both strips, the even ones by turns with the odd ones.
#pragma once
#include <cmath>
#include "widened_sums.h"

namespace step3 {

constexpr float FP8_FACTOR = 0x1p60f;

// Rows as they meet weights of fp8.
static inline const Pair *rows_of_fp8(const Pair *a, int64_t count, Buffer &scratch) {
    Pair *to = scratch.get<Pair>(count);
    for (int64_t i = 0; i < count; i++) to[i] = {a[i].first * FP8_FACTOR, a[i].second * FP8_FACTOR};
    return to;
}

// Of eight words the upper bytes.
static inline __attribute__((always_inline)) Floats upper_bytes(const char *at, Pairs kept) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(load_pairs(at), 4), kept));
}

// sums = R rows of a tile times P parts of the pairs that begin at `first`; the second pair begins at `next`.
template <int R, int P>
static inline __attribute__((always_inline)) void multiply_pairs_of_fp8(Sums<R, P> &sums, const Pair *a, int64_t row_step, const char *first,
                                                                        const char *next, int64_t pairs, PairsAhead ahead) {
    Pairs kept = _mm256_set1_epi32((int)0x87f00000);
    asm("" : "+x"(kept));  // left in its register
    clear(sums);
    for (const char *at = first; pairs > 0; pairs--) {
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
            const char *part = at + 32 * p;
            add_rows(sums, p, upper_bytes(part - 3, kept), upper_bytes(part - 1, kept), a, &Pair::first);
            add_rows(sums, p, upper_bytes(part - 2, kept), upper_bytes(part, kept), a, &Pair::second);
        }
        _mm_prefetch(ahead.at, _MM_HINT_T0);
        ahead.at += ahead.step;
        a += row_step;
        at = next;
        next += 64;
    }
}

// out += the sums of a block, times the scales of both strips.
template <int R, int V>
static inline __attribute__((always_inline)) void add_parts(const Floats (&sums)[R][V], float *out, const Floats (&scales)[2]) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2)
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            float *to = out + r * PANEL + v / 2 * LANES;
            store(to, multiply_add(_mm256_unpacklo_ps(sums[r][v], sums[r][v + 1]), scales[0], load(to)));
            store(to + STRIP, multiply_add(_mm256_unpackhi_ps(sums[r][v], sums[r][v + 1]), scales[1], load(to + STRIP)));
        }
}

// Makes NaN of all rows' results of a column where a block of it has one, which its float does not show.
static __attribute__((noinline)) void spread_nan(const char *block, int64_t pairs, int rows, float *out) {
    if (!has_fp8_nan(block, pairs * 64)) return;
    for (int column = 0; column < PANEL; column++)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const char *values = block + pair * 64 + fp8_place(column);
            if (!is_fp8_nan(values[0]) && !is_fp8_nan(values[1])) continue;
            for (int r = 0; r < rows; r++) out[r * PANEL + column] = NAN;
        }
}

// A tile times a panel, block by block; block_at(begin, pairs) gives those pairs, scale_of(block, strip) what they are scaled by.
template <class BlockAt, class ScaleOf>
static inline __attribute__((always_inline)) void multiply_blocks_of_fp8(const Product &p, int rows, BlockAt block_at, ScaleOf scale_of) {
    // The bytes in front of a panel may be nobody's: its first pair is read from here.
    alignas(64) char room[128];
    memset(p.out, 0, (size_t)(rows * PANEL) * sizeof(float));
    for (int64_t begin = 0; begin < p.pairs; begin += BLOCK_PAIRS) {
        const int64_t pairs = std::min(BLOCK_PAIRS, p.pairs - begin);
        const char *block = block_at(begin, pairs);
        const char *first = begin ? block : (const char *)memcpy(room + 64, block, 64);
        const Floats scales[] = {splat(scale_of(begin / BLOCK_PAIRS, 0) * FP8_FACTOR), splat(scale_of(begin / BLOCK_PAIRS, 1) * FP8_FACTOR)};
        each_part(rows, [&](auto r, auto s, int part, int64_t done) __attribute__((always_inline)) {
            constexpr int R = decltype(r)::value, P = decltype(s)::value;
            PairsAhead ahead{p.ahead + begin * p.ahead_step, p.ahead_step};
            if (done || part || !p.ahead) ahead = {block, 0};
            Sums<R, P> sums;
            multiply_pairs_of_fp8<R, P>(sums, p.a + begin * p.row_step + done, p.row_step, first + part * 32, block + 64 + part * 32, pairs,
                                        ahead);
            add_parts(sums, p.out + done * PANEL + part * LANES, scales);
        });
        if (p.may_be_nan) spread_nan(block, pairs, rows, p.out);
    }
}

static __attribute__((noinline)) void multiply_panel_of_fp8(const Product &p, int rows) {
    multiply_blocks_of_fp8(p, rows, [&p](int64_t begin, int64_t) { return p.panel + begin * 64; },
                           [&p](int64_t block, int strip) { return p.scales[2 * block + strip]; });
}

// A tile times two strips as they are stored, which are laid out in the first-level cache.
static __attribute__((noinline)) void multiply_strips_of_fp8(const Product &p, int rows, const Strip (&strips)[2], const Fetch &fetch) {
    constexpr int64_t STEP = 32;
    // Behind the bytes that are read in front of the first pair.
    alignas(64) char room[64 + BLOCK_PAIRS * 64], *block = room + 64;
    multiply_blocks_of_fp8(
        p, rows,
        [&](int64_t begin, int64_t pairs) {
            for (int64_t pair = 0; pair < pairs; pair += STEP)
                fill_pairs<false>(strips, (begin + pair) / STEP * BLOCK_BYTES, std::min(STEP, pairs - pair), true, fetch, block + pair * 64);
            return (const char *)block;
        },
        [&](int64_t block, int strip) { return strips[strip].rows ? strips[strip].scales[block] : 0.f; });
}
}  // namespace step3
