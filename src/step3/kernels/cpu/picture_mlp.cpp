// The MLP of the vision tower: two linear layers, between which the activations stay in tiles.
#include "dense.h"

using namespace step3;

// Rows that go through both layers before the next ones do: what lies between is 15,360 numbers a row in the published tower.
constexpr int64_t ROWS_AT_ONCE = 2048;

extern "C" void step3_picture_mlp(Workspace *workspace, int64_t threads, const step3_dense *first, const step3_dense *second,
                                  const uint16_t *x, int64_t rows, uint16_t *out) {
    const int64_t at_once = std::min(rows, ROWS_AT_ONCE), columns = second->weight.rows;
    const int64_t pairs = first->weight.pairs, inner_pairs = second->weight.pairs;
    Pair *packed = workspace->buffers[0].get<Pair>(at_once * pairs);
    Pair *inner = workspace->buffers[1].get<Pair>(at_once * inner_pairs);
    run(*workspace, threads, [&](Worker &worker) {
        for (int64_t row = 0; row < rows; row += at_once) {
            const int64_t count = std::min(at_once, rows - row);
            pack_rows(worker, x + row * columns, nullptr, columns, Tiles(count), pairs, packed);
            multiply_all(worker, first->weight, packed, count, KeepActive{first->bias, inner, inner_pairs});
            multiply_all(worker, second->weight, inner, count, KeepDense(*second, rows, out + row * columns));
        }
    });
}
