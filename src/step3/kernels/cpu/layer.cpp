// The attention side of a decoder layer in one call: norm, projections, rotation, cache, attention, output,
// norm, router. Each phase's result lies in the form in which the next one reads it.
#include "layer.h"
#include <algorithm>
#include <numeric>
#include "float_product.h"

namespace step3 {
namespace {

// Fewer tokens are not worth reading the projections for.
constexpr int64_t MIN_PREPARED_ROWS = 128;

// Tokens whose keys and values a thread computes at a time where nothing else is: few weights are read for them.
constexpr int64_t KEPT_AT_ONCE = 256;

// Columns of as few heads as fill whole panels.
int64_t columns_of_heads(const step3_shape &shape) { return std::lcm(shape.head_dim, (int64_t)PANEL); }

// Bytes of a row in `prepare`.
int64_t bytes_of_prepared(const step3_shape &shape, const step3_attention &weights) {
    return 4 * (weights.qkv.rows + weights.qkv.pairs + weights.wq.pairs + columns_of_heads(shape));
}

int64_t parts_to_prepare(const step3_shape &shape, const step3_attention &weights, const Tiles &tiles, int64_t threads) {
    const int64_t rows = JOB_BYTES / bytes_of_prepared(shape, weights);
    if (rows == 0) return 0;
    const int64_t parts = ((tiles.rows + rows - 1) / rows + threads - 1) / threads * threads;
    return tiles.rows / parts < MIN_PREPARED_ROWS ? 0 : parts;
}

// Rows packed for `m`, as its product takes them.
void narrow(const step3_matrix &m, Pair *a, const Tiles &tiles, Buffer &own) {
    for (int64_t tile = 0; is_narrow(m, tiles.rows) && tile < tiles.count; tile++)
        narrow_tile(a + tiles.start(tile) * m.pairs, tiles.size(tile), m.pairs, own);
}

// out [rows][columns] = all tiles times the matrix's columns from `begin` on, where a panel begins; by one thread.
void multiply_columns(const step3_matrix &m, const Pair *a, const Tiles &tiles, int64_t begin, int64_t columns, float *out, Buffer &own) {
    const int64_t panels = (columns + PANEL - 1) / PANEL, panel = begin / PANEL;
    const int64_t last = std::min(m.num_panels, panel + panels), then = std::min(m.num_panels, last + panels);
    auto keep = [&](const TileSums &sums, int r) {
        const int64_t column = sums.panel * PANEL - begin;
        keep_columns(out + (sums.row + r) * columns + column, sums.of(r), columns_left(columns, column), false);
    };
    const Factor factor(m, tiles.rows);
    multiply(factor, a, tiles, 0, tiles.count, panel, last, own, keep, factor.upcoming(last, then));
}

// Runs task(first, last) for `parts` ranges of tokens that are whole tiles, shared among the threads.
template <class Task>
void each_part(Worker &worker, const Tiles &tiles, int64_t parts, Task task) {
    worker.each(parts, [&](int64_t part) {
        const int64_t first = tiles.count * part / parts, last = tiles.count * (part + 1) / parts;
        if (first < last) task(tiles.start(first), tiles.start(last));
    });
}

// What a layer does with some tokens.
struct Layer {
    const step3_shape &shape;
    const step3_attention &weights;
    const step3_batch &batch;
    const LayerCall &call;
    const Tiles tiles;

    // hidden += answer; norm(hidden) for q, k and v
    void begin(int64_t token, const Place &to, Buffer &own) const {
        const int64_t size = shape.hidden;
        float *row = batch.hidden + token * size, *out = own.get<float>(size);
        if (call.answer)
            for (int64_t i = 0; i < size; i++) row[i] += float_of_bf16(call.answer[token * size + i]);
        const float scale = inverse_rms(row, size, shape.eps);
        for (int64_t i = 0; i < size; i++) out[i] = row[i] * scale * weights.input_norm[i];
        pack_floats(out, size, 0, weights.qkv.pairs, to);
    }

    // A token's projected key and value, into the cache.
    void keep_key(int64_t token, const float *key, Buffer &own) const {
        const int64_t dim = shape.head_dim;
        float *rotated = own.get<float>(dim);
        rotate(key, batch.cos + token * dim / 2, batch.sin + token * dim / 2, dim, rotated);
        KV(shape).write(rotated, key + dim, batch.slots[token], call.keys, call.values);
    }

    // projected [rows][columns] = the columns of q, k and v from `column` on, of some tokens by one thread; `normed` takes their tiles.
    void project(int64_t first, const Tiles &own_tiles, int64_t column, Pair *normed, float *projected, Buffer &own) const {
        const step3_matrix &qkv = weights.qkv;
        for (int64_t t = 0; t < own_tiles.rows; t++) begin(first + t, Place(normed, own_tiles, t, qkv.pairs), own);
        narrow(qkv, normed, own_tiles, own);
        multiply_columns(qkv, normed, own_tiles, column, qkv.rows - column, projected, own);
    }

    // Keys and values of the tokens first..last, from their hidden states on, by one thread.
    void keep_keys(int64_t first, int64_t last, Worker &worker) const {
        const int64_t rows = last - first, column = shape.share_q / PANEL * PANEL, columns = weights.qkv.rows - column;
        Pair *normed = worker.rows().get<Pair>(rows * (weights.qkv.pairs + columns));
        float *projected = (float *)(normed + rows * weights.qkv.pairs);
        project(first, Tiles(rows), column, normed, projected, worker.own());
        for (int64_t t = 0; t < rows; t++) keep_key(first + t, projected + t * columns + shape.share_q - column, worker.own());
    }

    // q_proj's part is normed for wq; key and value go into the cache.
    void split(int64_t token, const float *row, const Place &to, Buffer &own) const {
        const int64_t size = shape.share_q;
        keep_key(token, row + size, own);
        float *out = own.get<float>(size);
        const float scale = inverse_rms(row, size, shape.eps);
        for (int64_t i = 0; i < size; i++) out[i] = row[i] * scale * weights.inter_norm[i];
        pack_floats(out, size, 0, weights.wq.pairs, to);
    }

    // All that precedes attention, of the tokens first..last, by one thread: what lies between stays in its caches. Queries become
    // the tiles of their tasks in `packed`.
    void prepare(int64_t first, int64_t last, const AttentionPlan &plan, Pair *packed, Worker &worker) const {
        const step3_matrix &qkv = weights.qkv, &wq = weights.wq;
        const int64_t rows = last - first, width = columns_of_heads(shape);
        const Tiles own_tiles(rows);
        // Tiles first: their rows are whole lines.
        Pair *normed = worker.rows().get<Pair>(rows * bytes_of_prepared(shape, weights) / 4), *inter = normed + rows * qkv.pairs;
        float *projected = (float *)(inter + rows * wq.pairs), *some_heads = projected + rows * qkv.rows;
        project(first, own_tiles, 0, normed, projected, worker.own());
        for (int64_t t = 0; t < rows; t++)
            split(first + t, projected + t * qkv.rows, Place(inter, own_tiles, t, wq.pairs), worker.own());
        narrow(wq, inter, own_tiles, worker.own());
        for (int64_t column = 0; column < shape.heads * shape.head_dim; column += width) {
            multiply_columns(wq, inter, own_tiles, column, width, some_heads, worker.own());
            for (int64_t t = 0; t < rows; t++)
                pack_heads(first + t, column / shape.head_dim, some_heads + t * width, plan.groups[(size_t)(first + t)], packed, worker.own());
        }
    }

    // A token's queries of the heads from this one on, as many as a product gives.
    void pack_heads(int64_t token, int64_t head, const float *queries, const AttentionPlan::Group &group, Pair *packed, Buffer &own) const {
        const int64_t dim = shape.head_dim, pairs = query_pairs(dim), last = std::min(shape.heads, head + columns_of_heads(shape) / dim);
        const Tiles tiles(group.tokens * shape.heads);
        float *room = own.get<float>(dim);
        for (packed += group.first * shape.heads * pairs; head < last; head++, queries += dim) {
            const Place to(packed, tiles, (token - group.first) * shape.heads + head, pairs);
            pack_query<true>(shape, batch, token, queries, room, to);
        }
    }

    // hidden += attention; out = norm(hidden), in bf16 for the FFN
    void end(int64_t token, const float *attended, float *out) const {
        const int64_t size = shape.hidden;
        float *row = batch.hidden + token * size;
        const float *more = attended + token * size;
        for (int64_t i = 0; i < size; i++) row[i] += more[i];
        const float scale = inverse_rms(row, size, shape.eps);
        for (int64_t i = 0; i < size; i++) out[i] = row[i] * scale * weights.ffn_norm[i];
        round_to_bf16(out, size, call.x + token * size);
    }

    // Logits of some tokens, whose normed hidden states are `rows`, for the experts begin..end.
    void score(const float *rows, int64_t count, int64_t begin, int64_t end, float *logits) const {
        const FloatFactors factors{rows, weights.router + begin * shape.hidden, shape.hidden};
        multiply_floats(factors, count, end - begin, logits + begin, shape.experts);
    }

    // The best of softmax(logits), best first and of equals the first. Overwrites the logits.
    void choose(int64_t token, float *logits) const {
        const int64_t experts = shape.experts;
        const float most = *std::max_element(logits, logits + experts);
        float total = 0, kept = 0;
        for (int64_t e = 0; e < experts; e++) logits[e] = fast_exp(logits[e] - most);
        for (int64_t e = 0; e < experts; e++) total += logits[e];
        int64_t *own_ids = call.ids + token * shape.top_k;
        float *own = call.chosen + token * shape.top_k;
        for (int64_t k = 0; k < shape.top_k; k++) {
            int64_t best = -1;
            for (int64_t e = 0; e < experts; e++)
                // -1 marks what was taken. A NaN is never better, so that ids are valid whatever comes.
                if (logits[e] != -1.f && (best < 0 || logits[e] > logits[best])) best = e;
            own_ids[k] = best;
            own[k] = logits[best] / total;
            kept += own[k];
            logits[best] = -1.f;
        }
        if (shape.renormalise)
            for (int64_t k = 0; k < shape.top_k; k++) own[k] /= kept;
    }
};
}  // namespace

LayerMemory::LayerMemory(Workspace &workspace, int64_t threads, const step3_shape &shape, const step3_attention &weights, int64_t tokens,
                         const AttentionPlan &plan)
    : parts(parts_to_prepare(shape, weights, Tiles(tokens), threads)), are_few(tokens < 4 * threads) {
    auto &buffers = workspace.buffers;
    const int64_t shared = parts ? 0 : tokens, heads = shape.heads, dim = shape.head_dim;
    normed = parts ? nullptr : buffers[0].get<Pair>(tokens * weights.qkv.pairs);
    packed_query = parts ? buffers[0].get<Pair>(tokens * heads * query_pairs(dim)) : nullptr;
    inter = buffers[1].get<Pair>(shared * weights.wq.pairs);
    mixed = buffers[2].get<Pair>(tokens * weights.o_proj.pairs);
    qkv = buffers[3].get<float>(shared * weights.qkv.rows);
    query = attended = buffers[4].get<float>(std::max(shared * heads * dim, tokens * shape.hidden));
    partials = buffers[5].get<float>(plan.partials * heads * (dim + 2));
    logits = are_few ? buffers[6].get<float>(tokens * (shape.hidden + shape.experts)) : nullptr;
}

void keep_keys(Worker &worker, const step3_shape &shape, const step3_batch &batch, const LayerCall &call) {
    const Layer layer{shape, call.weights, batch, call, Tiles(batch.tokens)};
    const int64_t parts = std::max<int64_t>(worker.size(), (batch.tokens + KEPT_AT_ONCE - 1) / KEPT_AT_ONCE);
    each_part(worker, layer.tiles, parts, [&](int64_t first, int64_t last) { layer.keep_keys(first, last, worker); });
}

void attend_layer(Worker &worker, const step3_shape &shape, const step3_batch &batch, const AttentionPlan &plan,
                  const LayerCall &call, const LayerMemory &memory) {
    const step3_attention &weights = call.weights;
    const int64_t tokens = batch.tokens, size = shape.hidden, heads = shape.heads, dim = shape.head_dim;
    const Layer layer{shape, weights, batch, call, Tiles(tokens)};
    const struct Mixed {
        const Layer &layer;
        Pair *tiles;
    } mixed{layer, memory.mixed};
    const AttentionInputs inputs{shape, batch, memory.query, memory.packed_query, call.keys, call.values, {memory.partials, heads, dim}};
    KeepMixed keep = [](void *given, int64_t token, int64_t head, const float *mixed) {
        const auto &[own, tiles] = *(const Mixed *)given;
        const int64_t pairs = own.weights.o_proj.pairs, width = own.shape.head_dim / 2;
        // o_proj's padding lies behind the last head.
        const int64_t until = head + 1 == own.shape.heads ? pairs : (head + 1) * width;
        const Place to(tiles, own.tiles, token, pairs);
        const bool is_large = own.batch.tokens * pairs * 4 > BEYOND_CACHES;
        is_large ? pack_floats<true>(mixed, own.shape.head_dim, head * width, until, to)
                 : pack_floats(mixed, own.shape.head_dim, head * width, until, to);
    };
    // A panel's results to a float matrix.
    auto copy_to = [tokens](float *out, int64_t columns) {
        const bool is_large = tokens * columns * 4 > BEYOND_CACHES;
        return [out, columns, is_large](const TileSums &sums, int r) {
            const int64_t column = sums.panel * PANEL;
            keep_columns(out + (sums.row + r) * columns + column, sums.of(r), columns_left(columns, column), is_large);
        };
    };
    if (memory.parts) {
        each_part(worker, layer.tiles, memory.parts, [&](int64_t first, int64_t last) {
            layer.prepare(first, last, plan, memory.packed_query, worker);
        });
    } else {
        expect(worker, weights.qkv);
        each_row(worker, layer.tiles, [&](int64_t token) {
            layer.begin(token, Place(memory.normed, layer.tiles, token, weights.qkv.pairs), worker.own());
        });
        multiply_all(worker, weights.qkv, memory.normed, tokens, copy_to(memory.qkv, weights.qkv.rows));
        expect(worker, weights.wq);
        each_row(worker, layer.tiles, [&](int64_t token) {
            layer.split(token, memory.qkv + token * weights.qkv.rows, Place(memory.inter, layer.tiles, token, weights.wq.pairs), worker.own());
        });
        multiply_all(worker, weights.wq, memory.inter, tokens, copy_to(memory.query, heads * dim));
    }
    expect(worker, weights.o_proj);
    worker.each((int64_t)plan.tasks.size(), [&](int64_t i) {
        attend(inputs, plan.tasks[(size_t)i], worker.own(), keep, (void *)&mixed);
    });
    if (!plan.merges.empty())
        worker.each((int64_t)plan.merges.size(), [&](int64_t i) {
            merge(inputs, plan.merges[(size_t)i], worker.own(), keep, (void *)&mixed);
        });
    multiply_all(worker, weights.o_proj, memory.mixed, tokens, copy_to(memory.attended, size));
    const int64_t experts = shape.experts, at_once = memory.are_few ? 1 : FLOAT_ROWS;
    float *const normed = memory.logits + (memory.are_few ? tokens * experts : 0);
    worker.each((tokens + at_once - 1) / at_once, [&](int64_t group) {
        const int64_t first = group * at_once, count = std::min(at_once, tokens - first);
        float *rows = memory.are_few ? normed + first * size : worker.own().get<float>(at_once * (size + experts));
        for (int64_t t = 0; t < count; t++) layer.end(first + t, memory.attended, rows + t * size);
        if (memory.are_few || !weights.router) return;
        float *own = rows + at_once * size;
        layer.score(rows, count, 0, experts, own);
        for (int64_t t = 0; t < count; t++) layer.choose(first + t, own + t * experts);
    });
    if (!memory.are_few || !weights.router) return;
    worker.each(worker.size(), [&](int64_t part) {
        layer.score(normed, tokens, experts * part / worker.size(), experts * (part + 1) / worker.size(), memory.logits);
    });
    if (worker.id() == 0)
        for (int64_t t = 0; t < tokens; t++) layer.choose(t, memory.logits + t * experts);
}
}  // namespace step3

using namespace step3;

extern "C" void step3_attend_layer(Workspace *workspace, int64_t threads, const step3_shape *shape,
                                   const step3_attention *weights, const step3_batch *batch, char *keys,
                                   char *values, const uint16_t *answer, uint16_t *x, int64_t *ids, float *chosen) {
    const AttentionPlan plan(*shape, *batch);
    const LayerCall call{*weights, keys, values, answer, x, ids, chosen};
    const LayerMemory memory(*workspace, threads, *shape, *weights, batch->tokens, plan);
    run(*workspace, threads, [&](Worker &worker) { attend_layer(worker, *shape, *batch, plan, call, memory); });
}
