// The product with tile registers: 16 or 32 rows of activations times a panel, or its strips in attention.
#pragma once
#include "activations.h"
#include "panels.h"
#include "product.h"
#include "team.h"

#if defined(__AMX_BF16__)
namespace step3 {

constexpr int64_t STEP = RUN;        // pairs that one instruction sums
constexpr int ROWS = TILE;           // of a product
constexpr int ROWS_IN_PLACE = TILE;  // most rows that are multiplied with weights as they are stored
constexpr int EXPANDING_TILES = 1;   // so many tiles expand a panel of fp8 each for itself

// Rows as they meet weights of fp8.
static inline const Pair *rows_of_fp8(const Pair *a, int64_t, Buffer &) { return a; }

static_assert(TILE == 2 * REGISTER_ROWS && STRIP == REGISTER_ROWS && BLOCK_PAIRS % STEP == 0);

// What a panel holds.
struct Bf16 {};
struct Fp8 {};
struct Int8 {};  // fp8 that becomes integers

// Bytes to fetch while registers are multiplied: 64, 128 or none for each pair.
class Fetched {
   public:
    Fetched(const char *at, int64_t pair_bytes) : at_(at), bytes_(pair_bytes * STEP) {}
    __attribute__((always_inline)) void fetch() {
        for (const char *end = at_ + bytes_; at_ < end; at_ += LINES * 64)
#pragma GCC unroll 16
            for (int i = 0; i < LINES; i++) _mm_prefetch(at_ + 64 * i, _MM_HINT_T0);
    }

   private:
    static constexpr int LINES = 16;
    const char *at_;
    int64_t bytes_;
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

// sums += the rows at `a` times 16 pairs of two strips, whose lines are `step` bytes apart. meanwhile(i) is called for i = 0 to 3.
template <bool MANY, class Meanwhile = Nothing>
static inline __attribute__((always_inline)) void multiply_two(const char *a, const char *first, const char *second, int64_t step,
                                                               Meanwhile meanwhile = {}) {
    meanwhile(0);
    load_register<6>(first, step);
    meanwhile(1);
    load_register<4>(a, REGISTER_LINE);
    multiply_registers<0, 4, 6>();
    meanwhile(2);
    load_register<7>(second, step);
    meanwhile(3);
    multiply_registers<1, 4, 7>();
    if (!MANY) return;
    load_register<5>(a + REGISTER_ROWS * REGISTER_LINE, REGISTER_LINE);
    multiply_registers<2, 5, 6>();
    multiply_registers<3, 5, 7>();
}

// The same of a panel.
template <bool MANY, class Meanwhile = Nothing>
static inline __attribute__((always_inline)) void multiply_step(const char *a, const char *panel, Meanwhile meanwhile = {}) {
    multiply_two<MANY>(a, panel, panel + 64, 128, meanwhile);
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

// A register is not loaded before all stores in front of it have reached the cache. So pairs are laid out one step ahead of
// those that are multiplied, and a block's sums are scaled one block behind.
//
// `lay(pair, room)` tells where 16 pairs of the panel lie as bf16, in `room` if need be; `scales_of(block)` gives the
// scales of both strips where weights are SCALED.
template <bool MANY, bool SCALED, class Lay, class ScalesOf>
static inline __attribute__((always_inline)) void multiply_steps(const Product &p, int rows, Lay lay, ScalesOf scales_of) {
    alignas(64) float sums[2][SCALED ? TILE * PANEL : 1];
    alignas(64) char room[2][STEP * 128];
    const char *a = (const char *)p.a;
    const int64_t block_pairs = SCALED ? BLOCK_PAIRS : p.pairs;
    auto add_block = [&](int64_t block) { add_scaled(sums[block % 2], rows, scales_of(block), block == 0, p.out); };
    Fetched ahead(p.ahead, p.ahead_step);
    const char *laid = lay(0, room[0]);
    int64_t block = 0;
    for (int64_t begin = 0; begin < p.pairs; begin += block_pairs, block++) {
        const int64_t end = std::min(p.pairs, begin + block_pairs);
        clear_sums<MANY>();
        for (int64_t pair = begin; pair < end; pair += STEP, a += rows * REGISTER_LINE) {
            const char *now = laid;
            if (pair + STEP < p.pairs) laid = lay(pair + STEP, room[(pair + STEP) / STEP % 2]);
            ahead.fetch();
            multiply_step<MANY>(a, now);
        }
        if (!SCALED) return store_sums<MANY>(p.out, PANEL);
        store_sums<MANY>(sums[block % 2], PANEL);
        if (block) add_block(block - 1);
    }
    if (SCALED) add_block(block - 1);
}

template <bool SCALED, class Lay, class ScalesOf>
static inline void multiply_rows_of(const Product &p, int rows, Lay lay, ScalesOf scales_of) {
    if (rows > REGISTER_ROWS)
        multiply_steps<true, SCALED>(p, rows, lay, scales_of);
    else
        multiply_steps<false, SCALED>(p, rows, lay, scales_of);
}

// A tile times a panel of bf16.
static inline void multiply_tile_of_bf16(const Product &p, int rows) {
    auto find = [&p](int64_t pair, char *) { return p.panel + pair * 128; };
    multiply_rows_of<false>(p, rows, find, [](int64_t) -> const float * { return nullptr; });
}

// A tile times two strips of weights that stay as they are stored: they are laid out a few pairs at a time, in the
// first-level cache, and the sums are those of packed panels.
template <bool QUANTISED>
static inline void multiply_strips(Product p, int rows, const Strip (&strips)[2], const Fetch &fetch) {
    constexpr int64_t LAID = QUANTISED ? 32 : 16;  // pairs
    alignas(64) char stored[QUANTISED ? LAID * 64 : 1];
    float scales[2];
    p.ahead_step = 0;
    auto lay = [&](int64_t pair, char *room) {
        if (pair % LAID == 0)
            fill_pairs<false>(strips, pair / LAID * BLOCK_BYTES, std::min(LAID, p.pairs - pair), QUANTISED, fetch, QUANTISED ? stored : room);
        if (QUANTISED) expand_fp8(stored + pair % LAID * 64, room, STEP);
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
