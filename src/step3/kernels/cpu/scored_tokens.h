// The scored tokens of a step as a batch of their own, each a sequence: all that the last layer is computed for, as nobody
// looks at what it makes of the others.
#pragma once
#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>
#include "attention.h"

namespace step3 {

class ScoredTokens {
   public:
    // Whether the last layer takes less time so: it reads its projections for all tokens before, for their keys.
    static bool are_few(const step3_batch &step) { return 2 * step.num_scored <= step.tokens; }

    ScoredTokens(const step3_shape &shape, const step3_batch &step)
        : hidden_size_(shape.hidden), from_(step.hidden), scored_(step.scored), hidden_((size_t)(step.num_scored * shape.hidden)) {
        std::vector<int64_t> starts{0}, step_lengths;
        for (int64_t s = 0; s < step.sequences; s++) starts.push_back(starts.back() + step.lengths[s]);
        const int64_t half = shape.head_dim / 2;
        for (int64_t i = 0; i < step.num_scored; i++) {
            const int64_t row = step.scored[i];
            const int64_t s = std::upper_bound(starts.begin(), starts.end(), row) - starts.begin() - 1, end = starts[(size_t)s + 1];
            lengths_.push_back(1);
            step_lengths.push_back(step.lengths[s]);
            contexts_.push_back(step.contexts[s] - (end - 1 - row));
            table_rows_.push_back(step.table_rows[s]);
            slots_.push_back(step.slots[row]);
            cos_.insert(cos_.end(), step.cos + row * half, step.cos + (row + 1) * half);
            sin_.insert(sin_.end(), step.sin + row * half, step.sin + (row + 1) * half);
        }
        batch_ = {step.num_scored, step.num_scored, nullptr, lengths_.data(), contexts_.data(), step.tables, table_rows_.data(), step.table_stride,
                  nullptr, step.num_scored, nullptr, 0, slots_.data(), cos_.data(), sin_.data(), hidden_.data()};
        plan_.emplace(shape, batch_, step_lengths.data());
    }
    ScoredTokens(const ScoredTokens &) = delete;
    ScoredTokens &operator=(const ScoredTokens &) = delete;

    // Its tokens are scored in their order: there is no list of them.
    const step3_batch &batch() const { return batch_; }
    // Attention is cut as in the step, so that sums are the same.
    const AttentionPlan &plan() const { return *plan_; }
    // The nth token's hidden states, as the step has them now.
    void take_hidden(int64_t n) {
        memcpy(hidden_.data() + n * hidden_size_, from_ + scored_[n] * hidden_size_, (size_t)hidden_size_ * sizeof(float));
    }

   private:
    const int64_t hidden_size_;
    const float *const from_;
    const int64_t *const scored_;
    std::vector<int64_t> lengths_, contexts_, table_rows_, slots_;
    std::vector<float> cos_, sin_, hidden_;
    step3_batch batch_;
    std::optional<AttentionPlan> plan_;
};
}  // namespace step3
