// Rows of weights as they are stored, into panels: once when a matrix is packed, or whenever a panel of a matrix that
// stays in its file is multiplied. It is the same layout, so that both give the same sums.
//
// Weights [rows, columns] lie in panels of 32 rows (32 columns of the product). A panel is two strips of 16 and
// holds, pair of columns after pair of columns, 16 + 16 pairs: two vectors of bf16, or one of fp8. So a panel is
// read from front to back, whatever is multiplied; 16 pairs of a strip of bf16 are a tile register.
#pragma once
#include <algorithm>
#include "fp8.h"
#include "numbers.h"
#include "step3_cpu.h"

namespace step3 {

constexpr int PANEL = 32;
constexpr int STRIP = 16;
constexpr int VECTORS = PANEL / LANES;  // of a row of a panel's results
constexpr int64_t BLOCK_PAIRS = 64;  // pairs that share a scale

// 16 rows of a source; what is beyond its end counts as zeros.
struct Strip {
    const char *data = nullptr;
    const float *scales = nullptr;  // of its blocks
    int64_t stride = 0;             // bytes from row to row
    int64_t type = STEP3_BF16;
    int64_t columns = 0;
    int rows = 0;
    int source = 0;  // which

    bool is_as_multiplied() const { return type == STEP3_BF16 || type == STEP3_FP8; }
};

static inline int64_t item_size(int64_t type) { return type == STEP3_FP8 ? 1 : type == STEP3_F32 ? 4 : 2; }

static inline Strip find_strip(const step3_stored &stored, int64_t expert, int64_t strip) {
    int which = 0;
    if (stored.interleave) {
        which = (int)(strip % 2);
        strip /= 2;
    } else {
        while (which < stored.count && strip * STRIP >= stored.sources[which].rows)
            strip -= (stored.sources[which++].rows + STRIP - 1) / STRIP;
        if (which == stored.count) return {};
    }
    const step3_source &source = stored.sources[which];
    const int64_t row = strip * STRIP, item = item_size(source.type);
    Strip found;
    found.data = (const char *)source.data + (expert * source.expert_stride + row * source.stride) * item;
    if (source.scales)
        found.scales = source.scales + expert * source.expert_scales + row / 128 * source.scale_stride;
    found.stride = source.stride * item;
    found.type = source.type;
    found.columns = stored.columns;
    found.rows = (int)std::clamp<int64_t>(source.rows - row, 0, STRIP);
    found.source = which;
    return found;
}

constexpr int64_t BLOCK_BYTES = 64;  // of each row that are laid out at a time

// The end of a strip, or one of another type: what there is of `BLOCK_BYTES` bytes of each row, as bf16 or fp8.
struct Block {
    alignas(64) char rows[STRIP][BLOCK_BYTES];

    Block(const Strip &from, int64_t begin) {
        memset(rows, 0, sizeof rows);
        const int64_t item = from.type == STEP3_FP8 ? 1 : 2;
        const int64_t columns = std::clamp<int64_t>(from.columns - begin / item, 0, BLOCK_BYTES / item);
        for (int r = 0; r < from.rows; r++) {
            const char *row = from.data + r * from.stride;
            if (from.is_as_multiplied())
                memcpy(rows[r], row + begin, (size_t)(columns * item));
            else
                for (int64_t i = 0; i < columns; i++) {
                    const uint16_t value = rounded(row, from.type, begin / 2 + i);
                    memcpy(rows[r] + 2 * i, &value, 2);
                }
        }
    }

    static uint16_t rounded(const char *row, int64_t type, int64_t index) {
        if (type == STEP3_F32) return (uint16_t)bf16_bits(((const float *)row)[index]);
        return (uint16_t)bf16_bits(_cvtsh_ss(((const uint16_t *)row)[index]));
    }
};

// What to fetch while rows are read, in bytes from where they are read; 0 for nothing.
struct Fetch {
    int64_t in_row = 0, in_next_panel = 0;
};
// Into the row, where nobody fetched the panel before: rows are too many for the processor to foresee.
constexpr int64_t IN_ROW = 8 * BLOCK_BYTES;

// 64 bytes of 16 rows as words of 32 bits.
static inline void read_words(const Strip &from, int64_t begin, const Fetch &fetch, Words &words) {
    const bool is_whole = from.rows == STRIP && from.is_as_multiplied() &&
                          begin + BLOCK_BYTES <= from.columns * item_size(from.type);
    if (!is_whole) {
        const Block block(from, begin);
        return words.read(block.rows[0], BLOCK_BYTES);
    }
    const char *at = from.data + begin;
    if (fetch.in_row)
        for (int r = 0; r < STRIP; r++) _mm_prefetch(at + r * from.stride + fetch.in_row, _MM_HINT_T1);
    if (fetch.in_next_panel)
        for (int r = 0; r < STRIP; r++) _mm_prefetch(at + r * from.stride + fetch.in_next_panel, _MM_HINT_T1);
    words.read(at, from.stride);
}

template <bool Streams>
static inline void put(char *to, Lanes x) {
    // Packing writes what is not read soon: past the caches.
    if constexpr (Streams)
        stream_lanes(to, x);
    else
        store_lanes(to, x);
}

// Pairs of a panel from byte `begin` of the rows on, `count` of them: 16 of bf16 or 32 of fp8, but for the end.
// `to` is where the first one goes.
template <bool Streams>
static inline __attribute__((always_inline)) void fill_pairs(const Strip (&strips)[2], int64_t begin, int64_t count,
                                                             bool quantised, const Fetch &fetch, char *to) {
    if (!quantised) {
        for (int s = 0; s < 2; s++) {
            Words words;
            read_words(strips[s], begin, fetch, words);
#pragma GCC unroll 16
            for (int word = 0; word < 16; word++)
                for (int part = 0; part < Words::PARTS && word < count; part++)
                    put<Streams>(to + word * 128 + 64 * s + part * (int)sizeof(Lanes), words.at[word][part]);
        }
        return;
    }
    Words first, second;
    read_words(strips[0], begin, fetch, first);
    read_words(strips[1], begin, fetch, second);
#pragma GCC unroll 16
    for (int word = 0; word < 16; word++)
        for (int part = 0; part < Words::PARTS && 2 * word < count; part++) {
            // A word holds two pairs of fp8, which belong to two groups.
            const Lanes a = part_words(first.at[word][part]), b = part_words(second.at[word][part]);
            char *at = to + 2 * word * 64 + part * (int)sizeof(Lanes);
            put<Streams>(at, unpack_low64(a, b));
            put<Streams>(at + 64, unpack_high64(a, b));
        }
}

// The panel of two strips.
template <bool Streams>
static inline void fill_panel(const Strip (&strips)[2], int64_t pairs, bool quantised, const Fetch &fetch, char *to) {
    const int64_t step = quantised ? 32 : 16, pair_bytes = quantised ? 64 : 128;
    for (int64_t pair = 0; pair < pairs; pair += step)
        fill_pairs<Streams>(strips, pair / step * BLOCK_BYTES, std::min(step, pairs - pair), quantised, fetch,
                            to + pair * pair_bytes);
}

// A panel's scales, [blocks][2].
static inline void fill_scales(const Strip (&strips)[2], int64_t blocks, float *to) {
    for (int64_t block = 0; block < blocks; block++)
        for (int s = 0; s < 2; s++) to[2 * block + s] = strips[s].rows ? strips[s].scales[block] : 0.f;
}
}  // namespace step3
