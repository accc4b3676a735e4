// The product with tile registers: 16 or 32 rows of activations times a panel, or its strips in attention.
#pragma once
#include "activations.h"
#include "panels.h"
#include "product.h"

#if defined(__AMX_BF16__)
namespace step3 {

constexpr int64_t STEP = RUN;        // pairs that one instruction sums
constexpr int ROWS_IN_PLACE = TILE;  // most rows that are multiplied with weights as they are stored

static_assert(TILE == 2 * REGISTER_ROWS && STRIP == REGISTER_ROWS && BLOCK_PAIRS % STEP == 0);

// What a panel holds, and a block of it is multiplied as.
struct Bf16 {
    static constexpr bool EXPANDS = false;
};
struct Fp8 {
    static constexpr bool EXPANDS = true;
};
struct Int8 {};  // fp8 that becomes integers

// Lines to fetch while registers are multiplied, `step` bytes for each pair.
struct Fetched {
    const char *at;
    int64_t step;
    __attribute__((always_inline)) void fetch() {
        if (!step) return;
        for (int i = 0; i < STEP; i++, at += step) {
            _mm_prefetch(at, _MM_HINT_T0);
            if (step > 64) _mm_prefetch(at + 64, _MM_HINT_T0);
        }
    }
};

template <bool MANY>
static inline __attribute__((always_inline)) void clear_sums() {
    clear_register<0>();
    clear_register<1>();
    if (MANY) clear_register<2>(), clear_register<3>();
}

// Sums of 16 rows, or of 32 where there are MANY.
template <bool MANY>
static inline __attribute__((always_inline)) void store_sums(void *to, int64_t step) {
    float *out = (float *)to;
    store_register<0>(out, step * 4);
    store_register<1>(out + STRIP, step * 4);
    if (!MANY) return;
    store_register<2>(out + REGISTER_ROWS * step, step * 4);
    store_register<3>(out + REGISTER_ROWS * step + STRIP, step * 4);
}

template <bool MANY>
static inline __attribute__((always_inline)) void load_sums(const float *out, int64_t step) {
    load_register<0>(out, step * 4);
    load_register<1>(out + STRIP, step * 4);
    if (!MANY) return;
    load_register<2>(out + REGISTER_ROWS * step, step * 4);
    load_register<3>(out + REGISTER_ROWS * step + STRIP, step * 4);
}

// sums += the rows at `a` times 16 pairs, or quads of BYTES, of a panel.
template <bool MANY, bool BYTES = false>
static inline __attribute__((always_inline)) void multiply_step(const char *a, const char *panel) {
    load_register<6>(panel, 128);
    load_register<4>(a, REGISTER_LINE);
    BYTES ? multiply_bytes<0, 4, 6>() : multiply_registers<0, 4, 6>();
    load_register<7>(panel + 64, 128);
    BYTES ? multiply_bytes<1, 4, 7>() : multiply_registers<1, 4, 7>();
    if (!MANY) return;
    load_register<5>(a + REGISTER_ROWS * REGISTER_LINE, REGISTER_LINE);
    BYTES ? multiply_bytes<2, 5, 6>() : multiply_registers<2, 5, 6>();
    BYTES ? multiply_bytes<3, 5, 7>() : multiply_registers<3, 5, 7>();
}

// A block's sums, scaled, to the totals in `out`.
static inline void add_scaled(const float *sums, int rows, const float *scales, bool is_first, float *out) {
    const Floats scale[2] = {splat(scales[0]), splat(scales[1])};
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < 2; s++) {
            float *to = out + r * PANEL + s * STRIP;
            store(to, multiply_add(load(sums + r * PANEL + s * STRIP), scale[s], is_first ? zero() : load(to)));
        }
}

// `lay(pair, room)` tells where 16 pairs of the panel from `pair` on lie as bf16, in `room` if need be;
// `scales_of(block)` gives the scales of both strips where weights are SCALED.
template <bool MANY, bool SCALED, class Lay, class ScalesOf>
static inline __attribute__((always_inline)) void multiply_steps(const Product &p, int rows, Lay lay, ScalesOf scales_of) {
    alignas(64) float sums[SCALED ? TILE * PANEL : 1];
    alignas(64) char room[SCALED ? BLOCK_PAIRS * 128 : 1];
    const char *a = (const char *)p.a;
    const int64_t a_step = rows * REGISTER_LINE, block_pairs = SCALED ? BLOCK_PAIRS : p.pairs;
    Fetched ahead{p.ahead, p.ahead_step};
    for (int64_t begin = 0; begin < p.pairs; begin += block_pairs) {
        const int64_t end = std::min(p.pairs, begin + block_pairs);
        clear_sums<MANY>();
        for (int64_t pair = begin; pair < end; pair += STEP, a += a_step) {
            const char *laid = lay(pair, SCALED ? room + (pair - begin) * 128 : room);
            ahead.fetch();
            multiply_step<MANY>(a, laid);
        }
        if (!SCALED) return store_sums<MANY>(p.out, PANEL);
        store_sums<MANY>(sums, PANEL);
        add_scaled(sums, rows, scales_of(begin / BLOCK_PAIRS), begin == 0, p.out);
    }
}

template <bool SCALED, class Lay, class ScalesOf>
static inline void multiply_rows_of(const Product &p, int rows, Lay lay, ScalesOf scales_of) {
    if (rows > REGISTER_ROWS)
        multiply_steps<true, SCALED>(p, rows, lay, scales_of);
    else
        multiply_steps<false, SCALED>(p, rows, lay, scales_of);
}

template <class Source>
static inline void multiply_tile(const Product &p, int rows) {
    auto scales_of = [&p](int64_t block) { return p.scales + 2 * block; };
    if constexpr (Source::EXPANDS) {
        auto expand = [&p](int64_t pair, char *room) {
            expand_fp8(p.panel + pair * 64, room, STEP);
            return (const char *)room;
        };
        multiply_rows_of<true>(p, rows, expand, scales_of);
    } else {
        auto find = [&p](int64_t pair, char *) { return p.panel + pair * 128; };
        p.scales ? multiply_rows_of<true>(p, rows, find, scales_of) : multiply_rows_of<false>(p, rows, find, scales_of);
    }
}

// A tile times two strips of weights that stay as they are stored: they are laid out a few pairs at a time, in
// the first-level cache, and the sums are those of `multiply_tile`.
template <bool QUANTISED>
static inline void multiply_strips(Product p, int rows, const Strip (&strips)[2], const Fetch &fetch) {
    constexpr int64_t LAID = QUANTISED ? 32 : 16;  // pairs
    alignas(64) char laid[LAID * (QUANTISED ? 64 : 128)];
    float scales[2];
    p.ahead_step = 0;
    auto lay = [&](int64_t pair, char *room) {
        if (pair % LAID == 0)
            fill_pairs<false>(strips, pair / LAID * BLOCK_BYTES, std::min(LAID, p.pairs - pair), QUANTISED, fetch, laid);
        if constexpr (!QUANTISED) return (const char *)laid;
        expand_fp8(laid + pair % LAID * 64, room, STEP);
        return (const char *)room;
    };
    auto scales_of = [&](int64_t block) {
        for (int s = 0; s < 2; s++) scales[s] = strips[s].rows ? strips[s].scales[block] : 0.f;
        return (const float *)scales;
    };
    multiply_rows_of<QUANTISED>(p, rows, lay, scales_of);
}

static inline void multiply_stored(const Product &p, int rows, const Strip (&strips)[2], bool quantised, const Fetch &fetch) {
    quantised ? multiply_strips<true>(p, rows, strips, fetch) : multiply_strips<false>(p, rows, strips, fetch);
}
}  // namespace step3
#endif
