// Scaled dot-product attention and its gradient on multiply-add units, for every card and type;
// f32 everywhere, bf16 and f16 where there are no matrix instructions.
//
// attention: grid (blocks of 64 queries, heads, batch). Keys and values stream through shared memory
// in tiles; the softmax runs online, rows' sums last. attention_backward: grid (key blocks + query
// blocks, heads, batch); blocks of keys give dK and dV, blocks of queries dQ, each computing the
// probabilities again from lse, so that nothing is summed across blocks and the result does not
// depend on timing. With P = exp(scale S - lse), delta = rowsum(dO out), dS = P (dP - delta):
// dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K.
//
// Both are made of two block products over f32 tiles in shared memory. `scores` takes dot products
// along the head: a thread has 4 rows x 8 columns and reads 16 bytes at a time, 128 fma for 12 reads.
// `Sums` adds rows weighted by scores, which go through shared memory transposed: 8 rows x 4
// elements a thread, 32 fma for 3 reads; heads narrower than 64 have several groups of threads share
// the columns. Rows are 16 bytes longer than the head, which puts 8 neighbouring rows in 8 different
// bank groups. Shared memory stays below 64 KB, so tiles of wide heads are smaller. It is what bounds
// the waves on a SIMD of gfx1010: 4 up to head dimension 16, where two blocks fit a compute unit's
// 64 KB, 2 above; registers (130 to 230 of 1024) would allow 4 to 7.
//
// Inner loops as compiled for gfx1010: 84-86 % of the instructions are fma (forward, and products of
// the backward pass), 79 % where tiles are narrower (backward scores at head dimensions 16 and 64).
#include "portable.h"

namespace {

constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Elements of a row in shared memory.
template <int D> constexpr int WIDTH = D + 4;

// Rows a block owns and columns of a tile.
template <int D> struct ForwardShape {
  static constexpr int ROWS = 64, COLS = D == 128 ? 32 : 64;
  // Keys and values take turns in one tile where two would not fit.
  static constexpr bool TURNS = D >= 64;
};
template <int D> struct BackwardShape {
  static constexpr int ROWS = D == 128 ? 32 : 64, COLS = D == 128 ? 16 : D == 32 ? 64 : 32;
};

// Rows of one head.
template <class T> struct Head {
  T* base;
  size_t stride;
  unsigned rows, d;
};
// Part 0, 1, 2 (Q, K, V) of this block's head of qkv.
template <class T> DEVICE Head<T> part_of(const Attention& p, T* qkv, unsigned part) {
  unsigned width = p.heads * p.head_dim;
  T* base = qkv + size_t(block_z()) * p.time * 3 * width + (part * p.heads + block_y()) * p.head_dim;
  return {base, 3 * width, p.time, p.head_dim};
}
template <class T> DEVICE Head<T> head_of(const Attention& p, T* x) {
  unsigned width = p.heads * p.head_dim;
  return {x + size_t(block_z()) * p.time * width + block_y() * p.head_dim, width, p.time, p.head_dim};
}

// Rows first .. first + COUNT to shared memory; zeros past the last row and the head dimension.
template <int COUNT, int D, class T> DEVICE void load(float* to, const Head<const T>& from, unsigned first) {
  constexpr unsigned FOURS = D / 4;
  bool packed = from.d % 4 == 0 && reinterpret_cast<size_t>(from.base) % (4 * sizeof(T)) == 0;
  for (unsigned i = thread_x(); i < COUNT * FOURS; i += THREADS) {
    unsigned row = i / FOURS, col = 4 * (i % FOURS);
    float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (first + row < from.rows) {
      const T* at = from.base + (first + row) * from.stride + col;
      if (packed) {
        if (col < from.d) load_pack(x, at);
      } else {
        UNROLL for (unsigned j = 0; j < 4; ++j)
          if (col + j < from.d) x[j] = value_of(at[j]);
      }
    }
    store_pack(to + row * WIDTH<D> + col, x);
  }
}

// Where a thread stands in `scores`: rows y * R .. y * R + R - 1, columns x, x + 8, ...
struct Place {
  unsigned x = thread_x() % 8, y = thread_x() / 8;
};

// Dot products of rows and columns, [16 R, 8 C] over the block.
template <int R, int C, int D> DEVICE void scores(float (&s)[R][C], const float* rows, const float* cols) {
  Place at;
  const float *a = rows + at.y * R * WIDTH<D>, *b = cols + at.x * WIDTH<D>;
  UNROLL for (int i = 0; i < R; ++i) UNROLL for (int j = 0; j < C; ++j) s[i][j] = 0.0f;
  UNROLL_BY(2) for (int k = 0; k < D; k += 4) {
    float x[R][4];
    UNROLL for (int i = 0; i < R; ++i) load_pack(x[i], a + i * WIDTH<D> + k);
    UNROLL for (int j = 0; j < C; ++j) {
      float y[4];
      load_pack(y, b + 8 * j * WIDTH<D> + k);
      UNROLL for (int i = 0; i < R; ++i)
        UNROLL for (int e = 0; e < 4; ++e) s[i][j] = fma_of(x[i][e], y[e], s[i][j]);
    }
  }
}

// Puts scores to shared memory column by column, [8 C, 16 R + 4].
template <int R, int C> DEVICE void put_columns(float* to, const float (&s)[R][C]) {
  Place at;
  UNROLL for (int j = 0; j < C; ++j) {
    float column[R];
    UNROLL for (int i = 0; i < R; ++i) column[i] = s[i][j];
    store_pack(to + (at.x + 8 * j) * (16 * R + 4) + at.y * R, column);
  }
}

// Sums [ROWS, D] over columns, spread over the block: 8 rows x 4 BLOCKS elements a thread.
template <int ROWS, int COLS, int D> struct Sums {
  static constexpr int BLOCKS = ROWS * D > 32 * THREADS ? 2 : 1;
  static constexpr unsigned LANES = D / 4 / BLOCKS, MEMBERS = ROWS / 8 * LANES, GROUPS = THREADS / MEMBERS;
  float at[BLOCKS][8][4];
  unsigned group = thread_x() / MEMBERS, row = thread_x() % MEMBERS / LANES * 8, col = thread_x() % LANES * 4;

  DEVICE void clear() {
    UNROLL for (int b = 0; b < BLOCKS; ++b)
      UNROLL for (int i = 0; i < 8; ++i) UNROLL for (int j = 0; j < 4; ++j) at[b][i][j] = 0.0f;
  }
  // Multiplies row i by factors[i * WIDTH].
  DEVICE void scale(const float* factors) {
    UNROLL for (int i = 0; i < 8; ++i) {
      float x = factors[(row + i) * WIDTH<D>];
      UNROLL for (int b = 0; b < BLOCKS; ++b) UNROLL for (int j = 0; j < 4; ++j) at[b][i][j] *= x;
    }
  }
  // Adds weights^T x for weights [COLS, ROWS + 4], x [COLS, WIDTH].
  DEVICE void add(const float* weights, const float* x) {
    const float* w = weights + group * (ROWS + 4) + row;
    x += group * WIDTH<D> + col;
    UNROLL_BY(4) for (unsigned c = 0; c < COLS / GROUPS; ++c) {
      float high[4], low[4];
      load_pack(low, w + c * GROUPS * (ROWS + 4));
      load_pack(high, w + c * GROUPS * (ROWS + 4) + 4);
      UNROLL for (int b = 0; b < BLOCKS; ++b) {
        float y[4];
        load_pack(y, x + c * GROUPS * WIDTH<D> + b * (D / BLOCKS));
        UNROLL for (int j = 0; j < 4; ++j)
          UNROLL for (int i = 0; i < 4; ++i) {
            at[b][i][j] = fma_of(low[i], y[j], at[b][i][j]);
            at[b][i + 4][j] = fma_of(high[i], y[j], at[b][i + 4][j]);
          }
      }
    }
  }
  // Adds the groups' parts, through shared memory that nothing else needs, and stores row r of the
  // block as row first + r, times `factor`.
  template <class T> DEVICE void store(const Head<T>& to, unsigned first, float* memory, float factor) {
    barrier();
    UNROLL for (int b = 0; b < BLOCKS; ++b)
      UNROLL for (int i = 0; i < 8; ++i)
        store_pack(memory + (group * ROWS + row + i) * D + col + b * (D / BLOCKS), at[b][i]);
    barrier();
    for (unsigned i = thread_x(); i < ROWS * D; i += THREADS) {
      unsigned r = i / D, c = i % D;
      float sum = 0.0f;
      UNROLL for (unsigned g = 0; g < GROUPS; ++g) sum += memory[g * ROWS * D + i];
      if (first + r < to.rows && c < to.d) to.base[(first + r) * to.stride + c] = rounded<T>(sum * factor);
    }
    barrier();
  }
};

// Running softmax of a thread's part of R rows: largest score and sum of exponentials.
template <int R> struct Softmax1 {
  float top[R], sum[R];
  DEVICE Softmax1() { UNROLL for (int i = 0; i < R; ++i) top[i] = -1.0e30f, sum[i] = 0.0f; }
  // Makes scores, in powers of two, exponentials; leaves by how much earlier sums of row i shrink at
  // shrink[i * STEP].
  template <int STEP, int C> DEVICE void take(float (&s)[R][C], float* shrink) {
    Place at;
    UNROLL for (int i = 0; i < R; ++i) {
      float most = s[i][0];
      UNROLL for (int j = 1; j < C; ++j) most = max_of(most, s[i][j]);
      most = max_of(lanes_max<8>(most), top[i]);
      float factor = exp2_of(top[i] - most), sum_here = 0.0f;
      UNROLL for (int j = 0; j < C; ++j) {
        s[i][j] = exp2_of(s[i][j] - most);
        sum_here += s[i][j];
      }
      top[i] = most;
      sum[i] = fma_of(sum[i], factor, sum_here);
      if (at.x == 0) shrink[(at.y * R + i) * STEP] = factor;
    }
  }
};

template <class T, int D> DEVICE void forward(const Attention& p, const Operands& io) {
  using Shape = ForwardShape<D>;
  constexpr int ROWS = Shape::ROWS, COLS = Shape::COLS, R = ROWS / 16, C = COLS / 8;
  float* q = reinterpret_cast<float*>(dynamic_shared());
  float* k = q + ROWS * WIDTH<D>;
  float* v = Shape::TURNS ? k : k + COLS * WIDTH<D>;
  float* weights = v + COLS * WIDTH<D>;
  float* factors = q + D;  // by row, where the rows of queries are padded
  const T* qkv = input<T>(io, 0);
  Head<const T> keys = part_of(p, qkv, 1), values = part_of(p, qkv, 2);
  unsigned first = block_x() * ROWS;
  float scale = p.scale * LOG2_E;
  load<ROWS, D>(q, part_of(p, qkv, 0), first);
  Sums<ROWS, COLS, D> out;
  out.clear();
  Softmax1<R> softmax;
  Place at;
  for (unsigned key = 0; key < p.time; key += COLS) {
    load<COLS, D>(k, keys, key);
    if constexpr (!Shape::TURNS) load<COLS, D>(v, values, key);
    barrier();
    float s[R][C];
    scores<R, C, D>(s, q, k);
    UNROLL for (int j = 0; j < C; ++j) {
      bool real = key + at.x + 8 * j < p.time;
      UNROLL for (int i = 0; i < R; ++i) s[i][j] = real ? s[i][j] * scale : -1.0e30f;
    }
    softmax.template take<WIDTH<D>>(s, factors);
    put_columns(weights, s);
    barrier();
    if constexpr (Shape::TURNS) {
      load<COLS, D>(v, values, key);
      barrier();
    }
    out.scale(factors);
    out.add(weights, v);
    barrier();
  }
  float* lse = output<float>(io, 2) + size_t(block_z()) * p.time * p.heads + block_y();
  UNROLL for (int i = 0; i < R; ++i) {
    float sum = lanes_sum<8>(softmax.sum[i]);
    unsigned row = at.y * R + i;
    if (at.x == 0) {
      factors[row * WIDTH<D>] = 1.0f / sum;
      if (first + row < p.time) lse[(first + row) * p.heads] = fma_of(LN_2, softmax.top[i], log_of(sum));
    }
  }
  barrier();
  out.scale(factors);
  out.store(head_of(p, output<T>(io, 1)), first, q, 1.0f);
}

// lse log2(e) and delta of COUNT queries; an infinite lse past the last, which makes probabilities 0.
template <int COUNT, class T>
DEVICE void load_statistics(float* to, const Attention& p, const Operands& io, unsigned first) {
  Head<const T> out = head_of(p, input<T>(io, 2)), d_out = head_of(p, input<T>(io, 0));
  const float* lse = input<float>(io, 3) + size_t(block_z()) * p.time * p.heads + block_y();
  for (unsigned i = thread_x(); i < COUNT * 8; i += THREADS) {
    unsigned row = first + i / 8;
    float sum = 0.0f;
    if (row < p.time)
      for (unsigned c = i % 8; c < p.head_dim; c += 8)
        sum += value_of(out.base[row * out.stride + c]) * value_of(d_out.base[row * out.stride + c]);
    sum = lanes_sum<8>(sum);
    if (i % 8 == 0) {
      to[i / 8] = row < p.time ? LOG2_E * lse[row * p.heads] : float_of(0x7f800000u);
      to[COUNT + i / 8] = sum;
    }
  }
}

// Probabilities in s, their gradients in ds, from scores and the products of gradients and values.
// Statistics belong to columns where OF_COLS, else to rows. Columns past the last count nothing.
template <bool OF_COLS, int R, int C>
DEVICE void probabilities(float (&s)[R][C], float (&ds)[R][C], const float* statistics, float scale,
                          unsigned real_cols) {
  Place at;
  constexpr unsigned COUNT = OF_COLS ? 8 * C : 16 * R;
  UNROLL for (int j = 0; j < C; ++j) {
    bool real = at.x + 8 * j < real_cols;
    UNROLL for (int i = 0; i < R; ++i) {
      unsigned of = OF_COLS ? at.x + 8 * j : at.y * R + i;
      float x = exp2_of(fma_of(s[i][j], scale, -statistics[of]));
      s[i][j] = real ? x : 0.0f;
      ds[i][j] = s[i][j] * (ds[i][j] - statistics[COUNT + of]);
    }
  }
}

// dK and dV of a block of keys (OF_KEYS), or dQ of a block of queries.
template <class T, int D, bool OF_KEYS>
DEVICE void backward_block(const Attention& p, const Operands& io, unsigned first) {
  using Shape = BackwardShape<D>;
  constexpr int ROWS = Shape::ROWS, COLS = Shape::COLS, R = ROWS / 16, C = COLS / 8;
  float* rows = reinterpret_cast<float*>(dynamic_shared());  // K or Q
  float* row_values = rows + ROWS * WIDTH<D>;                // V or dO
  float* cols = row_values + ROWS * WIDTH<D>;                // Q or K
  float* col_values = cols + COLS * WIDTH<D>;                // dO or V
  float* weights = col_values + COLS * WIDTH<D>;
  float* statistics = weights + COLS * (ROWS + 4);
  const T* qkv = input<T>(io, 1);
  Head<const T> q = part_of(p, qkv, 0), k = part_of(p, qkv, 1), v = part_of(p, qkv, 2);
  Head<const T> d_out = head_of(p, input<T>(io, 0));
  load<ROWS, D>(rows, OF_KEYS ? k : q, first);
  load<ROWS, D>(row_values, OF_KEYS ? v : d_out, first);
  if constexpr (!OF_KEYS) load_statistics<ROWS, T>(statistics, p, io, first);
  Sums<ROWS, COLS, D> sums, value_sums;
  sums.clear();
  value_sums.clear();
  for (unsigned col = 0; col < p.time; col += COLS) {
    load<COLS, D>(cols, OF_KEYS ? q : k, col);
    load<COLS, D>(col_values, OF_KEYS ? d_out : v, col);
    if constexpr (OF_KEYS) load_statistics<COLS, T>(statistics, p, io, col);
    barrier();
    float s[R][C], ds[R][C];
    scores<R, C, D>(s, rows, cols);
    scores<R, C, D>(ds, row_values, col_values);
    probabilities<OF_KEYS>(s, ds, statistics, p.scale * LOG2_E, p.time - col);
    if constexpr (OF_KEYS) {
      put_columns(weights, s);
      barrier();
      value_sums.add(weights, col_values);
      barrier();
    }
    put_columns(weights, ds);
    barrier();
    sums.add(weights, cols);
    barrier();
  }
  T* d_qkv = output<T>(io, 4);
  sums.store(part_of(p, d_qkv, OF_KEYS ? 1 : 0), first, rows, p.scale);
  if constexpr (OF_KEYS) value_sums.store(part_of(p, d_qkv, 2), first, rows, 1.0f);
}

template <class T, int D> DEVICE void backward(const Attention& p, const Operands& io) {
  unsigned half = grid_x() / 2, rows = BackwardShape<D>::ROWS;
  if (block_x() < half) backward_block<T, D, true>(p, io, block_x() * rows);
  else backward_block<T, D, false>(p, io, (block_x() - half) * rows);
}

template <class T> DEVICE void forward8(const Attention& p, const Operands& io) { forward<T, 8>(p, io); }
template <class T> DEVICE void forward16(const Attention& p, const Operands& io) { forward<T, 16>(p, io); }
template <class T> DEVICE void forward32(const Attention& p, const Operands& io) { forward<T, 32>(p, io); }
template <class T> DEVICE void forward64(const Attention& p, const Operands& io) { forward<T, 64>(p, io); }
template <class T> DEVICE void forward128(const Attention& p, const Operands& io) { forward<T, 128>(p, io); }
template <class T> DEVICE void backward8(const Attention& p, const Operands& io) { backward<T, 8>(p, io); }
template <class T> DEVICE void backward16(const Attention& p, const Operands& io) { backward<T, 16>(p, io); }
template <class T> DEVICE void backward32(const Attention& p, const Operands& io) { backward<T, 32>(p, io); }
template <class T> DEVICE void backward64(const Attention& p, const Operands& io) { backward<T, 64>(p, io); }
template <class T> DEVICE void backward128(const Attention& p, const Operands& io) { backward<T, 128>(p, io); }

}  // namespace

// Head dimensions up to the number in the name.
ENTRIES(attention_d8, Attention, THREADS, forward8)
ENTRIES(attention_d16, Attention, THREADS, forward16)
ENTRIES(attention_d32, Attention, THREADS, forward32)
ENTRIES(attention_d64, Attention, THREADS, forward64)
ENTRIES(attention_d128, Attention, THREADS, forward128)
ENTRIES(attention_backward_d8, Attention, THREADS, backward8)
ENTRIES(attention_backward_d16, Attention, THREADS, backward16)
ENTRIES(attention_backward_d32, Attention, THREADS, backward32)
ENTRIES(attention_backward_d64, Attention, THREADS, backward64)
ENTRIES(attention_backward_d128, Attention, THREADS, backward128)
