// Matrix products of 16-bit types, and of f32 rounded to TF32, on the matrix units of sm_80 and newer, by
// mma.sync and cp.async.
//
// A block computes a tile BM x BN of C, its warps WM x WN each. Tiles of A and B, BK deep, come to shared
// memory through STAGES buffers of asynchronous copies; 16-byte chunks are placed by an exclusive-or
// of row and chunk, so that neither the copies nor ldmatrix meet in a bank. Operands may lie either
// way round: ldmatrix transposes where needed; what is of 32 bits it cannot transpose, that is read element
// by element, and rounded by each warp that reads it. An operand whose rows are not whole, aligned chunks
// (129 channels) is loaded element by element. C passes through shared memory to be stored 16 bytes at a time, with
// everything that follows the product done on the way.
//
// Sums over a long k (gradients of weights: k is batch times time) are split among blocks along the
// grid's y and put together by gemm_end. The bias' gradient, the sums of A's rows, is one more column of
// the product, with a B of ones.
#include "../gemm.h"
#include "mma.h"

namespace {

// ROWS x COLS elements, COLS contiguous in memory, as chunks of 16 bytes in shared memory. `BY_ELEMENT`: the
// rows lie along k and are read so.
template <class T, int ROWS, int COLS, int THREADS, bool BY_ELEMENT> struct Tile {
  static constexpr int CHUNK = PACK<T>, CHUNKS = COLS / CHUNK;
  static constexpr int BYTES = ROWS * COLS * int(sizeof(T));

  // Byte at which a chunk lies. 8 rows at one chunk column, and 8 chunks of one row, are in
  // different banks; or, by element, 2 neighbouring chunks of 4 rows.
  static DEVICE unsigned at(unsigned row, unsigned chunk) {
    unsigned turn = CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? (row >> 1) & 3 : (row >> 2) & 1;
    if (BY_ELEMENT) turn = (row & 3) * 2;
    return (row * CHUNKS + (chunk ^ turn)) * 16;
  }
  static_assert(!BY_ELEMENT || CHUNKS >= 8, "turns stay in a row");

  // What a lane reads of 8 columns of 4 rows.
  static DEVICE unsigned element(const char* memory, unsigned row, unsigned col) {
    return *reinterpret_cast<const unsigned*>(memory + at(row, col / CHUNK) + col % CHUNK * 4);
  }

  // `rows` and `cols` of them exist; the others become 0. `packed`: whole chunks can be copied.
  static DEVICE void load(char* to, const T* from, unsigned ld, int rows, int cols, bool packed) {
    UNROLL for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
      unsigned index = thread_x() + unsigned(i) * THREADS;
      unsigned row = index / CHUNKS, chunk = index % CHUNKS;
      bool inside = int(row) < rows && int(chunk * CHUNK) < cols;
      const T* source = from + (inside ? size_t(row) * ld + chunk * CHUNK : 0);
      if (packed) {
        copy_async(to + at(row, chunk), source, inside);
      } else {
        Pack<T, CHUNK> pack;
        UNROLL for (int e = 0; e < CHUNK; ++e)
          pack.at[e] = inside && int(chunk * CHUNK) + e < cols ? source[e] : T{0};
        *reinterpret_cast<Pack<T, CHUNK>*>(to + at(row, chunk)) = pack;
      }
    }
  }
};

template <class T> DEVICE bool whole_chunks(const T* x, unsigned ld, unsigned contiguous, unsigned batch_step) {
  return aligned(x, 16) && ld % PACK<T> == 0 && contiguous % PACK<T> == 0 && batch_step % PACK<T> == 0;
}

template <class T, int BM, int BN, int BK, int WARPS_M, int WARPS_N, int STAGES, bool A_T, bool B_T>
struct Product {
  static constexpr int THREADS = WARPS_M * WARPS_N * 32;
  static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
  static constexpr int MI = WM / 16, NI = WN / 8;
  static constexpr bool IS_TF32 = sizeof(T) == 4;
  // A_T: A is stored [k, m]; B_T: B is stored [n, k].
  using TileA = Tile<T, A_T ? BK : BM, A_T ? BM : BK, THREADS, IS_TF32 && A_T>;
  using TileB = Tile<T, B_T ? BN : BK, B_T ? BK : BN, THREADS, IS_TF32 && !B_T>;
  static constexpr int STAGE = TileA::BYTES + TileB::BYTES;

  const Gemm& p;
  const T *a, *b;
  unsigned lda, ldb, row0, col0, k_end;
  bool packed_a, packed_b;
  float c[MI][NI][4];
  float sums[MI][4];
  bool wants_sums;

  DEVICE void load(char* memory, unsigned k) const {
    if (A_T) TileA::load(memory, a + size_t(k) * lda + row0, lda, int(k_end - k), int(p.m - row0), packed_a);
    else TileA::load(memory, a + size_t(row0) * lda + k, lda, int(p.m - row0), int(k_end - k), packed_a);
    char* memory_b = memory + TileA::BYTES;
    if (B_T) TileB::load(memory_b, b + size_t(col0) * ldb + k, ldb, int(p.n - col0), int(k_end - k), packed_b);
    else TileB::load(memory_b, b + size_t(k) * ldb + col0, ldb, int(k_end - k), int(p.n - col0), packed_b);
  }

  // Rows m .. m + 15 of A, one instruction's depth from k on.
  DEVICE void read_a(unsigned (&to)[4], const char* memory, unsigned m, unsigned k) const {
    unsigned lane = thread_x() % 32, g = lane / 4, t = lane % 4;
    if constexpr (IS_TF32 && A_T) {
      UNROLL for (int i = 0; i < 4; ++i) to[i] = TileA::element(memory, k + t + i / 2 * 4, m + g + i % 2 * 8);
    } else if constexpr (A_T) {
      load_matrices_transposed(to, memory + TileA::at(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
    } else {
      load_matrices(to, memory + TileA::at(m + lane % 16, k / TileA::CHUNK + lane / 16));
    }
    round(to);
  }

  // The same of columns n .. n + 15 of B, 8 of them in two registers.
  DEVICE void read_b(unsigned (&to)[4], const char* memory, unsigned n, unsigned k) const {
    unsigned lane = thread_x() % 32, g = lane / 4, t = lane % 4;
    if constexpr (B_T) {
      load_matrices(to, memory + TileB::at(n + lane % 8 + lane / 16 * 8, k / TileB::CHUNK + lane / 8 % 2));
    } else if constexpr (IS_TF32) {
      UNROLL for (int i = 0; i < 4; ++i) to[i] = TileB::element(memory, k + t + i % 2 * 4, n + g + i / 2 * 8);
    } else {
      load_matrices_transposed(to, memory + TileB::at(k + lane % 16, n / 8 + lane / 16));
    }
    round(to);
  }

  static DEVICE void round(unsigned (&x)[4]) {
    if constexpr (IS_TF32) UNROLL for (int i = 0; i < 4; ++i) x[i] = tf32_of(float_of(x[i]));
  }

  DEVICE void multiply(const char* memory, unsigned warp_m, unsigned warp_n) {
    const char* memory_b = memory + TileA::BYTES;
    UNROLL for (int k = 0; k < BK; k += 32 / int(sizeof(T))) {
      unsigned fa[MI][4], fb[NI / 2][4];
      UNROLL for (int i = 0; i < MI; ++i) read_a(fa[i], memory, warp_m * WM + unsigned(i) * 16, unsigned(k));
      UNROLL for (int j = 0; j < NI / 2; ++j)
        read_b(fb[j], memory_b, warp_n * WN + unsigned(j) * 16, unsigned(k));
      UNROLL for (int i = 0; i < MI; ++i) {
        UNROLL for (int j = 0; j < NI; ++j) {
          unsigned pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
          mma<T>(c[i][j], fa[i], pair);
        }
      }
      if (wants_sums) {
        unsigned one = ones_of<T>(), ones[2] = {one, one};
        UNROLL for (int i = 0; i < MI; ++i) mma<T>(sums[i], fa[i], ones);
      }
    }
  }

  DEVICE void run(char* memory, unsigned k0, unsigned warp_m, unsigned warp_n) {
    UNROLL for (int i = 0; i < MI; ++i) {
      UNROLL for (int e = 0; e < 4; ++e) sums[i][e] = 0.0f;
      UNROLL for (int j = 0; j < NI; ++j) {
        UNROLL for (int e = 0; e < 4; ++e) c[i][j][e] = 0.0f;
      }
    }
    unsigned steps = k0 < k_end ? (k_end - k0 + BK - 1) / BK : 0;
    UNROLL for (int s = 0; s < STAGES - 1; ++s) {
      if (unsigned(s) < steps) load(memory + s * STAGE, k0 + unsigned(s) * BK);
      copy_async_commit();
    }
    for (unsigned step = 0; step < steps; ++step) {
      copy_async_wait<STAGES - 2>();
      barrier();
      unsigned next = step + STAGES - 1;
      if (next < steps) load(memory + next % STAGES * STAGE, k0 + next * BK);
      copy_async_commit();
      multiply(memory + step % STAGES * STAGE, warp_m, warp_n);
    }
    copy_async_wait<0>();
    barrier();
  }

  static constexpr int PITCH = WN + 4;
  static constexpr int PASSAGE = THREADS / 32 * WM * PITCH * 4;

  // Stores the warp's part by way of shared memory of its own. One loop that is not unrolled: what
  // follows a product is long.
  DEVICE void store(char* memory, const Operands& io, unsigned warp_m, unsigned warp_n) {
    constexpr int LANES = WN / 8, ROWS = 32 / LANES;
    unsigned lane = thread_x() % 32, warp = thread_x() / 32;
    float* stage = reinterpret_cast<float*>(memory) + warp * WM * PITCH;
    UNROLL for (int i = 0; i < MI; ++i) {
      UNROLL for (int j = 0; j < NI; ++j) {
        float* at = stage + (unsigned(i) * 16 + lane / 4) * PITCH + j * 8 + lane % 4 * 2;
        at[0] = c[i][j][0], at[1] = c[i][j][1];
        at[8 * PITCH] = c[i][j][2], at[8 * PITCH + 1] = c[i][j][3];
      }
    }
    wave_barrier();
    unsigned splits = grid_y(), batch = block_z();
    size_t cells = size_t(p.batch) * p.m * p.n;
    float* split = splits > 1 ? split_products(io) : nullptr;
    if (split && block_x() == 0 && block_y() == 0 && batch == 0 && thread_x() == 0)
      *static_cast<unsigned*>(io.workspace) = splits;
    Epilogue epilogue(p, io);
    bool packed = p.n % 8 == 0;
    unsigned top = row0 + warp_m * WM, col = col0 + warp_n * WN + lane % LANES * 8;
    unsigned count = col >= p.n ? 0 : p.n - col < 8 ? p.n - col : 8;
    float bias[8];
    epilogue.template load_bias<8>(col, count, bias);
    UNROLL_BY(2) for (unsigned line = lane / LANES; line < WM; line += ROWS) {
      if (top + line >= p.m || count == 0) continue;
      float x[8];
      UNROLL for (int e = 0; e < 8; ++e) x[e] = stage[line * PITCH + lane % LANES * 8 + e];
      size_t first = (size_t(batch) * p.m + top + line) * p.n + col;
      if (split) {
        store_split(split + block_y() * cells + first, x, count, packed);
        continue;
      }
      UNROLL for (int e = 0; e < 8; ++e) x[e] += bias[e];
      epilogue.template finish<T, 8>(first, x, count, packed);
    }
    if (!wants_sums || lane % 4 != 0) return;
    UNROLL for (int i = 0; i < 2 * MI; ++i) {
      unsigned row = top + unsigned(i) * 8 + lane / 4;
      if (row >= p.m) continue;
      if (split) split[splits * cells + size_t(block_y()) * p.m + row] = sums[i / 2][i % 2 * 2];
      else Epilogue::sums(p, io).put(row, sums[i / 2][i % 2 * 2], p.flags & GEMM_SUMS_ACCUMULATE);
    }
  }
};

// Dynamic shared memory, as src/ops/gemm.rs plans it.
template <int BN> constexpr int SHARED_BYTES = BN == 128 ? 73728 : BN == 64 ? 32768 : 49152;

// DEPTH: of a tile, in elements of 16 bits.
template <class T, int BM, int BN, int DEPTH, int WARPS_M, int WARPS_N, int STAGES, bool A_T, bool B_T>
DEVICE void product(const Gemm& p, const Operands& io) {
  constexpr int BK = DEPTH * 2 / int(sizeof(T));
  using P = Product<T, BM, BN, BK, WARPS_M, WARPS_N, STAGES, A_T, B_T>;
  static_assert(SHARED_BYTES<BN> >= STAGES * P::STAGE && SHARED_BYTES<BN> >= P::PASSAGE, "as planned");
  char* memory = dynamic_shared();
  unsigned tiles_n = (p.n + BN - 1) / BN, tiles_m = (p.m + BM - 1) / BM;
  // Bands of 8 tile rows, walked column by column: neighbouring blocks share rows of A and columns
  // of B in the second-level cache.
  unsigned band = block_x() / (8 * tiles_n), inside = block_x() % (8 * tiles_n);
  unsigned rows = tiles_m - band * 8 < 8 ? tiles_m - band * 8 : 8;
  unsigned splits = grid_y();
  unsigned share = ((p.k + splits - 1) / splits + BK - 1) / BK * BK, k0 = block_y() * share;
  P tile{p};
  tile.lda = A_T ? p.a_cs : p.a_rs;
  tile.ldb = B_T ? p.b_cs : p.b_rs;
  tile.a = input<T>(io, 0) + size_t(block_z()) * p.a_bs;
  tile.b = input<T>(io, 1) + size_t(block_z()) * p.b_bs;
  tile.row0 = (band * 8 + inside % rows) * BM;
  tile.col0 = inside / rows * BN;
  tile.k_end = k0 + share < p.k ? k0 + share : p.k;
  tile.packed_a = whole_chunks(tile.a, tile.lda, A_T ? p.m : p.k, p.a_bs);
  tile.packed_b = whole_chunks(tile.b, tile.ldb, B_T ? p.k : p.n, p.b_bs);
  unsigned warp = thread_x() / 32, warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
  tile.wants_sums = (p.flags & GEMM_SUMS) != 0 && tile.col0 == 0 && warp_n == 0;
  tile.run(memory, k0, warp_m, warp_n);
  tile.store(memory, io, warp_m, warp_n);
}

// Layouts as PyTorch's Linear needs them: x W^T, dy W, dy^T x.
template <class T> DEVICE void gemm_nt_128(const Gemm& p, const Operands& io) {
  product<T, 128, 128, 32, 2, 4, 4, false, true>(p, io);
}
template <class T> DEVICE void gemm_nn_128(const Gemm& p, const Operands& io) {
  product<T, 128, 128, 32, 2, 4, 4, false, false>(p, io);
}
template <class T> DEVICE void gemm_tn_128(const Gemm& p, const Operands& io) {
  product<T, 128, 128, 32, 2, 4, 4, true, false>(p, io);
}
template <class T> DEVICE void gemm_nt_64(const Gemm& p, const Operands& io) {
  product<T, 64, 64, 32, 2, 2, 4, false, true>(p, io);
}
template <class T> DEVICE void gemm_nn_64(const Gemm& p, const Operands& io) {
  product<T, 64, 64, 32, 2, 2, 4, false, false>(p, io);
}
template <class T> DEVICE void gemm_tn_64(const Gemm& p, const Operands& io) {
  product<T, 64, 64, 32, 2, 2, 4, true, false>(p, io);
}
// Half as wide and twice as deep, where those would leave much of a card idle: small products are bound by
// the time from one step along k to the next, and by what a thread does after the last. With tiles of
// 64 x 64 x 32, 1600 x 128 x 512 took 10 us where cuBLAS took 4.
template <class T> DEVICE void gemm_nt_32(const Gemm& p, const Operands& io) {
  product<T, 64, 32, 64, 2, 2, 4, false, true>(p, io);
}
template <class T> DEVICE void gemm_nn_32(const Gemm& p, const Operands& io) {
  product<T, 64, 32, 64, 2, 2, 4, false, false>(p, io);
}
template <class T> DEVICE void gemm_tn_32(const Gemm& p, const Operands& io) {
  product<T, 64, 32, 64, 2, 2, 4, true, false>(p, io);
}

}  // namespace

#define HALVES(name, threads)                      \
  ENTRY(name, bf16, bf16, Gemm, threads, name)     \
  ENTRY(name, f16, f16, Gemm, threads, name)
#define TYPES(name, threads) HALVES(name, threads) ENTRY(name, tf32, float, Gemm, threads, name)
TYPES(gemm_nt_128, 256)
TYPES(gemm_nn_128, 256)
TYPES(gemm_tn_128, 256)
TYPES(gemm_nt_64, 128)
TYPES(gemm_nn_64, 128)
TYPES(gemm_tn_64, 128)
HALVES(gemm_nt_32, 128)
HALVES(gemm_nn_32, 128)
HALVES(gemm_tn_32, 128)
