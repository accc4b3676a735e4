// The library's plain C interface, as step3/kernels/cpu/library.py declares it to ctypes.
// Sizes are in elements, strides too, unless a name says bytes. "float" is float32; bf16 is its upper half.
#pragma once
#include <cstdint>

extern "C" {

// Rows of a matrix as they are stored, or those of the first of a stack of experts.
enum { STEP3_BF16 = 0, STEP3_F32 = 1, STEP3_F16 = 2, STEP3_FP8 = 3 };
struct step3_source {
    const void *data;
    int64_t rows;
    int64_t stride;  // from row to row
    int64_t type;
    const float *scales;  // of blocks of 128 x 128, for FP8
    int64_t scale_stride;
    int64_t expert_stride, expert_scales;  // from expert to expert
};

// Sources below each other, or two of equally many rows strip by strip where `interleave` is set.
struct step3_stored {
    step3_source sources[3];
    int64_t count, columns, interleave;
};

// A matrix [rows, columns] of weights as the kernels read it: see factor.h. A stack of experts is one matrix
// behind the other, each of `bytes` bytes and `num_scales` scales.
struct step3_matrix {
    const char *panels;
    const float *scales;         // null for bf16; else [panel][128 columns][2 strips]
    int64_t num_panels;          // of 32 rows
    int64_t pairs;               // of columns, padded
    int64_t rows;                // that count; the last panel may have more
    int64_t bytes;
    int64_t num_scales;
    const step3_stored *stored;  // null, or where the weights stay: then panels and scales are its first source's
    int64_t integers;            // bits of the integers that products of many rows may be of, or 0 (narrow.h)
    int64_t may_be_nan;          // whether a value of block-fp8 may be NaN and has to be looked for (FP8_SHOWS_NAN)
};

// A linear layer of the vision tower. The bias is as long as all panels, zeros where there is none.
struct step3_dense {
    step3_matrix weight;
    const float *bias;
};

// What of a layer the attention side holds. Norms and router are float32, router [experts, hidden] or null.
struct step3_attention {
    const float *input_norm, *inter_norm, *ffn_norm, *router;
    step3_matrix qkv, wq, o_proj;
};

struct step3_shape {
    int64_t hidden, share_q, heads, head_dim, experts, top_k, renormalise, block_size, kv_fp8;
    float eps, scale;
};

// Rows of a step's tokens that a picture fills, and what with.
struct step3_features {
    const int64_t *rows;   // [count]
    const float *values;   // [count, hidden]
    int64_t count;
};

// The tokens of a step, sequence by sequence; those of a sequence are its last ones.
struct step3_batch {
    int64_t tokens, sequences;
    const int64_t *ids;          // [tokens]
    const int64_t *lengths;      // [sequences] new tokens
    const int64_t *contexts;     // [sequences] all tokens
    const int64_t *tables;       // [.., table_stride] blocks
    const int64_t *table_rows;   // [sequences]
    int64_t table_stride;
    const int64_t *scored;       // [num_scored] rows that go through the head
    int64_t num_scored;
    const step3_features *features;
    int64_t num_features;
    // What `step3_begin` makes of these, in memory that the caller gives; `step3_step` has its own.
    int64_t *slots;              // [tokens]
    float *cos, *sin;            // [tokens, head_dim / 2]
    float *hidden;               // [tokens, hidden]
};

struct step3_ffn {
    step3_matrix always_gate_up, always_down;  // panels null: none
    step3_matrix gate_up, down;                // of the first expert
    int64_t first, experts, hidden;
};

// To be called once before anything else; 0 where the system does not let this library run.
int64_t step3_prepare();

struct Workspace;
Workspace *step3_workspace_new();
void step3_workspace_free(Workspace *);

void *step3_allocate(int64_t bytes);
void step3_free(void *memory, int64_t bytes);

// Packs a matrix, or a stack of `experts`. `mapped`: the sources are pages of a mapped file; they are read
// ahead, and given back when they are done. Returns what belongs into `may_be_nan`.
int64_t step3_pack(const step3_stored *from, const step3_matrix *to, int64_t experts, int64_t mapped, int64_t threads);

// out [rows, matrix rows] float = x [.., columns] bf16 times the matrix, transposed; of the rows `chosen`, or null for the
// first ones.
void step3_linear(Workspace *, int64_t threads, const step3_matrix *, const uint16_t *x, const int64_t *chosen,
                  int64_t rows, int64_t columns, float *out);

// out [rows, matrix rows] bf16 = the same of all rows, plus the bias.
void step3_dense_forward(Workspace *, int64_t threads, const step3_dense *, const uint16_t *x, int64_t rows, int64_t columns,
                         uint16_t *out);

// out [rows, num_weights] float = x [rows, columns] float times weights [num_weights, columns] float, transposed.
void step3_linear_float(int64_t threads, const float *x, int64_t rows, int64_t columns, const float *weights,
                        int64_t num_weights, float *out);

// out [pictures, length, hidden] bf16 = out_proj of attention of every row of x, the same shape, to all rows of its picture. qkv gives
// queries, keys and values, each of them head by head, of an even size.
void step3_picture_attention(Workspace *, int64_t threads, const step3_dense *qkv, const step3_dense *out_proj, const uint16_t *x,
                             int64_t pictures, int64_t length, int64_t heads, uint16_t *out);

// out [rows, hidden] bf16 = second(y * sigmoid(1.702 y)), y = first(x), of x [rows, hidden] bf16.
void step3_picture_mlp(Workspace *, int64_t threads, const step3_dense *first, const step3_dense *second, const uint16_t *x,
                       int64_t rows, uint16_t *out);

// The batch's hidden states += answer (bf16, or null), then += attention. Writes normed x (bf16), and
// ids [tokens, top_k] and weights where the layer has a router.
void step3_attend_layer(Workspace *, int64_t threads, const step3_shape *, const step3_attention *,
                        const step3_batch *, char *keys, char *values, const uint16_t *answer, uint16_t *x, int64_t *ids,
                        float *weights);

// out [tokens, hidden] bf16 = the part of the FFN that the weights hold.
void step3_ffn_forward(Workspace *, int64_t threads, const step3_ffn *, const uint16_t *x, int64_t tokens,
                       const int64_t *ids, const float *weights, int64_t top_k, uint16_t *out);

// tokens [rows] = a draw of each row of logits [rows, vocab], by blocks of `block` ids; best is the largest of
// each row. A row whose best is not finite gives 0.
void step3_draw(int64_t threads, const float *logits, int64_t rows, int64_t vocab, int64_t block,
                const float *best, const float *temperature, const int64_t *seeds, const int64_t *streams,
                const int64_t *positions, int64_t *tokens);

// best, tokens [rows] = the largest of each row of logits [rows, vocab] and where it is, the first of equals; of a row
// that has a NaN it is the best.
void step3_likeliest(int64_t threads, const float *logits, int64_t rows, int64_t vocab, float *best, int64_t *tokens);

struct step3_layer {
    const step3_attention *attention;
    const step3_ffn *ffn;  // null where another process has it
    char *keys, *values;
};

// All that a step goes through, from tokens to logits.
struct step3_network {
    step3_shape shape;
    const step3_layer *layers;
    int64_t num_layers;
    const uint16_t *embedding;  // [vocabulary, hidden] bf16
    const float *frequencies;   // [head_dim / 2]
    float factor;               // of cosines and sines
    const float *final_norm;    // [hidden]
    step3_matrix head;
};

// The tokens' slots, the cosines and sines of their positions' angles, and their embeddings or pictures' features.
void step3_begin(int64_t threads, const step3_network *, const step3_batch *);

// What the last layer's answer makes of the hidden states, as far as it is asked for (not null): normed [tokens, hidden]
// bf16 after the final norm; and of the scored rows logits [num_scored, vocabulary], and the likeliest token of each,
// the first of equals, -1 where the best logit is no finite number.
void step3_end(Workspace *, int64_t threads, const step3_network *, const step3_batch *, const uint16_t *answer,
               uint16_t *normed, float *logits, int64_t *likeliest);

// `step3_begin`, all layers one after the other (`step3_attend_layer` and `step3_ffn_forward` by turns), and `step3_end`,
// where attention and FFNs share a process: without a caller in between. If normed is null and few tokens are scored, the last
// layer is computed for those, and for the other tokens' keys and values.
void step3_step(Workspace *, int64_t threads, const step3_network *, const step3_batch *, uint16_t *normed, float *logits,
                int64_t *likeliest);

// Attention alone, for tests and the benchmark: query [tokens, heads * head_dim] float.
void step3_write_kv(const step3_shape *, int64_t tokens, const float *key, const float *value,
                    int64_t stride, const int64_t *slots, char *keys, char *values);
void step3_attend(Workspace *, int64_t threads, const step3_shape *, const step3_batch *, const char *keys,
                  const char *values, const float *query, float *out);

// The limits of this machine: GB/s read by all threads, and GFLOP/s of the widest product, of integers where `integers` allows what
// step3_matrix does and they are wider.
double step3_read_bandwidth(const char *memory, int64_t bytes, int64_t threads);
double step3_peak_flops(int64_t threads, double seconds, int64_t integers);
}
