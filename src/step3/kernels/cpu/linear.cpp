// A linear layer by itself: the head's logits, and layers of the vision tower.
#include "dense.h"

using namespace step3;

template <class Keep>
static void multiply_rows(Workspace &workspace, int64_t threads, const step3_matrix &m, const uint16_t *x, const int64_t *chosen,
                          int64_t rows, int64_t columns, Keep keep) {
    if (rows == 0) return;
    const Tiles tiles(rows);
    Pair *packed = workspace.buffers[0].get<Pair>(rows * m.pairs);
    run(workspace, threads, [&](Worker &worker) {
        pack_rows(worker, x, chosen, columns, tiles, m.pairs, packed);
        multiply_all(worker, m, packed, rows, keep);
    });
}

extern "C" void step3_linear(Workspace *workspace, int64_t threads, const step3_matrix *m, const uint16_t *x,
                             const int64_t *chosen, int64_t rows, int64_t columns, float *out) {
    const int64_t width = m->rows;
    multiply_rows(*workspace, threads, *m, x, chosen, rows, columns, [out, width](const TileSums &sums, int r) {
        const int64_t column = sums.panel * PANEL;
        keep_columns(out + (sums.row + r) * width + column, sums.of(r), columns_left(width, column), false);
    });
}

extern "C" void step3_dense_forward(Workspace *workspace, int64_t threads, const step3_dense *layer, const uint16_t *x, int64_t rows,
                                    int64_t columns, uint16_t *out) {
    multiply_rows(*workspace, threads, layer->weight, x, nullptr, rows, columns, KeepDense(*layer, rows, out));
}
