// The product with tile registers where many rows meet a panel: some columns of it at a time, which stay in the
// first-level cache while all tiles pass. The tiles' sums lie in the second-level cache meanwhile.
//
// A register is loaded for each product: if both operands come from the second-level cache, products wait for them.
#pragma once
#include <type_traits>
#include "stream.h"
#include "waiting.h"

namespace step3 {

// Columns that stay in the first-level cache, in blocks of 128: 8 KiB of a panel of bf16 each. Of what is expanded there are
// fewer, as the panel itself passes too.
template <class Kind>
constexpr int64_t PAIRS_AT_ONCE = (std::is_same_v<Kind, Bf16> ? 4 : 2) * BLOCK_PAIRS;
// So few tiles wait for memory: a packed panel passes them whole, so that their sums stay in the registers.
constexpr int64_t FEW_TILES = 4;
constexpr int64_t SLICED_PANELS = 32;          // that a slice of long rows passes
constexpr int64_t FETCHED_BEYOND = 384 << 10;  // bytes of what a thread reads next, in the second-level cache

// Some columns of a panel, and the sums of a tile's rows, [32][32].
struct Columns {
    const char *laid;     // as they are multiplied
    const float *scales;  // [blocks][2] or null
    int64_t pairs;
    const float *row_scales;  // [blocks][rows], of integers
    bool is_first;
};

// A tile that passes some columns. The next one's first registers are loaded before its sums are stored: `next` is where they
// come from, or null.
struct Passing {
    const char *at;
    int rows;
    bool are_loaded;
    const char *next;
};

// 32 or 16 rows that pass a panel, which they do not push out of the first-level cache.
template <bool MANY>
static inline __attribute__((always_inline)) void load_step(const char *rows, const char *panel) {
    load_register<6>(panel, 128);
    load_passing<4>(rows, REGISTER_LINE);
    load_register<7>(panel + 64, 128);
    if (MANY) load_passing<5>(rows + REGISTER_ROWS * REGISTER_LINE, REGISTER_LINE);
}

// sums += what was loaded, pairs or quads of BYTES; then loads what comes next, if anything.
//
// Stores reach the cache when the instructions in front of them are done, and registers are not loaded before. So what
// `meanwhile` stores stands in front of the products: behind them the next registers would be loaded when no product is left.
template <bool MANY, bool BYTES, class Meanwhile>
static inline __attribute__((always_inline)) void multiply_loaded(Meanwhile meanwhile, const char *next_rows, const char *next_panel) {
    meanwhile();
    BYTES ? multiply_bytes<0, 4, 6>() : multiply_registers<0, 4, 6>();
    BYTES ? multiply_bytes<1, 4, 7>() : multiply_registers<1, 4, 7>();
    if (MANY) {
        BYTES ? multiply_bytes<2, 5, 6>() : multiply_registers<2, 5, 6>();
        BYTES ? multiply_bytes<3, 5, 7>() : multiply_registers<3, 5, 7>();
    }
    if (next_rows) load_step<MANY>(next_rows, next_panel);
}

template <bool MANY, class Meanwhile>
static inline __attribute__((always_inline)) void add_columns(Bf16, const Passing &tile, const Columns &c, Meanwhile &meanwhile,
                                                              Pending<float> &, float *sums) {
    const char *at = tile.at;
    if (c.is_first)
        clear_sums<MANY>();
    else
        load_sums<MANY>(sums, PANEL);
    if (!tile.are_loaded) load_step<MANY>(at, c.laid);
    for (int64_t pair = STEP; pair < c.pairs; pair += STEP) {
        at += tile.rows * REGISTER_LINE;
        multiply_loaded<MANY, false>([&] { meanwhile.step(); }, at, c.laid + pair * 128);
    }
    multiply_loaded<MANY, false>([&] { meanwhile.step(); }, tile.next, c.laid);
    store_sums<MANY>(sums, PANEL);
}

template <bool MANY, class Kind, class Meanwhile, class Sum>
static inline __attribute__((always_inline)) void add_columns(Kind, const Passing &tile, const Columns &c, Meanwhile &meanwhile,
                                                              Pending<Sum> &pending, float *sums) {
    constexpr bool is_int8 = std::is_same_v<Kind, Int8>;
    constexpr int64_t step = is_int8 ? INT8_STEP : STEP, pair_bytes = is_int8 ? 64 : 128;
    const char *at = tile.at;
    ScaledRows<Sum> waiting = pending.waiting;
    if (!tile.are_loaded) load_step<MANY>(at, c.laid);
    for (int64_t begin = 0, nth = 0; begin < c.pairs; begin += BLOCK_PAIRS, nth++) {
        clear_sums<MANY>();
        for (int64_t pair = begin; pair < std::min(c.pairs, begin + BLOCK_PAIRS); pair += step) {
            const bool is_last = pair + step >= c.pairs;
            at = is_last ? tile.next : at + tile.rows * REGISTER_LINE;
            auto store_meanwhile = [&] {
                for (int64_t i = 0; i < step; i += STEP) meanwhile.step();
                waiting.add(TILE * step / BLOCK_PAIRS);
            };
            multiply_loaded<MANY, is_int8>(store_meanwhile, at, c.laid + (is_last ? 0 : pair + step) * pair_bytes);
        }
        store_sums<MANY>(pending.room(), PANEL);
        waiting.add(TILE);
        const float *scales_of_rows = is_int8 ? c.row_scales + nth * tile.rows : nullptr;
        waiting = pending.take(sums, tile.rows, c.scales + nth * 2, scales_of_rows, c.is_first && begin == 0);
    }
    pending.waiting = waiting;
}

// As `multiply`, of panels that hold `Kind`.
//
// Of long rows a slice of columns passes some panels before the next slice does, so that more rows stay in the
// second-level cache and weights are read less often. Weights that stay as they are stored are not sliced: a
// panel is laid out whole.
template <class Kind, class Keep>
class BlockProduct {
   public:
    BlockProduct(const Factor &m, const Pair *a, const Tiles &tiles, int64_t first, int64_t last, int64_t begin,
                 int64_t end, Buffer &scratch, Keep keep, Range upcoming)
        : m_(m), a_(a), tiles_(tiles), first_(first), last_(last), begin_(begin), end_(end), finished_(keep, tiles),
          slice_(slice_of(m.pairs, m.stored)), panels_at_once_(slice_ < m.pairs ? SLICED_PANELS : 1),
          at_once_(std::is_same_v<Kind, Bf16> && !m.stored && count() <= FEW_TILES ? slice_ : AT_ONCE),
          beyond_{upcoming.at, std::min(upcoming.bytes, FETCHED_BEYOND)} {
        const int64_t sums_bytes = rooms() * sums_of_panel() * 4, block_bytes = AT_ONCE * 128;
        char *own = scratch.get<char>(sums_bytes + block_bytes + m.room());
        sums_ = (float *)own;
        block_ = own + sums_bytes;
        room_ = block_ + block_bytes;
    }

    void run() {
        for (int64_t panels = begin_; panels < end_; panels += panels_at_once_)
            for (int64_t from = 0; from < m_.pairs; from += slice_) {
                const Slice slice{panels, std::min(end_, panels + panels_at_once_), from, std::min(m_.pairs, from + slice_)};
                for (int64_t panel = slice.first; panel < slice.last; panel++) multiply_slice(slice, panel);
            }
        finished_.flush();
    }

   private:
    static constexpr int64_t AT_ONCE = PAIRS_AT_ONCE<Kind>;
    static constexpr bool IS_INT8 = std::is_same_v<Kind, Int8>;
    const Factor &m_;
    const Pair *a_;
    const Tiles &tiles_;
    const int64_t first_, last_, begin_, end_;
    Finished<Keep> finished_;
    const int64_t slice_, panels_at_once_, at_once_;
    const Range beyond_;
    float *sums_;
    char *block_, *room_;
    int64_t done_ = 0;
    Pending<std::conditional_t<IS_INT8, int32_t, float>> pending_;

    int64_t count() const { return last_ - first_; }
    int64_t sums_of_panel() const { return count() * TILE * PANEL; }
    // Panels whose sums lie side by side: those of a panel are kept while the next one is multiplied.
    int64_t rooms() const { return std::max<int64_t>(2, panels_at_once_); }

    // What is done between two products.
    struct Meanwhile {
        Fours fours;
        KeptRows<Keep> rows;
        __attribute__((always_inline)) void step() {
            fours.fetch();
            rows.keep_some();
        }
    };

    // Columns from pair `from` to `end` of the panels first..last.
    struct Slice {
        int64_t first, last, from, end;
    };

    void multiply_slice(const Slice &slice, int64_t panel) {
        const Weights weights = m_.open(panel, panel == begin_, room_);
        float *sums = sums_ + (panel - begin_) % rooms() * sums_of_panel();
        for (int64_t pair = slice.from; pair < slice.end; pair += at_once_) {
            const int64_t pairs = std::min(at_once_, slice.end - pair);
            multiply_columns(weights, slice, pair, pairs, next(weights, slice, panel, pair, pairs), sums);
        }
        if (slice.end < m_.pairs) return;
        pending_.waiting.add(TILE);
        finished_.put(panel, first_, last_, sums);
    }

    // Where the block lies that comes behind this one: in this slice of the panel, in that of the next panel, in the next
    // slice of the first panel, or in the next panels. Null behind the last.
    const char *next(const Weights &weights, const Slice &slice, int64_t panel, int64_t pair, int64_t pairs) const {
        const int64_t end = pair + pairs, pair_bytes = m_.pair_bytes();
        if (m_.stored) {
            // Of the next panel as it is stored, as much as this one has been read of.
            const int64_t at = pair * pair_bytes, half = m_.panel_bytes() / 2;
            return panel + 1 == end_ && end == m_.pairs ? nullptr : weights.next[at >= half] + at % half;
        }
        if (end < slice.end) return m_.begin(panel) + end * pair_bytes;
        if (panel + 1 < slice.last) return m_.begin(panel + 1) + slice.from * pair_bytes;
        if (slice.end < m_.pairs) return m_.begin(slice.first) + slice.end * pair_bytes;
        return slice.last < end_ ? m_.begin(slice.last) : nullptr;
    }

    void multiply_columns(const Weights &weights, const Slice &slice, int64_t pair, int64_t pairs, const char *next, float *sums) {
        const int64_t nth_block = pair / BLOCK_PAIRS;
        Columns columns{weights.panel + pair * m_.pair_bytes(), weights.scales ? weights.scales + nth_block * 2 : nullptr, pairs, nullptr, pair == 0};
        if (IS_INT8)
            narrow_pairs(columns.laid, pairs, block_);
        else if (m_.scales)
            expand_fp8(columns.laid, block_, pairs);
        if (m_.scales) columns.laid = block_;
        // Meanwhile comes the next block, and some of what this thread reads behind the last.
        const int64_t blocks = (end_ - begin_) * ((m_.pairs + at_once_ - 1) / at_once_);
        const Range upcoming{next, next ? pairs * m_.pair_bytes() : 0};
        Stream stream(upcoming, beyond_.part(done_++, blocks), count());
        // And what the panel before has given is kept.
        const int64_t steps = (pairs + STEP - 1) / STEP;
        const bool in_pairs = (slice.end - slice.from) / STEP < TILE;
        // Where a tile's rows begin, and those columns of them.
        auto rows_of = [&](int64_t tile) { return a_ + (tiles_.start(tile) - tiles_.start(first_)) * m_.pairs; };
        auto columns_of = [&](int64_t tile) { return (const char *)(rows_of(tile) + (IS_INT8 ? pair / 2 : pair) * tiles_.size(tile)); };
        auto is_many = [&](int64_t tile) { return tiles_.size(tile) > REGISTER_ROWS; };
        bool are_loaded = false;
        for (int64_t tile = first_; tile < last_; tile++) {
            const bool loads_next = tile + 1 < last_ && is_many(tile) == is_many(tile + 1);
            const Passing passing{columns_of(tile), tiles_.size(tile), are_loaded, loads_next ? columns_of(tile + 1) : nullptr};
            if (IS_INT8) columns.row_scales = row_scales(rows_of(tile), passing.rows, m_.pairs) + nth_block * passing.rows;
            Meanwhile meanwhile{stream.next(steps), finished_.take(steps, in_pairs)};
            float *own_sums = sums + (tile - first_) * TILE * PANEL;
            if (is_many(tile))
                add_columns<true>(Kind(), passing, columns, meanwhile, pending_, own_sums);
            else
                add_columns<false>(Kind(), passing, columns, meanwhile, pending_, own_sums);
            are_loaded = loads_next;
        }
    }
};

template <class Kind, class Keep>
static inline void multiply_blocks(const Factor &m, const Pair *a, const Tiles &tiles, int64_t first, int64_t last,
                                   int64_t begin, int64_t end, Buffer &scratch, Keep keep, Range upcoming) {
    BlockProduct<Kind, Keep>(m, a, tiles, first, last, begin, end, scratch, keep, upcoming).run();
}
}  // namespace step3
