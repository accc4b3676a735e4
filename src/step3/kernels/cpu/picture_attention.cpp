// Attention of a layer of the vision tower with its projections: every row of a picture sees every other one, each head has its
// own keys.
//
// It is the product of factor.h twice: the keys of a head are panels of weights, queries are the rows; the values,
// pair after pair of rows, are panels too, and the probabilities their rows. A tile's scores with all keys stay
// in the second-level cache.
#include <cmath>
#include "dense.h"
#include "softmax.h"

using namespace step3;

namespace {

constexpr int64_t TILES_OF_A_TASK = 8;

struct Heads {
    const uint16_t *qkv;  // [pictures, length, 3, heads, size]
    int64_t length, heads, size;
    int64_t size_pairs() const {
        constexpr int64_t step = std::max(RUN, STRIP / 2);
        return ((size + 1) / 2 + step - 1) / step * step;
    }
    int64_t size_panels() const { return (size + PANEL - 1) / PANEL; }
    int64_t length_panels() const { return (length + PANEL - 1) / PANEL; }
    int64_t length_pairs() const { return length_panels() * PANEL / 2; }
    int64_t key_bytes() const { return length_panels() * size_pairs() * 128; }
    int64_t bytes() const { return key_bytes() + size_panels() * length_pairs() * 128; }
    int64_t width() const { return heads * size; }
    // `which`: query, key or value.
    const uint16_t *row(int64_t picture, int64_t at, int64_t head, int64_t which) const {
        return qkv + ((picture * length + at) * 3 + which) * width() + head * size;
    }
};

// Keys as panels of 32 of them.
void pack_keys(const Heads &heads, int64_t picture, int64_t head, char *to) {
    for (int64_t panel = 0; panel < heads.length_panels(); panel++) {
        Strip strips[2];
        for (int s = 0; s < 2; s++) {
            const int64_t first = panel * PANEL + s * STRIP;
            strips[s].data = (const char *)heads.row(picture, std::min(first, heads.length - 1), head, 1);
            strips[s].stride = 3 * heads.width() * 2;
            strips[s].columns = heads.size;
            strips[s].rows = (int)std::clamp<int64_t>(heads.length - first, 0, STRIP);
        }
        fill_panel<false>(strips, heads.size_pairs(), false, {}, to + panel * heads.size_pairs() * 128);
    }
}

// Values as panels of 32 channels, whose pairs are of rows.
void pack_values(const Heads &heads, int64_t picture, int64_t head, char *to) {
    static const uint16_t none[PANEL] = {};
    for (int64_t panel = 0; panel < heads.size_panels(); panel++)
        for (int64_t pair = 0; pair < heads.length_pairs(); pair++) {
            const int64_t count = std::min<int64_t>(PANEL, heads.size - panel * PANEL);
            uint16_t both[2][PANEL] = {};
            for (int i = 0; i < 2; i++) {
                const int64_t at = 2 * pair + i;
                memcpy(both[i], at < heads.length ? heads.row(picture, at, head, 2) + panel * PANEL : none, (size_t)count * 2);
            }
            alignas(64) uint16_t mixed[2 * PANEL];
            for (int c = 0; c < PANEL; c++) mixed[2 * c] = both[0][c], mixed[2 * c + 1] = both[1][c];
            memcpy(to + (panel * heads.length_pairs() + pair) * 128, mixed, 128);
        }
}

// Rows first..first + count of a head, whose results go into tiles of the rows of all pictures.
void attend_tile(const Heads &heads, const char *keys, int64_t picture, int64_t head, int64_t first, int count, Buffer &own,
                 const Tiles &all, int64_t pairs, Pair *out) {
    const int64_t queries = count * heads.size_pairs(), probabilities = count * heads.length_pairs();
    const int64_t step = (HAS_AMX ? TILE : count) * PANEL;  // a product gives the rows of a whole tile
    const int64_t channels = heads.size_panels() * PANEL;
    constexpr int64_t numbers = sizeof(Pair) / sizeof(float);
    float *scores = own.get<float>(heads.length_panels() * step + (queries + probabilities) * numbers + count * channels);
    Pair *query = (Pair *)(scores + heads.length_panels() * step), *tile = query + queries;
    float *mixed = (float *)(tile + probabilities);
    const uint16_t *rows[TILE];
    for (int r = 0; r < count; r++) rows[r] = heads.row(picture, first + r, head, 0);
    pack_tile(rows, count, heads.size, heads.size_pairs(), query);
    auto multiply_by = [&](const Pair *a, const char *panel, int64_t pairs, float *to) {
        multiply_tile_of_bf16({a, count, panel, pairs, nullptr, panel + pairs * 128, 128, to}, count);
    };
    for (int64_t panel = 0; panel < heads.length_panels(); panel++)
        multiply_by(query, keys + panel * heads.size_pairs() * 128, heads.size_pairs(), scores + panel * step);
    float inverse[TILE];
    const float scale = 1.f / std::sqrt((float)heads.size);
    for (int r = 0; r < count; r++) {
        const Scores row{scores + r * PANEL, step, heads.length_panels() * PANEL};
        inverse[r] = 1.f / soften(row, heads.length, scale, largest(row, heads.length) * scale, Place(tile, r, count)).sum;
    }
    alignas(64) float part[TILE * PANEL];
    for (int64_t panel = 0; panel < heads.size_panels(); panel++) {
        multiply_by(tile, keys + heads.key_bytes() + panel * heads.length_pairs() * 128, heads.length_pairs(), part);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < PANEL; i++) mixed[r * channels + panel * PANEL + i] = part[r * PANEL + i] * inverse[r];
    }
    const int64_t begin = head * heads.size / 2, end = head + 1 == heads.heads ? pairs : begin + heads.size / 2;
    for (int r = 0; r < count; r++)
        pack_floats(mixed + r * channels, heads.size, begin, end, Place(out, all, picture * heads.length + first + r, pairs));
}
}  // namespace

extern "C" void step3_picture_attention(Workspace *workspace, int64_t threads, const step3_dense *qkv, const step3_dense *out_proj,
                                        const uint16_t *x, int64_t pictures, int64_t length, int64_t heads, uint16_t *out) {
    const int64_t rows = pictures * length, columns = out_proj->weight.rows, pairs = qkv->weight.pairs;
    if (!rows) return;
    Pair *packed = workspace->buffers[0].get<Pair>(rows * pairs);  // x, then what was attended
    uint16_t *projected = workspace->buffers[1].get<uint16_t>(rows * qkv->weight.rows);
    const Heads own{projected, length, heads, columns / heads};
    const Tiles all(rows), tiles(length);
    const int64_t count = pictures * heads, runs = (tiles.count + TILES_OF_A_TASK - 1) / TILES_OF_A_TASK;
    // Behind the last panel a line more is fetched, not read.
    char *panels = workspace->buffers[2].get<char>(count * own.bytes());
    run(*workspace, threads, [&](Worker &worker) {
        pack_rows(worker, x, nullptr, columns, all, pairs, packed);
        multiply_all(worker, qkv->weight, packed, rows, KeepDense(*qkv, rows, projected));
        worker.each(count, [&](int64_t i) {
            char *to = panels + i * own.bytes();
            pack_keys(own, i / heads, i % heads, to);
            pack_values(own, i / heads, i % heads, to + own.key_bytes());
        });
        worker.each(count * runs, [&](int64_t task) {
            const int64_t i = task / runs, begin = task % runs * TILES_OF_A_TASK;
            for (int64_t tile = begin; tile < std::min(tiles.count, begin + TILES_OF_A_TASK); tile++)
                attend_tile(own, panels + i * own.bytes(), i / heads, i % heads, tiles.start(tile), tiles.size(tile), worker.own(),
                            all, pairs, packed);
        });
        multiply_all(worker, out_proj->weight, packed, rows, KeepDense(*out_proj, rows, out));
    });
}
