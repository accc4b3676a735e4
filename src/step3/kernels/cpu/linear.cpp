// A linear layer by itself: the head's logits.
#include "rows.h"

using namespace step3;

extern "C" void step3_linear(Workspace *workspace, int64_t threads, const step3_matrix *m, const uint16_t *x,
                             int64_t rows, int64_t columns, float *out) {
    if (rows == 0) return;
    Tiles tiles(rows);
    uint32_t *packed = workspace->buffers[0].get<uint32_t>(rows * m->pairs);
    run(*workspace, threads, [&](Worker &worker) {
        worker.each(tiles.count, [&](int64_t tile) {
            const uint16_t *own[TILE];
            for (int r = 0; r < tiles.size(tile); r++) own[r] = x + (tiles.start(tile) + r) * columns;
            pack_tile(own, tiles.size(tile), columns, m->pairs, packed + tiles.start(tile) * m->pairs);
        });
        multiply_all(worker, *m, packed, rows,
                     [&](int64_t row, int count, int64_t panel, const float *sums) {
                         int64_t column = panel * PANEL;
                         int size = columns_left(m->rows, column);
                         for (int r = 0; r < count; r++)
                             memcpy(out + (row + r) * m->rows + column, sums + r * PANEL, (size_t)size * 4);
                     });
    });
}

extern "C" Workspace *step3_workspace_new() { return new Workspace(); }
extern "C" void step3_workspace_free(Workspace *workspace) { delete workspace; }
