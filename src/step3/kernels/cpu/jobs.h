// What an FFN has to compute: experts, each with the rows that chose it, and who computes which part.
#pragma once
#include <algorithm>
#include <vector>
#include "rows.h"

namespace step3 {

// One of an expert's two products.
struct Side {
    Factor factor;
    int64_t panels;
    Chunks chunks;
    Side(const step3_matrix &m, int64_t expert, const Tiles &tiles)
        : factor(m, tiles.rows, expert), panels(m.num_panels), chunks(tiles, m) {}
    int64_t units() const { return chunks.count * panels; }
};

// An expert and rows that it computes.
struct Job {
    int64_t first;  // its first row among those of all jobs
    Tiles tiles;
    Side gate_up, down;
    Job(const step3_matrix &gate_up, const step3_matrix &down, int64_t expert, int64_t first, int64_t rows)
        : first(first), tiles(rows), gate_up(gate_up, expert, tiles), down(down, expert, tiles) {}
};

// The jobs of an FFN. A thread does some of them whole, so that what lies between the two products stays in its
// caches; of the others all threads share the panels, product by product.
struct Jobs {
    std::vector<Job> whole, shared;

    // The rows first..first + rows of an expert.
    void add(const step3_matrix &gate_up, const step3_matrix &down, int64_t expert, int64_t first, int64_t rows) {
        if (!rows) return;
        const int64_t at_most = JOB_BYTES / ((int64_t)sizeof(Pair) * (gate_up.pairs + down.pairs));
        const bool is_one = rows <= TILE || (rows > at_most && at_most < MIN_JOB_ROWS);
        const int64_t tiles = (rows + TILE - 1) / TILE, parts = is_one ? 1 : (rows + at_most - 1) / at_most;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t begin = tiles * part / parts * TILE, end = std::min(rows, tiles * (part + 1) / parts * TILE);
            (is_one ? shared : whole).emplace_back(gate_up, down, expert, first + begin, end - begin);
        }
    }

    // The last of the whole jobs are shared, so that all threads finish together. Jobs stay in the order of their rows: what
    // every token uses comes last.
    void share(int64_t threads) {
        const auto first = whole.end() - std::min((ptrdiff_t)whole.size(), (ptrdiff_t)threads);
        shared.insert(shared.end(), first, whole.end());
        whole.erase(first, whole.end());
        std::sort(shared.begin(), shared.end(), [](const Job &a, const Job &b) { return a.first < b.first; });
    }
};

// The panels of one of the two products, of some jobs.
//
// Experts with few rows wait for memory, what every token uses waits for arithmetic: so its panels are spread
// among those of the experts, and whoever computes them fetches the expert that follows.
class Panels {
   public:
    // `always`: the last job is of what every token uses.
    Panels(const std::vector<Job> &jobs, bool always, Side Job::*side) : side_(side) {
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
        if (!share) return;
        const Part part = first_part(begin, begin + share);
        worker.expect(part.factor(side_).range(part.panel, part.last));
    }

    // keep_of(job) gets the results of a job's rows, see `multiply`.
    template <class KeepOf>
    void run(Worker &worker, const Pair *a, int64_t pairs, KeepOf keep_of) const {
        worker.runs(units(), [&](int64_t begin, int64_t end, int64_t next, int64_t next_end) {
            while (begin < end) {
                const Part part = first_part(begin, end);
                begin += part.last - part.panel;
                const Range upcoming = begin < end ? fetched(begin, end) : next < next_end ? fetched(next, next_end) : worker.expected();
                const Job &job = *part.job;
                const Side &side = job.*side_;
                const int64_t tile = side.chunks.begin(part.chunk);
                multiply(side.factor, a + job.first * pairs + job.tiles.start(tile) * side.factor.pairs, job.tiles, tile,
                         side.chunks.begin(part.chunk + 1), part.panel, part.last, worker.own(),
                         keep_of(job), upcoming);
            }
        });
    }

   private:
    // Some of a job's units, its panels chunk after chunk, of which `begin` is the number of the first among all.
    struct Piece {
        const Job *job;
        int64_t first, begin, end;
    };
    // Panels of a chunk of a job.
    struct Part {
        const Job *job;
        int64_t chunk, panel, last;
        const Factor &factor(Side Job::*side) const { return (job->*side).factor; }
    };
    std::vector<Piece> pieces_;
    Side Job::*side_;
    int64_t units_ = 0;

    // The job's units first..last.
    void add(const Job &job, int64_t first, int64_t last) {
        if (first == last) return;
        pieces_.push_back({&job, first, units_, units_ + last - first});
        units_ += last - first;
    }

    // What the units begin..end begin with.
    Part first_part(int64_t begin, int64_t end) const {
        const Piece &piece = *std::upper_bound(pieces_.begin(), pieces_.end(), begin, [](int64_t unit, const Piece &one) { return unit < one.end; });
        const int64_t panels = (piece.job->*side_).panels, unit = piece.first + begin - piece.begin, panel = unit % panels;
        return {piece.job, unit / panels, panel, std::min(panels, panel + std::min(end, piece.end) - begin)};
    }

    // What to fetch of the units begin..end: with more than a tile of rows they will have the time to do so themselves.
    Range fetched(int64_t begin, int64_t end) const {
        const Part part = first_part(begin, end);
        return part.job->tiles.count > 1 ? Range{} : part.factor(side_).upcoming(part.panel, part.last);
    }
};
}  // namespace step3
