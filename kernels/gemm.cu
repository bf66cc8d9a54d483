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

// Finishes what a thread has summed: rows row0 .. row0 + TM - 1; columns from col0 on, 4 neighbours
// each, APART apart; and `total` of each row where `sums`.
template <class T, int APART, int TM, int TN>
DEVICE void finish_tile(const Gemm& p, const Operands& io, unsigned row0, unsigned col0, bool sums,
                        float (&c)[TM][TN], float (&total)[TM]) {
  unsigned splits = grid_y(), batch = block_z();
  float* split = splits > 1 ? split_products(io) : nullptr;
  if (split && block_x() == 0 && block_y() == 0 && batch == 0 && thread_x() == 0)
    *static_cast<unsigned*>(io.workspace) = splits;
  Epilogue epilogue(p, io);
  bool packed = p.n % 4 == 0;
  size_t cells = size_t(p.batch) * p.m * p.n;
  unsigned width = p.n;
  // Finishes 4 neighbouring sums of a row.
  auto end_four = [&](unsigned row, unsigned col, float (&four)[4]) {
    if (col >= width) return;
    unsigned count = width - col < 4 ? width - col : 4;
    size_t first = (size_t(batch) * p.m + row) * width + col;
    if (!split) {
      float bias[4];
      epilogue.template load_bias<4>(col, count, bias);
      UNROLL for (int e = 0; e < 4; ++e) four[e] += bias[e];
      epilogue.template finish<T, 4>(first, four, count, packed);
    } else for (unsigned e = 0; e < count; ++e) split[block_y() * cells + first + e] = four[e];
  };
  auto end_sum = [&](unsigned row, float sum) {
    if (split) split[splits * cells + size_t(block_y()) * p.m + row] = sum;
    else Epilogue::sums(p, io).put(row, sum, p.flags & GEMM_SUMS_ACCUMULATE);
  };
  if constexpr (!COMPACT) {
    UNROLL for (int i = 0; i < TM; ++i) {
      unsigned row = row0 + i;
      if (row >= p.m) continue;
      UNROLL for (int l = 0; l < TN; l += 4) {
        float four[4] = {c[i][l], c[i][l + 1], c[i][l + 2], c[i][l + 3]};
        end_four(row, col0 + l / 4 * APART, four);
      }
      if (sums) end_sum(row, total[i]);
    }
  } else {
    // All take turns in the registers of the first, which alone the code of an epilogue knows.
    unsigned end = row0 + TM < p.m ? row0 + TM : p.m;
    NO_UNROLL for (unsigned row = row0; row < end; ++row) {
      NO_UNROLL for (unsigned l = 0; l < TN; l += 4) {
        float four[4] = {c[0][0], c[0][1], c[0][2], c[0][3]};
        epilogue.forget();
        width = opaque(p.n);
        end_four(row, col0 + l / 4 * APART, four);
        UNROLL for (int j = 0; j + 4 < TN; ++j) c[0][j] = c[0][j + 4];
      }
      if (sums) end_sum(row, total[0]);
      UNROLL for (int i = 0; i + 1 < TM; ++i) {
        UNROLL for (int l = 0; l < TN; ++l) c[i][l] = c[i + 1][l];
        total[i] = total[i + 1];
      }
    }
  }
}

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
    UNROLL_BY((COMPACT ? 2 : BK)) for (int j = 0; j < BK; ++j) {
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
  finish_tile<T, BN / (TN / 4)>(p, io, row0 + at_m, col0 + at_n, sums, c, total);
}

template <class T> DEVICE void gemm(const Gemm& p, const Operands& io) {
  gemm_tiles<T, 64, 64, 16, 4, 4>(p, io);
}
template <class T> DEVICE void gemm_large(const Gemm& p, const Operands& io) {
  gemm_tiles<T, 128, 128, 8, 8, 8>(p, io);
}

// Adds up what splits of k left and finishes it. A block takes 64 packs of 4 elements; each of its 4
// parts adds every fourth split, eight loads under way at a time, and the parts are added in order.
constexpr unsigned END_PACKS = 64, END_PARTS = THREADS / END_PACKS;

DEVICE void add_splits(float (&sum)[4], const float* from, size_t step, unsigned splits, unsigned part) {
  unsigned s = part;
  for (; s + 7 * END_PARTS < splits; s += 8 * END_PARTS) {
    float held[8][4];
    UNROLL for (unsigned j = 0; j < 8; ++j) load_pack(held[j], from + (s + j * END_PARTS) * step);
    UNROLL for (unsigned j = 0; j < 8; ++j) {
      UNROLL for (int e = 0; e < 4; ++e) sum[e] += held[j][e];
    }
  }
  for (; s < splits; s += END_PARTS) {
    float held[4];
    load_pack(held, from + s * step);
    UNROLL for (int e = 0; e < 4; ++e) sum[e] += held[e];
  }
}

template <class T> DEVICE void gemm_end(const Gemm& p, const Operands& io) {
  SHARED float parts[END_PARTS][END_PACKS][4];
  unsigned splits = *static_cast<const unsigned*>(io.workspace);
  const float* split = split_products(io);
  size_t cells = size_t(p.batch) * p.m * p.n, packs = (cells + 3) / 4;
  unsigned part = thread_x() / END_PACKS, at = thread_x() % END_PACKS;
  size_t i = size_t(block_x()) * END_PACKS + at;
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  // Sums of A follow the elements, one a pack.
  bool is_sum = i >= packs;
  bool wanted = !is_sum || ((p.flags & GEMM_SUMS) && i - packs < p.m);
  unsigned count = is_sum ? 1 : cells - 4 * i < 4 ? unsigned(cells - 4 * i) : 4;
  const float* from = is_sum ? split + splits * cells + (i - packs) : split + 4 * i;
  size_t step = is_sum ? p.m : cells;
  if (wanted && count == 4 && cells % 4 == 0) {
    add_splits(sum, from, step, splits, part);
  } else if (wanted) {
    for (unsigned s = part; s < splits; s += END_PARTS)
      for (unsigned e = 0; e < count; ++e) sum[e] += from[s * step + e];
  }
  UNROLL for (int e = 0; e < 4; ++e) parts[part][at][e] = sum[e];
  barrier();
  if (part != 0 || !wanted) return;
  UNROLL for (unsigned j = 1; j < END_PARTS; ++j) {
    UNROLL for (int e = 0; e < 4; ++e) sum[e] += parts[j][at][e];
  }
  if (is_sum) {
    Epilogue::sums(p, io).put(i - packs, sum[0], p.flags & GEMM_SUMS_ACCUMULATE);
    return;
  }
  Epilogue epilogue(p, io);
  float bias[4];
  if (p.n % 4 == 0) {
    epilogue.template load_bias<4>(unsigned(4 * i % p.n), 4, bias);
    UNROLL for (int e = 0; e < 4; ++e) sum[e] += bias[e];
    epilogue.template finish<T, 4>(4 * i, sum, 4, true);
    return;
  }
  NO_UNROLL for (unsigned e = 0; e < count; ++e) {
    float one[4] = {e == 0 ? sum[0] : e == 1 ? sum[1] : e == 2 ? sum[2] : sum[3]};
    epilogue.template load_bias<4>(unsigned((4 * i + e) % p.n), 1, bias);
    one[0] += bias[0];
    epilogue.template finish<T, 4>(4 * i + e, one, 1, false);
  }
}

}  // namespace

ENTRIES(gemm, Gemm, THREADS, gemm)
ENTRIES(gemm_large, Gemm, THREADS, gemm_large)
ENTRIES(gemm_end, Gemm, THREADS, gemm_end)
