// The FFN of a layer: the experts that each token chose, and what every token uses (the dense FFN, or the
// shared expert, which is treated as one expert more).
//
// SwiGLU is computed where the product ends: gate and up are packed strip by strip beside each other, so that
// a panel's result holds 16 gates and their 16 ups, and 16 inner activations go straight into the tiles of
// the next product.
#include <algorithm>
#include <utility>
#include <vector>
#include "rows.h"

using namespace step3;

namespace {

// One of an expert's two products.
struct Side {
    Factor factor;
    int64_t panels;
    Chunks chunks;
    Side(const step3_matrix &m, int64_t expert, const Tiles &tiles)
        : factor(m, tiles.rows, expert), panels(m.num_panels), chunks(tiles, m) {}
    int64_t units() const { return chunks.count * panels; }
};

// One expert and the rows that it computes.
struct Job {
    int64_t first;  // its first row among those of all jobs
    Tiles tiles;
    Side gate_up, down;
    Job(const step3_matrix &gate_up, const step3_matrix &down, int64_t expert, int64_t first, int64_t rows)
        : first(first), tiles(rows), gate_up(gate_up, expert, tiles), down(down, expert, tiles) {}
};

using Jobs = std::vector<Job>;

// The panels of one of the two products, of all jobs.
//
// Experts with few rows wait for memory, what every token uses waits for arithmetic: so its panels are spread
// among those of the experts, and whoever computes them fetches the expert that follows.
class Panels {
   public:
    Panels(const Jobs &jobs, bool always, Side Job::*side) : side_(side) {
        const int64_t experts = (int64_t)jobs.size() - always;
        const Job *shared = always ? &jobs.back() : nullptr;
        const int64_t spread = shared ? (shared->*side).units() : 0;
        for (int64_t i = 0; i < experts; i++) {
            add(jobs[(size_t)i], 0, (jobs[(size_t)i].*side).units());
            if (shared && i + 1 < experts) add(*shared, spread * i / experts, spread * (i + 1) / experts);
        }
        if (shared) add(*shared, experts ? spread * (experts - 1) / experts : 0, spread);
    }

    int64_t units() const { return units_; }

    void expect(Worker &worker) const {
        const int64_t share = worker.first_run(units()), begin = worker.id() * share;
        bool is_first = true;
        cover(begin, begin + share, [&](const Job &job, int64_t, int64_t panel, int64_t last, Range) {
            const Factor &own = (job.*side_).factor;
            if (is_first) worker.expect(own.begin(panel), (last - panel) * own.panel_bytes());
            is_first = false;
        });
    }

    // keep(job, row, rows, panel, sums) gets the results.
    template <class Keep>
    void run(Worker &worker, const uint32_t *a, int64_t pairs, Keep keep) const {
        worker.runs(units(), [&](int64_t begin, int64_t end) {
            cover(begin, end, [&](const Job &job, int64_t chunk, int64_t panel, int64_t last, Range upcoming) {
                const Side &side = job.*side_;
                multiply(side.factor, a + job.first * pairs, job.tiles, side.chunks.begin(chunk),
                         side.chunks.begin(chunk + 1), panel, last, worker.own(),
                         [&](int64_t row, int count, int64_t at, const float *sums) { keep(job, row, count, at, sums); },
                         upcoming);
            });
        });
    }

   private:
    // Some of a job's units: its panels, chunk after chunk.
    struct Piece {
        const Job *job;
        int64_t begin, end;
    };
    std::vector<Piece> pieces_;
    Side Job::*side_;
    int64_t units_ = 0;

    void add(const Job &job, int64_t begin, int64_t end) {
        if (begin == end) return;
        pieces_.push_back({&job, begin, end});
        units_ += end - begin;
    }

    // Runs work(job, chunk, first panel, last panel, upcoming) for the units begin..end.
    template <class Work>
    void cover(int64_t begin, int64_t end, Work work) const {
        int64_t before = 0;
        for (size_t i = 0; i < pieces_.size() && begin < end; i++) {
            const Piece &piece = pieces_[i];
            const int64_t own = (piece.job->*side_).panels, behind = before + piece.end - piece.begin;
            while (begin < std::min(end, behind)) {
                const int64_t unit = piece.begin + begin - before, chunk = unit / own, panel = unit % own;
                const int64_t last = std::min(own, panel + std::min(end, behind) - begin);
                begin += last - panel;
                const bool continues = begin == behind && begin < end && i + 1 < pieces_.size();
                work(*piece.job, chunk, panel, last, continues ? fetched(pieces_[i + 1], end - begin) : Range{});
            }
            before = behind;
        }
    }

    // What to fetch of a piece: with more than a tile of rows it will have the time to do so itself.
    Range fetched(const Piece &piece, int64_t units) const {
        const Factor &factor = (piece.job->*side_).factor;
        // Weights that stay as they are stored do not lie side by side.
        if (piece.job->tiles.count > 1 || factor.stored) return {};
        const int64_t bytes = factor.panel_bytes(), until = std::min(piece.end, piece.begin + units);
        return {factor.panels + piece.begin * bytes, (until - piece.begin) * bytes};
    }
};

// out[begin..end] = the rows of a token's choices, weighted, and what every token uses. All rows are read at
// once: each by itself would wait for memory.
void sum_choices(const float *rows, const int64_t *place, const float *weights, int64_t choices, const float *always,
                 int64_t hidden, int64_t begin, int64_t end, uint16_t *out) {
    for (int64_t at = begin; at < end; at += PANEL) {
        const int64_t count = std::min<int64_t>(PANEL, end - at);
        float sum[PANEL] = {};
        for (int64_t k = 0; k < choices; k++) {
            if (place[k] < 0) continue;
            const float *from = rows + place[k] * hidden + at, weight = weights[k];
            for (int64_t i = 0; i < count; i++) sum[i] += weight * from[i];
        }
        if (always)
            for (int64_t i = 0; i < count; i++) sum[i] += always[at + i];
        round_to_bf16(sum, count, out + at);
    }
}
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
    bool narrows = false;
    std::vector<std::pair<const Job *, int64_t>> tiles;
    for (const Job &job : jobs) {
        inner_pairs = std::max(inner_pairs, job.down.factor.pairs);
        narrows = narrows || job.down.factor.narrow;
        for (int64_t tile = 0; tile < job.tiles.count; tile++) tiles.emplace_back(&job, tile);
    }
    uint32_t *packed = workspace->buffers[2].get<uint32_t>(rows * pairs);
    uint32_t *inner = workspace->buffers[3].get<uint32_t>(rows * inner_pairs);
    float *outer = workspace->buffers[4].get<float>(rows * hidden);
    const bool is_large = rows * hidden * 4 > BEYOND_CACHES;

    const Panels inner_product(jobs, always, &Job::gate_up);
    const Panels outer_product(jobs, always, &Job::down);

    run(*workspace, threads, [&](Worker &worker) {
        inner_product.expect(worker);
        worker.each((int64_t)tiles.size(), [&](int64_t i) {
            const auto &[job, tile] = tiles[(size_t)i];
            const int count = job->tiles.size(tile);
            const int64_t row = job->first + job->tiles.start(tile);
            const uint16_t *own[TILE];
            for (int r = 0; r < count; r++) own[r] = x + token_of[row + r] * hidden;
            pack_tile(own, count, hidden, pairs, packed + row * pairs);
            if (job->gate_up.factor.narrow) narrow_tile(packed + row * pairs, count, pairs, worker.own());
            pad_tile(inner + job->first * inner_pairs + job->tiles.start(tile) * job->down.factor.pairs, count,
                     job->gate_up.panels * (STRIP / 2), job->down.factor.pairs);
        });
        outer_product.expect(worker);
        inner_product.run(worker, packed, pairs, [&](const Job &job, int64_t row, int count, int64_t panel, const float *sums) {
            uint32_t *tile = inner + job.first * inner_pairs + row * job.down.factor.pairs;
            for (int r = 0; r < count; r++) {
                const float *gate = sums + r * PANEL, *up = gate + STRIP;
                // Two loops: with numbers of 16 bits in it the compiler takes vectors of half the width.
                alignas(64) float wide[STRIP];
                alignas(64) uint16_t mixed[STRIP];
                for (int i = 0; i < STRIP; i++) wide[i] = silu(gate[i]) * up[i];
                round_to_bf16(wide, STRIP, mixed);
                const Place to(tile, r, count);
                constexpr int run = RUN == 1 ? 1 : STRIP / 2;
                for (int i = 0; i < STRIP / 2; i += run) memcpy(to.pair(panel * (STRIP / 2) + i), mixed + 2 * i, run * 4);
            }
        });
        if (narrows)
            worker.each((int64_t)tiles.size(), [&](int64_t i) {
                const auto &[job, tile] = tiles[(size_t)i];
                uint32_t *at = inner + job->first * inner_pairs + job->tiles.start(tile) * job->down.factor.pairs;
                if (job->down.factor.narrow) narrow_tile(at, job->tiles.size(tile), job->down.factor.pairs, worker.own());
            });
        outer_product.run(worker, inner, inner_pairs, [&](const Job &job, int64_t row, int count, int64_t panel, const float *sums) {
            const int64_t column = panel * PANEL;
            const int size = columns_left(hidden, column);
            for (int r = 0; r < count; r++)
                keep_columns(outer + (job.first + row + r) * hidden + column, sums + r * PANEL, size, is_large);
        });
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
