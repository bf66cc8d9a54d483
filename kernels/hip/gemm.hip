// archs: gfx1*
// Matrix products for RDNA cards, on their plain multiply-add units. Operands lie densely; which way
// round each of them lies is part of the kernel's name: nt, nn, tn.
//
// A block of 64 threads, two waves, one for each SIMD of a compute unit, computes 64 x 64 elements of
// C, a thread 8 x 8 of them. Tiles 16 deep pass through shared memory (LDS), k-major, in two stages:
// while a stage is used, the next tile is on its way from global memory in registers, and so are the
// next numbers from shared memory. There is one barrier a tile. Each 4 k of a tile stand 8 banks apart
// from those before, so that neither the transposed stores of an operand whose k are neighbours nor the
// reads, 16 bytes a lane, meet in a bank.
//
// f16 numbers stay as they are in shared memory and in registers: v_fma_mix_f32 multiplies two of them
// and adds to an f32 at the rate of an f32 multiply-add, for half of the memory. bf16 numbers become f32
// on their way: by instructions, or where they are stored one by one, by going to the upper halves of
// words that are zero (85 % multiply-adds without that).
//
// What is no whole tile, and all of a matrix whose packs cannot be read, takes the same way one tile at
// a time (`edge`).
//
// On gfx1010, 3 waves fit a SIMD for f32 and bf16, bounded by shared memory (16.5 KB of 64 KB a block),
// 5 or 6 for f16, bounded by registers (150 to 170 of 1024). That is enough: 64 sums a thread do not
// depend on each other, so that a single wave has its next instruction ready all the time but at the
// beginning of a tile. Of the instructions of the inner loop 88 % (f32), 89 to 91 % (f16) and 86 to 88 % (bf16)
// are multiply-adds; scripts/rdna-report prints these figures.
#include "gemm.h"

namespace {

constexpr unsigned THREADS = 64, TILE = 64, DEPTH = 16;

// How numbers of type T stand in shared memory.
template <class T> struct Stored { using Type = float; };
template <> struct Stored<f16> { using Type = f16; };

// Where row `row` of k `k` stands in a tile.
template <class S> constexpr unsigned SKEW = 32 / sizeof(S);
template <class S> DEVICE unsigned place(unsigned k, unsigned row) {
  return k * TILE + k / 4 * SKEW<S> + row;
}
template <class S> constexpr unsigned TILE_SIZE = DEPTH * TILE + DEPTH / 4 * SKEW<S>;
// Bytes of shared memory: two stages of two operands; half of the results afterwards.
template <class S> constexpr unsigned SHARED_SIZE = 4 * TILE_SIZE<S> * sizeof(S);
static_assert(SHARED_SIZE<f16> >= TILE / 2 * TILE * sizeof(float), "half of the results");

// An operand on its way to shared memory, of whose matrix [rows, k] the k or the rows are neighbours.
// Units of what is moved at once: 4 k of one row, or of two where two make a word; or as many rows of
// one k as fit 16 bytes.
template <class T, bool K_FIRST> struct Side {
  using S = typename Stored<T>::Type;
  static constexpr unsigned PAIR = K_FIRST ? 4 / sizeof(S) : 1;
  static constexpr unsigned PACKED = K_FIRST ? 4 : PACK<T>;
  static constexpr unsigned UNITS = DEPTH * TILE / (PACKED * PAIR * THREADS);
  using Packed = Pack<T, PACKED>;

  const char* base;
  unsigned step;  // bytes from tile to tile
  unsigned offsets[UNITS * PAIR];
  Packed held[UNITS * PAIR];

  // Row and k of the first element of unit `i` within a tile.
  static DEVICE unsigned row(unsigned i) {
    return K_FIRST ? (thread_x() / 4 + THREADS / 4 * i) * PAIR : thread_x() % (TILE / PACKED) * PACKED;
  }
  static DEVICE unsigned depth(unsigned i) {
    return K_FIRST ? thread_x() % 4 * 4 : thread_x() / (TILE / PACKED) + PACKED * i;
  }
  // Whether whole packs can be read: `apart` is what lies between rows (K_FIRST) or between k.
  static DEVICE bool packs(const T* x, unsigned apart, unsigned rows) {
    return aligned(x, sizeof(Packed)) && apart % PACKED == 0 && (K_FIRST || rows % PACKED == 0);
  }

  // Rows past the last are read as if they were the last: nobody asks for their products.
  DEVICE void begin(const T* x, unsigned apart, unsigned first, unsigned rows, unsigned k) {
    base = reinterpret_cast<const char*>(x + (K_FIRST ? size_t(first) * apart + k : size_t(k) * apart + first));
    step = DEPTH * sizeof(T) * (K_FIRST ? 1 : apart);
    unsigned last = rows - first - (K_FIRST ? 1 : PACKED);
    UNROLL for (unsigned i = 0; i < UNITS * PAIR; ++i) {
      unsigned r = row(i / PAIR) + i % PAIR, d = depth(i / PAIR);
      r = r < last ? r : last;
      offsets[i] = sizeof(T) * (K_FIRST ? r * apart + d : d * apart + r);
    }
  }
  // Offsets are hidden, or each would become an address of its own, counted up from tile to tile.
  DEVICE void load() {
    UNROLL for (unsigned i = 0; i < UNITS * PAIR; ++i) {
      offsets[i] = opaque_lane(offsets[i]);
      held[i] = *reinterpret_cast<const Packed*>(base + offsets[i]);
    }
  }
  // The same element by element; zeros past the last row and k.
  DEVICE void load_edge(const T* x, unsigned apart, unsigned first, unsigned rows, unsigned k,
                        unsigned k_end) {
    UNROLL for (unsigned i = 0; i < UNITS * PAIR; ++i) {
      UNROLL for (unsigned e = 0; e < PACKED; ++e) {
        unsigned r = first + row(i / PAIR) + (K_FIRST ? i % PAIR : e);
        unsigned d = k + depth(i / PAIR) + (K_FIRST ? e : 0);
        bool real = r < rows && d < k_end;
        // A read of the first element where there is none: one instruction more, and no branch.
        T read = x[!real ? 0 : K_FIRST ? size_t(r) * apart + d : size_t(d) * apart + r];
        held[i].at[e] = real ? read : T{};
      }
    }
  }
  DEVICE void store(S* tile) const {
    UNROLL for (unsigned i = 0; i < UNITS; ++i) {
      if constexpr (!K_FIRST) {
        Pack<S, 16 / sizeof(S)> pack[PACKED * sizeof(S) / 16];
        constexpr unsigned n = 16 / sizeof(S);
        UNROLL for (unsigned e = 0; e < PACKED; ++e) pack[e / n].at[e % n] = converted(held[i].at[e]);
        S* to = tile + place<S>(depth(i), row(i));
        UNROLL for (unsigned j = 0; j < PACKED / n; ++j)
          reinterpret_cast<Pack<S, n>*>(to)[j] = pack[j];
      } else if constexpr (sizeof(S) > sizeof(T)) {
        // The upper half of a float: the lower ones have been zero from the start.
        UNROLL for (unsigned e = 0; e < PACKED; ++e) {
          S* to = tile + depth(i) * TILE + depth(i) / 4 * SKEW<S> + row(i) + e * TILE;
          __builtin_memcpy(reinterpret_cast<char*>(to) + sizeof(T), &held[i].at[e], sizeof(T));
        }
      } else {
        UNROLL for (unsigned e = 0; e < PACKED; ++e) {
          Pack<S, PAIR> pack;
          UNROLL for (unsigned j = 0; j < PAIR; ++j) pack.at[j] = converted(held[i * PAIR + j].at[e]);
          S* to = tile + depth(i) * TILE + depth(i) / 4 * SKEW<S> + row(i) + e * TILE;
          *reinterpret_cast<Pack<S, PAIR>*>(to) = pack;
        }
      }
    }
  }
  // Adds what is held to sums over k by rows, of rows row(0) and those after it.
  DEVICE void add_to(float (&sums)[PACKED]) const {
    static_assert(!K_FIRST, "rows are neighbours");
    UNROLL for (unsigned i = 0; i < UNITS; ++i) {
      UNROLL for (unsigned e = 0; e < PACKED; ++e) sums[e] += value_of(held[i].at[e]);
    }
  }

 private:
  static DEVICE S converted(T x) {
    if constexpr (sizeof(S) == sizeof(T)) return x;
    else return value_of(x);
  }
};

// The 8 rows of a tile that thread `at` of 8 takes: two times 4 f32, half a tile apart, or 8 f16.
template <class S> struct Eight;
template <> struct Eight<float> {
  float x[8];
  static DEVICE unsigned row(unsigned at, unsigned i) { return 4 * at + TILE / 2 * (i / 4) + i % 4; }
  DEVICE void load(const float* from) {
    float low[4], high[4];
    load_pack(low, from);
    load_pack(high, from + TILE / 2);
    UNROLL for (int i = 0; i < 4; ++i) x[i] = low[i], x[i + 4] = high[i];
  }
  DEVICE float operator[](int i) const { return x[i]; }
};
template <> struct Eight<f16> {
  Pack<f16, 8> x;
  static DEVICE unsigned row(unsigned at, unsigned i) { return 8 * at + i; }
  DEVICE void load(const f16* from) { x = *reinterpret_cast<const Pack<f16, 8>*>(from); }
  DEVICE float operator[](int i) const { return value_of(x.at[i]); }
};

template <class S> DEVICE void add_products(float (&c)[8][8], const Eight<S>& x, const Eight<S>& y) {
  // From what was read last: one wait for all that is read.
  UNROLL for (int i = 7; i >= 0; --i) {
    UNROLL for (int j = 7; j >= 0; --j) c[i][j] = fma_of(x[i], y[j], c[i][j]);
  }
}

// Adds the products of a whole tile; `a` and `b` are where this thread's first rows stand.
template <class S> DEVICE void multiply(float (&c)[8][8], const S* a, const S* b) {
  Eight<S> x[2], y[2];
  x[0].load(a);
  y[0].load(b);
  UNROLL for (unsigned k = 0; k < DEPTH; ++k) {
    if (k + 1 < DEPTH) {
      x[(k + 1) % 2].load(a + place<S>(k + 1, 0));
      y[(k + 1) % 2].load(b + place<S>(k + 1, 0));
    }
    add_products(c, x[k % 2], y[k % 2]);
    in_order();
  }
}

// Where an operand lies: its first element, and what is between its rows or its k.
template <class T> struct Matrix {
  const T* base;
  unsigned apart, first, rows;
};

template <class T, bool A_K, bool B_K> struct Block {
  using S = typename Stored<T>::Type;
  Side<T, A_K> a;
  Side<T, B_K> b;
  S* memory;
  float c[8][8], sums[Side<T, A_K>::PACKED];
  unsigned row = thread_x() / 8, col = thread_x() % 8;

  DEVICE S* stage(unsigned i, unsigned side) { return memory + (2 * i + side) * TILE_SIZE<S>; }
  DEVICE void store(unsigned i) {
    a.store(stage(i, 0));
    b.store(stage(i, 1));
    if constexpr (!A_K) a.add_to(sums);
  }
  DEVICE void multiply_stage(unsigned i) {
    multiply<S>(c, stage(i, 0) + Eight<S>::row(row, 0), stage(i, 1) + Eight<S>::row(col, 0));
  }
  // `tiles` whole tiles from k on.
  DEVICE void whole(const Matrix<T>& left, const Matrix<T>& right, unsigned k, unsigned tiles) {
    a.begin(left.base, left.apart, left.first, left.rows, k);
    b.begin(right.base, right.apart, right.first, right.rows, k);
    a.load();
    b.load();
    store(0);
    barrier();
    unsigned now = 0;
    NO_UNROLL for (unsigned tile = 1; tile < tiles; ++tile) {
      a.base += a.step;
      b.base += b.step;
      a.load();
      b.load();
      multiply_stage(now);
      now ^= 1;
      store(now);
      barrier();
    }
    multiply_stage(now);
    barrier();
  }
  // What is left, and all where packs cannot be read.
  DEVICE void edge(const Matrix<T>& left, const Matrix<T>& right, unsigned k, unsigned k_end) {
    NO_UNROLL for (; k < k_end; k += DEPTH) {
      a.load_edge(left.base, left.apart, left.first, left.rows, k, k_end);
      b.load_edge(right.base, right.apart, right.first, right.rows, k, k_end);
      store(0);
      barrier();
      NO_UNROLL for (unsigned d = 0; d < DEPTH; ++d) {
        Eight<S> x, y;
        x.load(stage(0, 0) + place<S>(d, Eight<S>::row(row, 0)));
        y.load(stage(0, 1) + place<S>(d, Eight<S>::row(col, 0)));
        add_products(c, x, y);
      }
      barrier();
    }
  }
};

// Where this block's part of the results goes: which product, rows and columns, which split of k.
struct Part {
  unsigned row0, col0, splits;
  float* split;
  size_t cells;
};

// Half of the results at a time pass through shared memory, so that lanes store what is contiguous and
// one piece of code finishes all of them.
template <class T, class S>
DEVICE void finish(const Gemm& p, const Operands& io, const Part& to, float (&c)[8][8], float* results) {
  Epilogue epilogue(p, io);
  bool packed = p.n % 4 == 0;
  unsigned row8 = thread_x() / 8, col8 = thread_x() % 8, piece = thread_x() % 16 * 4;
  unsigned col = to.col0 + piece;
  unsigned count = col >= p.n ? 0 : p.n - col < 4 ? p.n - col : 4;
  float bias[4] = {};
  if (count > 0 && !to.split) epilogue.template load_bias<4>(col, count, bias);
  NO_UNROLL for (unsigned half = 0; half < 2; ++half) {
    UNROLL for (int i = 0; i < 4; ++i) {
      UNROLL for (int j = 0; j < 8; j += 4) {
        float four[4] = {c[i][j], c[i][j + 1], c[i][j + 2], c[i][j + 3]};
        store_pack(results + (4 * row8 + i) * TILE + Eight<S>::row(col8, j), four);
      }
    }
    UNROLL for (int i = 0; i < 4; ++i) {
      UNROLL for (int j = 0; j < 8; ++j) c[i][j] = c[i + 4][j];
    }
    barrier();
    NO_UNROLL for (unsigned slot = thread_x() / 16; slot < TILE / 2; slot += THREADS / 16) {
      unsigned row = to.row0 + Eight<S>::row(slot / 4, 4 * half + slot % 4);
      if (row >= p.m || count == 0) continue;
      float four[4];
      load_pack(four, results + slot * TILE + piece);
      size_t first = (size_t(block_z()) * p.m + row) * p.n + col;
      if (to.split) {
        float* at = to.split + block_y() * to.cells + first;
        if (count == 4 && packed) store_pack(at, four);
        else UNROLL for (unsigned e = 0; e < 4; ++e) if (e < count) at[e] = four[e];
        continue;
      }
      UNROLL for (int e = 0; e < 4; ++e) four[e] += bias[e];
      epilogue.template finish<T, 4>(first, four, count, packed);
    }
    barrier();
  }
}

// Sums of A's rows: threads whose rows are the same have each summed a part of k.
template <class T, int PACKED>
DEVICE void finish_sums(const Gemm& p, const Operands& io, const Part& to, const float (&sums)[PACKED],
                        float* results) {
  UNROLL for (unsigned e = 0; e < PACKED; ++e)
    results[thread_x() / (TILE / PACKED) * TILE + Side<T, false>::row(0) + e] = sums[e];
  barrier();
  float sum = 0.0f;
  UNROLL for (unsigned i = 0; i < PACKED; ++i) sum += results[i * TILE + thread_x()];
  unsigned row = to.row0 + thread_x();
  if (row >= p.m) return;
  if (to.split) to.split[to.splits * to.cells + size_t(block_y()) * p.m + row] = sum;
  else Epilogue::sums(p, io).put(row, sum, p.flags & GEMM_SUMS_ACCUMULATE);
}

template <class T, bool A_K, bool B_K> DEVICE void gemm(const Gemm& p, const Operands& io) {
  using S = typename Stored<T>::Type;
  alignas(16) SHARED char memory[SHARED_SIZE<S>];
  unsigned tiles_n = (p.n + TILE - 1) / TILE, splits = grid_y(), batch = block_z();
  Part part{block_x() / tiles_n * TILE, block_x() % tiles_n * TILE, splits,
            splits > 1 ? split_products(io) : nullptr, size_t(p.batch) * p.m * p.n};
  unsigned share = ((p.k + splits - 1) / splits + DEPTH - 1) / DEPTH * DEPTH;
  unsigned k0 = block_y() * share, k_end = k0 + share < p.k ? k0 + share : p.k;
  Matrix<T> left{input<T>(io, 0) + size_t(batch) * p.a_bs, A_K ? p.a_rs : p.a_cs, part.row0, p.m};
  Matrix<T> right{input<T>(io, 1) + size_t(batch) * p.b_bs, B_K ? p.b_cs : p.b_rs, part.col0, p.n};
  Block<T, A_K, B_K> block;
  block.memory = reinterpret_cast<S*>(memory);
  UNROLL for (int i = 0; i < 8; ++i) {
    UNROLL for (int j = 0; j < 8; ++j) block.c[i][j] = 0.0f;
  }
  UNROLL for (float& sum : block.sums) sum = 0.0f;
  if constexpr (sizeof(S) > sizeof(T) && A_K) {
    for (unsigned i = thread_x(); i < 4 * TILE_SIZE<S>; i += THREADS) block.memory[i] = 0.0f;
    barrier();
  }
  if (k0 < k_end) {
    bool packs = Side<T, A_K>::packs(left.base, left.apart, p.m) &&
                 Side<T, B_K>::packs(right.base, right.apart, p.n);
    unsigned tiles = packs ? (k_end - k0) / DEPTH : 0;
    if (tiles > 0) block.whole(left, right, k0, tiles);
    block.edge(left, right, k0 + tiles * DEPTH, k_end);
  }
  if (part.split && block_x() == 0 && block_y() == 0 && batch == 0 && thread_x() == 0)
    *static_cast<unsigned*>(io.workspace) = splits;
  float* results = reinterpret_cast<float*>(memory);
  finish<T, S>(p, io, part, block.c, results);
  if constexpr (!A_K) {
    if ((p.flags & GEMM_SUMS) != 0 && part.col0 == 0)
      finish_sums<T, Side<T, false>::PACKED>(p, io, part, block.sums, results);
  }
}

template <class T> DEVICE void nt(const Gemm& p, const Operands& io) { gemm<T, true, true>(p, io); }
template <class T> DEVICE void nn(const Gemm& p, const Operands& io) { gemm<T, true, false>(p, io); }
template <class T> DEVICE void tn(const Gemm& p, const Operands& io) { gemm<T, false, false>(p, io); }

}  // namespace

ENTRIES(gemm_nt_rdna, Gemm, THREADS, nt)
ENTRIES(gemm_nn_rdna, Gemm, THREADS, nn)
ENTRIES(gemm_tn_rdna, Gemm, THREADS, tn)
