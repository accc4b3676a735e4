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
        const int64_t at_most = JOB_BYTES / (4 * (gate_up.pairs + down.pairs));
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
        bool is_first = true;
        cover(begin, begin + share, [&](const Job &job, int64_t, int64_t panel, int64_t last, Range) {
            const Factor &own = (job.*side_).factor;
            if (is_first) worker.expect(own.begin(panel), (last - panel) * own.panel_bytes());
            is_first = false;
        });
    }

    // keep(job, sums, r) gets each row's result, see `multiply`.
    template <class Keep>
    void run(Worker &worker, const uint32_t *a, int64_t pairs, Keep keep) const {
        worker.runs(units(), [&](int64_t begin, int64_t end) {
            cover(begin, end, [&](const Job &job, int64_t chunk, int64_t panel, int64_t last, Range upcoming) {
                const Side &side = job.*side_;
                const int64_t tile = side.chunks.begin(chunk);
                multiply(side.factor, a + job.first * pairs + job.tiles.start(tile) * side.factor.pairs, job.tiles, tile,
                         side.chunks.begin(chunk + 1), panel, last, worker.own(),
                         [&](const TileSums &sums, int r) { keep(job, sums, r); }, upcoming);
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
}  // namespace step3
