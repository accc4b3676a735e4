// Fetches what is read next while there is more to compute than to read.
#pragma once
#include <utility>
#include "factor.h"

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
