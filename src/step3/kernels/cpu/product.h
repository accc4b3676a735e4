// What a product of one tile is given, and how its rows are grouped.
#pragma once
#include <cstdint>
#include <type_traits>

namespace step3 {

// `out` is [rows][32] float, of as many rows as a tile has at most.
struct Product {
    const Pair *a;
    int64_t row_step;
    const char *panel;
    int64_t pairs;
    const float *scales;  // [blocks][2] or null
    const char *ahead;
    int64_t ahead_step;
    float *out;
    bool may_be_nan = false;  // step3_matrix
};

// What a panel gives of a tile: [rows][32] sums, of the rows from `row` on.
struct TileSums {
    int64_t row;
    int rows;
    int64_t panel;
    const float *sums;
    const float *of(int r) const { return sums + r * 32; }
};

// Runs body(R, done) for groups of at most MOST rows: their number R is a constant to the compiler, `done` rows came before.
template <int MOST, class Body>
static inline __attribute__((always_inline)) void each_group(int rows, Body body) {
    static_assert(MOST <= 12);
    for (int done = 0, now; done < rows; done += now) {
        now = rows - done < MOST ? rows - done : MOST;
        switch (now) {
#define STEP3_CASE(R)                                                                       \
    case R:                                                                                 \
        if constexpr (R <= MOST) body(std::integral_constant<int, R>(), (int64_t)done);     \
        break;
            STEP3_CASE(1) STEP3_CASE(2) STEP3_CASE(3) STEP3_CASE(4) STEP3_CASE(5) STEP3_CASE(6)
            STEP3_CASE(7) STEP3_CASE(8) STEP3_CASE(9) STEP3_CASE(10) STEP3_CASE(11) STEP3_CASE(12)
#undef STEP3_CASE
        }
    }
}
}  // namespace step3
