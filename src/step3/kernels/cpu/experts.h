// The FFN of a layer, as the threads of a team compute it: experts.cpp.
#pragma once
#include <utility>
#include <vector>
#include "jobs.h"

namespace step3 {

// The experts that each token chose, [tokens, top_k]; ids null where there are none.
struct Choices {
    const int64_t *ids;
    const float *weights;
    int64_t tokens, top_k;
};

// A row for each token and choice: expert by expert, those of what every token uses last.
struct ChosenRows {
    std::vector<int64_t> starts;  // of each expert's rows, [experts + 1]
    int64_t count;
    int64_t *place;     // [tokens, top_k] rows, or -1 where the expert is elsewhere
    int64_t *token_of;  // [count]
    ChosenRows(Workspace &workspace, const step3_ffn &ffn, const Choices &choices);
    int64_t chosen() const { return starts.back(); }
};

struct KeepOuter;

// The rows of the jobs and what is computed of them.
struct Rows {
    const uint16_t *x;        // [tokens, hidden]
    const int64_t *token_of;  // [rows]
    int64_t hidden;
    uint16_t *outer;  // [rows, hidden]
    bool is_large;

    void pack(const Job &job, int64_t tile, Pair *to, Buffer &own) const;
    void pad(const Job &job, int64_t tile, Pair *to) const;
    void narrow(const Job &job, int64_t tile, Pair *to, Buffer &own) const;
    KeepOuter keep_outer(const Job &job) const;
    void compute(const Job &job, Worker &worker) const;
};

// One call: made by one thread, computed by all.
class FFNCall {
   public:
    // out [tokens, hidden] bf16 = the part of the FFN that the weights hold, of x bf16.
    FFNCall(Workspace &workspace, int64_t threads, const step3_ffn &ffn, const uint16_t *x, const Choices &choices, uint16_t *out);
    FFNCall(const FFNCall &) = delete;
    FFNCall &operator=(const FFNCall &) = delete;
    // `next` is what the threads read first behind it, or null.
    void compute(Worker &worker, const step3_matrix *next) const;

   private:
    const bool always_;
    const int64_t pairs_;
    const Choices choices_;
    uint16_t *const out_;
    const ChosenRows chosen_;
    const Jobs jobs_;
    const Panels inner_product_, outer_product_;
    std::vector<std::pair<const Job *, int64_t>> tiles_;  // of the jobs that threads share
    int64_t inner_pairs_ = 0;
    bool narrows_ = false;
    Pair *packed_, *inner_;
    Rows rows_;

    Pair *inner_tile(const Job &job, int64_t row) const {
        return inner_ + job.first * inner_pairs_ + row * job.down.factor.pairs;
    }
};
}  // namespace step3
