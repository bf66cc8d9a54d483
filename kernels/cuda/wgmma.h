// Hopper's warpgroup products: four warps multiply tiles that lie in shared memory.
#pragma once
#include "mma.h"

#define REGISTERS_8(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), \
                          "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define REGISTERS_32(c, i) REGISTERS_8(c, i), REGISTERS_8(c, i + 8), REGISTERS_8(c, i + 16), REGISTERS_8(c, i + 24)
#define NUMBERS_32                                                                                    \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"    \
  "%26,%27,%28,%29,%30,%31"
#define NUMBERS_64                                                                                    \
  NUMBERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"  \
  "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NUMBERS_96                                                                                    \
  NUMBERS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,"  \
  "%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NUMBERS_128                                                                                   \
  NUMBERS_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,"     \
  "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// `columns` of B, and after the numbers of the accumulators those of both pieces, of whether to add, and
// of which way round A and B lie. The upper half of every descriptor is the same: a stride of 1024 bytes
// between groups of 8 rows, swizzled by 128 bytes.
#define WGMMA(columns, type, numbers, a_at, b_at, add_at, a_t, b_t, ...)                              \
  asm volatile(                                                                                       \
      "{.reg .pred add; .reg .b64 a, b; setp.ne.b32 add, " add_at ", 0; "                             \
      "mov.b64 a, {" a_at ", 0x40000040}; mov.b64 b, {" b_at ", 0x40000040}; "                        \
      "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" numbers "}, a, b, "   \
      "add, 1, 1, " a_t ", " b_t ";}"                                                                 \
      : __VA_ARGS__                                                                                   \
      : "r"(a), "r"(b), "r"(unsigned(add)), "n"(A_T), "n"(B_T))
#define WGMMA_8(type) WGMMA("8", type, "%0,%1,%2,%3", "%4", "%5", "%6", "%7", "%8",                    \
                            "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]))
#define WGMMA_64(type) WGMMA("64", type, NUMBERS_32, "%32", "%33", "%34", "%35", "%36", REGISTERS_32(c, 0))
#define WGMMA_128(type) WGMMA("128", type, NUMBERS_64, "%64", "%65", "%66", "%67", "%68",             \
                              REGISTERS_32(c, 0), REGISTERS_32(c, 32))
#define WGMMA_192(type) WGMMA("192", type, NUMBERS_96, "%96", "%97", "%98", "%99", "%100",            \
                              REGISTERS_32(c, 0), REGISTERS_32(c, 32), REGISTERS_32(c, 64))
#define WGMMA_256(type) WGMMA("256", type, NUMBERS_128, "%128", "%129", "%130", "%131", "%132",       \
                              REGISTERS_32(c, 0), REGISTERS_32(c, 32), REGISTERS_32(c, 64), REGISTERS_32(c, 96))

// C [64, 2 N] = A B, or += where `add`, asynchronously; `a` and `b` describe pieces 16 deep. A_T: A
// lies along m; B_T: B lies along n. Warp w of the four has rows 16 w ..: a lane c[4 j ..] in rows lane / 4 (two)
// and lane / 4 + 8 (two), columns 8 j + lane % 4 * 2 and the next.
template <class T, int A_T, int B_T, int N>
DEVICE void multiply(float (&c)[N], unsigned a, unsigned b, bool add) {
  static_assert(N == 4 || N == 32 || N == 64 || N == 96 || N == 128, "columns of a product");
  if constexpr (__is_same(T, bf16)) {
    if constexpr (N == 4) WGMMA_8("bf16");
    else if constexpr (N == 32) WGMMA_64("bf16");
    else if constexpr (N == 64) WGMMA_128("bf16");
    else if constexpr (N == 96) WGMMA_192("bf16");
    else WGMMA_256("bf16");
  } else {
    if constexpr (N == 4) WGMMA_8("f16");
    else if constexpr (N == 32) WGMMA_64("f16");
    else if constexpr (N == 64) WGMMA_128("f16");
    else if constexpr (N == 96) WGMMA_192("f16");
    else WGMMA_256("f16");
  }
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `PENDING` groups of products are under way.
template <int PENDING = 0> DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}
// What ordinary stores and cp.async put into shared memory is seen by wgmma and by the copy engine
// after this.
DEVICE void to_matrix_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Describes a piece of a tile that lies in rows of 128 bytes with the hardware's swizzle, at a shared
// `address`: rows along m or n of 64 elements along k ("k first"), or rows along k of 64 along m or
// n, the next 64 of them 8192 bytes further. The lower half of a descriptor: address and leading offset
// in 16 bytes; 1 more is 16 bytes further.
DEVICE unsigned piece_at(unsigned address) { return (address & 0x3ffff) >> 4 | (8192 >> 4) << 16; }
