// The product with vectors where a processor multiplies nothing but floats (AVX2): weights are widened as they are multiplied
// (widened_bf16.h, widened_fp8.h), rows of activations are floats already (activations.h).
//
// 6 rows times two vectors of columns have 12 sums; two vectors of weights, a row's value and a mask fill the other four registers,
// and what is loaded and widened takes less time than the products. So of a block of 64 pairs, which stays in the first-level cache,
// each part passes by itself, and a tile's rows in two halves. A part is half of a panel: it gives two vectors at a time.
#pragma once
#include "activations.h"
#include "panels.h"
#include "product.h"
#include "team.h"

namespace step3 {

constexpr int ROWS = 6;

static_assert(TILE <= 2 * ROWS && STRIP == 2 * LANES);

// The sums of R rows and P parts.
template <int R, int P>
using Sums = Floats[R][2 * P];

// What is fetched of each pair: a line.
struct PairsAhead {
    const char *at;
    int64_t step;
};

// Two sums += two vectors of weights times x. As one instruction: compilers load values so early that there are not registers enough.
static inline __attribute__((always_inline)) void add_products(Floats &sum, Floats &next_sum, Floats b, Floats next_b, const float &x) {
    Floats first = sum, second = next_sum, all;
    asm("vbroadcastss %5, %2\n\t"
        "vfmadd231ps %3, %2, %0\n\t"
        "vfmadd231ps %4, %2, %1"
        : "+x"(first), "+x"(second), "=&x"(all)
        : "x"(b), "x"(next_b), "m"(x));
    sum = first, next_sum = second;
}

// The sums of a part += two vectors of weights times the `value` of each row: Pair::first, or second.
template <int R, int V>
static inline __attribute__((always_inline)) void add_rows(Floats (&sums)[R][V], int part, Floats b, Floats next_b, const Pair *a,
                                                           float Pair::*value) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) add_products(sums[r][2 * part], sums[r][2 * part + 1], b, next_b, a[r].*value);
}

// Runs body(R, P, part, done) for the rows of a tile and both parts: R rows behind `done` others, times P parts from this one on.
// Few rows have too few sums to fill the time that a sum takes, and take both parts at once.
template <class Body>
static inline __attribute__((always_inline)) void each_part(int rows, Body body) {
    using Two = std::integral_constant<int, 2>;
    using One = std::integral_constant<int, 1>;
    constexpr int FEW = 2;
    if (rows <= FEW)
        return each_group<FEW>(rows, [&](auto group, int64_t) __attribute__((always_inline)) { body(group, Two(), 0, (int64_t)0); });
    const int half = rows > ROWS ? (rows + 1) / 2 : rows;
    for (int part = 0; part < 2; part++)
        for (int done = 0; done < rows; done += half)
            each_group<ROWS>(std::min(half, rows - done),
                             [&](auto group, int64_t) __attribute__((always_inline)) { body(group, One(), part, (int64_t)done); });
}

template <int R, int V>
static inline __attribute__((always_inline)) void clear(Floats (&sums)[R][V]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = zero();
}
}  // namespace step3
