// The matrix unit (AMX): eight registers, tiles of 16 lines of 64 bytes. One instruction multiplies 16 rows of 16
// pairs with 16 pairs of 16 columns and adds to 16 x 16 float32 sums, 8,192 products in 16 cycles; vdpbf16ps
// does 32. It takes as long for fewer pairs, and hardly less for fewer rows.
//
// The even products of the 16 pairs are summed, the odd ones too, then both are added to what was there: a row's
// sums do not depend on the rows beside it.
#pragma once
#include <cstdint>
#include "vectors.h"
#if defined(__AMX_BF16__)
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace step3 {

#if defined(__AMX_BF16__)
constexpr bool HAS_AMX = true;
constexpr int REGISTER_ROWS = 16;
constexpr int REGISTER_LINE = 64;  // bytes

// Asks the kernel for the registers, whose contents it has to keep for each thread; false if it has none.
static inline bool request_matrix_unit() {
    constexpr long XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// The registers' shapes, as ldtilecfg takes them: all of 16 lines. 0 to 3 are sums, 4 and 5 rows, 6 and 7 strips.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    Shapes() {
        for (int i = 0; i < 8; i++) bytes[i] = REGISTER_LINE, rows[i] = REGISTER_ROWS;
    }
    void load() const { asm volatile("ldtilecfg %0" ::"m"(*this) : "memory"); }
};
static const Shapes SHAPES;

// While one of them lives its thread can use the registers.
struct MatrixUnit {
    MatrixUnit() { SHAPES.load(); }
    ~MatrixUnit() { asm volatile("tilerelease" ::: "memory"); }
    MatrixUnit(const MatrixUnit &) = delete;
    MatrixUnit &operator=(const MatrixUnit &) = delete;
};

// Not the compiler's intrinsics: those do not say that they read memory, and it moves stores behind them.
template <int R>
static inline __attribute__((always_inline)) void load_register(const void *from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(R) : "memory");
}
// The same of what is not loaded again soon: it does not push what is out of the first-level cache.
template <int R>
static inline __attribute__((always_inline)) void load_passing(const void *from, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(R) : "memory");
}
template <int R>
static inline __attribute__((always_inline)) void store_register(void *to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(R) : "memory");
}
template <int R>
static inline __attribute__((always_inline)) void clear_register() {
    asm volatile("tilezero %%tmm%c0" ::"i"(R));
}
// sums += rows times strip
template <int SUMS, int A, int B>
static inline __attribute__((always_inline)) void multiply_registers() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}
// The same of signed bytes, four to a sum.
template <int SUMS, int A, int B>
static inline __attribute__((always_inline)) void multiply_bytes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}
#else
constexpr bool HAS_AMX = false;
static inline bool request_matrix_unit() { return true; }
struct MatrixUnit {
    // Not trivial: a variable that nobody reads is one on purpose.
    MatrixUnit() {}
    ~MatrixUnit() {}
};
#endif
}  // namespace step3
