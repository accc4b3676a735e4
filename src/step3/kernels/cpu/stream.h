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

// Fetches two ranges evenly while the operands of `steps` instructions are loaded.
//
// Registers wait for all that was stored before, so little is: four lines are asked for in a row, and counted as one.
class Stream {
   public:
    Stream(Range first, Range second, int64_t steps) : now_(first), then_(second), fours_(now_.left + then_.left), steps_(steps) {}
    __attribute__((always_inline)) void fetch() {
        for (due_ += fours_; due_ >= steps_; due_ -= steps_) {
            if (!now_.left) std::swap(now_, then_);
            if (!now_.left) return;
#pragma GCC unroll 4
            for (int place = 0; place < PLACES; place++) _mm_prefetch(now_.at + place * now_.stride, _MM_HINT_T1);
            now_.at += 64;
            now_.left--;
        }
    }

   private:
    // A line of each quarter of a range; up to three lines at its end are left out.
    struct Fours {
        const char *at;
        int64_t left, stride;
        explicit Fours(Range range) : at(range.at), left(range.bytes / 64 / PLACES), stride(left * 64) {}
    };
    Fours now_, then_;
    int64_t fours_, steps_, due_ = 0;
};
}  // namespace step3
