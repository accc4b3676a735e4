// Weights as they are stored into panels, once, while they are read.
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include "panels.h"

using namespace step3;

namespace {

constexpr int64_t TASK_BYTES = 1 << 20;
constexpr int64_t TASKS_AHEAD = 32;  // that are being read from the disk while one is packed

// Some panels of one expert, and what they are made of.
struct Task {
    const step3_stored &from;
    int64_t expert, begin, end, quantised;

    // Advises the kernel about the sources' pages.
    void advise(int advice) const {
        const int64_t page = sysconf(_SC_PAGESIZE);
        for (int64_t i = 0; i < from.count; i++) {
            const char *first = nullptr, *last = nullptr;
            for (int64_t n = 2 * begin; n < 2 * end; n++) {
                const Strip strip = find_strip(from, expert, n);
                if (strip.source != i || !strip.rows) continue;
                if (!first) first = strip.data;
                last = strip.data + (strip.rows - 1) * strip.stride + from.columns * item_size(strip.type);
            }
            if (!first || first == last) continue;
            const int64_t at = (int64_t)first / page * page;
            madvise((void *)at, (size_t)((int64_t)last - at), advice);
        }
    }
};

bool has_nan(const Strip &strip) {
    for (int r = 0; r < strip.rows; r++)
        if (has_fp8_nan(strip.data + r * strip.stride, strip.columns)) return true;
    return false;
}
}  // namespace

extern "C" void *step3_allocate(int64_t bytes) {
    // Pages of 2 MiB: a panel spans many of 4 KiB, whose addresses would not fit into the TLB.
    void *memory = mmap(nullptr, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    madvise(memory, (size_t)bytes, MADV_HUGEPAGE);
    return memory;
}

extern "C" void step3_free(void *memory, int64_t bytes) { munmap(memory, (size_t)bytes); }

extern "C" int64_t step3_pack(const step3_stored *from, const step3_matrix *to, int64_t experts, int64_t mapped, int64_t threads) {
    const bool quantised = to->scales != nullptr;
    const int64_t blocks = (to->pairs + BLOCK_PAIRS - 1) / BLOCK_PAIRS;
    const int64_t bytes = to->pairs * (quantised ? 64 : 128);
    const int64_t panels = std::max<int64_t>(1, TASK_BYTES / std::max<int64_t>(1, bytes));
    const int64_t of_expert = (to->num_panels + panels - 1) / panels, tasks = experts * of_expert;
    auto task = [&](int64_t i) {
        const int64_t begin = i % of_expert * panels;
        return Task{*from, i / of_expert, begin, std::min(to->num_panels, begin + panels), quantised};
    };
    bool nan = false;
#pragma omp parallel for num_threads((int)threads) schedule(dynamic, 1) reduction(|| : nan)
    for (int64_t i = 0; i < tasks; i++) {
        const Task own = task(i);
        if (mapped && i + TASKS_AHEAD < tasks) task(i + TASKS_AHEAD).advise(MADV_WILLNEED);
        for (int64_t panel = own.begin; panel < own.end; panel++) {
            const Strip strips[2] = {find_strip(*from, own.expert, 2 * panel),
                                     find_strip(*from, own.expert, 2 * panel + 1)};
            char *at = const_cast<char *>(to->panels) + own.expert * to->bytes + panel * bytes;
            fill_panel<true>(strips, to->pairs, quantised, {IN_ROW, 0}, at);
            if (!quantised) continue;
            fill_scales(strips, blocks, const_cast<float *>(to->scales) + own.expert * to->num_scales + panel * blocks * 2);
            nan = nan || (!FP8_SHOWS_NAN && (has_nan(strips[0]) || has_nan(strips[1])));
        }
        _mm_sfence();
        if (mapped) own.advise(MADV_DONTNEED);
    }
    // The kernel maps pages around those that were read: what lay beyond a task's end is given back here.
    if (mapped)
        for (int64_t expert = 0; expert < experts; expert++)
            Task{*from, expert, 0, to->num_panels, quantised}.advise(MADV_DONTNEED);
    return nan;
}
