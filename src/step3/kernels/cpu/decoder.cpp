// A step from its tokens to logits, and what it ends with where its layers' FFNs are elsewhere.
#include <cmath>
#include <optional>
#include "experts.h"
#include "layer.h"
#include "scored_tokens.h"

using namespace step3;

namespace {

// out (bf16) = norm(hidden + answer), of the rows `chosen`, or null for the first ones.
void final_norm(int64_t threads, const step3_network &network, const float *hidden, const uint16_t *answer,
                const int64_t *chosen, int64_t rows, uint16_t *out) {
    constexpr int64_t ALONE = 64;  // tokens that one thread does sooner than it wakes others
    const int64_t size = network.shape.hidden;
    if (rows <= ALONE) threads = 1;
#pragma omp parallel num_threads((int)threads)
    {
        Buffer own;
        float *row = own.get<float>(size);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const int64_t from = (chosen ? chosen[r] : r) * size;
            for (int64_t i = 0; i < size; i++) row[i] = hidden[from + i] + float_of_bf16(answer[from + i]);
            const float scale = inverse_rms(row, size, network.shape.eps);
            for (int64_t i = 0; i < size; i++) row[i] = row[i] * scale * network.final_norm[i];
            round_to_bf16(row, size, out + r * size);
        }
    }
}
}  // namespace

extern "C" void step3_end(Workspace *workspace, int64_t threads, const step3_network *network, const step3_batch *batch,
                          const uint16_t *answer, uint16_t *normed, float *logits, int64_t *likeliest) {
    const int64_t size = network->shape.hidden, vocabulary = network->head.rows, rows = batch->num_scored;
    const int64_t *multiplied = batch->scored;
    if (normed) {
        final_norm(threads, *network, batch->hidden, answer, nullptr, batch->tokens, normed);
    } else {
        // Nobody looks at the other rows.
        normed = workspace->buffers[14].get<uint16_t>(rows * size);
        final_norm(threads, *network, batch->hidden, answer, batch->scored, rows, normed);
        multiplied = nullptr;
    }
    if (!logits && !likeliest) return;
    float *own = workspace->buffers[15].get<float>(rows * (1 + (logits ? 0 : vocabulary))), *best = own + (logits ? 0 : rows * vocabulary);
    if (!logits) logits = own;
    step3_linear(workspace, threads, &network->head, normed, multiplied, rows, size, logits);
    if (!likeliest) return;
    step3_likeliest(threads, logits, rows, vocabulary, best, likeliest);
    for (int64_t row = 0; row < rows; row++)
        if (!std::isfinite(best[row])) likeliest[row] = -1;
}

extern "C" void step3_step(Workspace *workspace, int64_t threads, const step3_network *network, const step3_batch *given,
                           uint16_t *normed, float *logits, int64_t *likeliest) {
    const step3_shape &shape = network->shape;
    const int64_t tokens = given->tokens, choices = tokens * shape.top_k, angles = tokens * shape.head_dim / 2;
    auto &buffers = workspace->buffers;
    step3_batch batch = *given;
    batch.slots = buffers[11].get<int64_t>(tokens);
    batch.cos = buffers[12].get<float>(2 * angles);
    batch.sin = batch.cos + angles;
    batch.hidden = buffers[13].get<float>(tokens * shape.hidden);
    auto *x = buffers[7].get<uint16_t>(tokens * shape.hidden);
    auto *answer = buffers[8].get<uint16_t>(tokens * shape.hidden);
    auto *ids = buffers[9].get<int64_t>(choices);
    auto *weights = buffers[10].get<float>(choices);
    step3_begin(threads, network, &batch);
    // The last layer's hidden states are asked for of scored tokens alone, if not of all.
    std::optional<ScoredTokens> scored;
    if (!normed && ScoredTokens::are_few(batch)) scored.emplace(shape, batch);
    const step3_batch &ending = scored ? scored->batch() : batch;
    const AttentionPlan plan(shape, batch), &ending_plan = scored ? scored->plan() : plan;
    auto memory_of = [&](const step3_layer &layer, const step3_batch &some, const AttentionPlan &own_plan) {
        return LayerMemory(*workspace, threads, shape, *layer.attention, some.tokens, own_plan);
    };
    const step3_layer *const first = network->layers, *const last = first + network->num_layers - 1;
    // Buffers grow here, and in the first thread's FFN calls while the others wait.
    for (const step3_layer *layer = first; layer < last; layer++) memory_of(*layer, batch, plan);
    if (ending.tokens) memory_of(*last, ending, ending_plan);
    std::optional<FFNCall> ffn;
    run(*workspace, threads, [&](Worker &worker) {
        auto compute = [&](const step3_layer &layer, const step3_batch &some, const AttentionPlan &own_plan, const uint16_t *more) {
            const LayerCall call{*layer.attention, layer.keys, layer.values, more, x, ids, weights};
            attend_layer(worker, shape, some, own_plan, call, memory_of(layer, some, own_plan));
            // The first thread chose the experts.
            if (worker.id() == 0) {
                const bool routes = layer.attention->router != nullptr;
                ffn.emplace(*workspace, threads, *layer.ffn, x, Choices{routes ? ids : nullptr, weights, some.tokens, routes ? shape.top_k : 0}, answer);
            }
            worker.barrier();
            ffn->compute(worker, &layer < last ? &(&layer)[1].attention->qkv : nullptr);
        };
        auto answer_before = [&](const step3_layer *layer) { return layer == first ? nullptr : answer; };
        for (const step3_layer *layer = first; layer < last; layer++) compute(*layer, batch, plan, answer_before(layer));
        if (!scored) return compute(*last, batch, plan, answer_before(last));
        // Those of scored tokens are written once more behind it: the same, but where many rows are rounded to 8 bits.
        keep_keys(worker, shape, batch, {*last->attention, last->keys, last->values, answer_before(last), x, ids, weights});
        if (!ending.tokens) return;
        worker.each(ending.tokens, [&](int64_t n) { scored->take_hidden(n); });
        compute(*last, ending, ending_plan, nullptr);
    });
    step3_end(workspace, threads, network, &ending, answer, normed, logits, likeliest);
}
