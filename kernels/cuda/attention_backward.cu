// Gradient of attention on mma.sync m16n8k16 (sm_80 and later), any length, bf16 and f16, head
// dimensions up to 128. Inputs d_out, qkv, out, lse; output d_qkv.
//
// With P = exp(scale S - lse), dP = dO V^T, delta = rowsum(dO out), dS = P (dP - delta):
// dV = P^T dO, dK = scale dS^T Q, dQ = scale dS K.
//
// Grid (key blocks + query blocks, heads, batch). Blocks of keys compute dK and dV: a warp owns
// one or two strips of 16 keys and goes over all queries with scores transposed, so that P^T and
// dS^T are operands A in place. Blocks of queries compute dQ in the same way over all keys. Scores
// are computed twice, 7 products instead of 5, but nothing is summed across blocks or warps: the
// result does not depend on timing. Deltas are computed by whoever needs them.
#include "attention_problem.h"

namespace {

// Rows of a streamed tile: 8 KB for two operands up to head dimension 32, then 16 KB.
template <int D> constexpr unsigned ROWS = D == 16 ? 128 : D == 128 ? 32 : 64;
// Strips of 16 rows a warp owns.
template <int D> constexpr int STRIPS = D <= 32 ? 2 : 1;

// Calls use(stage, first) for tiles of ROWS<D> rows of x and y, both in shared memory from `stage`
// on, while the next tile is under way; load(stage, first) brings what else a tile needs.
template <int D, class T, class Load, class Use>
DEVICE void stream(char* memory, unsigned stage_bytes, const Rows<const T>& x, const Rows<const T>& y,
                   Load load, Use use) {
  unsigned tiles = (x.rows + ROWS<D> - 1) / ROWS<D>;
  auto bring = [&](unsigned tile) {
    T* to = reinterpret_cast<T*>(memory + tile % 2 * stage_bytes);
    load_tile<D>(to, x, tile * ROWS<D>, ROWS<D>);
    load_tile<D>(to + ROWS<D> * D, y, tile * ROWS<D>, ROWS<D>);
    copy_async_commit();
    load(reinterpret_cast<float*>(to + 2 * ROWS<D> * D), tile * ROWS<D>);
  };
  bring(0);
  for (unsigned tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      bring(tile + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    barrier();
    use(reinterpret_cast<const T*>(memory + tile % 2 * stage_bytes), tile * ROWS<D>);
    barrier();
  }
}

// dK and dV of M strips of keys. With head dimension 128 registers do not hold the values too: they
// lie in shared memory.
template <class T, int D, int M> struct Keys {
  static constexpr bool V_SHARED = D == 128;
  unsigned k[M][D / 16][4], v[M][V_SHARED ? 1 : D / 16][4];
  float dk[M][D / 8][4], dv[M][D / 8][4];
  const T* values;

  // `shared` holds a tile of 16 rows for each warp, if values go there.
  DEVICE void start(const Problem<T>& of, unsigned first, char* shared) {
    if constexpr (V_SHARED) {
      T* tile = reinterpret_cast<T*>(shared) + warp_of() * 16 * D;
      unsigned g = lane_of() / 4, t = lane_of() % 4, a[D / 16][4];
      load_strip<D>(a, of.v, first);
      UNROLL for (int k = 0; k < D / 16; ++k)
        UNROLL for (int i = 0; i < 4; ++i)
          *reinterpret_cast<unsigned*>(tile + chunk_at<D>(g + i % 2 * 8, 2 * k + i / 2) + 2 * t) = a[k][i];
      wave_barrier();
      values = tile;
    }
    UNROLL for (int m = 0; m < M; ++m) {
      load_strip<D>(k[m], of.k, first + 16 * m);
      if constexpr (!V_SHARED) load_strip<D>(v[m], of.v, first + 16 * m);
      UNROLL for (int n = 0; n < D / 8; ++n) UNROLL for (int i = 0; i < 4; ++i) dk[m][n][i] = dv[m][n][i] = 0.0f;
    }
  }

  // Takes 16 queries from row `at` of the tiles.
  DEVICE void take(const T* queries, const T* d_outs, const float* statistics, unsigned at, float factor) {
    float s[M][2][4] = {}, dp[M][2][4], of[2][4], minus_delta[2][4];
    unsigned b[4];
    UNROLL for (int n = 0; n < 2; ++n) {
      load_pack(of[n], statistics + 2 * (at + 8 * n) + 4 * (lane_of() % 4));
      UNROLL for (int i = 0; i < 4; ++i) minus_delta[n][i] = of[n][2 + i % 2];
    }
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_columns<D>(b, queries, at, j);
      UNROLL for (int m = 0; m < M; ++m) mma_two<T>(s[m][0], s[m][1], k[m][j], b);
    }
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_columns<D>(b, d_outs, at, j);
      if constexpr (V_SHARED) load_matrices(v[0][0], values + chunk_at<D>(lane_of() % 16, 2 * j + lane_of() / 16));
      UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < 2; ++n)
          mma_onto<T>(dp[m][n], v[m][V_SHARED ? 0 : j], b[2 * n], b[2 * n + 1], j == 0 ? minus_delta[n] : dp[m][n]);
    }
    UNROLL for (int m = 0; m < M; ++m)
      UNROLL for (int n = 0; n < 2; ++n)
        UNROLL for (int i = 0; i < 4; ++i) {
          s[m][n][i] = exp2_of(fma_of(s[m][n][i], factor, -of[n][i % 2]));
          dp[m][n][i] *= s[m][n][i];
        }
    unsigned p[M][4], ds[M][4];
    UNROLL for (int m = 0; m < M; ++m) {
      as_operand<T>(p[m], s[m][0], s[m][1]);
      as_operand<T>(ds[m], dp[m][0], dp[m][1]);
    }
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_rows<D>(b, d_outs, at, j);
      UNROLL for (int m = 0; m < M; ++m) mma_two<T>(dv[m][2 * j], dv[m][2 * j + 1], p[m], b);
      rows_as_rows<D>(b, queries, at, j);
      UNROLL for (int m = 0; m < M; ++m) mma_two<T>(dk[m][2 * j], dk[m][2 * j + 1], ds[m], b);
    }
  }
};

template <class T, int D>
DEVICE void keys_backward(const Attention& p, const Operands& io, unsigned block) {
  constexpr int M = STRIPS<D>;
  Problem<T> of(p, io);
  unsigned first = 16 * M * (block * (block_threads() / 32) + warp_of());
  bool active = first < p.time;
  Keys<T, D, M> state;
  state.start(of, first, dynamic_shared() + 2 * ROWS<D> * (4 * D + 8));
  stream<D>(
      dynamic_shared(), ROWS<D> * (4 * D + 8), of.q, of.d_out,
      [&](float* statistics, unsigned query) { load_statistics<D>(statistics, of, query, ROWS<D>); },
      [&](const T* tile, unsigned query) {
        if (!active) return;
        unsigned left = p.time - query, count = left < ROWS<D> ? left : ROWS<D>;
        const float* statistics = reinterpret_cast<const float*>(tile + 2 * ROWS<D> * D);
        for (unsigned at = 0; at < count; at += 16)
          state.take(tile, tile + ROWS<D> * D, statistics, at, of.factor);
      });
  if (!active) return;
  Rows<T> dk = part_of(p, output<T>(io, 4), 1), dv = part_of(p, output<T>(io, 4), 2);
  UNROLL for (int m = 0; m < M; ++m) {
    store_strip<D>(dk, first + 16 * m, state.dk[m], p.scale, p.scale);
    store_strip<D>(dv, first + 16 * m, state.dv[m], 1.0f, 1.0f);
  }
}

// dQ of M strips of queries.
template <class T, int D, int M> struct Queries {
  unsigned q[M][D / 16][4], g[M][D / 16][4];
  float dq[M][D / 8][4];
  float lse[M][2];          // of rows g and g + 8, times log2(e)
  float minus_delta[M][4];  // as the lane's sums lie

  DEVICE void start(const Problem<T>& of, unsigned first) {
    UNROLL for (int m = 0; m < M; ++m) {
      unsigned out[D / 16][4];
      load_strip<D>(q[m], of.q, first + 16 * m);
      load_strip<D>(g[m], of.d_out, first + 16 * m);
      load_strip<D>(out, of.out, first + 16 * m);
      UNROLL for (int h = 0; h < 2; ++h) {
        float sum = 0.0f;
        UNROLL for (int k = 0; k < D / 16; ++k)
          UNROLL for (int i = h; i < 4; i += 2)
            UNROLL for (int j = 0; j < 2; ++j) sum += element<T>(out[k][i], j) * element<T>(g[m][k][i], j);
        minus_delta[m][2 * h] = minus_delta[m][2 * h + 1] = -lanes_sum<4>(sum);
        unsigned row = first + 16 * m + lane_of() / 4 + 8 * h;
        lse[m][h] = row < of.q.rows ? LOG2_E * of.lse[row * of.heads] : float_of(0x7f800000u);
      }
      UNROLL for (int n = 0; n < D / 8; ++n) UNROLL for (int i = 0; i < 4; ++i) dq[m][n][i] = 0.0f;
    }
  }

  // Takes 16 keys from row `at` of the tiles; with TAIL those from `valid` on count nothing.
  template <bool TAIL>
  DEVICE void take(const T* keys, const T* values, unsigned at, unsigned valid, float factor) {
    float s[M][2][4] = {}, dp[M][2][4];
    unsigned b[4], ds[M][4];
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_columns<D>(b, keys, at, j);
      UNROLL for (int m = 0; m < M; ++m) mma_two<T>(s[m][0], s[m][1], q[m][j], b);
    }
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_columns<D>(b, values, at, j);
      UNROLL for (int m = 0; m < M; ++m)
        UNROLL for (int n = 0; n < 2; ++n)
          mma_onto<T>(dp[m][n], g[m][j], b[2 * n], b[2 * n + 1], j == 0 ? minus_delta[m] : dp[m][n]);
    }
    UNROLL for (int m = 0; m < M; ++m) {
      UNROLL for (int n = 0; n < 2; ++n)
        UNROLL for (int i = 0; i < 4; ++i) dp[m][n][i] *= exp2_of(fma_of(s[m][n][i], factor, -lse[m][i / 2]));
      // Keys past the last are zero, but their probability may be infinite.
      if constexpr (TAIL) {
        UNROLL for (int n = 0; n < 2; ++n)
          UNROLL for (int i = 0; i < 4; ++i)
            if (at + 8 * n + 2 * (lane_of() % 4) + i % 2 >= valid) dp[m][n][i] = 0.0f;
      }
      as_operand<T>(ds[m], dp[m][0], dp[m][1]);
    }
    UNROLL for (int j = 0; j < D / 16; ++j) {
      rows_as_rows<D>(b, keys, at, j);
      UNROLL for (int m = 0; m < M; ++m) mma_two<T>(dq[m][2 * j], dq[m][2 * j + 1], ds[m], b);
    }
  }
};

template <class T, int D>
DEVICE void queries_backward(const Attention& p, const Operands& io, unsigned block) {
  constexpr int M = STRIPS<D>;
  Problem<T> of(p, io);
  unsigned first = 16 * M * (block * (block_threads() / 32) + warp_of());
  bool active = first < p.time;
  Queries<T, D, M> state;
  state.start(of, first);
  stream<D>(
      dynamic_shared(), ROWS<D> * (4 * D + 8), of.k, of.v, [](float*, unsigned) {},
      [&](const T* tile, unsigned key) {
        if (!active) return;
        unsigned left = p.time - key, count = left < ROWS<D> ? left : ROWS<D>, at = 0;
        const T* values = tile + ROWS<D> * D;
        for (; at + 16 <= count; at += 16) state.template take<false>(tile, values, at, count, of.factor);
        if (at < count) state.template take<true>(tile, values, at, count, of.factor);
      });
  if (!active) return;
  Rows<T> dq = part_of(p, output<T>(io, 4), 0);
  UNROLL for (int m = 0; m < M; ++m) store_strip<D>(dq, first + 16 * m, state.dq[m], p.scale, p.scale);
}

template <class T, int D> DEVICE void attention_backward(const Attention& p, const Operands& io) {
  unsigned half = grid_x() / 2;
  if (block_x() < half) keys_backward<T, D>(p, io, block_x());
  else queries_backward<T, D>(p, io, block_x() - half);
}

}  // namespace

#define CLASS(D, threads, blocks)                                                                             \
  GLOBAL void FITTING(threads, blocks) attention_backward_mma##D##_bf16(const Attention p, const Operands io) { \
    attention_backward<bf16, D>(p, io);                                                                       \
  }                                                                                                           \
  EMULATED(attention_backward_mma##D##_bf16, Attention)                                                       \
  GLOBAL void FITTING(threads, blocks) attention_backward_mma##D##_f16(const Attention p, const Operands io) {  \
    attention_backward<f16, D>(p, io);                                                                        \
  }                                                                                                           \
  EMULATED(attention_backward_mma##D##_f16, Attention)

CLASS(16, 128, 4)
CLASS(32, 128, 2)
CLASS(64, 128, 2)
CLASS(128, 128, 2)
