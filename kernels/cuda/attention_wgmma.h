// What the attention kernels on Hopper's warpgroup instructions share: those instructions, barriers
// between warpgroups that load and warpgroups that compute, and tiles of rows as wgmma reads them.
//
// A tile is [ROWS, D] of 2-byte elements, D the head dimension padded to 64 or 128, kept as D / 64
// halves of [ROWS, 64]: rows of 128 bytes whose 8 chunks of 16 bytes are exchanged by the row's low
// bits, the hardware's swizzle. The same tile serves as an operand whose columns run along k (scores)
// and as one whose rows do (sums over keys or queries): the descriptor says which.
#pragma once
#include "attention_tile.h"
#include "tma.h"
#include "wgmma.h"

namespace {

using ptrdiff_t = decltype((char*)0 - (char*)0);
constexpr unsigned TEAM = 128;  // threads of a warpgroup

// --- Products: C [64, N] in registers, a thread's element 4 j + 2 h + i being row lane / 4 + 8 h of its
// warp's 16, column 8 j + lane % 4 * 2 + i.

#define EIGHT(kind, c, i) kind(c[i]), kind(c[i + 1]), kind(c[i + 2]), kind(c[i + 3]), kind(c[i + 4]), \
                          kind(c[i + 5]), kind(c[i + 6]), kind(c[i + 7])
#define SUMS_64(kind, c) EIGHT(kind, c, 0), EIGHT(kind, c, 8), EIGHT(kind, c, 16), EIGHT(kind, c, 24)
#define SUMS_128(kind, c) SUMS_64(kind, c), EIGHT(kind, c, 32), EIGHT(kind, c, 40), EIGHT(kind, c, 48), \
                          EIGHT(kind, c, 56)
#define NAMES_64 \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31}, "
#define NAMES_128 \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48," \
  "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "

#define WGMMA_ONTO(n, type, a, b, onto, ways) \
  "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " NAMES_##n a ", " b ", " onto ", 1, 1, " ways
#define PRODUCT(n, type, a, b, ways, A)                                                                          \
  if constexpr (ONTO)                                                                                            \
    asm volatile(WGMMA_ONTO(n, type, a, b, "1", ways) : SUMS_##n("+f", c) : A(x), "l"(y), "n"(B_ROWS));               \
  else                                                                                                           \
    asm volatile(WGMMA_ONTO(n, type, a, b, "0", ways) : SUMS_##n("=f", c) : A(x), "l"(y), "n"(B_ROWS))
// C = A B, or C += A B where ONTO, over 16 elements, asynchronously. B lies in shared memory, its columns
// running along k, or its rows where B_ROWS; A there too, or in registers as mma.h has it.
#define MULTIPLY(n, Operand, A, a, b, ways)                                    \
  template <class T, bool ONTO, int B_ROWS>                                    \
  DEVICE void multiply(float (&c)[n / 2], Operand x, unsigned long long y) {   \
    if constexpr (__is_same(T, bf16)) { PRODUCT(n, "bf16", a, b, ways, A); }   \
    else { PRODUCT(n, "f16", a, b, ways, A); }                                 \
  }
using Strip = unsigned[4];
#define DESCRIBED(x) "l"(x)
#define HELD(x) "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
MULTIPLY(64, unsigned long long, DESCRIBED, "%32", "%33", "0, %34;")
MULTIPLY(128, unsigned long long, DESCRIBED, "%64", "%65", "0, %66;")
MULTIPLY(64, const Strip&, HELD, "{%32,%33,%34,%35}", "%36", "%37;")
MULTIPLY(128, const Strip&, HELD, "{%64,%65,%66,%67}", "%68", "%69;")

// Descriptor of an operand in shared memory with 128-byte swizzle: groups of 8 rows are 1024 bytes
// apart; `halves` is the distance of halves where rows run along k.
DEVICE unsigned long long operand_at(unsigned address, unsigned halves) {
  return (unsigned long long)((address & 0x3ffff) >> 4) | (unsigned long long)(halves >> 4) << 16 |
         (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}
// Elements k .. k + 15 of all rows of a tile; these run along k.
template <int ROWS> DEVICE unsigned long long columns_along_k(unsigned tile, unsigned k) {
  return operand_at(tile + k / 64 * (ROWS * 128) + k % 64 * 2, ROWS * 128);
}
// Rows k .. k + 15 of a tile, with all columns; the rows run along k.
template <int ROWS> DEVICE unsigned long long rows_along_k(unsigned tile, unsigned k) {
  return operand_at(tile + k * 128, ROWS * 128);
}

// C [64, N] = A B^T over all D columns of both: A a tile of 64 rows, or a strip in registers, B one of N.
template <class T, int D, int N> DEVICE void scores(float (&c)[N / 2], unsigned a, unsigned b) {
  multiply<T, false, 0>(c, columns_along_k<64>(a, 0), columns_along_k<N>(b, 0));
  UNROLL for (unsigned k = 16; k < D; k += 16)
    multiply<T, true, 0>(c, columns_along_k<64>(a, k), columns_along_k<N>(b, k));
}
template <class T, int D, int N>
DEVICE void scores(float (&c)[N / 2], const Strip (&a)[D / 16], unsigned b) {
  multiply<T, false, 0>(c, a[0], columns_along_k<N>(b, 0));
  UNROLL for (unsigned k = 16; k < D; k += 16) multiply<T, true, 0>(c, a[k / 16], columns_along_k<N>(b, k));
}
// C [64, D] += A B over the N rows of tile B.
template <class T, int D, int N>
DEVICE void weigh(float (&c)[D / 2], const Strip (&a)[N / 16], unsigned b) {
  UNROLL for (unsigned k = 0; k < N; k += 16) multiply<T, true, 1>(c, a[k / 16], rows_along_k<N>(b, k));
}
// Sums [64, N] as operand A of the next product.
template <class T, int N> DEVICE void as_operands(Strip (&a)[N / 16], const float (&c)[N / 2]) {
  UNROLL for (int k = 0; k < N / 16; ++k)
    UNROLL for (int i = 0; i < 4; ++i) a[k][i] = pack2<T>(c[8 * k + 2 * i], c[8 * k + 2 * i + 1]);
}

// --- Teams: warpgroups of a block, one of which loads.

DEVICE unsigned team_of() { return __shfl_sync(0xffffffffu, threadIdx.x / TEAM, 0); }
// A barrier of the threads of one team, or of several.
DEVICE void team_barrier(unsigned which, unsigned threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(which), "r"(threads) : "memory");
}
DEVICE void team_arrive(unsigned which, unsigned threads) {
  asm volatile("bar.arrive %0, %1;" :: "r"(which), "r"(threads) : "memory");
}

// A ring of STAGES buffers. Threads of the loading team arrive at `full`, a lane of each computing warp at
// `free`: 8-byte barriers in shared memory, one of each for a stage.
template <int STAGES> struct Ring {
  static constexpr unsigned BYTES = 16 * STAGES;
  unsigned full, free;
  DEVICE explicit Ring(unsigned at) : full(at), free(at + 8 * STAGES) {}

  // By one thread, before a barrier of the block.
  DEVICE void start(unsigned warps) const {
    for (unsigned i = 0; i < STAGES; ++i) {
      barrier_init(full + 8 * i, TEAM);
      barrier_init(free + 8 * i, warps);
    }
  }
  static DEVICE void arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
  }
  DEVICE void wait_full(unsigned turn) const { barrier_wait(full + turn % STAGES * 8, turn / STAGES & 1); }
  DEVICE void wait_free(unsigned turn) const { barrier_wait(free + turn % STAGES * 8, (turn / STAGES & 1) ^ 1); }
  DEVICE bool is_free(unsigned turn) const {
    unsigned done;
    asm volatile(
        "{\n.reg .pred done;\nmbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done) : "r"(free + turn % STAGES * 8), "r"((turn / STAGES & 1) ^ 1) : "memory");
    return done != 0;
  }
  DEVICE void release(unsigned turn, bool done = true) const {
    if (lane_of() == 0 && done) arrive(free + turn % STAGES * 8);
  }

  template <int PENDING> DEVICE void announce(unsigned turn) const {
    copy_async_wait<PENDING>();
    to_matrix_units();
    arrive(full + turn % STAGES * 8);
  }
  // The loading team's work: load(turn) starts the copies to the stage of each turn. A thread makes what it
  // copied visible to wgmma and arrives while its next copies are under way, or before it waits for a
  // stage. (Computing teams that fence what they read, copies arriving by themselves, are as fast.)
  template <class Load> DEVICE void feed(unsigned turns, Load load) const {
    NO_UNROLL for (unsigned turn = 0; turn < turns; ++turn) {
      bool early = turn > 0 && !is_free(turn);
      if (early) announce<0>(turn - 1);
      wait_free(turn);
      load(turn);
      copy_async_commit();
      if (turn > 0 && !early) announce<1>(turn - 1);
    }
    announce<0>(turns - 1);
  }
};

// --- Moves

// 16 bytes to shared memory, of which `real` are read and the rest zero, as copy_async of mma.h.
DEVICE void copy_sixteen(unsigned to, const void* from, int real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real) : "memory");
}

// Copies rows of one head to tiles, by THREADS neighbouring threads: a thread takes the same chunk of every
// STEPth row, or one of either half. It goes on from where it was, which takes few registers: loading
// teams have 24.
template <class T, int D, int THREADS = int(TEAM)> struct Mover {
  static constexpr int STEP = THREADS / 8;
  const T* source;      // the thread's chunk of its next row
  size_t stride;        // between its rows
  unsigned line, rows;  // its next row, of `rows`
  unsigned count;       // elements of the head dimension from its chunk on
  bool packed;

  static DEVICE unsigned chunk() { return thread_x() % 8; }
  static DEVICE unsigned row() { return thread_x() % THREADS / 8; }

  DEVICE Mover(const Rows<const T>& from, unsigned first)
      : stride(from.stride * STEP), line(first + row()), rows(from.rows), packed(from.packed) {
    count = 8 * chunk() < from.d ? from.d - 8 * chunk() : 0;
    source = from.base + line * from.stride + 8 * chunk();
  }
  // Steps are taken one after the other: multiples of the stride would be kept in registers.
  DEVICE void skip(int steps) {
    source += steps * ptrdiff_t(stride);
    line += unsigned(steps * STEP);
    asm volatile("" : "+l"(source), "+r"(line));
  }

  // The next ROWS rows to a tile; zeros past the last.
  template <int ROWS> DEVICE void load(unsigned tile) {
    unsigned at = tile + row() * 128 + (chunk() ^ (row() & 7)) * 16;
    if (packed) {
      UNROLL for (unsigned i = 0; i < ROWS / STEP; ++i) {
        UNROLL for (unsigned half = 0; half < D / 64; ++half)
          copy_sixteen(at + half * (ROWS * 128) + i * STEP * 128, source + half * 64,
                       line < rows && count > half * 64 ? 16 : 0);
        skip(1);
      }
      return;
    }
    NO_UNROLL for (unsigned i = 0; i < ROWS / STEP; ++i) {
      NO_UNROLL for (unsigned e = 0; e < D; e += e % 8 == 6 ? 58 : 2) {
        unsigned pair = pair_of(source + e, line < rows && count > e ? count - e : 0u);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + e / 64 * (ROWS * 128) + e % 8 * 2), "r"(pair) : "memory");
      }
      at += STEP * 128;
      skip(1);
    }
  }
};

// Stores a warp's 16 rows of sums, scaled by row. `tile` is a tile of 64 rows that nobody else uses:
// in it rows are put together, so that whole ones go out.
template <class T, int D>
DEVICE void store_sums(const Rows<T>& to, unsigned first, unsigned tile, const float (&c)[D / 2], float low_rows,
                       float high_rows) {
  unsigned lane = lane_of(), g = lane / 4, t = lane % 4, top = warp_of() % 4 * 16;
  if (!to.packed) {
    UNROLL for (unsigned i = 0; i < D / 2; ++i) {
      unsigned row = first + g + i / 2 % 2 * 8, col = i / 4 * 8 + 2 * t + i % 2;
      if (row < to.rows && col < to.d) to.at(row)[col] = rounded<T>(c[i] * (i / 2 % 2 ? high_rows : low_rows));
    }
    return;
  }
  UNROLL for (unsigned j = 0; j < D / 8; ++j)
    UNROLL for (unsigned h = 0; h < 2; ++h) {
      float scale = h ? high_rows : low_rows;
      unsigned pair = pack2<T>(c[4 * j + 2 * h] * scale, c[4 * j + 2 * h + 1] * scale);
      unsigned at = tile + j / 8 * 8192 + (top + g + 8 * h) * 128 + ((j % 8) ^ g) * 16 + 4 * t;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pair) : "memory");
    }
  wave_barrier();
  UNROLL for (unsigned i = 0; i < D / 16; ++i) {
    unsigned cell = lane + 32 * i, row = cell / (D / 8), chunk = cell % (D / 8), x[4];
    unsigned at = tile + chunk / 8 * 8192 + (top + row) * 128 + ((chunk % 8) ^ (row & 7)) * 16;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
    if (first + row < to.rows && 8 * chunk < to.d)
      *reinterpret_cast<uint4*>(to.at(first + row) + 8 * chunk) = uint4{x[0], x[1], x[2], x[3]};
  }
}

}  // namespace
