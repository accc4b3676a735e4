// The FFN of a layer: the experts that each token chose, and what every token uses (the dense FFN, or the
// shared expert, which is treated as one expert more).
//
// SwiGLU is computed where the product ends: gate and up are packed strip by strip beside each other, so that
// a panel's result holds 16 gates and their 16 ups, and 16 inner activations go straight into the tiles of
// the next product.
#include "experts.h"
#include <algorithm>
#include "silu.h"

namespace step3 {
namespace {

// The first product ends in SwiGLU: a row's 16 inner activations of a panel go into its tile of the next product.
struct KeepInner {
    Pair *rows;  // the tiles
    int64_t pairs;
    __attribute__((always_inline)) void operator()(const TileSums &sums, int r) const {
        const float *gate = sums.of(r), *up = gate + STRIP;
        Floats mixed[STRIP / LANES];
        for (int i = 0; i < STRIP; i += LANES) mixed[i / LANES] = silu(load(gate + i)) * load(up + i);
        const Place to(rows + sums.row * pairs, r, sums.rows);
        const int64_t pair = sums.panel * (STRIP / 2);
        if constexpr (RUN > 1) return round_to_bf16(mixed, (uint16_t *)to.pair(pair));
        alignas(64) uint16_t rounded[STRIP];
        round_to_bf16(mixed, rounded);
        for (int i = 0; i < STRIP / 2; i++) put_values(to.pair(pair + i), rounded + 2 * i, 2);
    }
};

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
}  // namespace

// The second product gives rows of bf16.
struct KeepOuter {
    uint16_t *rows;
    int64_t hidden;
    bool is_large;
    __attribute__((always_inline)) void operator()(const TileSums &sums, int r) const {
        const int64_t column = sums.panel * PANEL;
        keep_rounded(rows + (sums.row + r) * hidden + column, sums.of(r), columns_left(hidden, column), is_large);
    }
};

// A tile of a job, as its first product reads it.
void Rows::pack(const Job &job, int64_t tile, Pair *to, Buffer &own) const {
    const int count = job.tiles.size(tile);
    const int64_t row = job.first + job.tiles.start(tile);
    const Factor &factor = job.gate_up.factor;
    const uint16_t *rows[TILE];
    for (int r = 0; r < count; r++) rows[r] = x + token_of[row + r] * hidden;
    pack_tile(rows, count, hidden, factor.pairs, to);
    if (factor.narrow) narrow_tile(to, count, factor.pairs, own);
}

// What no panel of the first product writes of the second one's tile.
void Rows::pad(const Job &job, int64_t tile, Pair *to) const {
    pad_tile(to, job.tiles.size(tile), job.gate_up.panels * (STRIP / 2), job.down.factor.pairs);
}

void Rows::narrow(const Job &job, int64_t tile, Pair *to, Buffer &own) const {
    const Factor &factor = job.down.factor;
    if (factor.narrow) narrow_tile(to, job.tiles.size(tile), factor.pairs, own);
}

KeepOuter Rows::keep_outer(const Job &job) const { return {outer + job.first * hidden, hidden, is_large}; }

// A job by one thread: what lies between the products stays in its second-level cache.
void Rows::compute(const Job &job, Worker &worker) const {
    const Factor &first = job.gate_up.factor, &second = job.down.factor;
    const int64_t count = job.tiles.count;
    Pair *packed = worker.rows().get<Pair>(job.tiles.rows * (first.pairs + second.pairs));
    Pair *inner = packed + job.tiles.rows * first.pairs;
    auto inner_tile = [&](int64_t row) { return inner + row * second.pairs; };
    for (int64_t tile = 0; tile < count; tile++) {
        const int64_t row = job.tiles.start(tile);
        pack(job, tile, packed + row * first.pairs, worker.own());
        pad(job, tile, inner_tile(row));
    }
    multiply(first, packed, job.tiles, 0, count, 0, job.gate_up.panels, worker.own(), KeepInner{inner, second.pairs},
             second.upcoming(0, job.down.panels));
    for (int64_t tile = 0; tile < count; tile++) narrow(job, tile, inner_tile(job.tiles.start(tile)), worker.own());
    multiply(second, inner, job.tiles, 0, count, 0, job.down.panels, worker.own(), keep_outer(job));
}

ChosenRows::ChosenRows(Workspace &workspace, const step3_ffn &ffn, const Choices &choices) {
    const int64_t experts = choices.ids && ffn.gate_up.panels ? ffn.experts : 0, count_of_choices = choices.tokens * choices.top_k;
    starts.assign((size_t)experts + 1, 0);
    // The number of a choice's expert among those that are here, or -1.
    auto expert_of = [&](int64_t choice) {
        const int64_t expert = choices.ids[choice] - ffn.first;
        return expert >= 0 && expert < experts ? expert : -1;
    };
    for (int64_t i = 0; experts && i < count_of_choices; i++)
        if (expert_of(i) >= 0) starts[(size_t)expert_of(i) + 1]++;
    for (int64_t e = 0; e < experts; e++) starts[(size_t)e + 1] += starts[(size_t)e];
    count = chosen() + (ffn.always_gate_up.panels ? choices.tokens : 0);
    place = workspace.buffers[0].get<int64_t>(count_of_choices);
    token_of = workspace.buffers[1].get<int64_t>(count);
    std::vector<int64_t> next = starts;
    for (int64_t i = 0; experts && i < count_of_choices; i++) {
        place[i] = expert_of(i) >= 0 ? next[(size_t)expert_of(i)]++ : -1;
        if (place[i] >= 0) token_of[place[i]] = i / choices.top_k;
    }
    for (int64_t row = chosen(); row < count; row++) token_of[row] = row - chosen();
}

static Jobs jobs_of(const step3_ffn &ffn, const ChosenRows &rows, int64_t threads) {
    Jobs jobs;
    for (size_t e = 0; e + 1 < rows.starts.size(); e++)
        jobs.add(ffn.gate_up, ffn.down, (int64_t)e, rows.starts[e], rows.starts[e + 1] - rows.starts[e]);
    if (ffn.always_gate_up.panels) jobs.add(ffn.always_gate_up, ffn.always_down, 0, rows.chosen(), rows.count - rows.chosen());
    jobs.share(threads);
    return jobs;
}

FFNCall::FFNCall(Workspace &workspace, int64_t threads, const step3_ffn &ffn, const uint16_t *x, const Choices &choices, uint16_t *out)
    : always_(ffn.always_gate_up.panels != nullptr),
      pairs_((always_ ? ffn.always_gate_up : ffn.gate_up).pairs),
      choices_(choices),
      out_(out),
      chosen_(workspace, ffn, choices),
      jobs_(jobs_of(ffn, chosen_, threads)),
      inner_product_(jobs_.shared, always_ && jobs_.whole.empty(), &Job::gate_up),
      outer_product_(jobs_.shared, always_ && jobs_.whole.empty(), &Job::down) {
    for (const Job &job : jobs_.shared) {
        inner_pairs_ = std::max(inner_pairs_, job.down.factor.pairs);
        narrows_ = narrows_ || job.down.factor.narrow;
        for (int64_t tile = 0; tile < job.tiles.count; tile++) tiles_.emplace_back(&job, tile);
    }
    const int64_t rows = chosen_.count;
    packed_ = workspace.buffers[2].get<Pair>(rows * pairs_);
    inner_ = workspace.buffers[3].get<Pair>(rows * inner_pairs_);
    rows_ = {x, chosen_.token_of, ffn.hidden, workspace.buffers[4].get<uint16_t>(rows * ffn.hidden), rows * ffn.hidden * 2 > BEYOND_CACHES};
}

void FFNCall::compute(Worker &worker, const step3_matrix *next) const {
    inner_product_.expect(worker);
    worker.each((int64_t)tiles_.size(), [&](int64_t i) {
        const auto &[job, tile] = tiles_[(size_t)i];
        const int64_t row = job->tiles.start(tile);
        rows_.pack(*job, tile, packed_ + (job->first + row) * pairs_, worker.own());
        rows_.pad(*job, tile, inner_tile(*job, row));
    });
    worker.take((int64_t)jobs_.whole.size(), [&](int64_t i) { rows_.compute(jobs_.whole[(size_t)i], worker); });
    outer_product_.expect(worker);
    inner_product_.run(worker, packed_, pairs_, [&](const Job &job) { return KeepInner{inner_tile(job, 0), job.down.factor.pairs}; });
    if (narrows_)
        worker.each((int64_t)tiles_.size(), [&](int64_t i) {
            const auto &[job, tile] = tiles_[(size_t)i];
            rows_.narrow(*job, tile, inner_tile(*job, job->tiles.start(tile)), worker.own());
        });
    if (next) expect(worker, *next);
    outer_product_.run(worker, inner_, inner_pairs_, [&](const Job &job) { return rows_.keep_outer(job); });
    // Once more: a barrier forgets what was expected in front of it.
    if (next) expect(worker, *next);
    // Summed by token in the order of its choices: independent of the batch around it. A few tokens are
    // cut into columns, so that all threads have some.
    const int64_t tokens = choices_.tokens, top_k = choices_.top_k, hidden = rows_.hidden, chosen = chosen_.chosen();
    const int64_t parts = tokens >= 4 * worker.size() ? 1 : worker.size(), width = (hidden + parts - 1) / parts;
    worker.each(tokens * parts, [&](int64_t task) {
        const int64_t token = task / parts, begin = task % parts * width, end = std::min(hidden, begin + width);
        if (begin >= end) return;
        sum_choices(rows_.outer, chosen_.place + token * top_k, choices_.weights + token * top_k, chosen_.starts.size() > 1 ? top_k : 0,
                    always_ ? rows_.outer + (chosen + token) * hidden : nullptr, hidden, begin, end, out_ + token * hidden);
    });
}
}  // namespace step3

using namespace step3;

extern "C" void step3_ffn_forward(Workspace *workspace, int64_t threads, const step3_ffn *ffn, const uint16_t *x,
                                  int64_t tokens, const int64_t *ids, const float *weights, int64_t top_k,
                                  uint16_t *out) {
    const FFNCall call(*workspace, threads, *ffn, x, {ids, weights, tokens, top_k}, out);
    run(*workspace, threads, [&](Worker &worker) { call.compute(worker, nullptr); });
}
