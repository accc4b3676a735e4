// The hot path of the wire, for ctypes: rings of headers between two processes, and fp8. See library.py.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { STEP3_WIRE_HEADER = 88, STEP3_WIRE_READY = 64 };

// One side's end of a ring that it writes. What is counted here is never read from shared memory.
typedef struct {
    void *ring;
    int64_t entries;  // a power of two, no fewer than frames that may be on their way
    uint64_t sent;
    int64_t bell;  // eventfd of the reader
} step3_writer;

typedef struct {
    void *ring;
    int64_t entries;
    uint64_t received;
} step3_reader;

// What a wait has found.
typedef struct {
    int32_t reader;     // whose frame is in `header`, or -1
    int32_t torn;       // 1 if the frame is not the one that was due
    int32_t next;       // the reader to look at first, so that all have their turn
    int32_t num_ready;  // descriptors that can be read or written
    int32_t has_more;   // 1 if another frame is in a ring
    int64_t looked_ns;  // when the descriptors were looked at
    int32_t ready[STEP3_WIRE_READY];
    char header[STEP3_WIRE_HEADER];
} step3_found;

int64_t step3_wire_ring_bytes(int64_t entries);

// Copies a payload of `bytes` (or none), then publishes the header, and rings if the reader sleeps.
void step3_wire_send(step3_writer *writer, const void *header, void *to, const void *from, int64_t bytes);

// The same for a call whose tensors lie apart: `at` are their places behind `to`. Expert ids shrink to int32.
void step3_wire_send_call(step3_writer *writer, const void *header, char *to, const void *values, int64_t value_bytes,
                          const void *scales, int64_t scale_bytes, int64_t scales_at, const int64_t *ids,
                          int64_t ids_at, const float *weights, int64_t weights_at, int64_t chosen);

// Takes expert ids and weights out of shared memory; the first id that is not below `experts`, or -1.
int64_t step3_wire_take_experts(const int32_t *ids, const float *weights, int64_t chosen, int64_t experts,
                                int64_t *own_ids, float *own_weights);

// Takes a frame of a ring into `found->header`; whether there was one.
int64_t step3_wire_take(step3_reader *reader, step3_found *found);

// Takes a frame of one of the rings, or looks which descriptors of `epoll` are ready; first again and again for
// `spin_ns`, then asleep until `timeout_ns` have passed (negative: for ever).
//   with_streams: frames also come over descriptors, so that spinning has to look at them as often.
//   keep_bells: somebody waits for `epoll` elsewhere, so that writers must ring even if nobody sleeps here.
void step3_wire_wait(step3_reader *const *readers, int64_t count, int64_t epoll, int64_t spin_ns, int64_t timeout_ns,
                     int64_t with_streams, int64_t keep_bells, step3_found *found);

// float32 or bfloat16 [tokens, hidden] to e4m3 with a scale for each token and 128 channels, and back.
void step3_wire_encode(const void *x, int64_t is_bfloat16, int64_t tokens, int64_t hidden, uint8_t *values,
                       float *scales);
void step3_wire_decode(const uint8_t *values, const float *scales, int64_t tokens, int64_t hidden, void *out,
                       int64_t is_bfloat16);

#ifdef __cplusplus
}
#endif
