// The product of one row with fp8, each panel of which is read once. Vectors expand and multiply it hardly slower than memory
// gives it, where tile registers wait for what is expanded to reach the cache; with two rows they are no faster.
//
// The sums are those of the registers, so that a row's do not depend on the rows beside it, but for numbers below 2^-126,
// which registers take for zeros.
#pragma once
#include "factor.h"
#include "stream.h"

namespace step3 {

template <class Keep>
class OneRowProduct {
   public:
    // As `StreamedProduct`.
    OneRowProduct(const Factor &m, const Pair *a, int64_t row, int64_t begin, int64_t end, Buffer &scratch, Keep keep, const char *then)
        : m_(m), wide_(widen(a, m.pairs, scratch)), row_(row), begin_(begin), end_(end), keep_(keep), ahead_(m.range(begin, end), then) {}

    void run() {
        alignas(64) float results[PANEL];
        for (int64_t panel = begin_; panel < end_; panel++) {
            multiply_panel(m_.open(panel, false, nullptr), results);
            keep_(TileSums{row_, 1, panel, results}, 0);
        }
    }

   private:
    const Factor &m_;
    const float *const wide_;  // [pairs / 16][2][16]
    const int64_t row_, begin_, end_;
    Keep keep_;
    const WindowsAhead ahead_;
    const Fp8Expander expand_;

    static __attribute__((always_inline)) Floats even(Pairs x) { return (Floats)_mm512_slli_epi32(x, 16); }
    static __attribute__((always_inline)) Floats odd(Pairs x) { return (Floats)_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)); }

    // Of 16 pairs at a time the even values, then the odd ones.
    static const float *widen(const Pair *a, int64_t pairs, Buffer &scratch) {
        float *wide = scratch.get<float>(2 * pairs);
        for (int64_t pair = 0; pair < pairs; pair += RUN) {
            const Pairs x = load_pairs(a + pair);
            store(wide + 2 * pair, even(x));
            store(wide + 2 * pair + RUN, odd(x));
        }
        return wide;
    }

    void multiply_panel(const Weights &weights, float *results) const {
        const char *at = weights.panel;
        const float *wide = wide_, *scales = weights.scales;
        fetch_scales(scales + 2 * m_.blocks());
        Floats totals[2] = {zero(), zero()};
        for (int64_t begin = 0; begin < m_.pairs; begin += BLOCK_PAIRS, scales += 2) {
            Floats sums[2] = {zero(), zero()};
            for (int64_t pair = begin; pair < std::min(begin + BLOCK_PAIRS, m_.pairs); pair += RUN, at += RUN * 64, wide += 2 * RUN)
                add_run(at, wide, sums);
            for (int s = 0; s < 2; s++) totals[s] = multiply_add(sums[s], splat(scales[s]), totals[s]);
        }
        for (int s = 0; s < 2; s++) store(results + s * STRIP, totals[s]);
    }

    // The scales of a panel: nobody else foresees the few lines that they lie in.
    void fetch_scales(const float *scales) const {
        for (const float *end = scales + 2 * m_.blocks(); scales < end; scales += 16) _mm_prefetch((const char *)scales, _MM_HINT_T0);
    }

    // 16 pairs: the even products are summed, the odd ones too, then both are added, as registers do (amx.h).
    __attribute__((always_inline)) void add_run(const char *from, const float *wide, Floats (&sums)[2]) const {
        const char *const ahead = ahead_.lines(from);
        Floats evens[2] = {zero(), zero()}, odds[2] = {zero(), zero()};
#pragma GCC unroll 16
        for (int i = 0; i < RUN; i++) {
            Pairs strips[2];
            WindowsAhead::fetch<_MM_HINT_T1>(ahead, i);
            expand_(from + 64 * i, strips[0], strips[1]);
            for (int s = 0; s < 2; s++) {
                evens[s] = multiply_add(even(strips[s]), splat(wide[i]), evens[s]);
                odds[s] = multiply_add(odd(strips[s]), splat(wide[RUN + i]), odds[s]);
            }
        }
        for (int s = 0; s < 2; s++) sums[s] = _mm512_add_ps(sums[s], _mm512_add_ps(evens[s], odds[s]));
    }
};
}  // namespace step3
