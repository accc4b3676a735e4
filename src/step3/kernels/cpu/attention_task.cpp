// A task of attention: the rows of a few tokens' heads over their keys, of which some pages at a time are in the caches.
#include <type_traits>
#include "attention_product.h"
#include "softmax.h"

namespace step3 {
namespace {

// What was mixed before is scaled again only where scores have grown by more than this: whatever is e^16 times as probable as
// what was the most fits into bf16 as well.
constexpr float GROWTH = 16.f;
constexpr float NONE = -std::numeric_limits<float>::infinity();

class Attending {
   public:
    Attending(const AttentionInputs &inputs, const AttentionTask &task, Buffer &own)
        : inputs_(inputs), task_(task), kv_(inputs.shape), heads_(inputs.shape.heads), dim_(inputs.shape.head_dim),
          rows_(task.tokens * heads_), channels_((dim_ + PANEL - 1) / PANEL * PANEL), pairs_(query_pairs(dim_)),
          copies_keys_(kv_.fp8 || pairs_ > dim_ / 2), tiles_(rows_) {
        divide(own.get<char>(divide(nullptr)));
    }

    void run(KeepMixed keep, void *context) {
        fetch_first_keys();
        begin();
        for (int64_t key = task_.begin; key < task_.end; key += KEYS_AT_ONCE) {
            see(key);
            // Rows of earlier tokens may see none of these keys.
            int64_t tile = tiles_.of(std::max<int64_t>(0, (key - task_.position) * heads_));
            const SeenValues values{values_, num_pages_, dim_, laid_};
            lay_values(values);
            for (; tile < tiles_.count; tile++) {
                score_tile(tile);
                for (int r = 0; r < tiles_.size(tile); r++) soften_row(tile, r);
                mix_tile(tile, values);
            }
        }
        for (int64_t row = 0; row < rows_; row++) end(row, keep, context);
    }

   private:
    const AttentionInputs &inputs_;
    const AttentionTask &task_;
    const KV kv_;
    const int64_t heads_, dim_, rows_, channels_, pairs_;
    const bool copies_keys_;  // as they are not multiplied as they are stored
    const Tiles tiles_;

    // The keys that are seen now.
    int64_t begin_ = 0, end_ = 0, num_pages_ = 0;
    const char *keys_[KEYS_AT_ONCE / PAGE + 1], *values_[KEYS_AT_ONCE / PAGE];

    const Pair *query_;  // tiles, which may be its own
    Pair *own_query_;
    Pair *weights_;      // a tile of probabilities
    float *scores_;          // of a tile, [rows][KEYS_AT_ONCE]
    float *most_, *sum_;     // [rows]
    float *mixed_;           // [rows][channels]
    char *laid_;             // values as panels
    char *copies_, *wide_;   // pages of keys, of values, as bf16
    float *rotated_;         // a head

    // Divides a room from `base` on, if there is one; returns its size.
    int64_t divide(char *base) {
        int64_t size = 0;
        auto take = [&](auto *&part, int64_t bytes) {
            part = (std::remove_reference_t<decltype(part)>)(void *)(base ? base + size : nullptr);
            size += (bytes + 63) / 64 * 64;
        };
        take(own_query_, inputs_.packed ? 0 : rows_ * pairs_ * (int64_t)sizeof(Pair));
        take(weights_, TILE * KEYS_AT_ONCE / 2 * (int64_t)sizeof(Pair));
        take(scores_, TILE * KEYS_AT_ONCE * 4);
        take(most_, rows_ * 4);
        take(sum_, rows_ * 4);
        // A product gives the rows of a whole tile, be there fewer.
        take(mixed_, (rows_ + TILE) * channels_ * 4);
        take(laid_, bytes_of_laid(channels_));
        take(copies_, copies_keys_ ? KEYS_AT_ONCE * pairs_ * 4 : 0);
        take(wide_, kv_.fp8 ? KEYS_AT_ONCE * dim_ * 2 : 0);
        take(rotated_, dim_ * 4);
        return size;
    }

    // Where the cache holds a page of the sequence.
    int64_t place_of(int64_t page) const {
        return task_.blocks[page / kv_.pages_per_block] * kv_.pages_per_block + page % kv_.pages_per_block;
    }

    // They are on their way while the queries are rotated.
    void fetch_first_keys() const {
        for (int64_t page = 0; page < 2 && task_.begin + page * PAGE < task_.end; page++)
            for (int64_t line = 0; line < kv_.page_bytes; line += 64)
                _mm_prefetch(inputs_.keys + place_of(task_.begin / PAGE + page) * kv_.page_bytes + line, _MM_HINT_T0);
    }

    void begin() {
        std::fill(most_, most_ + rows_, NONE);
        std::fill(sum_, sum_ + rows_, 0.f);
        query_ = inputs_.packed ? inputs_.packed + task_.first * heads_ * pairs_ : own_query_;
        for (int64_t row = 0; !inputs_.packed && row < rows_; row++)
            pack_query(inputs_.shape, inputs_.batch, task_.first + row / heads_, inputs_.query + (task_.first * heads_ + row) * dim_, rotated_,
                       Place(own_query_, tiles_, row, pairs_));
    }

    void see(int64_t key) {
        begin_ = key;
        end_ = std::min(task_.end, key + KEYS_AT_ONCE);
        num_pages_ = (end_ - begin_ + PAGE - 1) / PAGE;
        for (int64_t page = 0; page < num_pages_; page++) {
            const int64_t place = place_of(key / PAGE + page);
            keys_[page] = inputs_.keys + place * kv_.page_bytes;
            values_[page] = inputs_.values + place * kv_.page_bytes;
            if (copies_keys_) keys_[page] = copy_keys(keys_[page], copies_ + page * PAGE * pairs_ * 4);
            if (kv_.fp8) values_[page] = widen(values_[page], wide_ + page * PAGE * dim_ * 2);
        }
        // Pages go in pairs; the partner of a last one is itself, and its scores are dropped.
        keys_[num_pages_] = keys_[num_pages_ - 1];
    }

    const char *widen(const char *page, char *to) const {
        expand_fp8(page, to, PAGE * dim_ / 64);
        return to;
    }

    // A page of keys with as many pairs as queries have.
    const char *copy_keys(const char *page, char *to) const {
        const size_t size = (size_t)(PAGE * dim_ * 2);
        kv_.fp8 ? (void)widen(page, to) : (void)memcpy(to, page, size);
        memset(to + size, 0, (size_t)(PAGE * pairs_ * 4) - size);
        return to;
    }

    void score_tile(int64_t tile) {
        for (int64_t page = 0; page < num_pages_; page += 2) {
            const int64_t ahead = std::min(page + 2, num_pages_ - 1);
            score(query_ + tiles_.start(tile) * pairs_, tiles_.size(tile), {keys_[page], keys_[page + 1]}, pairs_,
                  {keys_[ahead], keys_[std::min(ahead + 1, num_pages_ - 1)]}, scores_ + page * PAGE, KEYS_AT_ONCE);
        }
    }

    // Some scores of a row to probabilities that are not divided yet.
    void soften_row(int64_t tile, int r) {
        const int64_t row = tiles_.start(tile) + r, seen = std::clamp<int64_t>(task_.position + row / heads_ + 1 - begin_, 0, end_ - begin_);
        const Scores scores{scores_ + r * KEYS_AT_ONCE, PANEL, num_pages_ * PAGE};
        const Place to(weights_, r, tiles_.size(tile));
        const float scale = inputs_.shape.scale;
        if (most_[row] == NONE) raise(row, largest(scores, seen) * scale);
        Softened softened = soften(scores, seen, scale, most_[row], to);
        if (softened.largest * scale - most_[row] > GROWTH) {
            raise(row, softened.largest * scale);
            softened = soften(scores, seen, scale, most_[row], to);
        }
        sum_[row] += softened.sum;
    }

    // What was mixed of a row so far in terms of a larger score.
    void raise(int64_t row, float most) {
        const float factor = most_[row] == NONE ? 0.f : fast_exp(most_[row] - most);
        most_[row] = most;
        sum_[row] *= factor;
        float *mixed = mixed_ + row * channels_;
        // A first factor of zero must clear what was there, be it NaN.
        for (int64_t i = 0; i < channels_; i++) mixed[i] = factor == 0.f ? 0.f : mixed[i] * factor;
    }

    void mix_tile(int64_t tile, const SeenValues &values) {
        for (int64_t channel = 0; channel < dim_; channel += PANEL)
            mix(weights_, tiles_.size(tile), values, channel, mixed_ + tiles_.start(tile) * channels_ + channel, channels_);
    }

    void end(int64_t row, KeepMixed keep, void *context) const {
        float *mixed = mixed_ + row * channels_;
        if (task_.partial < 0) {
            const float share = 1.f / sum_[row];
            for (int64_t i = 0; i < dim_; i++) mixed[i] *= share;
            keep(context, task_.first + row / heads_, row % heads_, mixed);
        } else {
            inputs_.partials.most(task_.partial)[row] = most_[row];
            inputs_.partials.sum(task_.partial)[row] = sum_[row];
            memcpy(inputs_.partials.mixed(task_.partial) + row * dim_, mixed, (size_t)dim_ * 4);
        }
    }
};
}  // namespace

void attend(const AttentionInputs &inputs, const AttentionTask &task, Buffer &own, KeepMixed keep, void *context) {
    Attending(inputs, task, own).run(keep, context);
}
}  // namespace step3
