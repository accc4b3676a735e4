// Fetches what is read next.
#pragma once
#include <immintrin.h>
#include <algorithm>
#include <utility>
#include "range.h"

namespace step3 {

// A core waits for 16 lines at most that it asked for itself, but the second-level cache for 48, and foresees what comes
// of each page that it sees read from front to back: of several at once it has foreseen the next line long before it is
// asked for. So lines are asked for of several places by turns.
constexpr int PLACES = 4;

// Fetches a range that is read from front to back, once, a window at a time.
//
// What the processor foresees depends on when and in which order lines are asked for: these distances and places are among
// the fastest, and fast in any place of memory. Lines from front to back, or whole windows ahead, take up to a fifth longer.
class WindowsAhead {
   public:
    static constexpr int LINES = 32, BYTES = 64 * LINES;

    // `then`: what is read behind the range, or null.
    WindowsAhead(Range range, const char *then)
        : begin_(range.at), end_(range.at + range.bytes), shift_(then ? (intptr_t)then - (intptr_t)end_ : -DISTANCE) {}
    // The lines to be fetched while those from `at` on are read: `fetch` takes as many of them, from the 0th on.
    const char *lines(const char *at) const {
        const int64_t passed = (at - begin_) % BYTES;
        at += DISTANCE - passed;
        return at + (at < end_ ? 0 : shift_) + passed / PLACES_OF_WINDOW;
    }
    // The nth line: of each eighth of the window one by turns.
    template <int HINT>
    static __attribute__((always_inline)) void fetch(const char *lines, int nth) {
        const char *line = lines + 64 * (nth % PLACES_OF_WINDOW * (LINES / PLACES_OF_WINDOW) + nth / PLACES_OF_WINDOW);
        if (HINT == _MM_HINT_T0)
            // With any instruction in between, registers are loaded a tenth faster than behind a row of these.
            asm volatile("nop\n\tprefetcht0 %0" ::"m"(*line));
        else
            asm volatile("prefetcht1 %0" ::"m"(*line));
    }

   private:
    static constexpr int PLACES_OF_WINDOW = 8;
    static constexpr int64_t DISTANCE = BYTES * 7 / 2;
    const char *begin_, *end_;
    int64_t shift_;
};

// Fetches a range that is read from front to back, once: as many lines as are read, of the pages behind those that are.
// Nobody has fetched the first ones.
class PagesAhead {
   public:
    // `then`: what is read behind it, or null.
    PagesAhead(Range range, const char *then) : at_(range.at), end_(range.at + range.bytes), then_(then) { next_window(); }

    // Line `i` of those that come.
    __attribute__((always_inline)) void fetch(int i) const {
        _mm_prefetch(at_ + i % PLACES * PAGE_BYTES + i / PLACES * 64, _MM_HINT_T1);
    }
    // Goes on behind `lines` lines, which divide a page.
    __attribute__((always_inline)) void pass(int lines) {
        at_ += lines / PLACES * 64;
        done_ += lines * 64;
        if (done_ < WINDOW) return;
        at_ -= PAGE_BYTES;
        next_window();
    }

   private:
    static constexpr int PAGE_BYTES = 4096, WINDOW = PLACES * PAGE_BYTES;
    const char *at_, *end_, *then_;
    int done_ = 0;

    void next_window() {
        done_ = 0;
        at_ += WINDOW;
        if (at_ + WINDOW <= end_) return;
        // Behind the end are other threads' lines: the last window ends there, if need be with lines that were fetched.
        if (at_ >= end_ && then_) {
            at_ = end_ = std::exchange(then_, nullptr);
        } else {
            at_ = end_ - WINDOW;
        }
    }
};

// A range that is fetched between products: of each quarter a line by turns, and these four are counted as one. Up to three lines
// at its end are left out.
//
// What stands between two products delays the second one. So each tile has one of its own, whose fields are registers.
class Fours {
   public:
    explicit Fours(Range range) : at_(range.at), left_(range.bytes / 64 / PLACES), stride_(left_ * 64) {}
    int64_t left() const { return left_; }
    // The next `count`, to be fetched in `steps` steps.
    Fours take(int64_t count, int64_t steps) {
        Fours taken = *this;
        taken.left_ = std::min(left_, count);
        taken.at_once_ = (taken.left_ + steps - 1) / steps;
        at_ += taken.left_ * 64;
        left_ -= taken.left_;
        return taken;
    }
    __attribute__((always_inline)) void fetch() {
        for (int64_t i = 0; i < at_once_ && left_; i++, left_--, at_ += 64)
#pragma GCC unroll 4
            for (int place = 0; place < PLACES; place++) _mm_prefetch(at_ + place * stride_, _MM_HINT_T1);
    }

   private:
    const char *at_;
    int64_t left_, stride_, at_once_ = 1;
};

// Two ranges that are fetched evenly while `tiles` tiles pass, the first one before the second.
class Stream {
   public:
    Stream(Range first, Range second, int64_t tiles) : now_(first), then_(second), tiles_(now_.left() ? tiles : 0), tiles_then_(tiles - tiles_) {
        if (!now_.left() || !then_.left() || tiles == 1) return;
        tiles_then_ = std::clamp<int64_t>(tiles * then_.left() / (now_.left() + then_.left()), 1, tiles - 1);
        tiles_ = tiles - tiles_then_;
    }
    // What is fetched while the next tile passes in `steps` steps.
    Fours next(int64_t steps) {
        if (!tiles_) now_ = then_, tiles_ = tiles_then_;
        const int64_t share = (now_.left() + tiles_ - 1) / tiles_;
        tiles_--;
        return now_.take(share, steps);
    }

   private:
    Fours now_, then_;
    int64_t tiles_, tiles_then_;  // that pass while the one is fetched, and the other
};
}  // namespace step3
