// Gradient of attention with head dimension 16 on mma.sync m16n8k16 (sm_80 and later), for lengths
// that one block can hold: scores are computed once, 5 products instead of the 7 of
// attention_backward.cu. bf16 and f16. Inputs d_out, qkv, out, lse; output d_qkv.
//
// Grid (1, heads, batch): a block owns a head. All queries and gradients of results lie in shared
// memory, with their lse and delta, and dQ in f32: 136 bytes a query. A warp owns STRIPS strips of
// 16 keys at a time, whose K, V, dK and dV stay in registers, and goes over all queries, 16 at a
// time. Scores are transposed, [keys, queries]: packed in place, P^T and dS^T are operands A of dV
// and dK. For dQ, dS^T is transposed in registers (movmatrix), the products of the warp's strips are
// added up in registers and then to dQ in shared memory. Warps go over the queries in rotation,
// `turn` tiles apart, with a barrier every `turn` tiles, so no two are at one tile in the same
// turn, and every sum has the same order every time.
//
// Per 16 x 16 scores and lane, with two strips: 10 mma, 8 exponentials, 24 fma, add or multiply, 8
// packs, 4 movmatrix, 2 ldmatrix, 1 + 2 vector reads and 1 write of 16 bytes: the matrix unit, the
// exponential unit and shared memory are each busy about 64 to 80 clocks of a quarter SM, so the
// bound is near 470 TFLOP/s on an H200 (predicted).
#include "attention_problem.h"

namespace {

constexpr int D = 16;
// Strips of 16 keys a warp owns at a time.
constexpr int STRIPS = 2;

#if defined(__CUDACC__)
// The transpose of an 8 x 8 matrix of 2-byte elements whose lane holds (g, 2t), (g, 2t + 1).
DEVICE unsigned transposed(unsigned x) {
  unsigned y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
#else
DEVICE unsigned transposed(unsigned x) {
  unsigned g = lane_of() / 4, t = lane_of() % 4, shift = g % 2 * 16;
  unsigned low = shuffle(x, int(8 * t + g / 2)), high = shuffle(x, int(8 * t + 4 + g / 2));
  return (low >> shift & 0xffffu) | (high >> shift & 0xffffu) << 16;
}
#endif

// What a block keeps in shared memory.
template <class T> struct Held {
  T *queries, *d_outs;
  float* statistics;  // as load_statistics
  float* dq;          // by tiles of 16 queries: sums as a warp's lanes hold them, 4 at a time
  DEVICE Held(unsigned rows) {
    queries = reinterpret_cast<T*>(dynamic_shared());
    d_outs = queries + rows * D;
    statistics = reinterpret_cast<float*>(d_outs + rows * D);
    dq = statistics + 2 * rows;
  }
};

template <class T> struct Keys {
  unsigned k[STRIPS][4], v[STRIPS][4];  // operands A
  unsigned k_rows[STRIPS][4];           // operands B of dQ
  float dk[STRIPS][2][4], dv[STRIPS][2][4];
  unsigned left;  // keys from the first of the strips to the last of the head

  DEVICE void start(const Problem<T>& of, unsigned first) {
    left = first < of.k.rows ? of.k.rows - first : 0;
    UNROLL for (int m = 0; m < STRIPS; ++m) {
      unsigned a[1][4];
      load_strip<D>(a, of.k, first + 16 * m);
      UNROLL for (int i = 0; i < 4; ++i) k[m][i] = a[0][i], k_rows[m][i] = transposed(a[0][i]);
      load_strip<D>(a, of.v, first + 16 * m);
      UNROLL for (int i = 0; i < 4; ++i) v[m][i] = a[0][i];
      UNROLL for (int n = 0; n < 2; ++n) UNROLL for (int i = 0; i < 4; ++i) dk[m][n][i] = dv[m][n][i] = 0.0f;
    }
  }

  // Probabilities in s, gradients of scores in ds. TAIL: some of the keys are past the last.
  template <bool TAIL>
  DEVICE void scores(float (&s)[STRIPS][2][4], float (&ds)[STRIPS][2][4], const Held<T>& held,
                     unsigned query, float factor) const {
    float of[2][4], minus_delta[2][4];
    UNROLL for (int n = 0; n < 2; ++n) {
      load_pack(of[n], held.statistics + 2 * (query + 8 * n) + 4 * (lane_of() % 4));
      UNROLL for (int i = 0; i < 4; ++i) minus_delta[n][i] = of[n][2 + i % 2];
    }
    unsigned b[4];
    rows_as_columns<D>(b, held.queries, query, 0);
    UNROLL for (int m = 0; m < STRIPS; ++m) mma_two<T>(s[m][0], s[m][1], k[m], b);
    rows_as_columns<D>(b, held.d_outs, query, 0);
    UNROLL for (int m = 0; m < STRIPS; ++m)
      UNROLL for (int n = 0; n < 2; ++n) mma_onto<T>(ds[m][n], v[m], b[2 * n], b[2 * n + 1], minus_delta[n]);
    UNROLL for (int m = 0; m < STRIPS; ++m)
      UNROLL for (int n = 0; n < 2; ++n)
        UNROLL for (int i = 0; i < 4; ++i) {
          s[m][n][i] = exp2_of(fma_of(s[m][n][i], factor, -of[n][i % 2]));
          ds[m][n][i] *= s[m][n][i];
        }
    // Keys past the last are zero, but their probability may be infinite.
    if constexpr (TAIL) {
      UNROLL for (int m = 0; m < STRIPS; ++m)
        UNROLL for (int i = 0; i < 4; ++i)
          if (16 * m + lane_of() / 4 + i / 2 * 8 >= left) ds[m][0][i] = ds[m][1][i] = 0.0f;
    }
  }

  // Takes 16 queries from `query` on.
  template <bool TAIL> DEVICE void take(const Held<T>& held, unsigned query, float factor) {
    float s[STRIPS][2][4] = {}, ds[STRIPS][2][4], dq[2][4] = {};
    scores<TAIL>(s, ds, held, query, factor);
    unsigned b[4], a[4], gradients[STRIPS][4];
    rows_as_rows<D>(b, held.d_outs, query, 0);
    UNROLL for (int m = 0; m < STRIPS; ++m) {
      as_operand<T>(a, s[m][0], s[m][1]);
      mma_two<T>(dv[m][0], dv[m][1], a, b);
    }
    rows_as_rows<D>(b, held.queries, query, 0);
    UNROLL for (int m = 0; m < STRIPS; ++m) {
      as_operand<T>(gradients[m], ds[m][0], ds[m][1]);
      mma_two<T>(dk[m][0], dk[m][1], gradients[m], b);
    }
    UNROLL for (int m = 0; m < STRIPS; ++m) {
      UNROLL for (int i = 0; i < 4; ++i) a[i] = transposed(gradients[m][i / 2 + i % 2 * 2]);
      mma_two<T>(dq[0], dq[1], a, k_rows[m]);
    }
    float* to = held.dq + query * D + 4 * lane_of();
    UNROLL for (int n = 0; n < 2; ++n) {
      float sum[4];
      load_pack(sum, to + 128 * n);
      UNROLL for (int i = 0; i < 4; ++i) sum[i] += dq[n][i];
      store_pack(to + 128 * n, sum);
    }
  }
};

template <class T> DEVICE void whole(const Attention& p, const Operands& io) {
  unsigned tiles = (p.time + 15) / 16, warps = block_threads() / 32;
  Problem<T> of(p, io);
  Held<T> held(16 * tiles);
  load_tile<D>(held.queries, of.q, 0, 16 * tiles);
  load_tile<D>(held.d_outs, of.d_out, 0, 16 * tiles);
  copy_async_commit();
  load_statistics<D>(held.statistics, of, 0, 16 * tiles);
  const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (unsigned i = thread_x(); i < tiles * 64; i += block_threads()) store_pack(held.dq + 4 * i, zeros);
  copy_async_wait<0>();
  barrier();

  Rows<T> dq = part_of(p, output<T>(io, 4), 0), dk = part_of(p, output<T>(io, 4), 1),
          dv = part_of(p, output<T>(io, 4), 2);
  unsigned turn = tiles < warps ? 1 : tiles / warps;
  for (unsigned round = 0; round < tiles; round += STRIPS * warps) {
    unsigned first = 16 * (round + STRIPS * warp_of()), tile = warp_of() * turn;
    Keys<T> keys;
    keys.start(of, first);
    for (unsigned done = 0; done < tiles;) {
      unsigned end = done + turn < tiles ? done + turn : tiles;
      for (; done < end; ++done) {
        if (keys.left >= 16 * STRIPS) keys.template take<false>(held, 16 * tile, of.factor);
        else if (keys.left) keys.template take<true>(held, 16 * tile, of.factor);
        tile = tile + 1 == tiles ? 0 : tile + 1;
      }
      barrier();
    }
    UNROLL for (int m = 0; m < STRIPS; ++m) {
      store_strip<D>(dk, first + 16 * m, keys.dk[m], p.scale, p.scale);
      store_strip<D>(dv, first + 16 * m, keys.dv[m], 1.0f, 1.0f);
    }
  }
  for (unsigned tile = warp_of(); tile < tiles; tile += warps) {
    float x[2][4];
    UNROLL for (int n = 0; n < 2; ++n) load_pack(x[n], held.dq + tile * 256 + 128 * n + 4 * lane_of());
    store_strip<D>(dq, 16 * tile, x, p.scale, p.scale);
  }
}

}  // namespace

GLOBAL void FITTING(512, 1) attention_backward_whole16_bf16(const Attention p, const Operands io) {
  whole<bf16>(p, io);
}
EMULATED(attention_backward_whole16_bf16, Attention)
GLOBAL void FITTING(512, 1) attention_backward_whole16_f16(const Attention p, const Operands io) {
  whole<f16>(p, io);
}
EMULATED(attention_backward_whole16_f16, Attention)
