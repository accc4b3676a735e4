// Activations as the products read them: tiles of some rows, so that a tile times a panel of weights is one
// product, and both are read from front to back.
//
// Vectors take up to 12 rows, pair after pair of columns, a pair of each row. Tile registers take up to 32 rows: 16
// pairs of each row in one line of the cache, then the next 16. Rows whose distance is a multiple of 4096 bytes
// do not throw each other out of the cache in either.
#pragma once
#include <algorithm>
#include "amx.h"
#include "numbers.h"

namespace step3 {

constexpr int TILE = HAS_AMX ? 32 : 12;        // most rows of a tile
constexpr int RUN = HAS_AMX ? 16 : 1;          // pairs of a row that lie side by side

// Two neighbouring values of a row, as products read them; `put_values` writes some of bf16 into the pairs from this one on.
#if defined(__AVX512BW__)
using Pair = uint32_t;  // of bf16
static inline void put_values(Pair *to, const uint16_t *from, int64_t count) { memcpy(to, from, (size_t)count * 2); }
#else
// A processor that multiplies nothing but floats would widen them for each 16 columns anew, in the ports that multiply.
struct Pair {
    float first, second;
};
static inline void put_values(Pair *to, const uint16_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) (i % 2 ? to[i / 2].second : to[i / 2].first) = float_of_bf16(from[i]);
}
#endif

// Rows that pass a panel while it is in the cache: with tile registers what fits into the second level with all else that
// passes. Of long rows slices do, 256 of them with the sums of SLICED_PANELS panels: weights are read again for each 256 rows, and
// rows for each 1,024 columns of the product.
constexpr int64_t SLICE_PAIRS = 512;  // of long rows, that pass some panels before the next ones do (amx_blocks.h)
constexpr int64_t CHUNK_BYTES = 3 << 18, SLICED_CHUNK_BYTES = 1 << 19;
constexpr int64_t MIN_CHUNK_ROWS = HAS_AMX ? 64 : 288, MAX_CHUNK_ROWS = HAS_AMX ? 512 : 288;

// Activations of an expert that a thread takes through both of its products, as they stay in the second-level cache;
// weights are not read for fewer rows at a time than so many.
constexpr int64_t JOB_BYTES = HAS_AMX ? 7 << 18 : 0, MIN_JOB_ROWS = 192;

// Pairs of a row that pass a panel at a time. Rows of two slices are better off whole.
static inline int64_t slice_of(int64_t pairs, bool is_stored) {
    return HAS_AMX && !is_stored && pairs > 2 * SLICE_PAIRS ? SLICE_PAIRS : pairs;
}

// How `rows` rows are cut into tiles: with vectors into those whose sizes differ by one at most; tile registers
// take as long for a few rows as for 16.
struct Tiles {
    int64_t rows, count;
    explicit Tiles(int64_t rows) : rows(rows), count((rows + TILE - 1) / TILE) {}
    int64_t start(int64_t tile) const { return HAS_AMX ? std::min(rows, tile * TILE) : rows * tile / count; }
    int size(int64_t tile) const { return (int)(start(tile + 1) - start(tile)); }
    // The tile of a row.
    int64_t of(int64_t row) const {
        if (HAS_AMX) return row / TILE;
        int64_t tile = row * count / rows;
        while (start(tile + 1) <= row) tile++;
        return tile;
    }
};

// Where a row lies in packed activations.
class Place {
   public:
    // Row `row` of the `rows` of a tile.
    Place(Pair *tile, int row, int rows) : at_(tile + row * RUN), step_(rows * RUN) {}
    Place(Pair *packed, const Tiles &tiles, int64_t row, int64_t pairs) : at_(packed), step_(0) {
        const int64_t tile = tiles.of(row), start = tiles.start(tile);
        *this = Place(packed + start * pairs, (int)(row - start), tiles.size(tile));
    }
    // A pair; those up to the next multiple of RUN lie behind it.
    Pair *pair(int64_t i) const { return at_ + i / RUN * step_ + i % RUN; }

   private:
    Pair *at_;
    int64_t step_;
};
}  // namespace step3
