// Fetches what is read next.
#pragma once
#include <immintrin.h>
#include <algorithm>
#include <utility>
#include "range.h"

namespace step3 {

// The lines of a range, some of each of its pages by turns. A core waits for 16 lines at most that it asked for itself, but
// the second-level cache for 48, and foresees what comes of each page that it sees read from front to back: of several at
// once it has foreseen the next line long before it is asked for.
class PageByPage {
   public:
    PageByPage() = default;
    explicit PageByPage(Range range)
        : at_(range.at), left_(range.bytes / 64), pages_(std::clamp<int64_t>(left_ / LINES, 1, AT_ONCE)), length_(left_ / pages_) {}
    bool is_done() const { return left_ <= 0; }
    __attribute__((always_inline)) const char *next() {
        const char *line = at_ + page_ * length_ * 64;
        left_--;
        if (++page_ == pages_) {
            page_ = 0;
            at_ += 64;
            // What is left over when all are at their ends lies behind the last.
            if (left_ < pages_) at_ += (pages_ - 1) * length_ * 64, pages_ = 1;
        }
        return line;
    }

   private:
    static constexpr int64_t LINES = 64, AT_ONCE = 8;
    const char *at_ = nullptr;
    int64_t left_ = 0, pages_ = 1, length_ = 0, page_ = 0;
};

// Fetches a range that is read from front to back, once: as many lines as are read, of the four pages behind those that
// are. Nobody has fetched the first ones.
class PagesAhead {
   public:
    // `then`: what is read behind it, or null.
    PagesAhead(Range range, const char *then) : at_(range.at), end_(range.at + range.bytes), then_(then) { next_window(); }

    // Line `i` of those that come.
    template <int HINT>
    __attribute__((always_inline)) void fetch(int i) const {
        _mm_prefetch(at_ + i % PAGES * PAGE_BYTES + i / PAGES * 64, (_mm_hint)HINT);
    }
    // Goes on behind `lines` lines, which divide a page.
    __attribute__((always_inline)) void pass(int lines) {
        at_ += lines / PAGES * 64;
        done_ += lines * 64;
        if (done_ < WINDOW) return;
        at_ -= PAGE_BYTES;
        next_window();
    }

   private:
    static constexpr int PAGES = 4, PAGE_BYTES = 4096, WINDOW = PAGES * PAGE_BYTES;
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
class Stream {
   public:
    Stream(Range first, Range second, int64_t steps)
        : now_(first), then_(second), lines_(((first.bytes + second.bytes) / 64 + steps - 1) / steps) {}
    __attribute__((always_inline)) void fetch() {
        for (int64_t i = 0; i < lines_; i++) {
            if (now_.is_done()) {
                if (then_.is_done()) return;
                std::swap(now_, then_);
            }
            _mm_prefetch(now_.next(), _MM_HINT_T1);
        }
    }

   private:
    PageByPage now_, then_;
    int64_t lines_;
};
}  // namespace step3
