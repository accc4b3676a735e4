// The pages of keys and values, and what a batch's attention is cut into: see attention.h.
#include "attention.h"
#include <algorithm>
#include <limits>

namespace step3 {

// A NaN among the values would stay behind in the block, and reach whoever holds it next: probability zero does
// not make it go away. Its own sequence finds one among the keys.
static float number(float x) { return x == x ? x : 0.f; }

void KV::write(const float *key, const float *value, int64_t slot, char *keys, char *values) const {
    const int64_t page = slot / PAGE, at = slot % PAGE;
    char *key_page = keys + page * page_bytes, *value_page = values + page * page_bytes;
    if (!fp8) {
        // Strip by strip, so that rounding is a loop of vectors; then each value goes to a line of its own.
        for (int64_t begin = 0; begin < head_dim; begin += STRIP) {
            uint16_t rounded_key[STRIP], rounded_value[STRIP];
            float numbers[STRIP];
            for (int i = 0; i < STRIP; i++) numbers[i] = number(value[begin + i]);
            round_to_bf16(key + begin, STRIP, rounded_key);
            round_to_bf16(numbers, STRIP, rounded_value);
            uint32_t *pairs = (uint32_t *)key_page + begin / 2 * PAGE + at;
            for (int i = 0; i < STRIP / 2; i++) memcpy(pairs + i * PAGE, rounded_key + 2 * i, 4);
            uint16_t *channels = (uint16_t *)value_page + begin * PAGE + at / 2 * 32 + at % 2;
            for (int i = 0; i < STRIP; i++) channels[2 * i] = rounded_value[i];
        }
        return;
    }
    for (int64_t i = 0; i < head_dim / 2; i++) {
        char *pair = key_page + i / 2 * 64 + fp8_place((int)(i % 2 * 16 + at));
        pair[0] = (char)fp8_of_float(key[2 * i]);
        pair[1] = (char)fp8_of_float(key[2 * i + 1]);
    }
    for (int64_t c = 0; c < head_dim; c++) {
        char *strip = value_page + c / STRIP * PAGE * STRIP;
        strip[at / 4 * 64 + fp8_place((int)(at / 2 % 2 * 16 + c % STRIP)) + at % 2] = (char)fp8_of_float(number(value[c]));
    }
}

AttentionPlan::AttentionPlan(const step3_shape &shape, const step3_batch &batch, const int64_t *lengths) {
    // About eight tiles of rows a task: enough to use keys that are in the cache several times.
    const int64_t tokens_at_once = std::max<int64_t>(1, 8 * TILE / shape.heads);
    int64_t first = 0;
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int64_t length = batch.lengths[s], context = batch.contexts[s];
        const int64_t *blocks = batch.tables + batch.table_rows[s] * batch.table_stride;
        if (lengths[s] == 1 && context > SPLIT) {
            const int64_t parts = (context + SPLIT - 1) / SPLIT;
            merges.push_back({first, partials, parts});
            for (int64_t part = 0; part < parts; part++)
                tasks.push_back({first, 1, context - 1, part * SPLIT, std::min(context, (part + 1) * SPLIT), blocks,
                                 partials + part});
            partials += parts;
            groups.push_back({first, 1});
        } else {
            for (int64_t begin = 0; begin < length; begin += tokens_at_once) {
                const int64_t end = std::min(length, begin + tokens_at_once), seen = context - length + end;
                tasks.push_back({first + begin, end - begin, context - length + begin, 0, seen, blocks, -1});
                groups.resize((size_t)(first + end), {first + begin, end - begin});
            }
        }
        first += length;
    }
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(tasks.begin(), tasks.end(), [](const AttentionTask &a, const AttentionTask &b) {
        return a.tokens * (a.end - a.begin) > b.tokens * (b.end - b.begin);
    });
}

void rotate(const float *x, const float *cos, const float *sin, int64_t head_dim, float *out) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[half + i];
        out[i] = first * cos[i] - second * sin[i];
        out[half + i] = second * cos[i] + first * sin[i];
    }
}

void merge(const AttentionInputs &inputs, const AttentionPlan::Merge &merge, Buffer &own, KeepMixed keep,
           void *context) {
    const int64_t dim = inputs.shape.head_dim;
    float *mixed = own.get<float>(dim);
    for (int64_t head = 0; head < inputs.shape.heads; head++) {
        float most = -std::numeric_limits<float>::infinity(), sum = 0;
        for (int64_t part = 0; part < merge.parts; part++)
            most = std::max(most, inputs.partials.most(merge.partial + part)[head]);
        std::fill(mixed, mixed + dim, 0.f);
        for (int64_t part = 0; part < merge.parts; part++) {
            const int64_t row = merge.partial + part;
            const float factor = fast_exp(inputs.partials.most(row)[head] - most);
            const float *from = inputs.partials.mixed(row) + head * dim;
            sum += factor * inputs.partials.sum(row)[head];
            for (int64_t i = 0; i < dim; i++) mixed[i] += factor * from[i];
        }
        for (int64_t i = 0; i < dim; i++) mixed[i] /= sum;
        keep(context, merge.token, head, mixed);
    }
}
}  // namespace step3

using namespace step3;

extern "C" void step3_write_kv(const step3_shape *shape, int64_t tokens, const float *key, const float *value,
                               int64_t stride, const int64_t *slots, char *keys, char *values) {
    KV kv(*shape);
    for (int64_t i = 0; i < tokens; i++) kv.write(key + i * stride, value + i * stride, slots[i], keys, values);
}

extern "C" void step3_attend(Workspace *workspace, int64_t threads, const step3_shape *shape, const step3_batch *batch,
                             const char *keys, const char *values, const float *query, float *out) {
    const AttentionPlan plan(*shape, *batch);
    const int64_t heads = shape->heads, dim = shape->head_dim;
    float *partials = workspace->buffers[0].get<float>(plan.partials * heads * (dim + 2));
    const AttentionInputs inputs{*shape, *batch, query, nullptr, keys, values, {partials, heads, dim}};
    struct Context {
        float *out;
        int64_t heads, dim;
    } context{out, heads, dim};
    KeepMixed keep = [](void *given, int64_t token, int64_t head, const float *mixed) {
        auto &c = *(Context *)given;
        memcpy(c.out + (token * c.heads + head) * c.dim, mixed, (size_t)c.dim * 4);
    };
    run(*workspace, threads, [&](Worker &worker) {
        worker.each((int64_t)plan.tasks.size(), [&](int64_t i) { attend(inputs, plan.tasks[(size_t)i], worker.own(), keep, &context); });
        worker.each((int64_t)plan.merges.size(), [&](int64_t i) { merge(inputs, plan.merges[(size_t)i], worker.own(), keep, &context); });
    });
}
