// Sums that wait, to be dealt with by vectors while registers are multiplied: those of a block to be scaled, those of a
// panel to be kept.
#pragma once
#include <type_traits>
#include "factor.h"

namespace step3 {

// Sums of a block that are scaled and added to a tile's between the next block's products, as their registers have only just
// been stored: a copy for each tile, as `Fours` is.
template <class Sum>
struct ScaledRows {
    const Sum *sums = nullptr;
    float *out = nullptr;  // the tile's sums so far
    int rows = 0;
    const float *scales = nullptr;
    const float *scales_of_rows = nullptr;  // of integers
    bool is_first = false;

    // Adds some rows.
    __attribute__((always_inline)) void add(int count) {
        if (!rows) return;
        count = std::min(count, rows);
        if constexpr (std::is_same_v<Sum, float>)
            add_scaled(sums, count, scales, is_first, out);
        else
            add_scaled(sums, scales_of_rows, count, scales, is_first, out), scales_of_rows += count;
        sums += count * PANEL;
        out += count * PANEL;
        rows -= count;
    }
};

// Room for the sums of two blocks by turns, one that is multiplied and one that waits.
template <class Sum>
struct Pending {
    ScaledRows<Sum> waiting;
    Sum *room() { return sums_[turn_]; }
    // What is in the room now waits, and belongs to `rows` rows of a tile, whose sums so far are in `out`.
    ScaledRows<Sum> take(float *out, int rows, const float *scales, const float *scales_of_rows, bool is_first) {
        const Sum *sums = room();
        turn_ = 1 - turn_;
        return {sums, out, rows, scales, scales_of_rows, is_first};
    }

   private:
    alignas(64) Sum sums_[2][TILE * PANEL];
    int turn_ = 0;
};

// Rows of a tile of results that are kept between the products of another tile: a copy for each of them, as `Fours` is.
template <class Keep>
class KeptRows {
   public:
    // The rows begin..end, one at a time, or two if IN_PAIRS.
    KeptRows(Keep keep, const TileSums &sums, int begin, int end, bool in_pairs)
        : keep_(keep), sums_(sums), row_(begin), end_(end), second_end_(in_pairs ? end : begin) {}
    __attribute__((always_inline)) void keep_some() {
        if (row_ < end_) keep_(sums_, row_++);
        if (row_ < second_end_) keep_(sums_, row_++);
    }

   private:
    const Keep keep_;
    const TileSums sums_;
    int row_;
    const int end_, second_end_;
};

// A finished panel's results, which are kept while the next panel is multiplied: vectors compute, and memory writes, while
// registers are multiplied.
template <class Keep>
class Finished {
   public:
    Finished(Keep keep, const Tiles &tiles) : keep_(keep), tiles_(tiles) {}
    // The sums of the tiles first..last; what waited is kept before.
    void put(int64_t panel, int64_t first, int64_t last, const float *sums) {
        flush();
        tile_ = first;
        last_ = last;
        now_ = {tiles_.start(first), tiles_.size(first), panel, sums};
    }
    // Rows of one tile that are kept in `steps` steps.
    KeptRows<Keep> take(int64_t steps, bool in_pairs) {
        if (tile_ == last_) return {keep_, now_, 0, 0, false};
        const int begin = row_, end = (int)std::min<int64_t>(now_.rows, row_ + steps * (1 + in_pairs));
        const KeptRows<Keep> taken(keep_, now_, begin, end, in_pairs);
        pass(end);
        return taken;
    }
    void flush() {
        for (; tile_ < last_; pass(now_.rows))
            for (int r = row_; r < now_.rows; r++) keep_(now_, r);
    }

   private:
    const Keep keep_;
    const Tiles &tiles_;
    int64_t tile_ = 0, last_ = 0;
    int row_ = 0;
    TileSums now_{};

    // The rows up to this one of the tile are taken.
    void pass(int row) {
        row_ = row;
        if (row_ < now_.rows) return;
        row_ = 0;
        if (++tile_ < last_) now_ = {tiles_.start(tile_), tiles_.size(tile_), now_.panel, now_.sums + TILE * PANEL};
    }
};
}  // namespace step3
