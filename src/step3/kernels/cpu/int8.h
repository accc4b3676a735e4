// Products of 8-bit integers (W8A8): block-fp8 weights times many rows, where the caller allows that activations
// are quantised. One instruction makes twice as many products as of bf16.
//
// A panel of fp8 becomes one of int8 while it is in the cache: a value's magnitude is looked up, 448 becomes 127.
// That is a step of a 127th of the block's largest weight, a third of what fp8 itself lost. Activations get a
// scale for each row and 128 columns, as the weights' blocks do.
//
// Sums of integers are exact, and float32 sums go block after block: a row does not depend on those beside it.
#pragma once
#include "narrow.h"
#include "panels.h"

namespace step3 {

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
constexpr float INT8_OF_FP8 = 127.f / 448.f;

struct Int8Table {
    alignas(64) uint8_t magnitudes[128];
    Int8Table() {
        for (int i = 0; i < 127; i++) magnitudes[i] = (uint8_t)(float_of_bf16(bf16_of_fp8((uint8_t)i)) * INT8_OF_FP8 + 0.5f);
        magnitudes[127] = 127;  // NaN
    }
};
static const Int8Table int8_table;

struct Int8Narrower {
    __m512i first = _mm512_load_si512(int8_table.magnitudes), second = _mm512_load_si512(int8_table.magnitudes + 64);

    __m512i operator()(const char *group) const {
        const __m512i bytes = _mm512_loadu_si512(group);
        const __m512i magnitudes = _mm512_permutex2var_epi8(first, bytes, second);
        return _mm512_mask_sub_epi8(magnitudes, _mm512_movepi8_mask(bytes), _mm512_setzero_si512(), magnitudes);
    }
};
#endif
}  // namespace step3
