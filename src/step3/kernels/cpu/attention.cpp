// Attention over packed pages: see attention.h.
#include "attention.h"
#include "attention_product.h"
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

AttentionPlan::AttentionPlan(const step3_shape &shape, const step3_batch &batch) {
    // About eight tiles of rows a task: enough to use keys that are in the cache several times.
    const int64_t tokens_at_once = std::max<int64_t>(1, 8 * TILE / shape.heads);
    int64_t first = 0;
    for (int64_t s = 0; s < batch.sequences; s++) {
        const int64_t length = batch.lengths[s], context = batch.contexts[s];
        const int64_t *blocks = batch.tables + batch.table_rows[s] * batch.table_stride;
        if (length == 1 && context > SPLIT) {
            const int64_t parts = (context + SPLIT - 1) / SPLIT;
            merges.push_back({first, partials, parts});
            for (int64_t part = 0; part < parts; part++)
                tasks.push_back({first, 1, context - 1, part * SPLIT, std::min(context, (part + 1) * SPLIT), blocks,
                                 partials + part});
            partials += parts;
        } else {
            for (int64_t begin = 0; begin < length; begin += tokens_at_once) {
                const int64_t end = std::min(length, begin + tokens_at_once), seen = context - length + end;
                tasks.push_back({first + begin, end - begin, context - length + begin, 0, seen, blocks, -1});
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

namespace {

// What a task keeps between its keys; all in its thread's own memory.
struct Scratch {
    uint32_t *query;     // tiles
    uint32_t *weights;   // a tile of probabilities, [keys / 2][rows]
    float *scores;       // [rows of a tile][KEYS_AT_ONCE]
    float *most, *sum;   // [rows]
    float *mixed;        // [rows][channels]
    char *wide_keys, *wide_values;  // pages of fp8 as bf16
    float *rotated;
    Scratch(Buffer &own, int64_t rows, int64_t head_dim, int64_t channels, int64_t query_pairs) {
        const int64_t wide = KEYS_AT_ONCE * head_dim * 2;
        // A product gives the rows of a whole tile, be there fewer.
        const int64_t mixed_rows = rows + TILE;
        char *at = own.get<char>(rows * (query_pairs * 4 + 8) + mixed_rows * channels * 4 + TILE * KEYS_AT_ONCE * 6 +
                                 2 * wide + head_dim * 4 + 1024);
        auto take = [&at](int64_t bytes) {
            char *taken = at;
            at += (bytes + 63) / 64 * 64;
            return taken;
        };
        query = (uint32_t *)take(rows * query_pairs * 4);
        weights = (uint32_t *)take(TILE * KEYS_AT_ONCE * 2);
        scores = (float *)take(TILE * KEYS_AT_ONCE * 4);
        most = (float *)take(rows * 4);
        sum = (float *)take(rows * 4);
        mixed = (float *)take(mixed_rows * channels * 4);
        wide_keys = take(wide);
        wide_values = take(wide);
        rotated = (float *)take(head_dim * 4);
    }
};

// A row's scores to probabilities that are not divided yet, `keys` of them, of which the row sees the first `seen`, at
// least one. Updates what was the most so far, and the sum; returns the factor for what was mixed before.
float soften(const float *scores, int64_t seen, int64_t keys, float scale, float &most, float &sum, const Place &to) {
    float now = scores[0];
#pragma omp simd reduction(max : now)
    for (int64_t i = 0; i < seen; i++) now = scores[i] > now ? scores[i] : now;
    now = std::max(most, now * scale);
    float added[PANEL] = {};
    for (int64_t key = 0; key < keys; key += PANEL) {
        alignas(64) float y[PANEL];
        for (int i = 0; i < PANEL; i++) y[i] = fast_exp(scores[key + i] * scale - now);
        for (int64_t i = std::max<int64_t>(0, seen - key); i < PANEL; i++) y[i] = 0.f;
        for (int i = 0; i < PANEL; i++) added[i] += y[i];
        pack_panel(y, key / 2, to);
    }
    const float factor = most == -std::numeric_limits<float>::infinity() ? 0.f : fast_exp(most - now);
    most = now;
    for (int width = PANEL / 2; width; width /= 2)
        for (int i = 0; i < width; i++) added[i] += added[i + width];
    sum = sum * factor + added[0];
    return factor;
}

// Where the cache holds the page of a task's sequence.
int64_t page_of(const AttentionTask &task, const KV &kv, int64_t page) {
    return task.blocks[page / kv.pages_per_block] * kv.pages_per_block + page % kv.pages_per_block;
}
}  // namespace

void attend(const AttentionInputs &inputs, const AttentionTask &task, Buffer &own, KeepMixed keep, void *context) {
    const step3_shape &shape = inputs.shape;
    const KV kv(shape);
    const int64_t heads = shape.heads, dim = shape.head_dim, rows = task.tokens * heads, pairs = dim / 2;
    const int64_t channels = (dim + PANEL - 1) / PANEL * PANEL, query_pairs = (pairs + RUN - 1) / RUN * RUN;
    const Tiles tiles(rows);
    Scratch scratch(own, rows, dim, channels, query_pairs);
    const HalvedRegisters registers;
    // The first keys are on their way while the queries are rotated.
    for (int64_t page = 0; page < 2 && task.begin + page * PAGE < task.end; page++)
        for (int64_t line = 0; line < kv.page_bytes; line += 64)
            _mm_prefetch(inputs.keys + page_of(task, kv, task.begin / PAGE + page) * kv.page_bytes + line, _MM_HINT_T0);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = task.first + row / heads;
        const float *from = inputs.query + token * heads * dim + row % heads * dim;
        if (inputs.rotates) {
            rotate(from, inputs.batch.cos + token * dim / 2, inputs.batch.sin + token * dim / 2, dim, scratch.rotated);
            from = scratch.rotated;
        }
        pack_floats(from, dim, 0, query_pairs, Place(scratch.query, tiles, row, query_pairs));
        scratch.most[row] = -std::numeric_limits<float>::infinity();
        scratch.sum[row] = 0.f;
    }
    for (int64_t begin = task.begin; begin < task.end; begin += KEYS_AT_ONCE) {
        const int64_t end = std::min(task.end, begin + KEYS_AT_ONCE), pages = (end - begin + PAGE - 1) / PAGE;
        const char *keys[KEYS_AT_ONCE / PAGE + 1], *values[KEYS_AT_ONCE / PAGE + 1];
        for (int64_t page = 0; page < pages; page++) {
            const int64_t at = page_of(task, kv, begin / PAGE + page);
            keys[page] = inputs.keys + at * kv.page_bytes;
            values[page] = inputs.values + at * kv.page_bytes;
            if (kv.fp8) {
                char *wide_key = scratch.wide_keys + page * PAGE * dim * 2;
                char *wide_value = scratch.wide_values + page * PAGE * dim * 2;
                expand_fp8(keys[page], wide_key, PAGE * dim / 64);
                expand_fp8(values[page], wide_value, PAGE * dim / 64);
                keys[page] = wide_key;
                values[page] = wide_value;
            }
        }
        // Pages go in pairs; the partner of a last one is itself, and its scores are dropped.
        keys[pages] = keys[pages - 1];
        values[pages] = values[pages - 1];
        for (int64_t tile = 0; tile < tiles.count; tile++) {
            const int count = tiles.size(tile);
            const int64_t start = tiles.start(tile);
            // Rows of earlier tokens may see none of these keys.
            if (task.position + (start + count - 1) / heads < begin) continue;
            for (int64_t page = 0; page < pages; page += 2) {
                // The first tile fetches the keys that come next, the second the values; then all are there.
                const char *const *ahead = tile ? values + page : keys + std::min(page + 2, pages - 1);
                score(scratch.query + start * query_pairs, count, {keys[page], keys[page + 1]}, pairs, {ahead[0], ahead[1]},
                      scratch.scores + page * PAGE, KEYS_AT_ONCE);
            }
            float factors[TILE];
            for (int r = 0; r < count; r++) {
                const int64_t row = start + r, limit = task.position + row / heads + 1;
                const int64_t seen = std::max<int64_t>(0, std::min(end, limit) - begin);
                const Place to(scratch.weights, r, count);
                factors[r] = 1.f;
                if (seen)
                    factors[r] = soften(scratch.scores + r * KEYS_AT_ONCE, seen, pages * PAGE, shape.scale, scratch.most[row],
                                        scratch.sum[row], to);
                else
                    pack_floats(nullptr, 0, 0, pages * PAGE / 2, to);
            }
            for (int64_t channel = 0; channel < dim; channel += PANEL) {
                const int64_t strip = PAGE * STRIP * 2;
                // With 16 channels left the second strip is the first again, and dropped.
                mix(scratch.weights, count, values, pages, channel / STRIP * strip,
                    channel + STRIP < dim ? strip : 0, factors, scratch.mixed + start * channels + channel, channels);
            }
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        float *mixed = scratch.mixed + row * channels;
        if (task.partial < 0) {
            const float share = 1.f / scratch.sum[row];
            for (int64_t i = 0; i < dim; i++) mixed[i] *= share;
            keep(context, task.first + row / heads, row % heads, mixed);
        } else {
            inputs.partials.most(task.partial)[row] = scratch.most[row];
            inputs.partials.sum(task.partial)[row] = scratch.sum[row];
            memcpy(inputs.partials.mixed(task.partial) + row * dim, mixed, (size_t)dim * 4);
        }
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
    const AttentionInputs inputs{*shape, *batch, query, keys, values, {partials, heads, dim}, batch->cos != nullptr};
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
