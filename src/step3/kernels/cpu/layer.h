// The attention side of a layer, as the threads of a team compute it: layer.cpp.
#pragma once
#include "attention.h"

namespace step3 {

// A layer's weights and pages, what it takes and what it gives: see step3_attend_layer.
struct LayerCall {
    const step3_attention &weights;
    char *keys, *values;
    const uint16_t *answer;
    uint16_t *x;
    int64_t *ids;
    float *chosen;
};

// What lies between the parts of a call. The workspace's buffers grow when one of them is made: before threads make one
// each, one must have been made of every layer.
struct LayerMemory {
    int64_t parts;  // into how many parts tokens are cut of which a thread prepares one at a time; 0: threads share them
    bool are_few;   // all threads take some experts' logits of all tokens; else each takes some tokens
    Pair *packed_query;             // tiles, or null where threads share the tokens
    Pair *normed, *inter, *mixed;   // tiles, the first two of shared tokens
    float *qkv, *query, *attended;     // the last two in the same memory: attention has read all queries before
    float *partials, *logits;
    LayerMemory(Workspace &workspace, int64_t threads, const step3_shape &shape, const step3_attention &weights, int64_t tokens,
                const AttentionPlan &plan);
};

// Of a layer only what later tokens see: hidden += answer, and all tokens' keys and values. To be called by all threads.
void keep_keys(Worker &worker, const step3_shape &shape, const step3_batch &batch, const LayerCall &call);

// To be called by all threads. Whoever comes back first must wait for the first thread, which chooses experts last.
void attend_layer(Worker &worker, const step3_shape &shape, const step3_batch &batch, const AttentionPlan &plan,
                  const LayerCall &call, const LayerMemory &memory);
}  // namespace step3
