// The FFN of a layer: the experts that each token chose, and what every token uses (the dense FFN, or the
// shared expert, which is treated as one expert more).
//
// SwiGLU is computed where the product ends: gate and up are packed strip by strip beside each other, so that
// a panel's result holds 16 gates and their 16 ups, and 16 inner activations go straight into the tiles of
// the next product.
#include <algorithm>
#include <utility>
#include <vector>
#include "jobs.h"

using namespace step3;

namespace {

// The first product ends in SwiGLU: a row's 16 inner activations of a panel, into its tile of the next product.
void keep_inner(const TileSums &sums, int r, uint32_t *tile) {
    const float *gate = sums.of(r), *up = gate + STRIP;
    // Two loops: with numbers of 16 bits in it the compiler takes vectors of half the width.
    alignas(64) float wide[STRIP];
    alignas(64) uint16_t mixed[STRIP];
    for (int i = 0; i < STRIP; i++) wide[i] = silu(gate[i]) * up[i];
    round_to_bf16(wide, STRIP, mixed);
    const Place to(tile, r, sums.rows);
    constexpr int run = RUN == 1 ? 1 : STRIP / 2;
    for (int i = 0; i < STRIP / 2; i += run) memcpy(to.pair(sums.panel * (STRIP / 2) + i), mixed + 2 * i, run * 4);
}

// out[begin..end] = the rows of a token's choices, weighted, and what every token uses. All rows are read at
// once: each by itself would wait for memory.
void sum_choices(const uint16_t *rows, const int64_t *place, const float *weights, int64_t choices, const uint16_t *always,
                 int64_t hidden, int64_t begin, int64_t end, uint16_t *out) {
    for (int64_t at = begin; at < end; at += PANEL) {
        const int64_t count = std::min<int64_t>(PANEL, end - at);
        float sum[PANEL] = {};
        for (int64_t k = 0; k < choices; k++) {
            if (place[k] < 0) continue;
            const uint16_t *from = rows + place[k] * hidden + at;
            const float weight = weights[k];
            for (int64_t i = 0; i < count; i++) sum[i] += weight * float_of_bf16(from[i]);
        }
        if (always)
            for (int64_t i = 0; i < count; i++) sum[i] += float_of_bf16(always[at + i]);
        round_to_bf16(sum, count, out + at);
    }
}

// The rows of the jobs and what is computed of them.
struct Rows {
    const uint16_t *x;        // [tokens, hidden]
    const int64_t *token_of;  // [rows]
    int64_t hidden;
    uint16_t *outer;  // [rows, hidden]
    bool is_large;

    // A tile of a job, as its first product reads it.
    void pack(const Job &job, int64_t tile, uint32_t *to, Buffer &own) const {
        const int count = job.tiles.size(tile);
        const int64_t row = job.first + job.tiles.start(tile);
        const Factor &factor = job.gate_up.factor;
        const uint16_t *rows[TILE];
        for (int r = 0; r < count; r++) rows[r] = x + token_of[row + r] * hidden;
        pack_tile(rows, count, hidden, factor.pairs, to);
        if (factor.narrow) narrow_tile(to, count, factor.pairs, own);
    }

    // What no panel of the first product writes of the second one's tile.
    void pad(const Job &job, int64_t tile, uint32_t *to) const {
        pad_tile(to, job.tiles.size(tile), job.gate_up.panels * (STRIP / 2), job.down.factor.pairs);
    }

    void narrow(const Job &job, int64_t tile, uint32_t *to, Buffer &own) const {
        const Factor &factor = job.down.factor;
        if (factor.narrow) narrow_tile(to, job.tiles.size(tile), factor.pairs, own);
    }

    void keep_outer(const Job &job, const TileSums &sums, int r) const {
        const int64_t column = sums.panel * PANEL;
        keep_rounded(outer + (job.first + sums.row + r) * hidden + column, sums.of(r), columns_left(hidden, column), is_large);
    }

    // A job by one thread: what lies between the products stays in its second-level cache.
    void compute(const Job &job, Worker &worker) const {
        const Factor &first = job.gate_up.factor, &second = job.down.factor;
        const int64_t count = job.tiles.count;
        uint32_t *packed = worker.rows().get<uint32_t>(job.tiles.rows * (first.pairs + second.pairs));
        uint32_t *inner = packed + job.tiles.rows * first.pairs;
        auto inner_tile = [&](int64_t row) { return inner + row * second.pairs; };
        for (int64_t tile = 0; tile < count; tile++) {
            const int64_t row = job.tiles.start(tile);
            pack(job, tile, packed + row * first.pairs, worker.own());
            pad(job, tile, inner_tile(row));
        }
        multiply(first, packed, job.tiles, 0, count, 0, job.gate_up.panels, worker.own(),
                 [&](const TileSums &sums, int r) { keep_inner(sums, r, inner_tile(sums.row)); },
                 second.upcoming(0, job.down.panels));
        for (int64_t tile = 0; tile < count; tile++) narrow(job, tile, inner_tile(job.tiles.start(tile)), worker.own());
        multiply(second, inner, job.tiles, 0, count, 0, job.down.panels, worker.own(),
                 [&](const TileSums &sums, int r) { keep_outer(job, sums, r); });
    }
};
}  // namespace

extern "C" void step3_ffn_forward(Workspace *workspace, int64_t threads, const step3_ffn *ffn, const uint16_t *x,
                                  int64_t tokens, const int64_t *ids, const float *weights, int64_t top_k,
                                  uint16_t *out) {
    const int64_t hidden = ffn->hidden, experts = ids && ffn->gate_up.panels ? ffn->experts : 0;
    const bool always = ffn->always_gate_up.panels != nullptr;
    const step3_matrix &gate_up = always ? ffn->always_gate_up : ffn->gate_up;
    const int64_t pairs = gate_up.pairs;
    // Each (token, choice) gets a row; rows lie expert by expert, those of `always` last.
    std::vector<int64_t> starts((size_t)experts + 1, 0);
    int64_t *place = workspace->buffers[0].get<int64_t>(tokens * top_k);
    for (int64_t i = 0; experts && i < tokens * top_k; i++) {
        int64_t expert = ids[i] - ffn->first;
        if (expert >= 0 && expert < experts) starts[(size_t)expert + 1]++;
    }
    for (int64_t e = 0; e < experts; e++) starts[(size_t)e + 1] += starts[(size_t)e];
    const int64_t chosen = experts ? starts[(size_t)experts] : 0, rows = chosen + (always ? tokens : 0);
    int64_t *token_of = workspace->buffers[1].get<int64_t>(rows);
    Jobs jobs;
    for (int64_t e = 0; e < experts; e++)
        jobs.add(ffn->gate_up, ffn->down, e, starts[(size_t)e], starts[(size_t)e + 1] - starts[(size_t)e]);
    for (int64_t i = 0; experts && i < tokens * top_k; i++) {
        int64_t expert = ids[i] - ffn->first;
        place[i] = expert >= 0 && expert < experts ? starts[(size_t)expert]++ : -1;
        if (place[i] >= 0) token_of[place[i]] = i / top_k;
    }
    if (always) {
        for (int64_t t = 0; t < tokens; t++) token_of[chosen + t] = t;
        jobs.add(ffn->always_gate_up, ffn->always_down, 0, chosen, tokens);
    }
    jobs.share(threads);
    int64_t inner_pairs = 0;
    bool narrows = false;
    std::vector<std::pair<const Job *, int64_t>> tiles;
    for (const Job &job : jobs.shared) {
        inner_pairs = std::max(inner_pairs, job.down.factor.pairs);
        narrows = narrows || job.down.factor.narrow;
        for (int64_t tile = 0; tile < job.tiles.count; tile++) tiles.emplace_back(&job, tile);
    }
    uint32_t *packed = workspace->buffers[2].get<uint32_t>(rows * pairs);
    uint32_t *inner = workspace->buffers[3].get<uint32_t>(rows * inner_pairs);
    uint16_t *outer = workspace->buffers[4].get<uint16_t>(rows * hidden);
    const Rows all{x, token_of, hidden, outer, rows * hidden * 2 > BEYOND_CACHES};
    auto inner_tile = [&](const Job &job, int64_t row) { return inner + job.first * inner_pairs + row * job.down.factor.pairs; };

    const bool spreads = always && jobs.whole.empty();
    const Panels inner_product(jobs.shared, spreads, &Job::gate_up);
    const Panels outer_product(jobs.shared, spreads, &Job::down);

    run(*workspace, threads, [&](Worker &worker) {
        inner_product.expect(worker);
        worker.each((int64_t)tiles.size(), [&](int64_t i) {
            const auto &[job, tile] = tiles[(size_t)i];
            const int64_t row = job->tiles.start(tile);
            all.pack(*job, tile, packed + (job->first + row) * pairs, worker.own());
            all.pad(*job, tile, inner_tile(*job, row));
        });
        worker.take((int64_t)jobs.whole.size(), [&](int64_t i) { all.compute(jobs.whole[(size_t)i], worker); });
        outer_product.expect(worker);
        inner_product.run(worker, packed, pairs, [&](const Job &job, const TileSums &sums, int r) {
            keep_inner(sums, r, inner_tile(job, sums.row));
        });
        if (narrows)
            worker.each((int64_t)tiles.size(), [&](int64_t i) {
                const auto &[job, tile] = tiles[(size_t)i];
                all.narrow(*job, tile, inner_tile(*job, job->tiles.start(tile)), worker.own());
            });
        outer_product.run(worker, inner, inner_pairs,
                          [&](const Job &job, const TileSums &sums, int r) { all.keep_outer(job, sums, r); });
        // Summed by token in the order of its choices: independent of the batch around it. A few tokens are
        // cut into columns, so that all threads have some.
        const int64_t parts = tokens >= 4 * worker.size() ? 1 : worker.size(), width = (hidden + parts - 1) / parts;
        worker.each(tokens * parts, [&](int64_t task) {
            const int64_t token = task / parts, begin = task % parts * width, end = std::min(hidden, begin + width);
            if (begin >= end) return;
            sum_choices(outer, place + token * top_k, weights + token * top_k, experts ? top_k : 0,
                        always ? outer + (chosen + token) * hidden : nullptr, hidden, begin, end, out + token * hidden);
        });
    });
}
