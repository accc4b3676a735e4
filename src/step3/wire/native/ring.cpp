// Rings of headers in memory that two processes share: one writes, one reads, neither waits for the other.
//
// An entry carries its number, which is written last and read first; so a reader needs no shared counter, and a
// frame costs the two lines of memory that it fills. A reader that goes to sleep says so, looks once more, and
// sleeps; a writer publishes, looks whether the reader sleeps, and rings. Both fences keep these orders.
#include <sched.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "step3_wire.h"

namespace {

struct alignas(64) Entry {
    std::atomic<uint64_t> number;  // counted from 1
    char header[STEP3_WIRE_HEADER];
    char padding[128 - 8 - STEP3_WIRE_HEADER];
};
static_assert(sizeof(Entry) == 128, "an entry fills two lines");

struct alignas(64) Ring {
    std::atomic<uint32_t> wants_bell;
    char padding[60];
    Entry entries[1];
};

constexpr int64_t LOOK_AT_DESCRIPTORS_NS = 1000000;
constexpr int STREAMS_EVERY = 16, OTHERS_EVERY = 512, YIELD_EVERY = 64;

int64_t now_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

void publish(step3_writer *writer, const void *header) {
    Ring *ring = (Ring *)writer->ring;
    Entry &entry = ring->entries[writer->sent & (writer->entries - 1)];
    memcpy(entry.header, header, STEP3_WIRE_HEADER);
    entry.number.store(++writer->sent, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (ring->wants_bell.load(std::memory_order_relaxed)) {
        const uint64_t one = 1;
        // A bell that is full has been heard, and one that is closed belongs to a peer that is gone.
        (void)!write((int)writer->bell, &one, sizeof one);
    }
}

const Entry &next_of(const step3_reader *reader) {
    return ((const Ring *)reader->ring)->entries[reader->received & (reader->entries - 1)];
}

// Takes the next frame of a reader.
bool take(step3_reader *reader, step3_found *found) {
    const Entry &entry = next_of(reader);
    const uint64_t number = entry.number.load(std::memory_order_acquire), due = reader->received + 1;
    // Before its turn comes again an entry has the number of the round before, or 0.
    if (number < due) return false;
    found->torn = number != due;
    memcpy(found->header, entry.header, STEP3_WIRE_HEADER);
    reader->received = due;
    return true;
}

bool take_any(step3_reader *const *readers, int64_t count, step3_found *found) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t one = (found->next + i) % count;
        if (take(readers[one], found)) {
            found->reader = (int32_t)one;
            found->next = (int32_t)((one + 1) % count);
            found->has_more = 0;
            for (int64_t j = 0; j < count && !found->has_more; j++)
                found->has_more = next_of(readers[j]).number.load(std::memory_order_relaxed) > readers[j]->received;
            return true;
        }
    }
    return false;
}

bool look(int64_t epoll, int timeout_ms, step3_found *found) {
    epoll_event events[STEP3_WIRE_READY];
    const int size = epoll_wait((int)epoll, events, STEP3_WIRE_READY, timeout_ms);
    for (int i = 0; i < size; i++) found->ready[i] = events[i].data.fd;
    found->num_ready = size > 0 ? size : 0;
    found->looked_ns = now_ns();
    return size > 0;
}

}  // namespace

extern "C" int64_t step3_wire_ring_bytes(int64_t entries) {
    return (int64_t)(sizeof(Ring) + (entries - 1) * sizeof(Entry));
}

extern "C" void step3_wire_send(step3_writer *writer, const void *header, void *to, const void *from, int64_t bytes) {
    if (bytes) memcpy(to, from, (size_t)bytes);
    publish(writer, header);
}

extern "C" void step3_wire_send_call(step3_writer *writer, const void *header, char *to, const void *values,
                                     int64_t value_bytes, const void *scales, int64_t scale_bytes, int64_t scales_at,
                                     const int64_t *ids, int64_t ids_at, const float *weights, int64_t weights_at,
                                     int64_t chosen) {
    memcpy(to, values, (size_t)value_bytes);
    if (scale_bytes) memcpy(to + scales_at, scales, (size_t)scale_bytes);
    int32_t *narrow = (int32_t *)(to + ids_at);
    for (int64_t i = 0; i < chosen; i++) narrow[i] = (int32_t)ids[i];
    if (chosen) memcpy(to + weights_at, weights, (size_t)chosen * sizeof(float));
    publish(writer, header);
}

extern "C" int64_t step3_wire_take_experts(const int32_t *ids, const float *weights, int64_t chosen, int64_t experts,
                                           int64_t *own_ids, float *own_weights) {
    int64_t worst = -1;
    for (int64_t i = 0; i < chosen; i++) {
        // Read once: the peer may change it meanwhile.
        own_ids[i] = ((const volatile int32_t *)ids)[i];
        if ((uint64_t)own_ids[i] >= (uint64_t)experts && worst < 0) worst = (uint32_t)own_ids[i];
    }
    memcpy(own_weights, weights, (size_t)chosen * sizeof(float));
    return worst;
}

extern "C" int64_t step3_wire_take(step3_reader *reader, step3_found *found) { return take(reader, found); }

extern "C" void step3_wire_wait(step3_reader *const *readers, int64_t count, int64_t epoll, int64_t spin_ns,
                                int64_t timeout_ns, int64_t with_streams, int64_t keep_bells, step3_found *found) {
    found->reader = -1;
    found->num_ready = 0;
    const int64_t began = now_ns();
    // Who talks without end must not keep the others' descriptors from being looked at.
    if (began - found->looked_ns > LOOK_AT_DESCRIPTORS_NS && look(epoll, 0, found)) return;
    if (take_any(readers, count, found)) return;
    if (timeout_ns == 0) {
        look(epoll, 0, found);
        return;
    }
    const int every = with_streams ? STREAMS_EVERY : OTHERS_EVERY;
    const int64_t spin_until = began + (timeout_ns > 0 && timeout_ns < spin_ns ? timeout_ns : spin_ns);
    for (int turn = 1; spin_ns > 0; turn++) {
        if (take_any(readers, count, found)) return;
        if (turn % every == 0 && look(epoll, 0, found)) return;
        if (turn % YIELD_EVERY == 0) {
            if (now_ns() >= spin_until) break;
            // On a core that is shared, whoever is waited for must have its turn.
            sched_yield();
        }
        relax();
    }
    for (int64_t i = 0; i < count; i++)
        ((Ring *)readers[i]->ring)->wants_bell.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!take_any(readers, count, found)) {
        int64_t left_ms = -1;
        if (timeout_ns >= 0) {
            const int64_t left = began + timeout_ns - now_ns();
            left_ms = left > 0 ? (left + 999999) / 1000000 : 0;
            if (left_ms > 3600000) left_ms = 3600000;
        }
        look(epoll, (int)left_ms, found);
        take_any(readers, count, found);
    }
    if (keep_bells) return;
    for (int64_t i = 0; i < count; i++)
        ((Ring *)readers[i]->ring)->wants_bell.store(0, std::memory_order_relaxed);
}
