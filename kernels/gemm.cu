// Matrix products on plain arithmetic units: any strides, any sizes, f32 sums. They are the exact f32
// path of every card, and the one path of cards without matrix units.
//
// A block of 256 threads computes BM x BN elements of C; a thread TM x TN of them in registers. Tiles
// of A and B pass through shared memory, k-major, so that a thread reads TM + TN numbers for TM * TN
// multiply-adds. The next tile is fetched into registers while the present one is used.
#include "gemm.h"

namespace {

constexpr int THREADS = 256;

// Rows [first, first + EXTENT) and k [k0, k0 + BK) of an operand, on the way to shared memory.
template <class T, int EXTENT, int BK> struct Fetch {
  static constexpr int EACH = EXTENT * BK / THREADS;
  float held[EACH];

  // Index of the thread's element `i`: neighbouring lanes take what is contiguous in memory.
  static DEVICE unsigned row(int i, bool k_first) {
    unsigned at = thread_x() + unsigned(i) * THREADS;
    return k_first ? at / BK : at % EXTENT;
  }
  static DEVICE unsigned depth(int i, bool k_first) {
    unsigned at = thread_x() + unsigned(i) * THREADS;
    return k_first ? at % BK : at / EXTENT;
  }
  DEVICE void load(const T* x, unsigned row_step, unsigned k_step, unsigned first, unsigned rows,
                   unsigned k0, unsigned k_end) {
    bool k_first = k_step == 1;
    UNROLL for (int i = 0; i < EACH; ++i) {
      unsigned r = first + row(i, k_first), k = k0 + depth(i, k_first);
      bool inside = r < rows && k < k_end;
      held[i] = inside ? value_of(x[size_t(r) * row_step + size_t(k) * k_step]) : 0.0f;
    }
  }
  DEVICE void store(float* tile, unsigned k_step) const {
    bool k_first = k_step == 1;
    UNROLL for (int i = 0; i < EACH; ++i)
      tile[depth(i, k_first) * (EXTENT + 4) + row(i, k_first)] = held[i];
  }
};

template <class T, int BM, int BN, int BK, int TM, int TN>
DEVICE void gemm_tiles(const Gemm& p, const Operands& io) {
  static_assert(BM / TM * (BN / TN) == THREADS, "one piece a thread");
  SHARED float tile_a[BK * (BM + 4)];
  SHARED float tile_b[BK * (BN + 4)];
  unsigned tiles_n = (p.n + BN - 1) / BN;
  unsigned row0 = block_x() / tiles_n * BM, col0 = block_x() % tiles_n * BN;
  unsigned splits = grid_y(), batch = block_z();
  unsigned share = ((p.k + splits - 1) / splits + BK - 1) / BK * BK;
  unsigned k0 = block_y() * share, k_end = k0 + share < p.k ? k0 + share : p.k;
  const T* a = input<T>(io, 0) + size_t(batch) * p.a_bs;
  const T* b = input<T>(io, 1) + size_t(batch) * p.b_bs;
  unsigned at_m = thread_x() / (BN / TN) * TM, at_n = thread_x() % (BN / TN) * 4;
  bool sums = (p.flags & GEMM_SUMS) != 0 && col0 == 0 && thread_x() % (BN / TN) == 0;
  float c[TM][TN] = {}, total[TM] = {};
  Fetch<T, BM, BK> fetch_a;
  Fetch<T, BN, BK> fetch_b;
  fetch_a.load(a, p.a_rs, p.a_cs, row0, p.m, k0, k_end);
  fetch_b.load(b, p.b_cs, p.b_rs, col0, p.n, k0, k_end);
  for (unsigned k = k0; k < k_end; k += BK) {
    fetch_a.store(tile_a, p.a_cs);
    fetch_b.store(tile_b, p.b_rs);
    barrier();
    if (k + BK < k_end) {
      fetch_a.load(a, p.a_rs, p.a_cs, row0, p.m, k + BK, k_end);
      fetch_b.load(b, p.b_cs, p.b_rs, col0, p.n, k + BK, k_end);
    }
    UNROLL for (int j = 0; j < BK; ++j) {
      float x[TM], y[TN];
      UNROLL for (int i = 0; i < TM; ++i) x[i] = tile_a[j * (BM + 4) + at_m + i];
      // Pieces of 4 columns, BN / (TN / 4) apart: neighbouring lanes read neighbouring packs.
      UNROLL for (int i = 0; i < TN; ++i)
        y[i] = tile_b[j * (BN + 4) + i / 4 * (BN / (TN / 4)) + at_n + i % 4];
      UNROLL for (int i = 0; i < TM; ++i) {
        UNROLL for (int l = 0; l < TN; ++l) c[i][l] = fma_of(x[i], y[l], c[i][l]);
      }
      if (sums) {
        UNROLL for (int i = 0; i < TM; ++i) total[i] += x[i];
      }
    }
    barrier();
  }
  float* split = splits > 1 ? split_products(io) : nullptr;
  if (split && block_x() == 0 && block_y() == 0 && batch == 0 && thread_x() == 0)
    *static_cast<unsigned*>(io.workspace) = splits;
  Epilogue epilogue(p, io);
  bool packed = p.n % 4 == 0;
  size_t cells = size_t(p.batch) * p.m * p.n;
  UNROLL for (int i = 0; i < TM; ++i) {
    unsigned row = row0 + at_m + i;
    if (row >= p.m) continue;
    UNROLL for (int l = 0; l < TN; l += 4) {
      unsigned col = col0 + l / 4 * (BN / (TN / 4)) + at_n;
      if (col >= p.n) continue;
      unsigned count = p.n - col < 4 ? p.n - col : 4;
      size_t first = (size_t(batch) * p.m + row) * p.n + col;
      float four[4] = {c[i][l], c[i][l + 1], c[i][l + 2], c[i][l + 3]};
      if (!split) epilogue.template finish<T, 4>(first, col, four, count, packed);
      else for (unsigned e = 0; e < count; ++e) split[block_y() * cells + first + e] = four[e];
    }
    if (sums) {
      if (split) split[splits * cells + size_t(block_y()) * p.m + row] = total[i];
      else Epilogue::sums(p, io).put(row, total[i], p.flags & GEMM_SUMS_ACCUMULATE);
    }
  }
}

template <class T> DEVICE void gemm(const Gemm& p, const Operands& io) {
  gemm_tiles<T, 64, 64, 16, 4, 4>(p, io);
}
template <class T> DEVICE void gemm_large(const Gemm& p, const Operands& io) {
  gemm_tiles<T, 128, 128, 8, 8, 8>(p, io);
}

// Adds up what splits of k left, in their order, and finishes it. A thread takes 4 elements; then
// the sums of A, one a thread.
template <class T> DEVICE void gemm_end(const Gemm& p, const Operands& io) {
  unsigned splits = *static_cast<const unsigned*>(io.workspace);
  const float* split = split_products(io);
  size_t cells = size_t(p.batch) * p.m * p.n;
  size_t i = size_t(block_x()) * THREADS + thread_x();
  size_t fours = (cells + 3) / 4;
  if (i < fours && p.n % 4 == 0) {
    float four[4] = {};
    for (unsigned s = 0; s < splits; ++s) {
      float part[4];
      load_pack(part, split + s * cells + 4 * i);
      UNROLL for (int e = 0; e < 4; ++e) four[e] += part[e];
    }
    Epilogue(p, io).template finish<T, 4>(4 * i, unsigned(4 * i % p.n), four, 4, true);
  } else if (i < fours) {
    for (size_t e = 4 * i; e < 4 * i + 4 && e < cells; ++e) {
      float one[4] = {};
      for (unsigned s = 0; s < splits; ++s) one[0] += split[s * cells + e];
      Epilogue(p, io).template finish<T, 4>(e, unsigned(e % p.n), one, 1, false);
    }
  } else if ((p.flags & GEMM_SUMS) && i - fours < p.m) {
    float total = 0.0f;
    for (unsigned s = 0; s < splits; ++s) total += split[splits * cells + size_t(s) * p.m + (i - fours)];
    Epilogue::sums(p, io).put(i - fours, total, p.flags & GEMM_SUMS_ACCUMULATE);
  }
}

}  // namespace

ENTRIES(gemm, Gemm, THREADS, gemm)
ENTRIES(gemm_large, Gemm, THREADS, gemm_large)
ENTRIES(gemm_end, Gemm, THREADS, gemm_end)
