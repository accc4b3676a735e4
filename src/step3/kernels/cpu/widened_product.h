// The product with vectors where a processor multiplies nothing but floats (AVX2): weights are widened as they are multiplied, rows
// of activations are floats already (activations.h).
//
// 6 rows times 16 columns have 12 sums; two vectors of weights, a row's value and a mask fill the other four registers, and what is
// loaded and widened takes less time than the products. So of a block of 64 pairs, which stays in the first-level cache, each strip
// passes by itself, and a tile's rows in two halves.
#pragma once
#include "activations.h"
#include "panels.h"
#include "product.h"
#include "team.h"

namespace step3 {

constexpr int ROWS = 6;
constexpr int ROWS_IN_PLACE = TILE;     // most rows that are multiplied with weights as they are stored
constexpr int EXPANDING_TILES = 1;      // so many tiles expand a panel of fp8 each for itself
constexpr int64_t STREAM_AHEAD = 2048;  // bytes from what is read of memory to what is fetched

static_assert(TILE <= 2 * ROWS && STRIP == 2 * LANES);

// Two sums += two vectors of weights times x. As one instruction: compilers load values so early that there are not registers enough.
static inline __attribute__((always_inline)) void add_products(Floats &sum, Floats &next_sum, Floats b, Floats next_b, const float &x) {
    Floats first = sum, second = next_sum, all;
    asm("vbroadcastss %5, %2\n\t"
        "vfmadd231ps %3, %2, %0\n\t"
        "vfmadd231ps %4, %2, %1"
        : "+x"(first), "+x"(second), "=&x"(all)
        : "x"(b), "x"(next_b), "m"(x));
    sum = first, next_sum = second;
}

// Of eight pairs.
static inline __attribute__((always_inline)) Floats first_values(const char *pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(pairs), 16));
}
static inline __attribute__((always_inline)) Floats second_values(const char *pairs, Floats upper) {
    Floats values;
    asm("vandps %1, %2, %0" : "=x"(values) : "m"(*(const Pairs *)pairs), "x"(upper));
    return values;
}

// What is fetched of each pair of a strip: a line.
struct PairsAhead {
    const char *at;
    int64_t step;
};

// sums += R rows of a tile times S strips of pairs, which go on by `step` bytes a pair.
template <int R, int S>
static inline __attribute__((always_inline)) void accumulate(Floats (&sums)[R][2 * S], const Pair *a, int64_t row_step,
                                                             const char *const (&strips)[S], int64_t step, int64_t pairs,
                                                             PairsAhead ahead) {
    Floats upper = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    asm("" : "+x"(upper));  // left in its register
    const char *at[S];
    for (int s = 0; s < S; s++) at[s] = strips[s];
    for (int64_t pair = 0; pair < pairs; pair++) {
        Floats b[2 * S];
#pragma GCC unroll 4
        for (int v = 0; v < 2 * S; v++) b[v] = first_values(at[v / 2] + v % 2 * 32);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2 * S; v += 2) add_products(sums[r][v], sums[r][v + 1], b[v], b[v + 1], a[r].first);
        for (int s = 0; s < S; s++) _mm_prefetch(ahead.at + 64 * s, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int v = 0; v < 2 * S; v++) b[v] = second_values(at[v / 2] + v % 2 * 32, upper);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2 * S; v += 2) add_products(sums[r][v], sums[r][v + 1], b[v], b[v + 1], a[r].second);
        a += row_step;
        for (int s = 0; s < S; s++) at[s] += step;
        ahead.at += ahead.step;
    }
}

// Runs body(R, S, strip, done) for the rows of a tile and both strips: R rows behind `done` others, times S strips from this one on.
template <class Body>
static inline __attribute__((always_inline)) void each_part(int rows, Body body) {
    using Two = std::integral_constant<int, 2>;
    using One = std::integral_constant<int, 1>;
    if (rows == 1) return body(One(), Two(), 0, (int64_t)0);
    if (rows == 2) return body(Two(), Two(), 0, (int64_t)0);
    const int half = rows > ROWS ? (rows + 1) / 2 : rows;
    for (int strip = 0; strip < 2; strip++)
        for (int done = 0; done < rows; done += half)
            each_group<ROWS>(std::min(half, rows - done),
                             [&](auto group, int64_t) __attribute__((always_inline)) { body(group, One(), strip, (int64_t)done); });
}

template <int R, int V>
static inline __attribute__((always_inline)) void clear(Floats (&sums)[R][V]) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = zero();
}

template <int R, int V>
static inline __attribute__((always_inline)) void load_sums(Floats (&sums)[R][V], const float *from, int64_t step) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = load(from + r * step + v * LANES);
}

template <int R, int V>
static inline __attribute__((always_inline)) void store_sums(const Floats (&sums)[R][V], float *to, int64_t step) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(to + r * step + v * LANES, sums[r][v]);
}

// out += the sums of a block times scale_of(strip).
template <int R, int V, class ScaleOf>
static inline __attribute__((always_inline)) void add_scaled(const Floats (&sums)[R][V], float *out, ScaleOf scale_of) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
        const Floats scale = splat(scale_of(v / 2));
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            float *to = out + r * PANEL + v * LANES;
            store(to, multiply_add(sums[r][v], scale, load(to)));
        }
    }
}

// Weights of fp8 are expanded to 2^-120 of their value, which takes half as many instructions; the rows that meet them, and the
// scales, are 2^60 times as large.
constexpr float EXPANDED_FACTOR = 0x1p60f;

// Rows as they meet weights of fp8.
static inline const Pair *rows_of_fp8(const Pair *a, int64_t count, Buffer &scratch) {
    Pair *to = scratch.get<Pair>(count);
    for (int64_t i = 0; i < count; i++) to[i] = {a[i].first * EXPANDED_FACTOR, a[i].second * EXPANDED_FACTOR};
    return to;
}

// Where a product's weights come from, block by block: each gives BLOCK_PAIRS pairs of bf16, of both strips by turns.
struct Bf16 {
    static constexpr float FACTOR = 1;
    const Product &p;
    explicit Bf16(const Product &p) : p(p) {}
    const char *operator()(int64_t begin, int64_t) { return p.panel + begin * 128; }
    PairsAhead ahead(int64_t begin, const char *) const { return {p.ahead + begin * p.ahead_step, p.ahead_step}; }
};

// Nothing but what is in the first-level cache.
struct LaidOut {
    alignas(64) char block[BLOCK_PAIRS * 128];
    PairsAhead ahead(int64_t, const char *at) const { return {at, 0}; }
};

struct Fp8 : LaidOut {
    static constexpr float FACTOR = EXPANDED_FACTOR;
    const Product &p;
    explicit Fp8(const Product &p) : p(p) {}
    const char *operator()(int64_t begin, int64_t pairs) {
        const char *ahead = p.ahead + begin * p.ahead_step;
        expand_fp8<false>(p.panel + begin * 64, block, pairs, [&](int64_t group) { _mm_prefetch(ahead + group * p.ahead_step, _MM_HINT_T0); });
        return block;
    }
};

// sums = one or two rows times both strips of some pairs of fp8, expanded between the products: what waits for the sum before leaves
// time for it. False where there is a NaN, which was not seen.
template <int R>
static inline __attribute__((always_inline)) bool multiply_pairs_of_fp8(Floats (&sums)[R][4], const Pair *a, const char *panel,
                                                                        int64_t pairs, PairsAhead ahead) {
    const Pairs sign = _mm256_set1_epi8((char)0x80), kept = _mm256_set1_epi32((int)0x87f00000);
    const auto values = [kept](Pairs bytes) __attribute__((always_inline)) {
        return _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(bytes, 4), kept));
    };
    Pairs most = sign;
    clear(sums);
    for (int64_t pair = 0; pair < pairs; pair++, a += R) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const Pairs bytes = load_pairs(panel + pair * 64 + half * 32);
            most = _mm256_max_epu8(most, _mm256_or_si256(bytes, sign));
            // Each byte twice, so that one of them is where the upper half of a bf16 is; of the one strip and of the other.
            const Pairs one = _mm256_unpacklo_epi8(bytes, bytes), other = _mm256_unpackhi_epi8(bytes, bytes);
            Floats b = values(_mm256_slli_epi32(one, 16)), other_b = values(_mm256_slli_epi32(other, 16));
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) add_products(sums[r][half], sums[r][2 + half], b, other_b, a[r].first);
            b = values(one), other_b = values(other);
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) add_products(sums[r][half], sums[r][2 + half], b, other_b, a[r].second);
        }
        _mm_prefetch(ahead.at + pair * ahead.step, _MM_HINT_T0);
    }
    return !_mm256_movemask_epi8(_mm256_cmpeq_epi8(most, _mm256_set1_epi8(-1)));
}

// A tile of one or two rows times a panel of fp8.
template <int R>
static inline void multiply_rows_of_fp8(const Product &p) {
    Fp8 source(p);
    memset(p.out, 0, R * PANEL * sizeof(float));
    for (int64_t begin = 0; begin < p.pairs; begin += BLOCK_PAIRS) {
        const int64_t pairs = std::min(BLOCK_PAIRS, p.pairs - begin);
        const PairsAhead ahead{p.ahead + begin * p.ahead_step, p.ahead_step};
        Floats sums[R][4];
        if (__builtin_expect(!multiply_pairs_of_fp8(sums, p.a + begin * R, p.panel + begin * 64, pairs, ahead), false)) {
            const char *block = source(begin, pairs), *strips[2] = {block, block + 64};
            clear(sums);
            accumulate<R, 2>(sums, p.a + begin * R, R, strips, 128, pairs, {block, 0});
        }
        add_scaled(sums, p.out, [&](int s) { return p.scales[begin / BLOCK_PAIRS * 2 + s] * EXPANDED_FACTOR; });
    }
}

// Weights as they are stored, whose scales lie with them.
template <bool QUANTISED>
struct Stored : LaidOut {
    static constexpr float FACTOR = QUANTISED ? EXPANDED_FACTOR : 1;
    static constexpr int64_t STEP = QUANTISED ? 32 : 16;
    const Strip (&strips)[2];
    const Fetch &fetch;
    alignas(64) char narrow[QUANTISED ? BLOCK_PAIRS * 64 : 64];
    Stored(const Strip (&strips)[2], const Fetch &fetch) : strips(strips), fetch(fetch) {}
    const char *operator()(int64_t begin, int64_t pairs) {
        char *to = QUANTISED ? narrow : block;
        for (int64_t pair = 0; pair < pairs; pair += STEP)
            fill_pairs<false>(strips, (begin + pair) / STEP * BLOCK_BYTES, std::min(STEP, pairs - pair), QUANTISED, fetch,
                              to + pair * (QUANTISED ? 64 : 128));
        if (QUANTISED) expand_fp8<false>(narrow, block, pairs);
        return block;
    }
};

// A tile times a panel. scale_of(block, strip) gives the weights' scales; it is null where they have none.
template <class Source, class ScaleOf>
static __attribute__((noinline)) void multiply_by(Source &source, const Product &p, int rows, ScaleOf scale_of) {
    memset(p.out, 0, (size_t)(rows * PANEL) * sizeof(float));
    for (int64_t begin = 0; begin < p.pairs; begin += BLOCK_PAIRS) {
        const int64_t pairs = std::min(BLOCK_PAIRS, p.pairs - begin);
        const char *block = source(begin, pairs);
        each_part(rows, [&](auto r, auto s, int strip, int64_t done) __attribute__((always_inline)) {
            constexpr int R = decltype(r)::value, S = decltype(s)::value;
            float *out = p.out + done * PANEL + strip * STRIP;
            const char *strips[S];
            for (int i = 0; i < S; i++) strips[i] = block + (strip + i) * 64;
            PairsAhead ahead = done ? PairsAhead{block, 0} : source.ahead(begin, block);
            if (!done) ahead.at += strip * 64;
            Floats sums[R][2 * S];
            constexpr bool IS_SCALED = !std::is_same_v<ScaleOf, std::nullptr_t>;
            if constexpr (IS_SCALED)
                clear(sums);
            else
                load_sums(sums, out, PANEL);
            accumulate<R, S>(sums, p.a + begin * p.row_step + done, p.row_step, strips, 128, pairs, ahead);
            if constexpr (IS_SCALED)
                add_scaled(sums, out, [&](int i) { return scale_of(begin / BLOCK_PAIRS, strip + i) * Source::FACTOR; });
            else
                store_sums(sums, out, PANEL);
        });
    }
}

// A tile times a panel: of bf16, which may have been expanded and has scales then, or of fp8 (see `rows_of_fp8`).
template <class Source>
static inline void multiply_tile(const Product &p, int rows) {
    Source source(p);
    if (p.scales)
        multiply_by(source, p, rows, [&p](int64_t block, int strip) { return p.scales[2 * block + strip]; });
    else
        multiply_by(source, p, rows, nullptr);
}

static inline void multiply_tile_of(const Product &p, int rows, bool is_fp8) {
    if (!is_fp8) return multiply_tile<Bf16>(p, rows);
    rows == 1 ? multiply_rows_of_fp8<1>(p) : rows == 2 ? multiply_rows_of_fp8<2>(p) : multiply_tile<Fp8>(p, rows);
}

// A tile times two strips of weights that stay as they are stored; of fp8 see `rows_of_fp8`.
static inline void multiply_stored(const Product &p, int rows, const Strip (&strips)[2], bool quantised, const Fetch &fetch) {
    if (!quantised) {
        Stored<false> source(strips, fetch);
        return multiply_by(source, p, rows, nullptr);
    }
    Stored<true> source(strips, fetch);
    multiply_by(source, p, rows, [&](int64_t block, int strip) { return strips[strip].rows ? strips[strip].scales[block] : 0.f; });
}
}  // namespace step3
