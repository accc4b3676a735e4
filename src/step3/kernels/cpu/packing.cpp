// Weights as they are stored into panels, once, while they are read.
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include "numbers.h"
#include "tile.h"

namespace step3 {

// 16 rows of one source that become a strip; rows beyond its end are zeros.
struct StripOf {
    const step3_source *source;
    int64_t row;
};

static StripOf find_strip(const step3_source *sources, int64_t count, int64_t interleave, int64_t strip) {
    if (interleave) return {sources + strip % 2, strip / 2 * STRIP};
    for (int64_t i = 0; i < count; i++) {
        int64_t strips = (sources[i].rows + STRIP - 1) / STRIP;
        if (strip < strips) return {sources + i, strip * STRIP};
        strip -= strips;
    }
    return {nullptr, 0};
}

static inline uint16_t bf16_at(const step3_source &source, int64_t index) {
    switch (source.type) {
        case STEP3_BF16: return ((const uint16_t *)source.data)[index];
        case STEP3_F32: return (uint16_t)bf16_bits(((const float *)source.data)[index]);
        default: return (uint16_t)bf16_bits(_cvtsh_ss(((const uint16_t *)source.data)[index]));
    }
}

// Pairs of one row that are packed before the next row's: 64 bytes of each of 16 rows, so that what is read
// and what is written stay in the first-level cache.
constexpr int64_t PAIRS_AT_ONCE = 16;

static void pack_strip_bf16(const StripOf &from, int64_t columns, int64_t pairs, char *to) {
    const int rows = from.source ? (int)std::clamp<int64_t>(from.source->rows - from.row, 0, STRIP) : 0;
    for (int64_t begin = 0; begin < pairs; begin += PAIRS_AT_ONCE) {
        const int64_t end = std::min(pairs, begin + PAIRS_AT_ONCE), whole = std::min(end, columns / 2);
        for (int c = 0; c < STRIP; c++) {
            char *place = to + 4 * c;
            int64_t i = begin;
            if (c < rows) {
                const int64_t base = (from.row + c) * from.source->stride;
                if (from.source->type == STEP3_BF16) {
                    const uint16_t *row = (const uint16_t *)from.source->data + base;
                    for (; i < whole; i++) memcpy(place + i * 128, row + 2 * i, 4);
                } else {
                    for (; i < whole; i++) {
                        uint16_t pair[2] = {bf16_at(*from.source, base + 2 * i), bf16_at(*from.source, base + 2 * i + 1)};
                        memcpy(place + i * 128, pair, 4);
                    }
                }
                if (i < end && 2 * i < columns) {
                    uint16_t pair[2] = {bf16_at(*from.source, base + 2 * i), 0};
                    memcpy(place + i++ * 128, pair, 4);
                }
            }
            for (; i < end; i++) memset(place + i * 128, 0, 4);
        }
    }
}

static void pack_strip_fp8(const StripOf &from, int64_t columns, int64_t pairs, int strip, char *to) {
    const int rows = from.source ? (int)std::clamp<int64_t>(from.source->rows - from.row, 0, STRIP) : 0;
    for (int64_t begin = 0; begin < pairs; begin += 2 * PAIRS_AT_ONCE) {
        const int64_t end = std::min(pairs, begin + 2 * PAIRS_AT_ONCE), whole = std::min(end, columns / 2);
        for (int c = 0; c < STRIP; c++) {
            char *place = to + fp8_place(strip * STRIP + c);
            int64_t i = begin;
            if (c < rows) {
                const uint8_t *row = (const uint8_t *)from.source->data + (from.row + c) * from.source->stride;
                for (; i < whole; i++) memcpy(place + i * 64, row + 2 * i, 2);
                if (i < end && 2 * i < columns) {
                    uint8_t pair[2] = {row[2 * i], 0};
                    memcpy(place + i++ * 64, pair, 2);
                }
            }
            for (; i < end; i++) memset(place + i * 64, 0, 2);
        }
    }
}
}  // namespace step3

using namespace step3;

extern "C" void *step3_allocate(int64_t bytes) {
    // Pages of 2 MiB: a panel spans many of 4 KiB, whose addresses would not fit into the TLB.
    void *memory = mmap(nullptr, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    madvise(memory, (size_t)bytes, MADV_HUGEPAGE);
    return memory;
}

extern "C" void step3_free(void *memory, int64_t bytes) { munmap(memory, (size_t)bytes); }

extern "C" void step3_pack(const step3_source *sources, int64_t count, int64_t columns, int64_t interleave,
                           const step3_matrix *to, int64_t release, int64_t threads) {
    const int64_t blocks = (to->pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS;
    const int64_t bytes = to->pairs * (to->scales ? 64 : 128);
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1)
    for (int64_t panel = 0; panel < to->num_panels; panel++) {
        char *at = const_cast<char *>(to->panels) + panel * bytes;
        for (int strip = 0; strip < 2; strip++) {
            StripOf from = find_strip(sources, count, interleave, 2 * panel + strip);
            if (!to->scales) {
                pack_strip_bf16(from, columns, to->pairs, at + 64 * strip);
                continue;
            }
            pack_strip_fp8(from, columns, to->pairs, strip, at);
            float *scales = const_cast<float *>(to->scales) + panel * blocks * 2 + strip;
            for (int64_t block = 0; block < blocks; block++) {
                bool there = from.source && from.row < from.source->rows;
                scales[2 * block] =
                    there ? from.source->scales[from.row / 128 * from.source->scale_stride + block] : 0.f;
            }
        }
    }
    if (!release) return;
    const int64_t page = sysconf(_SC_PAGESIZE);
    for (int64_t i = 0; i < count; i++) {
        const step3_source &source = sources[i];
        if (source.rows == 0 || columns == 0) continue;
        int64_t item = source.type == STEP3_FP8 ? 1 : source.type == STEP3_F32 ? 4 : 2;
        int64_t begin = (int64_t)source.data / page * page;
        int64_t end = (int64_t)source.data + ((source.rows - 1) * source.stride + columns) * item;
        madvise((void *)begin, (size_t)(end - begin), MADV_DONTNEED);
    }
}
