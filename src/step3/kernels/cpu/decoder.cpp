// A batch through all layers, where nobody else computes the FFNs.
#include "step3_cpu.h"
#include "team.h"

extern "C" void step3_decode(Workspace *workspace, int64_t threads, const step3_shape *shape,
                             const step3_layer *layers, int64_t count, const float *final_norm,
                             const step3_batch *batch, float *hidden, uint16_t *out) {
    const int64_t tokens = batch->tokens, choices = tokens * shape->top_k;
    auto *x = workspace->buffers[7].get<uint16_t>(tokens * shape->hidden);
    auto *answer = workspace->buffers[8].get<uint16_t>(tokens * shape->hidden);
    auto *ids = workspace->buffers[9].get<int64_t>(choices);
    auto *weights = workspace->buffers[10].get<float>(choices);
    for (int64_t i = 0; i < count; i++) {
        const step3_layer &layer = layers[i];
        const bool routes = layer.attention->router != nullptr;
        step3_attend_layer(workspace, threads, shape, layer.attention, batch, layer.keys, layer.values, hidden,
                           i ? answer : nullptr, x, ids, weights);
        step3_ffn_forward(workspace, threads, layer.ffn, x, tokens, routes ? ids : nullptr,
                          routes ? weights : nullptr, routes ? shape->top_k : 0, answer);
    }
    step3_final_norm(threads, hidden, answer, final_norm, tokens, shape->hidden, shape->eps, out);
}
