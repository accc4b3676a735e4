// What a product of one tile is given.
#pragma once
#include <cstdint>

namespace step3 {

// `out` is [rows][32] float, of as many rows as a tile has at most.
struct Product {
    const uint32_t *a;
    int64_t row_step;
    const char *panel;
    int64_t pairs;
    const float *scales;  // [blocks][2] or null
    const char *ahead;
    int64_t ahead_step;
    float *out;
};

// X(R) for each number of rows that a tile of vectors has.
#define STEP3_EACH_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
}  // namespace step3
