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

// Fetches bf16 that is read from front to back, once, a step of a product at a time.
//
// What the processor foresees depends on when and in which order lines are asked for: these distances and places are among
// the fastest, and fast in any place of memory. Lines from front to back, or whole steps ahead, take up to a fifth longer.
class StepsAhead {
   public:
    // `then`: what is read behind the range, or null.
    StepsAhead(Range range, const char *then)
        : end_(range.at + range.bytes), shift_(then ? (intptr_t)then - (intptr_t)end_ : -DISTANCE) {}
    // The step to be fetched while the one at `at` is multiplied.
    const char *step(const char *at) const { return at + DISTANCE + (at + DISTANCE < end_ ? 0 : shift_); }
    // A quarter of it.
    static __attribute__((always_inline)) void fetch(const char *step, int quarter) {
#pragma GCC unroll 8
        for (int i = quarter * LINES / 4; i < (quarter + 1) * LINES / 4; i++) {
            const char *line = step + 64 * (i % STEP_PLACES * (LINES / STEP_PLACES) + i / STEP_PLACES);
            // With any instruction in between, registers are loaded a tenth faster than behind a row of these.
            asm volatile("nop\n\tprefetcht0 %0" ::"m"(*line));
        }
    }

   private:
    static constexpr int LINES = 32, STEP_PLACES = 8;
    static constexpr int64_t DISTANCE = 64 * LINES * 7 / 2;
    const char *end_;
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
