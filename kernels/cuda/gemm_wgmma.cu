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
#include "wgmma.h"

namespace {

constexpr int BM = 128, BN = 128, BK = 64, STAGES = 3, THREADS = 256;
constexpr int TILE = 128 * BK * 2, STAGE = 2 * TILE;
constexpr int PITCH = BN + 8;

// A tile of 128 x 64 elements, either 128 rows of 64 along k ("k first"), or 64 rows along k of 128, then as
// two halves of 64 columns. Rows are 128 bytes, their 8 chunks exchanged by the row's low bits. A
// thread always loads the same chunk of four rows: what it takes to find them is worked out once.
template <class T, bool K_FIRST> struct Tile {
  static constexpr unsigned CHUNKS = K_FIRST ? 8 : 16, ROWS = THREADS / CHUNKS;
  const T* source;     // the thread's first chunk of the next tile
  size_t row_step;     // between its rows
  unsigned at, k, lines, edge;
  bool packed;

  // Rows of `x` are `ld` apart; `first` is the tile's place along m or n, of `extent`.
  DEVICE Tile(const T* x, unsigned ld, unsigned first, unsigned extent, unsigned k0, bool packed)
      : row_step(size_t(ld) * ROWS), packed(packed) {
    unsigned row = thread_x() / CHUNKS, chunk = thread_x() % CHUNKS;
    at = chunk / 8 * 8192 + row * 128 + ((chunk % 8) ^ (row & 7)) * 16;
    if (K_FIRST) {
      source = x + size_t(first + row) * ld + k0 + chunk * 8;
      k = k0 + chunk * 8;
      lines = extent - first <= row ? 0 : (extent - first - row + ROWS - 1) / ROWS;
      edge = 8;
    } else {
      source = x + size_t(k0 + row) * ld + first + chunk * 8;
      k = k0 + row;
      unsigned column = first + chunk * 8;
      edge = column >= extent ? 0 : extent - column;
      lines = 4;
    }
  }

  // Loads the tile and goes on to the next one along k.
  DEVICE void load(char* to, unsigned k_end) {
    if (packed) {
      UNROLL for (unsigned i = 0; i < 4; ++i) {
        bool inside = K_FIRST ? i < lines && k < k_end : edge > 0 && k + i * ROWS < k_end;
        copy_async(to + at + i * ROWS * 128, source + i * row_step, inside);
      }
    } else {
      NO_UNROLL for (unsigned i = 0; i < 4; ++i) {
        bool inside = K_FIRST ? i < lines : k + i * ROWS < k_end;
        unsigned count = !inside ? 0 : !K_FIRST ? edge : k >= k_end ? 0 : k_end - k;
        Pack<T, 8> pack;
        UNROLL for (unsigned e = 0; e < 8; ++e) pack.at[e] = e < count ? source[i * row_step + e] : T{0};
        *reinterpret_cast<Pack<T, 8>*>(to + at + i * ROWS * 128) = pack;
      }
    }
    k += BK;
    source += K_FIRST ? size_t(BK) : row_step * (BK / ROWS);
  }

  // Describes the piece that starts at `line` (a multiple of 64) along m or n, and k.
  static DEVICE unsigned piece(const char* tile, unsigned line, unsigned k) {
    return piece_at(shared_address(tile) + (K_FIRST ? line * 128 + k * 2 : line / 64 * 8192 + k * 128));
  }
};

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

// Where a lane's part of C lies: rows `top` + lane / 4 and 8 below, columns `col0` + 8 j + lane % 4 * 2.
struct Place {
  unsigned row0, col0, warp, lane;
  DEVICE unsigned top() const { return row0 + warp * 16; }
};

// Sums of one split, as they lie in registers: four lanes fill a sector.
DEVICE void store_partial(const Gemm& p, float* to, const float (&c)[64], Place at) {
  UNROLL for (int h = 0; h < 2; ++h) {
    unsigned row = at.top() + at.lane / 4 + unsigned(h) * 8;
    if (row >= p.m) continue;
    float* line = to + size_t(row) * p.n;
    UNROLL for (int j = 0; j < 16; ++j) {
      unsigned col = at.col0 + unsigned(j) * 8 + at.lane % 4 * 2;
      if (p.n % 2 == 0) {
        if (col < p.n) *reinterpret_cast<float2*>(line + col) = float2{c[4 * j + 2 * h], c[4 * j + 2 * h + 1]};
      } else {
        if (col < p.n) line[col] = c[4 * j + 2 * h];
        if (col + 1 < p.n) line[col + 1] = c[4 * j + 2 * h + 1];
      }
    }
  }
}

// C in T with nothing but a bias in f32: rounded in registers, turned to whole rows in shared memory.
template <class T>
DEVICE void store_plain(const Gemm& p, const Operands& io, char* memory, const float (&c)[64], Place at) {
  unsigned* stage = reinterpret_cast<unsigned*>(memory) + at.warp * 16 * (PITCH / 2);
  const float* bias = p.flags & GEMM_BIAS ? input<float>(io, 2) : nullptr;
  UNROLL for (int j = 0; j < 16; ++j) {
    unsigned col = at.col0 + unsigned(j) * 8 + at.lane % 4 * 2;
    float2 b = bias && col < p.n ? *reinterpret_cast<const float2*>(bias + col) : float2{0.0f, 0.0f};
    unsigned* to = stage + at.lane / 4 * (PITCH / 2) + unsigned(j) * 4 + at.lane % 4;
    to[0] = pack2<T>(c[4 * j] + b.x, c[4 * j + 1] + b.y);
    to[8 * (PITCH / 2)] = pack2<T>(c[4 * j + 2] + b.x, c[4 * j + 3] + b.y);
  }
  wave_barrier();
  T* out = output<T>(io, int(Epilogue::inputs(p.flags))) + size_t(block_z()) * p.m * p.n;
  unsigned chunk = at.lane % 16, col = at.col0 + chunk * 8;
  UNROLL for (unsigned i = 0; i < 8; ++i) {
    unsigned line = i * 2 + at.lane / 16, row = at.top() + line;
    uint4 pack = *reinterpret_cast<const uint4*>(stage + line * (PITCH / 2) + chunk * 4);
    if (row < p.m && col < p.n) *reinterpret_cast<uint4*>(out + size_t(row) * p.n + col) = pack;
  }
}

// C with all that follows it, by way of f32 in shared memory: a lane finishes 8 elements of a row.
template <class T>
DEVICE void store_finished(const Gemm& p, const Operands& io, char* memory, const float (&c)[64], Place at) {
  unsigned lane = at.lane;
  float* stage = reinterpret_cast<float*>(memory) + at.warp * 16 * PITCH;
  UNROLL for (int j = 0; j < 16; ++j) {
    float* to = stage + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = float2{c[4 * j], c[4 * j + 1]};
    *reinterpret_cast<float2*>(to + 8 * PITCH) = float2{c[4 * j + 2], c[4 * j + 3]};
  }
  wave_barrier();
  Epilogue epilogue(p, io);
  bool packed = p.n % 8 == 0;
  unsigned col = at.col0 + lane % 16 * 8;
  unsigned count = col >= p.n ? 0 : p.n - col < 8 ? p.n - col : 8;
  float bias[8];
  epilogue.template load_bias<8>(col, count, bias);
  UNROLL_BY(4) for (unsigned line = lane / 16; line < 16; line += 2) {
    if (at.top() + line >= p.m || count == 0) continue;
    float x[8];
    UNROLL for (int e = 0; e < 8; e += 4) {
      float4 four = *reinterpret_cast<const float4*>(stage + line * PITCH + lane % 16 * 8 + e);
      x[e] = four.x + bias[e], x[e + 1] = four.y + bias[e + 1];
      x[e + 2] = four.z + bias[e + 2], x[e + 3] = four.w + bias[e + 3];
    }
    size_t first = (size_t(block_z()) * p.m + at.top() + line) * p.n + col;
    epilogue.template finish<T, 8>(first, x, count, packed);
  }
}

template <class T> DEVICE bool is_plain(const Gemm& p, const Operands& io) {
  unsigned out = Epilogue::inputs(p.flags);
  bool with_bias = (p.flags & GEMM_BIAS) != 0;
  return (p.flags & ~GEMM_BIAS) == 0 && p.n % 8 == 0 && kind_of(io, int(out)) != KIND_F32 &&
         aligned(io.at[out], 16) && (!with_bias || (kind_of(io, 2) == KIND_F32 && aligned(io.at[2], 8)));
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
  Tile<T, !A_T> next_a(a, lda, row0, p.m, k0, packed_a);
  Tile<T, !B_T> next_b(b, ldb, col0, p.n, k0, packed_b);
  auto load = [&](unsigned step) {
    char* to = memory + step % STAGES * STAGE;
    next_a.load(to, k_end);
    next_b.load(to + TILE, k_end);
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
      multiply<T, A_T, B_T>(c, Tile<T, !A_T>::piece(tile_a, group * 64, k), Tile<T, !B_T>::piece(tile_a + TILE, 0, k),
                            true);
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
  Place at{row0, col0, thread_x() / 32, thread_x() % 32};
  size_t item = size_t(p.m) * p.n;
  if (splits > 1) store_partial(p, split_products(io) + (size_t(block_y()) * p.batch + block_z()) * item, c, at);
  else if (is_plain<T>(p, io)) store_plain<T>(p, io, memory, c, at);
  else store_finished<T>(p, io, memory, c, at);
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
