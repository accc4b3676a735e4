// A linear layer by itself: the head's logits, and the vision tower's layers.
#include "rows.h"

using namespace step3;

namespace {

// keep(row, column, size, sums) gets the columns of a row that a panel gives.
template <class Keep>
void multiply_rows(Workspace &workspace, int64_t threads, const step3_matrix &m, const uint16_t *x,
                   const int64_t *chosen, int64_t rows, int64_t columns, Keep keep) {
    if (rows == 0) return;
    Tiles tiles(rows);
    uint32_t *packed = workspace.buffers[0].get<uint32_t>(rows * m.pairs);
    run(workspace, threads, [&](Worker &worker) {
        worker.each(tiles.count, [&](int64_t tile) {
            const uint16_t *own[TILE];
            for (int r = 0; r < tiles.size(tile); r++) {
                const int64_t row = tiles.start(tile) + r;
                own[r] = x + (chosen ? chosen[row] : row) * columns;
            }
            pack_tile(own, tiles.size(tile), columns, m.pairs, packed + tiles.start(tile) * m.pairs);
        });
        multiply_all(worker, m, packed, rows, [&](const TileSums &sums, int r) {
            const int64_t column = sums.panel * PANEL;
            keep(sums.row + r, column, columns_left(m.rows, column), sums.of(r));
        });
    });
}
}  // namespace

extern "C" void step3_linear(Workspace *workspace, int64_t threads, const step3_matrix *m, const uint16_t *x,
                             const int64_t *chosen, int64_t rows, int64_t columns, float *out) {
    multiply_rows(*workspace, threads, *m, x, chosen, rows, columns, [&](int64_t row, int64_t column, int size, const float *sums) {
        memcpy(out + row * m->rows + column, sums, (size_t)size * 4);
    });
}

extern "C" void step3_dense(Workspace *workspace, int64_t threads, const step3_matrix *m, const float *bias,
                            int64_t quick_gelu, const uint16_t *x, int64_t rows, int64_t columns, uint16_t *out) {
    multiply_rows(*workspace, threads, *m, x, nullptr, rows, columns, [&](int64_t row, int64_t column, int size, const float *sums) {
        // Whole panels, also of padding: a loop of known length.
        alignas(64) float y[PANEL] = {};
        if (bias) memcpy(y, bias + column, (size_t)size * 4);
        for (int i = 0; i < PANEL; i++) y[i] += sums[i];
        if (quick_gelu)
            for (int i = 0; i < PANEL; i++) y[i] = y[i] / (1.f + fast_exp(-1.702f * y[i]));
        alignas(64) uint16_t rounded[PANEL];
        round_to_bf16(y, PANEL, rounded);
        memcpy(out + row * m->rows + column, rounded, (size_t)size * 2);
    });
}
