// Threads that work through one call in phases.
//
// A call is one OpenMP region, be it a whole step; its phases are separated by barriers of our own, because libgomp's
// spin for long when another process wants a core: ours yields. Within a phase the threads take tasks from a shared
// counter, so that one that was interrupted does not hold up the others. OpenMP gives us torch's threads.
#pragma once
#include <immintrin.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <tuple>
#include <utility>
#include "amx.h"
#include "range.h"

constexpr int MAX_PHASES = 4;  // `take` and `runs` between two barriers, at most
constexpr int NUM_BUFFERS = 16;
constexpr int MAX_THREADS = 256;
constexpr int64_t READ_BEYOND = 1024;  // bytes behind a buffer that a register of rows may read
constexpr int64_t FETCHED_WHILE_WAITING = 384 << 10;  // fits into the second-level cache with what else is there

struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};

// Memory that grows and is kept from call to call.
struct Buffer {
    char *data = nullptr;
    int64_t size = 0;

    template <class T>
    T *get(int64_t count) {
        int64_t bytes = count * (int64_t)sizeof(T) + READ_BEYOND;
        if (bytes > size) {
            std::free(data);
            const int64_t page = bytes < 4 << 20 ? 4096 : 2 << 20;
            const int64_t wanted = (bytes + bytes / 4 + page - 1) / page * page;
            data = (char *)std::aligned_alloc((size_t)page, (size_t)wanted);
            if (!data) throw std::bad_alloc();
            if (page > 4096) madvise(data, (size_t)wanted, MADV_HUGEPAGE);
            size = wanted;
        }
        return (T *)data;
    }
    ~Buffer() { std::free(data); }
};

// What the calls of one attention or FFN instance share: its calls come one after the other.
struct Workspace {
    Counter counters[MAX_PHASES];
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> generation{0};
    Buffer buffers[NUM_BUFFERS];
    Buffer own[MAX_THREADS], rows[MAX_THREADS];
};

namespace step3 {

class Worker {
   public:
    Worker(Workspace &workspace, int id, int size) : workspace_(workspace), id_(id), size_(size) {}
    int id() const { return id_; }
    int size() const { return size_; }
    // Memory of this thread alone: for a product, and for the rows that it takes.
    Buffer &own() const { return workspace_.own[id_]; }
    Buffer &rows() const { return workspace_.rows[id_]; }

    // Tasks that each thread takes first in `runs`.
    int64_t first_run(int64_t count) const { return count / (3 * size_); }

    // Says what this thread will read after the next barrier. While it waits there it fetches that into the
    // cache, so that memory is never idle for long.
    void expect(Range range) {
        next_ = range.at;
        next_end_ = range.at + std::min(range.bytes, FETCHED_WHILE_WAITING);
    }
    Range expected() const { return next_ < next_end_ ? Range{next_, next_end_ - next_} : Range{}; }

    void barrier() {
        if (size_ == 1) return free_counters();
        int generation = workspace_.generation.load(std::memory_order_acquire);
        if (workspace_.arrived.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            free_counters();
            workspace_.arrived.store(0, std::memory_order_relaxed);
            workspace_.generation.store(generation + 1, std::memory_order_release);
            next_ = next_end_;
            return;
        }
        for (int spins = 0; workspace_.generation.load(std::memory_order_acquire) == generation; spins++) {
            if (next_ < next_end_) {
                for (int line = 0; line < 4; line++) _mm_prefetch(next_ + 64 * line, _MM_HINT_T1);
                next_ += 256;
            } else if (spins < 4000) {
                _mm_pause();
            } else {
                sched_yield();
            }
        }
        next_ = next_end_;
        phase_ = 0;
    }

    // Runs task(i) for each i below `count`, shared among the threads.
    template <class Task>
    void take(int64_t count, Task task) {
        auto &counter = next_counter();
        // Several at a time where there are many: a counter that all threads take turns at is slow.
        const int64_t step = std::clamp<int64_t>(count / (16 * size_), 1, 8);
        for (int64_t i; (i = counter.fetch_add(step, std::memory_order_relaxed)) < count;)
            for (int64_t end = std::min(count, i + step); i < end; i++) task(i);
    }

    // The same, and waits for all.
    template <class Task>
    void each(int64_t count, Task task) {
        take(count, task);
        barrier();
    }

    // Runs task(begin, end, next, last) for runs begin..end that cover 0..count: long ones first, so that each thread
    // reads along, short ones last, so that all finish together. The first run of each thread is known before
    // (`expect`), the next one, next..last, while it works on the one before; it is empty behind the last, and where so
    // little is left that it goes to whoever is done first.
    template <class Task>
    void runs(int64_t count, Task task) {
        const int64_t share = first_run(count), taken = share * size_;
        auto &counter = next_counter();
        // Takes a run, if there are more than `least`.
        auto take_run = [&](int64_t least) {
            int64_t begin = counter.load(std::memory_order_relaxed), end = begin;
            while (count - taken - begin > least) {
                end = begin + std::max<int64_t>(1, (count - taken - begin) / (2 * size_));
                if (counter.compare_exchange_weak(begin, end, std::memory_order_relaxed)) break;
                end = begin;
            }
            return std::pair(taken + begin, taken + end);
        };
        auto [begin, end] = share ? std::pair(id_ * share, (id_ + 1) * share) : take_run(0);
        while (begin < end) {
            auto [next, last] = take_run(size_);
            task(begin, end, next, last);
            std::tie(begin, end) = next < last ? std::pair(next, last) : take_run(0);
        }
        barrier();
    }

   private:
    Workspace &workspace_;
    int id_, size_, phase_ = 0;
    const char *next_ = nullptr, *next_end_ = nullptr;

    // Of the phase that begins. More of them between two barriers would be a mistake of the code.
    std::atomic<int64_t> &next_counter() {
        if (phase_ == MAX_PHASES) __builtin_trap();
        return workspace_.counters[phase_++].value;
    }

    // All threads have taken what they take of the phases since the last barrier.
    void free_counters() {
        for (; phase_; phase_--) workspace_.counters[phase_ - 1].value.store(0, std::memory_order_relaxed);
    }
};

template <class Body>
void run(Workspace &workspace, int64_t threads, Body body) {
    for (auto &counter : workspace.counters) counter.value.store(0, std::memory_order_relaxed);
    workspace.arrived.store(0, std::memory_order_relaxed);
    if (threads <= 1) {
        const MatrixUnit unit;
        Worker worker(workspace, 0, 1);
        body(worker);
        return;
    }
    if (threads > MAX_THREADS) threads = MAX_THREADS;
#pragma omp parallel num_threads((int)threads)
    {
        const MatrixUnit unit;
        Worker worker(workspace, omp_get_thread_num(), omp_get_num_threads());
        body(worker);
    }
}
}  // namespace step3
