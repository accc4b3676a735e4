// Rows of weights as they are stored, into panels (tile.h): once when a matrix is packed, or whenever a panel
// of a matrix that stays in its file is multiplied. It is the same layout, so that both give the same sums.
#pragma once
#include <algorithm>
#include "numbers.h"
#include "step3_cpu.h"
#include "vectors.h"

namespace step3 {

constexpr int PANEL = 32;
constexpr int STRIP = 16;
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

// 64 bytes of each row of a strip, as bf16 or fp8: rows that lie a multiple of 4096 bytes apart would throw
// each other out of the cache, these do not.
struct Block {
    static constexpr int64_t BYTES = 64;
    alignas(64) char rows[STRIP][BYTES];

    // The bytes from `begin` on, as bf16 or fp8; the same bytes `ahead` bytes further on are fetched.
    void gather(const Strip &from, int64_t begin, int64_t ahead) {
        const int64_t item = from.type == STEP3_FP8 ? 1 : 2;
        const bool is_stored_so = from.type == STEP3_FP8 || from.type == STEP3_BF16;
        if (is_stored_so && from.rows == STRIP && begin + BYTES <= from.columns * item) {
            for (int r = 0; r < STRIP; r++) {
                const char *at = from.data + r * from.stride + begin;
                memcpy(rows[r], at, BYTES);
                if (ahead) _mm_prefetch(at + ahead, _MM_HINT_T1);
            }
            return;
        }
        memset(rows, 0, sizeof rows);
        const int64_t columns = std::clamp<int64_t>(from.columns - begin / item, 0, BYTES / item);
        for (int r = 0; r < from.rows; r++) {
            const char *row = from.data + r * from.stride;
            if (is_stored_so)
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

template <bool Streams>
static inline void put(char *to, Lanes x) {
    // Packing writes what is not read soon: past the caches.
    if constexpr (Streams)
        stream_lanes(to, x);
    else
        store_lanes(to, x);
}

// Words of 32 bits `unit * 4`.. of rows `row`.. : word j of 4 rows a lane in `out[j]`.
static inline void transpose(const Block &block, int row, int64_t unit, Lanes (&out)[4]) {
    Lanes rows[4];
    for (int q = 0; q < 4; q++) rows[q] = load_lanes(block.rows[row + q] + 16 * unit, 4 * Block::BYTES);
    const Lanes a = unpack_low32(rows[0], rows[1]), b = unpack_low32(rows[2], rows[3]);
    const Lanes c = unpack_high32(rows[0], rows[1]), d = unpack_high32(rows[2], rows[3]);
    out[0] = unpack_low64(a, b);
    out[1] = unpack_high64(a, b);
    out[2] = unpack_low64(c, d);
    out[3] = unpack_high64(c, d);
}

// `units` times 16 bytes of 16 rows, 4 pairs of bf16 each, into a strip of a panel.
template <bool Streams>
static inline void spread_bf16(const Block &block, int64_t units, char *to) {
    for (int64_t unit = 0; unit < units; unit++)
        for (int row = 0; row < STRIP; row += LANE_ROWS) {
            Lanes pairs[4];
            transpose(block, row, unit, pairs);
            for (int j = 0; j < 4; j++) put<Streams>(to + (4 * unit + j) * 128 + 4 * row, pairs[j]);
        }
}

// `units` times 16 bytes of 32 rows, 8 pairs of fp8 each, into a panel.
template <bool Streams>
static inline void spread_fp8(const Block (&blocks)[2], int64_t units, char *to) {
    for (int64_t unit = 0; unit < units; unit++)
        for (int row = 0; row < STRIP; row += LANE_ROWS) {
            Lanes first[4], second[4];
            transpose(blocks[0], row, unit, first);
            transpose(blocks[1], row, unit, second);
            for (int j = 0; j < 4; j++) {
                // A word holds two pairs of fp8, which belong to two groups.
                const Lanes a = part_words(first[j]), b = part_words(second[j]);
                char *at = to + (8 * unit + 2 * j) * 64 + 4 * row;
                put<Streams>(at, unpack_low64(a, b));
                put<Streams>(at + 64, unpack_high64(a, b));
            }
        }
}

// The panel of two strips; `ahead` as in `Block::gather`.
template <bool Streams>
static inline void fill_panel(const Strip (&strips)[2], int64_t pairs, bool quantised, int64_t ahead, char *to) {
    const int64_t row_bytes = pairs * (quantised ? 2 : 4);
    for (int64_t begin = 0; begin < row_bytes; begin += Block::BYTES) {
        const int64_t units = std::min(Block::BYTES, row_bytes - begin) / 16;
        Block blocks[2];
        for (int s = 0; s < 2; s++) blocks[s].gather(strips[s], begin, ahead);
        if (quantised) {
            spread_fp8<Streams>(blocks, units, to + begin / 2 * 64);
        } else {
            char *at = to + begin / 4 * 128;
            for (int s = 0; s < 2; s++) spread_bf16<Streams>(blocks[s], units, at + 64 * s);
        }
    }
}

// A panel's scales, [blocks][2].
static inline void fill_scales(const Strip (&strips)[2], int64_t blocks, float *to) {
    for (int64_t block = 0; block < blocks; block++)
        for (int s = 0; s < 2; s++) to[2 * block + s] = strips[s].rows ? strips[s].scales[block] : 0.f;
}
}  // namespace step3
