// The FFN of a layer: the experts that each token chose, and what every token uses (the dense FFN, or the
// shared expert, which is treated as one expert more).
//
// SwiGLU is computed where the product ends: gate and up are packed strip by strip beside each other, so that
// a panel's result holds 16 gates and their 16 ups, and 16 inner activations go straight into the tiles of
// the next product.
#include <algorithm>
#include <vector>
#include "rows.h"

using namespace step3;

namespace {

// One expert and the rows that it computes.
struct Job {
    Factor gate_up, down;
    int64_t inner_panels, outer_panels;
    int64_t first;  // its first row among those of all jobs
    Tiles tiles;
    Chunks chunks;
    Job(const step3_matrix &gate_up, const step3_matrix &down, int64_t expert, int64_t first, int64_t rows)
        : gate_up(gate_up, expert), down(down, expert), inner_panels(gate_up.num_panels),
          outer_panels(down.num_panels), first(first), tiles(rows), chunks(tiles) {}
};

using Jobs = std::vector<Job>;

// The panels of one of the two products, of all jobs after each other.
struct Panels {
    const Jobs &jobs;
    Factor Job::*factor;
    int64_t Job::*panels;

    int64_t units() const {
        int64_t total = 0;
        for (const Job &job : jobs) total += job.chunks.count * (job.*panels);
        return total;
    }

    // Runs work(job, chunk, first panel, last panel) for the units begin..end.
    template <class Work>
    void cover(int64_t begin, int64_t end, Work work) const {
        int64_t before = 0;
        for (const Job &job : jobs) {
            const int64_t own = job.*panels, units = job.chunks.count * own;
            while (begin < end && begin < before + units) {
                const int64_t chunk = (begin - before) / own, panel = (begin - before) % own;
                const int64_t last = std::min(own, panel + (end - begin));
                work(job, chunk, panel, last);
                begin += last - panel;
            }
            before += units;
        }
    }

    void expect(Worker &worker) const {
        const int64_t share = worker.first_run(units()), begin = worker.id() * share;
        bool is_first = true;
        cover(begin, begin + share, [&](const Job &job, int64_t, int64_t panel, int64_t last) {
            const Factor &own = job.*factor;
            if (is_first) worker.expect(own.begin(panel), (last - panel) * own.panel_bytes());
            is_first = false;
        });
    }

    // keep(job, row, rows, panel, sums) gets the results.
    template <class Keep>
    void run(Worker &worker, const uint32_t *a, int64_t pairs, Keep keep) const {
        worker.runs(units(), [&](int64_t begin, int64_t end) {
            cover(begin, end, [&](const Job &job, int64_t chunk, int64_t panel, int64_t last) {
                multiply(job.*factor, a + job.first * pairs, job.tiles, job.chunks.begin(chunk),
                         job.chunks.begin(chunk + 1), panel, last, worker.own(),
                         [&](int64_t row, int count, int64_t at, const float *sums) { keep(job, row, count, at, sums); });
            });
        });
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
    std::vector<Job> jobs;
    for (int64_t e = 0; e < experts; e++) {
        int64_t count = starts[(size_t)e + 1] - starts[(size_t)e];
        if (count) jobs.emplace_back(ffn->gate_up, ffn->down, e, starts[(size_t)e], count);
    }
    for (int64_t i = 0; experts && i < tokens * top_k; i++) {
        int64_t expert = ids[i] - ffn->first;
        place[i] = expert >= 0 && expert < experts ? starts[(size_t)expert]++ : -1;
        if (place[i] >= 0) token_of[place[i]] = i / top_k;
    }
    if (always) {
        for (int64_t t = 0; t < tokens; t++) token_of[chosen + t] = t;
        jobs.emplace_back(ffn->always_gate_up, ffn->always_down, 0, chosen, tokens);
    }
    int64_t inner_pairs = 0;
    for (const Job &job : jobs) inner_pairs = std::max(inner_pairs, job.down.pairs);
    uint32_t *packed = workspace->buffers[2].get<uint32_t>(rows * pairs);
    uint32_t *inner = workspace->buffers[3].get<uint32_t>(rows * inner_pairs);
    float *outer = workspace->buffers[4].get<float>(rows * hidden);

    const Panels inner_product{jobs, &Job::gate_up, &Job::inner_panels};
    const Panels outer_product{jobs, &Job::down, &Job::outer_panels};

    run(*workspace, threads, [&](Worker &worker) {
        inner_product.expect(worker);
        worker.each((rows + 15) / 16, [&](int64_t group) {
            const Job *job = jobs.data();
            for (int64_t row = group * 16; row < std::min(rows, group * 16 + 16); row++) {
                while (row >= job->first + job->tiles.rows) job++;
                Place to(packed + job->first * pairs, job->tiles, row - job->first, pairs);
                pack_bf16(x + token_of[row] * hidden, hidden, pairs, to);
            }
        });
        outer_product.expect(worker);
        inner_product.run(worker, packed, pairs, [&](const Job &job, int64_t row, int count, int64_t panel, const float *sums) {
            uint32_t *at = inner + job.first * inner_pairs + row * job.down.pairs + panel * (STRIP / 2) * count;
            for (int r = 0; r < count; r++) {
                const float *gate = sums + r * PANEL, *up = gate + STRIP;
                float mixed[STRIP];
                for (int i = 0; i < STRIP; i++) mixed[i] = silu(gate[i]) * up[i];
                for (int i = 0; i < STRIP / 2; i++) at[i * count + r] = pair_of(mixed[2 * i], mixed[2 * i + 1]);
            }
        });
        outer_product.run(worker, inner, inner_pairs, [&](const Job &job, int64_t row, int count, int64_t panel, const float *sums) {
            const int64_t column = panel * PANEL;
            const size_t size = (size_t)columns_left(hidden, column) * 4;
            for (int r = 0; r < count; r++) memcpy(outer + (job.first + row + r) * hidden + column, sums + r * PANEL, size);
        });
        // Summed by token in the order of its choices: independent of the batch around it. A few tokens are
        // cut into columns, so that all threads have some.
        const int64_t parts = tokens >= 4 * worker.size() ? 1 : worker.size(), width = (hidden + parts - 1) / parts;
        worker.each(tokens * parts, [&](int64_t task) {
            const int64_t token = task / parts, begin = task % parts * width, end = std::min(hidden, begin + width);
            if (begin >= end) return;
            float *sum = worker.own().get<float>(end - begin);
            const float *first = outer + (chosen + token) * hidden + begin;
            for (int64_t i = 0; i < end - begin; i++) sum[i] = 0.f;
            for (int64_t k = 0; experts && k < top_k; k++) {
                const int64_t row = place[token * top_k + k];
                if (row < 0) continue;
                const float *from = outer + row * hidden + begin, weight = weights[token * top_k + k];
                for (int64_t i = 0; i < end - begin; i++) sum[i] += weight * from[i];
            }
            if (always)
                for (int64_t i = 0; i < end - begin; i++) sum[i] += first[i];
            for (int64_t i = 0; i < end - begin; i++) out[token * hidden + begin + i] = (uint16_t)bf16_bits(sum[i]);
        });
    });
}
