// Keys and values in pages, and attention over them. One key head serves all query heads (MFA), so that the
// heads of a token are rows of one product, and a page of keys is a strip of weights.
//
// A page is 16 tokens. Keys: pair after pair of channels, 16 tokens. Values: strip after strip of 16
// channels, pair after pair of tokens. As fp8 two such pairs fill a group of 64 bytes (fp8.h). A block of
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
    // Of each token, that of its tasks: the first token and how many.
    struct Group {
        int64_t first, tokens;
    };
    std::vector<Group> groups;
    int64_t partials = 0;  // of all heads
    // `lengths` [sequences] decide which are cut: the batch's own, or, where it is a part of a step, the step's.
    AttentionPlan(const step3_shape &shape, const step3_batch &batch, const int64_t *lengths);
    AttentionPlan(const step3_shape &shape, const step3_batch &batch) : AttentionPlan(shape, batch, batch.lengths) {}
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

// Pairs of a head of a packed query: whole runs.
static inline int64_t query_pairs(int64_t head_dim) { return (head_dim / 2 + RUN - 1) / RUN * RUN; }

// A token's head as attention reads it, rotated where there are angles. `room` takes a head; PAST_CACHES: see `pack_floats`.
template <bool PAST_CACHES = false>
static inline void pack_query(const step3_shape &shape, const step3_batch &batch, int64_t token, const float *head, float *room,
                              const Place &to) {
    const int64_t dim = shape.head_dim, angles = token * dim / 2;
    if (batch.cos) rotate(head, batch.cos + angles, batch.sin + angles, dim, room);
    pack_floats<PAST_CACHES>(batch.cos ? room : head, dim, 0, query_pairs(dim), to);
}

// Computes a task. Of the queries there are either floats [tokens, heads * head_dim], or `packed` ones, each task's rows as
// tiles of their own. A whole result goes to keep(token, head, mixed [head_dim]), a part to `partials`.
struct AttentionInputs {
    const step3_shape &shape;
    const step3_batch &batch;
    const float *query;
    const Pair *packed;  // or null
    const char *keys, *values;
    Partials partials;
};
typedef void (*KeepMixed)(void *context, int64_t token, int64_t head, const float *mixed);
void attend(const AttentionInputs &inputs, const AttentionTask &task, Buffer &own, KeepMixed keep, void *context);
void merge(const AttentionInputs &inputs, const AttentionPlan::Merge &merge, Buffer &own, KeepMixed keep,
           void *context);
}  // namespace step3
