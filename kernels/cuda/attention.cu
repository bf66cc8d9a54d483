// Attention on mma.sync m16n8k16 (sm_80 and later): out = softmax(scale Q K^T) V by heads, and the
// log-sum-exp of each row of scores. bf16 and f16, head dimensions up to 128.
//
// Grid (query blocks, heads, batch). A warp owns one or two strips of 16 queries; keys and values
// go through shared memory in tiles of KEYS, two of them in turn where one does not hold them all.
// Scores stay in registers: the accumulators of Q K^T are packed in place as operand A of P V. The
// largest score so far is only replaced when a new one exceeds it by 2^LAZY, so sums are seldom
// scaled again (their true scale is restored at the end). For head dimensions up to 32 row sums come
// from the matrix unit too, as a product with ones.
//
// Head dimension 16, per 16 x 16 scores, as compiled for sm_90a with two strips a warp: 51
// instructions, of them 5 mma, 9 exponentials, 9 max, 8 fma, 6 multiplications (of sums, seldom
// needed), 4 packs, 1 ldmatrix. Exponentials take 72 clocks of a quarter SM at 4 lanes a clock, more
// than all issue slots: the exponential unit is the bound, 220-247 TFLOP/s on an H200 (predicted).
// 120 registers: two blocks of 7 warps an SM for 200 queries.
#include "attention_tile.h"

namespace {

// Keys of a tile: 16 KB of keys and values, 32 KB for head dimension 128.
template <int D> constexpr unsigned KEYS = D == 16 ? 256 : D == 32 ? 128 : 64;
// Strips of 16 queries a warp can own; queries of head dimension 128 leave room for one.
template <int D> constexpr int STRIPS = D == 128 ? 1 : 2;
constexpr float LAZY = 8.0f;

// State of M strips of queries.
template <class T, int D, int M> struct Queries {
  static constexpr bool SUM_BY_MMA = D <= 32;
  unsigned q[M][D / 16][4];
  float out[M][D / 8][4];
  float sum[M][4];  // by mma: as sums of a product; else elements 0 and 2, of this lane's columns
  float top[M][2];  // of rows g and g + 8, times scale log2(e)
  float factor;     // scale log2(e)

  DEVICE void start(const Rows<const T>& from, unsigned first, float scale) {
    factor = scale * LOG2_E;
    UNROLL for (int m = 0; m < M; ++m) {
      load_strip<D>(q[m], from, first + 16 * m);
      UNROLL for (int n = 0; n < D / 8; ++n) UNROLL for (int i = 0; i < 4; ++i) out[m][n][i] = 0.0f;
      UNROLL for (int i = 0; i < 4; ++i) sum[m][i] = 0.0f;
      top[m][0] = top[m][1] = -1.0e30f;
    }
  }

  // Raises the reference of row half h of strip m to the largest of its new scores if need be.
  template <int N> DEVICE void raise(const float (&s)[N][4], int m, int h) {
    float most = max_of(s[0][2 * h], s[0][2 * h + 1]);
    UNROLL for (int n = 1; n < N; ++n) most = max_of(most, max_of(s[n][2 * h], s[n][2 * h + 1]));
    most = lanes_max<4>(most) * factor;
    if (most > top[m][h] + LAZY) {
      float shrink = exp2_of(top[m][h] - most);
      top[m][h] = most;
      sum[m][2 * h] *= shrink;
      UNROLL for (int n = 0; n < D / 8; ++n) out[m][n][2 * h] *= shrink, out[m][n][2 * h + 1] *= shrink;
    }
  }

  // Takes N * 16 keys and values that lie from row `first` of the tiles; those from `valid` on
  // count nothing.
  template <int N, bool TAIL>
  DEVICE void take(const T* keys, const T* values, unsigned first, unsigned valid) {
    float s[M][2 * N][4] = {};
    UNROLL for (int n = 0; n < N; ++n)
      UNROLL for (int k = 0; k < D / 16; ++k) {
        unsigned b[4];
        rows_as_columns<D>(b, keys, first + 16 * n, k);
        UNROLL for (int m = 0; m < M; ++m) mma_two<T>(s[m][2 * n], s[m][2 * n + 1], q[m][k], b);
      }
    if constexpr (TAIL) {
      UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < 2 * N; ++n)
          UNROLL for (int i = 0; i < 4; ++i)
            if (first + 8 * n + 2 * (lane_of() % 4) + i % 2 >= valid) s[m][n][i] = -1.0e30f;
    }
    UNROLL for (int m = 0; m < M; ++m) {
      raise(s[m], m, 0);
      raise(s[m], m, 1);
      UNROLL for (int n = 0; n < 2 * N; ++n)
        UNROLL for (int i = 0; i < 4; ++i) s[m][n][i] = exp2_of(fma_of(s[m][n][i], factor, -top[m][i / 2]));
    }
    weigh<N>(s, values, first);
  }

  // Adds the values weighted by exponentials of the scores.
  template <int N> DEVICE void weigh(const float (&s)[M][2 * N][4], const T* values, unsigned first) {
    UNROLL for (int n = 0; n < N; ++n) {
      unsigned a[M][4];
      UNROLL for (int m = 0; m < M; ++m) {
        as_operand<T>(a[m], s[m][2 * n], s[m][2 * n + 1]);
        if constexpr (SUM_BY_MMA) {
          const unsigned one = ones_of<T>(), ones[2] = {one, one};
          mma<T>(sum[m], a[m], ones);
        } else {
          UNROLL for (int i = 0; i < 4; ++i) sum[m][i & 2] += s[m][2 * n][i] + s[m][2 * n + 1][i];
        }
      }
      UNROLL for (int k = 0; k < D / 16; ++k) {
        unsigned b[4];
        rows_as_rows<D>(b, values, first + 16 * n, k);
        UNROLL for (int m = 0; m < M; ++m) mma_two<T>(out[m][2 * k], out[m][2 * k + 1], a[m], b);
      }
    }
  }

  DEVICE void finish(const Rows<T>& to, float* lse, unsigned heads, unsigned first) {
    unsigned g = lane_of() / 4;
    UNROLL for (int m = 0; m < M; ++m) {
      float total[2], inverse[2];
      UNROLL for (int h = 0; h < 2; ++h) {
        total[h] = SUM_BY_MMA ? sum[m][2 * h] : lanes_sum<4>(sum[m][2 * h]);
        inverse[h] = 1.0f / total[h];
        unsigned row = first + 16 * m + g + 8 * h;
        if (lane_of() % 4 == 0 && row < to.rows)
          lse[row * heads] = LN_2 * top[m][h] + log_of(total[h]);
      }
      store_strip<D>(to, first + 16 * m, out[m], inverse[0], inverse[1]);
    }
  }
};

// The block's M strips a warp, from strip `first` on.
template <class T, int D, int M>
DEVICE void attend(const Attention& p, const Operands& io, unsigned first, unsigned end) {
  const T* qkv = input<T>(io, 0);
  Rows<const T> k = part_of(p, qkv, 1), v = part_of(p, qkv, 2);
  T* memory = reinterpret_cast<T*>(dynamic_shared());
  unsigned tile_rows = p.time < KEYS<D> ? (p.time + 15) / 16 * 16 : KEYS<D>;
  unsigned tiles = (p.time + KEYS<D> - 1) / KEYS<D>;
  auto load = [&](unsigned tile) {
    T* to = memory + tile % 2 * (2 * KEYS<D> * D);
    load_tile<D>(to, k, tile * KEYS<D>, tile_rows);
    load_tile<D>(to + tile_rows * D, v, tile * KEYS<D>, tile_rows);
    copy_async_commit();
  };
  load(0);
  unsigned query = 16 * (first + warp_of() * M);
  bool active = first + warp_of() * M < end;
  Queries<T, D, M> state;
  state.start(part_of(p, qkv, 0), query, p.scale);
  for (unsigned tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      load(tile + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    barrier();
    if (active) {
      constexpr unsigned N = M == 2 ? 2 : 4;
      const T* keys = memory + tile % 2 * (2 * KEYS<D> * D);
      const T* values = keys + tile_rows * D;
      unsigned left = p.time - tile * KEYS<D>, valid = left < KEYS<D> ? left : KEYS<D>, at = 0;
      for (; at + 16 * N <= valid; at += 16 * N) state.template take<N, false>(keys, values, at, valid);
      for (; at < valid; at += 16) state.template take<1, true>(keys, values, at, valid);
    }
    if (tile + 1 < tiles) barrier();
  }
  float* lse = output<float>(io, 2) + size_t(block_z()) * p.time * p.heads + block_y();
  if (active) state.finish(head_of(p, output<T>(io, 1)), lse, p.heads, query);
}

template <class T, int D> DEVICE void attention(const Attention& p, const Operands& io) {
  unsigned strips = (p.time + 15) / 16, each = (strips + grid_x() - 1) / grid_x();
  unsigned first = block_x() * each, end = first + each < strips ? first + each : strips;
  if (STRIPS<D> == 1 || each <= block_threads() / 32) attend<T, D, 1>(p, io, first, end);
  else attend<T, D, STRIPS<D>>(p, io, first, end);
}

}  // namespace

// Head dimensions up to D.
#define NAMED(D, type, blocks)                                                                     \
  GLOBAL void FITTING(256, blocks) attention_mma##D##_##type(const Attention p, const Operands io) { \
    after_previous();                                                                                     \
    attention<type, D>(p, io);                                                                     \
  }                                                                                                \
  EMULATED(attention_mma##D##_##type, Attention)
#define CLASS(D, blocks) NAMED(D, bf16, blocks) NAMED(D, f16, blocks)

CLASS(16, 2)
CLASS(32, 1)
CLASS(64, 1)
CLASS(128, 1)
