// Sums that wait, to be dealt with by vectors while registers are multiplied: those of a block to be scaled, those of a
// panel to be kept.
#pragma once
#include <type_traits>
#include "factor.h"

namespace step3 {

// Sums of a block that wait to be scaled and added to a tile's: their registers have only just been stored.
template <class Sum>
class Pending {
   public:
    Sum *room() { return sums_[turn_]; }
    // What is in the room now belongs to `rows` rows of a tile, whose sums so far are in `out`.
    void put(const float *of_rows, int rows, const float *scales, bool is_first, float *out) {
        add(TILE);
        waiting_ = {of_rows, rows, scales, is_first, out};
        turn_ = 1 - turn_;
    }
    // Adds some rows more.
    __attribute__((always_inline)) void add(int rows) {
        Waiting &w = waiting_;
        if (!w.rows) return;
        rows = std::min(rows, w.rows);
        const Sum *sums = sums_[1 - turn_] + w.done * PANEL;
        float *out = w.out + w.done * PANEL;
        if constexpr (std::is_same_v<Sum, float>)
            add_scaled(sums, rows, w.scales, w.is_first, out);
        else
            add_scaled(sums, w.of_rows + w.done, rows, w.scales, w.is_first, out);
        w.done += rows;
        w.rows -= rows;
    }

   private:
    struct Waiting {
        const float *of_rows;
        int rows;  // that are not added yet
        const float *scales;
        bool is_first;
        float *out;
        int done = 0;
    };
    alignas(64) Sum sums_[2][TILE * PANEL];
    int turn_ = 0;
    Waiting waiting_{};
};

// A finished panel's results, which are kept row by row between the products of the next panel: vectors compute, and
// memory writes, while registers are multiplied.
template <class Keep>
class Finished {
   public:
    Finished(Keep keep, const Tiles &tiles) : keep_(keep), tiles_(tiles) {}
    // The sums of the tiles first..last; what waited is kept before.
    void put(int64_t panel, int64_t first, int64_t last, const float *sums) {
        flush();
        tile_ = first;
        last_ = last;
        row_ = 0;
        now_ = {tiles_.start(first), tiles_.size(first), panel, sums};
    }
    // Keeps as many rows as make all `rows` of them in `steps` steps.
    void pace(int64_t rows, int64_t steps) { pace_ = (rows + steps - 1) / steps; }
    __attribute__((always_inline)) void keep_some() {
        for (int64_t i = 0; i < pace_ && tile_ < last_; i++) keep_next();
    }
    void flush() {
        while (tile_ < last_) keep_next();
    }

   private:
    Keep keep_;
    const Tiles &tiles_;
    int64_t tile_ = 0, last_ = 0, pace_ = 1;
    int row_ = 0;
    TileSums now_{};

    __attribute__((always_inline)) void keep_next() {
        keep_(now_, row_);
        if (++row_ < now_.rows) return;
        row_ = 0;
        if (++tile_ < last_) now_ = {tiles_.start(tile_), tiles_.size(tile_), now_.panel, now_.sums + TILE * PANEL};
    }
};
}  // namespace step3
