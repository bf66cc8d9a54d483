// archs: 90a
// Matrix products of 16-bit types on Hopper's warpgroup instructions.
//
// A block of two warpgroups computes a tile 128 x 128 of C, 64 rows each; wgmma reads both operands from
// shared memory, where they lie 64 elements (128 bytes) wide with the hardware's swizzle, so that a
// warp issues one instruction where mma.sync wants 16 and their loads of fragments. Asynchronous 16-byte
// copies (cp.async) fill three buffers 64 deep; two blocks fit a multiprocessor, one computes while the other
// waits or stores. Operands may lie either way round, and one whose rows are not whole, aligned chunks
// is loaded element by element: tensor maps could not do that. Splits of k, sums of A's rows and what
// follows the product are as in gemm.cu beside this.
//
// Measured on an H200 before this kernel (mma.sync, 128 x 128 x 32): 244 TFLOP/s at 4096^3, 51200 x 512 x
// 128 with a GELU 95 us; the warps were busy with ldmatrix and with an epilogue that read the bias
// element by element.
#include "../gemm.h"
#include "mma.h"

namespace {

constexpr int BM = 128, BN = 128, BK = 64, STAGES = 3, THREADS = 256;
constexpr int TILE = 128 * BK * 2, STAGE = 2 * TILE;
constexpr int PITCH = BN + 8;

// A tile of 128 x 64 elements, either 128 rows of 64 along k ("k first"), or 64 rows along k of 128, then as
// two halves of 64 columns. Rows are 128 bytes, their 8 chunks exchanged by the row's low bits.
template <class T, bool K_FIRST> struct Tile {
  static DEVICE void load(char* to, const T* from, unsigned ld, int rows, int cols, bool packed) {
    constexpr int CHUNKS = K_FIRST ? 8 : 16;
    UNROLL for (int i = 0; i < 1024 / THREADS; ++i) {
      unsigned index = thread_x() + unsigned(i) * THREADS;
      unsigned row = index / CHUNKS, chunk = index % CHUNKS;
      bool inside = int(row) < rows && int(chunk * 8) < cols;
      const T* source = from + (inside ? size_t(row) * ld + chunk * 8 : 0);
      char* at = to + chunk / 8 * 8192 + row * 128 + ((chunk % 8) ^ (row & 7)) * 16;
      if (packed) {
        copy_async(at, source, inside);
      } else {
        Pack<T, 8> pack;
        UNROLL for (int e = 0; e < 8; ++e)
          pack.at[e] = inside && int(chunk * 8) + e < cols ? source[e] : T{0};
        *reinterpret_cast<Pack<T, 8>*>(at) = pack;
      }
    }
  }

  // Descriptor of the piece that starts at `line` (a multiple of 64) along m or n, and k.
  static DEVICE unsigned long long piece(const char* tile, unsigned line, unsigned k) {
    unsigned at = shared_address(tile) + (K_FIRST ? line * 128 + k * 2 : line / 64 * 8192 + k * 128);
    // Address, leading and stride offsets in 16 bytes; 128-byte swizzle.
    return (unsigned long long)((at & 0x3ffff) >> 4) | (unsigned long long)(8192 >> 4) << 16 |
           (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
  }
};

#define REGISTERS_8(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), \
                          "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define WGMMA(type)                                                                                     \
  asm volatile(                                                                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " "                                  \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
      "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,"    \
      "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, %66, %67;"      \
      : REGISTERS_8(c, 0), REGISTERS_8(c, 8), REGISTERS_8(c, 16), REGISTERS_8(c, 24),                   \
        REGISTERS_8(c, 32), REGISTERS_8(c, 40), REGISTERS_8(c, 48), REGISTERS_8(c, 56)                  \
      : "l"(a), "l"(b), "n"(A_T), "n"(B_T))

// C [64, 128] += A B, asynchronously. A_T: A lies along m; B_T: B lies along n.
template <class T, int A_T, int B_T>
DEVICE void multiply(float (&c)[64], unsigned long long a, unsigned long long b) {
  if constexpr (sizeof(T) == sizeof(bf16) && __is_same(T, bf16)) WGMMA("bf16");
  else WGMMA("f16");
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// What ordinary stores and cp.async put into shared memory is seen by wgmma after this.
DEVICE void to_matrix_units() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Sums over k of the rows of A, from the tile in shared memory: threads 0..127 take a row each.
template <class T, bool K_FIRST> DEVICE float row_sum(const char* tile) {
  float sum = 0.0f;
  unsigned row = thread_x();
  if (K_FIRST) {
    NO_UNROLL for (unsigned chunk = 0; chunk < 8; ++chunk) {
      float x[8];
      load_pack(x, reinterpret_cast<const T*>(tile + row * 128 + (chunk ^ (row & 7)) * 16));
      UNROLL for (int e = 0; e < 8; ++e) sum += x[e];
    }
  } else {
    const char* half = tile + row / 64 * 8192;
    unsigned chunk = row % 64 / 8, element = row % 8;
    UNROLL for (unsigned k = 0; k < BK; ++k)
      sum += value_of(reinterpret_cast<const T*>(half + k * 128 + (chunk ^ (k & 7)) * 16)[element]);
  }
  return sum;
}

template <class T> DEVICE bool whole_chunks(const T* x, unsigned ld, unsigned contiguous, unsigned batch_step) {
  return aligned(x, 16) && ld % 8 == 0 && contiguous % 8 == 0 && batch_step % 8 == 0;
}

// Stores the warp's 16 rows by way of shared memory.
template <class T>
DEVICE void store(const Gemm& p, const Operands& io, char* memory, float (&c)[64], unsigned row0, unsigned col0) {
  unsigned lane = thread_x() % 32, warp = thread_x() / 32;
  float* stage = reinterpret_cast<float*>(memory) + warp * 16 * PITCH;
  UNROLL for (int j = 0; j < 16; ++j) {
    float* at = stage + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(at) = float2{c[4 * j], c[4 * j + 1]};
    *reinterpret_cast<float2*>(at + 8 * PITCH) = float2{c[4 * j + 2], c[4 * j + 3]};
  }
  wave_barrier();
  unsigned splits = grid_y(), batch = block_z();
  size_t cells = size_t(p.batch) * p.m * p.n;
  Epilogue epilogue(p, io);
  bool packed = p.n % 8 == 0;
  unsigned top = row0 + warp * 16, col = col0 + lane % 16 * 8;
  unsigned count = col >= p.n ? 0 : p.n - col < 8 ? p.n - col : 8;
  float bias[8];
  epilogue.template load_bias<8>(col, count, bias);
  NO_UNROLL for (unsigned line = lane / 16; line < 16; line += 2) {
    if (top + line >= p.m || count == 0) continue;
    float x[8];
    UNROLL for (int e = 0; e < 8; e += 4) {
      float4 four = *reinterpret_cast<const float4*>(stage + line * PITCH + lane % 16 * 8 + e);
      x[e] = four.x, x[e + 1] = four.y, x[e + 2] = four.z, x[e + 3] = four.w;
    }
    size_t first = (size_t(batch) * p.m + top + line) * p.n + col;
    if (splits > 1) {
      store_split(split_products(io) + block_y() * cells + first, x, count, packed);
      continue;
    }
    UNROLL for (int e = 0; e < 8; ++e) x[e] += bias[e];
    epilogue.template finish<T, 8>(first, x, count, packed);
  }
}

template <class T, bool A_T, bool B_T> DEVICE void product(const Gemm& p, const Operands& io) {
  char* memory = reinterpret_cast<char*>((reinterpret_cast<size_t>(dynamic_shared()) + 1023) & ~size_t(1023));
  unsigned tiles_n = (p.n + BN - 1) / BN, tiles_m = (p.m + BM - 1) / BM;
  // Bands of 8 tile rows, walked column by column: neighbouring blocks share rows of A and columns
  // of B in the second-level cache.
  unsigned band = block_x() / (8 * tiles_n), inside = block_x() % (8 * tiles_n);
  unsigned rows = tiles_m - band * 8 < 8 ? tiles_m - band * 8 : 8;
  unsigned row0 = (band * 8 + inside % rows) * BM, col0 = inside / rows * BN;
  unsigned splits = grid_y(), share = ((p.k + splits - 1) / splits + BK - 1) / BK * BK;
  unsigned k0 = block_y() * share, k_end = k0 + share < p.k ? k0 + share : p.k;
  unsigned lda = A_T ? p.a_cs : p.a_rs, ldb = B_T ? p.b_rs : p.b_cs;
  const T* a = input<T>(io, 0) + size_t(block_z()) * p.a_bs;
  const T* b = input<T>(io, 1) + size_t(block_z()) * p.b_bs;
  bool packed_a = whole_chunks(a, lda, A_T ? p.m : p.k, p.a_bs);
  bool packed_b = whole_chunks(b, ldb, B_T ? p.n : p.k, p.b_bs);
  auto load = [&](unsigned step) {
    char* to = memory + step % STAGES * STAGE;
    unsigned k = k0 + step * BK;
    if (A_T) Tile<T, false>::load(to, a + size_t(k) * lda + row0, lda, int(k_end - k), int(p.m - row0), packed_a);
    else Tile<T, true>::load(to, a + size_t(row0) * lda + k, lda, int(p.m - row0), int(k_end - k), packed_a);
    if (B_T) Tile<T, false>::load(to + TILE, b + size_t(k) * ldb + col0, ldb, int(k_end - k), int(p.n - col0), packed_b);
    else Tile<T, true>::load(to + TILE, b + size_t(col0) * ldb + k, ldb, int(p.n - col0), int(k_end - k), packed_b);
  };
  bool wants_sums = (p.flags & GEMM_SUMS) != 0 && col0 == 0 && thread_x() < BM;
  float c[64], sum = 0.0f;
  UNROLL for (int i = 0; i < 64; ++i) c[i] = 0.0f;
  unsigned steps = k0 < k_end ? (k_end - k0 + BK - 1) / BK : 0;
  UNROLL for (unsigned s = 0; s < STAGES - 1; ++s) {
    if (s < steps) load(s);
    copy_async_commit();
  }
  unsigned group = thread_x() / 128;
  for (unsigned step = 0; step < steps; ++step) {
    copy_async_wait<STAGES - 2>();
    to_matrix_units();
    barrier();
    const char* tile_a = memory + step % STAGES * STAGE;
    products_begin();
    UNROLL for (unsigned k = 0; k < BK; k += 16)
      multiply<T, A_T, B_T>(c, Tile<T, !A_T>::piece(tile_a, group * 64, k), Tile<T, !B_T>::piece(tile_a + TILE, 0, k));
    products_commit();
    // The buffer of the step before: every warpgroup waited for its products before the barrier.
    if (step + STAGES - 1 < steps) load(step + STAGES - 1);
    copy_async_commit();
    if (wants_sums) sum += row_sum<T, !A_T>(tile_a);
    products_wait();
  }
  copy_async_wait<0>();
  barrier();
  if (splits > 1 && block_x() == 0 && block_y() == 0 && block_z() == 0 && thread_x() == 0)
    *static_cast<unsigned*>(io.workspace) = splits;
  store<T>(p, io, memory, c, row0, col0);
  if (wants_sums && row0 + thread_x() < p.m) {
    unsigned row = row0 + thread_x();
    size_t cells = size_t(p.batch) * p.m * p.n;
    if (splits > 1) split_products(io)[splits * cells + size_t(block_y()) * p.m + row] = sum;
    else Epilogue::sums(p, io).put(row, sum, p.flags & GEMM_SUMS_ACCUMULATE);
  }
}

template <class T> DEVICE void gemm_nt_wgmma(const Gemm& p, const Operands& io) { product<T, false, false>(p, io); }
template <class T> DEVICE void gemm_nn_wgmma(const Gemm& p, const Operands& io) { product<T, false, true>(p, io); }
template <class T> DEVICE void gemm_tn_wgmma(const Gemm& p, const Operands& io) { product<T, true, true>(p, io); }

}  // namespace

// Two blocks a multiprocessor: 128 registers a thread.
#define NAMED(name, type)                                                                              \
  GLOBAL void __launch_bounds__(THREADS, 2) name##_##type(ARGUMENT Gemm p, ARGUMENT Operands io) {     \
    after_previous();                                                                                  \
    name<type>(p, io);                                                                                 \
  }
#define HALVES(name) NAMED(name, bf16) NAMED(name, f16)
HALVES(gemm_nt_wgmma)
HALVES(gemm_nn_wgmma)
HALVES(gemm_tn_wgmma)
