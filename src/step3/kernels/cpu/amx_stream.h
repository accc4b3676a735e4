// The product with tile registers of one tile and packed panels, each of which is read once: as fast as memory gives them.
//
// Memory is kept busy whatever else is done: lines are fetched between the instructions of a step, and the results of a
// panel are kept while the next one is multiplied.
#pragma once
#include "amx_one_row.h"
#include "waiting.h"

namespace step3 {

template <bool MANY, class Kind, class Keep>
class StreamedProduct {
   public:
    // Panels begin..end; `then` is what the thread reads behind them, or null.
    StreamedProduct(const Factor &m, const Pair *a, int64_t row, int rows, int64_t begin, int64_t end, Keep keep, const char *then)
        : m_(m), a_((const char *)a), row_(row), rows_(rows), begin_(begin), end_(end), keep_(keep), ahead_(m.range(begin, end), then) {}

    void run() {
        if constexpr (IS_FP8) lay(m_.begin(begin_));
        for (int64_t panel = begin_; panel < end_; panel++) multiply_panel(Kind(), panel);
        pending_.waiting.add(TILE);
        keep_finished();
    }

   private:
    static constexpr bool IS_FP8 = std::is_same_v<Kind, Fp8>;
    const Factor &m_;
    const char *const a_;
    const int64_t row_;
    const int rows_;
    const int64_t begin_, end_;
    Keep keep_;
    std::conditional_t<IS_FP8, PagesAhead, WindowsAhead> ahead_;
    Pending<float> pending_;  // sums of a block of fp8
    int64_t finished_ = -1;   // the panel whose results are to be kept when the next products are under way
    int step_ = 0;            // by turns 0 and 1
    alignas(64) float results_[TILE * PANEL];
    alignas(64) char laid_[2][IS_FP8 ? STEP * 128 : 1];

    void keep_finished() {
        if (finished_ < 0) return;
        for (int r = 0; r < rows_; r++) keep_(TileSums{row_, rows_, finished_, results_}, r);
        finished_ = -1;
    }

    void multiply_panel(Bf16, int64_t panel) {
        const char *a = a_, *at = m_.begin(panel);
        clear_sums<MANY>();
        for (int64_t pair = 0; pair < m_.pairs; pair += STEP, a += rows_ * REGISTER_LINE, at += STEP * 128) {
            const char *const ahead = ahead_.lines(at);
            multiply_step<MANY>(a, at, [ahead](int quarter) {
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) WindowsAhead::fetch<_MM_HINT_T0>(ahead, 8 * quarter + i);
            });
            keep_finished();
        }
        store_sums<MANY>(results_, PANEL);
        finished_ = panel;
    }

    void multiply_panel(Fp8, int64_t panel) {
        const Weights weights = m_.open(panel, false, nullptr);
        const char *a = a_, *next = weights.panel;
        for (int64_t begin = 0; begin < m_.pairs; begin += BLOCK_PAIRS) {
            const int64_t end = std::min(m_.pairs, begin + BLOCK_PAIRS);
            clear_sums<MANY>();
            for (int64_t pair = begin; pair < end; pair += STEP, a += rows_ * REGISTER_LINE) {
                const char *now = laid_[step_];
                next += STEP * 64;
                step_ = 1 - step_;
                if (pair + STEP < m_.pairs || panel + 1 < end_) lay(next);
                multiply_step<MANY>(a, now);
            }
            store_sums<MANY>(pending_.room(), PANEL);
            // The block before, which may have been the last of its panel.
            pending_.waiting.add(TILE);
            keep_finished();
            pending_.waiting = pending_.take(results_, rows_, weights.scales + begin / BLOCK_PAIRS * 2, nullptr, begin == 0);
        }
        finished_ = panel;
    }

    // 16 pairs as they are multiplied: a step ahead, as a register is not loaded before all stores in front of it have
    // reached the cache.
    void lay(const char *from) {
        expand_fp8(from, laid_[step_], STEP, [this](int i) { ahead_.fetch(i); });
        ahead_.pass(STEP);
    }
};

template <bool MANY, class Keep>
static inline void stream_panels(const Factor &m, const Pair *a, int64_t row, int rows, int64_t begin, int64_t end, Keep keep,
                                 const char *then) {
    if (m.scales)
        StreamedProduct<MANY, Fp8, Keep>(m, a, row, rows, begin, end, keep, then).run();
    else
        StreamedProduct<MANY, Bf16, Keep>(m, a, row, rows, begin, end, keep, then).run();
}

// As `multiply`, of the tile whose first row is `row`.
template <class Keep>
static inline void multiply_stream(const Factor &m, const Pair *a, int64_t row, int rows, int64_t begin, int64_t end, Buffer &scratch,
                                   Keep keep, Range upcoming) {
    if (m.scales && rows == 1) return OneRowProduct<Keep>(m, a, row, begin, end, scratch, keep, upcoming.at).run();
    auto *stream = rows > REGISTER_ROWS ? stream_panels<true, Keep> : stream_panels<false, Keep>;
    stream(m, a, row, rows, begin, end, keep, upcoming.at);
}
}  // namespace step3
