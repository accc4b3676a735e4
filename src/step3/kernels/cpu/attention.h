// Keys and values in pages, and attention over them. One key head serves all query heads (MFA), so that the
// heads of a token are rows of one product, and a page of keys is a strip of weights.
//
// A page is 16 tokens. Keys: pair after pair of channels, 16 tokens. Values: strip after strip of 16
// channels, pair after pair of tokens. As fp8 two such pairs fill a group of 64 bytes (vectors.h). A block of
// the cache is one or more pages.
#pragma once
#include <vector>
#include "rows.h"

namespace step3 {

constexpr int64_t PAGE = 16;

struct KV {
    int64_t head_dim, page_bytes, pages_per_block;
    bool fp8;
    explicit KV(const step3_shape &shape)
        : head_dim(shape.head_dim), page_bytes(PAGE * shape.head_dim * (shape.kv_fp8 ? 1 : 2)),
          pages_per_block(shape.block_size / PAGE), fp8(shape.kv_fp8 != 0) {}
    void write(const float *key, const float *value, int64_t slot, char *keys, char *values) const;
};

// A part of the attention of one sequence: `tokens` query tokens from `first` on (of the batch), the first of
// which sees keys up to `position`; over the keys begin..end.
struct AttentionTask {
    int64_t first, tokens, position, begin, end;
    const int64_t *blocks;
    int64_t partial;  // row of the partial results that this is, or -1 if it is the whole
};

// Keys that a sequence's parts have, where it is cut: always the same, so that answers do not depend on the
// threads.
constexpr int64_t SPLIT = 512;
constexpr int64_t KEYS_AT_ONCE = 256;

struct AttentionPlan {
    std::vector<AttentionTask> tasks;
    // Tokens whose parts are merged: the token and its first partial row; rows of a part follow each other.
    struct Merge {
        int64_t token, partial, parts;
    };
    std::vector<Merge> merges;
    int64_t partials = 0;  // of all heads
    AttentionPlan(const step3_shape &shape, const step3_batch &batch);
};

// Sums over some keys that are not divided yet: [heads] of largest score, sum, then [heads, head_dim].
struct Partials {
    float *data;
    int64_t heads, head_dim;
    float *most(int64_t row) const { return data + row * heads * (head_dim + 2); }
    float *sum(int64_t row) const { return most(row) + heads; }
    float *mixed(int64_t row) const { return sum(row) + heads; }
};

void rotate(const float *x, const float *cos, const float *sin, int64_t head_dim, float *out);

// Computes a task; `query` [tokens, heads * head_dim] float is rotated here where cos is given. A whole
// result goes to keep(token, head, mixed [head_dim]), a part to `partials`.
struct AttentionInputs {
    const step3_shape &shape;
    const step3_batch &batch;
    const float *query;
    const char *keys, *values;
    Partials partials;
    bool rotates;
};
typedef void (*KeepMixed)(void *context, int64_t token, int64_t head, const float *mixed);
void attend(const AttentionInputs &inputs, const AttentionTask &task, Buffer &own, KeepMixed keep, void *context);
void merge(const AttentionInputs &inputs, const AttentionPlan::Merge &merge, Buffer &own, KeepMixed keep,
           void *context);
}  // namespace step3
