// archs: 90a
// Gradient of attention on Hopper's warpgroup instructions (wgmma.mma_async), for head dimensions of 33 to 128
// (up to 64 as 64, the rest as 128), any length, bf16 and f16. Inputs d_out, qkv, out, lse; output d_qkv.
//
// What is computed, and that it is two independent passes, is as in attention_backward.cu: 7 products
// instead of 5, but no sum that crosses blocks, so nothing depends on timing. A first stage leaves
// lse log2(e) and delta of all queries in the workspace. The second is one launch, grid (blocks of keys,
// then of queries, heads, batch): passes that share a last wave beat two launches by 1 % where blocks are
// many, by 9 % with 1024 heads of 128, by 40 % with 4 heads of 1000.
//
// A block has two warpgroups that compute, of 64 rows each, and one that loads tiles of the other side
// through a ring in shared memory. A team of keys has scores transposed, [keys, queries], so that P^T and
// dS^T are operands A of dV and dK where they lie; a team of queries has dS as operand A of dQ. No score
// passes shared memory. With D = 128, dK and dV take 128 registers: tiles of 64 rows leave room. Queries
// and gradients of results that a team owns are operands A in registers, which spares shared memory the
// reads that a product of 64 x 64 x 16 cannot afford; keys and values have no room and stay there.
//
// What one team leaves idle between products the other one uses. Starting the next tile's scores before this
// one's sums are done, which keeps a team's own products going, gained 1 % for keys with D = 128, lost 5 %
// for queries, and leaves too few registers for tiles of 128 rows with D = 64, which gain 10 %.
//
// Predicted for D = 128: 570 TFLOP/s of all 7 products, 407 as 5 are counted. Measured on an H200 beside
// attention_backward.cu and cuDNN 9.19, TFLOP/s of 5 products: D = 64, 64 heads of 2048: 376, 105, 303-359;
// D = 128, 16 heads of 8192: 466, 112, 517-551. The latter is 650 of all 7, near what any product
// reaches: more takes a dQ that crosses blocks in a fixed order.
#include "attention_wgmma.h"

namespace {

constexpr unsigned TEAMS = 2, BLOCK = 64 * TEAMS;  // computing teams; rows of a block
// Rows of a tile, and tiles of two operands in shared memory.
template <int D> constexpr int ROWS = D == 64 ? 128 : 64;
constexpr int DEPTH = 4;

// Queries of a head with those past the last: whole blocks.
DEVICE unsigned padded(const Attention& p) { return (p.time + BLOCK - 1) / BLOCK * BLOCK; }
// Of each two neighbouring queries of a head: lse log2(e) of both, then delta of both.
DEVICE float4* statistics_of(const Attention& p, const Operands& io) {
  return static_cast<float4*>(io.workspace) + size_t(block_z() * p.heads + block_y()) * (padded(p) / 2);
}

// The first stage: D / 8 lanes take a query of a head. Queries past the last get an infinite lse, so that
// their probabilities are zero.
template <class T, int D> DEVICE void statistics(const Attention& p, const Operands& io) {
  constexpr unsigned LANES = D / 8;
  unsigned row = (block_x() * block_threads() + thread_x()) / LANES, lane = thread_x() % LANES;
  unsigned time = row / p.heads, head = row % p.heads;
  if (time >= padded(p)) return;
  bool real = time < p.time;
  size_t query = (size_t(block_z()) * p.time + time) * p.heads + head;
  float sum = 0.0f;
  if (real) {
    const T *out = input<T>(io, 2), *d_out = input<T>(io, 0);
    bool packed = p.head_dim % 8 == 0 && aligned16(out) && aligned16(d_out);
    out += query * p.head_dim + 8 * lane;
    d_out += query * p.head_dim + 8 * lane;
    if (packed && 8 * lane < p.head_dim) {
      float a[8], b[8];
      load_pack(a, out);
      load_pack(b, d_out);
      UNROLL for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
    } else {
      NO_UNROLL for (unsigned i = 0; i < 8 && 8 * lane + i < p.head_dim; ++i)
        sum += value_of(out[i]) * value_of(d_out[i]);
    }
  }
  sum = lanes_sum<LANES>(sum);
  if (lane != 0) return;
  float4* pairs = static_cast<float4*>(io.workspace) + size_t(block_z() * p.heads + head) * (padded(p) / 2);
  float* to = reinterpret_cast<float*>(pairs + time / 2) + time % 2;
  to[0] = real ? LOG2_E * input<float>(io, 3)[query] : float_of(0x7f800000u);
  to[2] = sum;
}

template <class T> struct Sides {
  Rows<const T> q, k, v, d_out;
  DEVICE Sides(const Attention& p, const Operands& io)
      : q(part_of(p, input<T>(io, 1), 0)), k(part_of(p, input<T>(io, 1), 1)), v(part_of(p, input<T>(io, 1), 2)),
        d_out(head_of(p, input<T>(io, 0))) {}
};

// Two tiles a stage, x and y of the same rows, and with statistics two numbers a row.
template <int D, bool WITH_STATISTICS> struct Stream {
  static constexpr int N = ROWS<D>;
  static constexpr unsigned TILE = N * D * 2, STAGE = 2 * TILE, BESIDE = WITH_STATISTICS ? N * 8 : 0;
  static constexpr unsigned BYTES = DEPTH * (STAGE + BESIDE) + Ring<DEPTH>::BYTES;
  unsigned memory;
  Ring<DEPTH> ring;
  DEVICE explicit Stream(unsigned memory) : memory(memory), ring(memory + DEPTH * (STAGE + BESIDE)) {}
  DEVICE unsigned x(unsigned turn) const { return memory + turn % DEPTH * STAGE; }
  DEVICE unsigned y(unsigned turn) const { return x(turn) + TILE; }
  DEVICE unsigned beside(unsigned turn) const { return memory + DEPTH * STAGE + turn % DEPTH * BESIDE; }

  // The loading team: half of it brings x, half y.
  template <class T>
  DEVICE void bring(const Rows<const T>& from_x, const Rows<const T>& from_y, const float4* statistics) const {
    unsigned own = thread_x() % TEAM;
    Mover<T, D, TEAM / 2> mover(own < TEAM / 2 ? from_x : from_y, 0);
    const float4* source = statistics + own;
    ring.feed((from_x.rows + N - 1) / N, [&](unsigned turn) {
      mover.template load<N>(own < TEAM / 2 ? x(turn) : y(turn));
      if (WITH_STATISTICS) {
        if (own < N / 2) copy_sixteen(beside(turn) + 16 * own, source, 16);
        source += N / 2;
      }
    });
  }
};
template <int D> using QueryStream = Stream<D, true>;
template <int D> using KeyStream = Stream<D, false>;

// Shared memory: keys and values that a block owns, or a tile for its results; a stream; what aligns them.
template <int D> constexpr unsigned SHARED_BYTES = 2 * BLOCK * D * 2 + QueryStream<D>::BYTES + 1024;
static_assert(SHARED_BYTES<64> == 169024 && SHARED_BYTES<128> == 199744, "as in src/ops/attention/plans.rs");
static_assert(KeyStream<64>::BYTES < QueryStream<64>::BYTES && KeyStream<128>::BYTES < QueryStream<128>::BYTES, "");

// Lse and delta of two neighbouring queries.
DEVICE float4 pair_at(unsigned address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(address));
  return x;
}

// dK and dV of 64 keys of one team.
template <class T, int D>
DEVICE void keys_backward(const Attention& p, const Operands& io, unsigned memory, const QueryStream<D>& queries,
                          unsigned block, unsigned team) {
  constexpr int N = ROWS<D>;
  Sides<T> of(p, io);
  unsigned first = block * BLOCK + team * 64, k = memory + team * 2 * (64 * D * 2), v = k + 64 * D * 2;
  Mover<T, D>(of.k, first).template load<64>(k);
  Mover<T, D>(of.v, first).template load<64>(v);
  copy_async_commit();
  copy_async_wait<0>();
  to_matrix_units();
  team_barrier(1 + team, TEAM);
  float dk[D / 2], dv[D / 2], factor = p.scale * LOG2_E;
  UNROLL for (int i = 0; i < D / 2; ++i) dk[i] = dv[i] = 0.0f;
  unsigned tiles = (p.time + N - 1) / N;
  NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
    float s[N / 2], dp[N / 2];
    Strip operand[N / 16], other[N / 16];
    queries.ring.wait_full(turn);
    products_begin();
    scores<T, D, N>(s, k, queries.x(turn));
    products_commit();
    scores<T, D, N>(dp, v, queries.y(turn));
    products_commit();
    products_wait<1>();
    unsigned beside = queries.beside(turn) + lane_of() % 4 * 16;
    UNROLL for (int j = 0; j < N / 8; ++j) {
      float4 pair = pair_at(beside + 64 * j);
      UNROLL for (int i = 4 * j; i < 4 * j + 4; ++i)
        s[i] = exp2_of(fma_of(s[i], factor, i % 2 ? -pair.y : -pair.x));
    }
    as_operands<T, N>(operand, s);
    products_begin();
    weigh<T, D, N>(dv, operand, queries.y(turn));
    products_commit();
    products_wait<1>();
    UNROLL for (int j = 0; j < N / 8; ++j) {
      float4 pair = pair_at(beside + 64 * j);
      UNROLL for (int i = 4 * j; i < 4 * j + 4; ++i) dp[i] = (dp[i] - (i % 2 ? pair.w : pair.z)) * s[i];
    }
    as_operands<T, N>(other, dp);
    products_begin();
    weigh<T, D, N>(dk, other, queries.x(turn));
    products_commit();
    products_wait<0>();
    queries.ring.release(turn);
  }
  team_barrier(1 + team, TEAM);
  unsigned row = first + warp_of() % 4 * 16;
  store_sums<T, D>(part_of(p, output<T>(io, 4), 2), row, v, dv, 1.0f, 1.0f);
  store_sums<T, D>(part_of(p, output<T>(io, 4), 1), row, k, dk, p.scale, p.scale);
}

// dQ of 64 queries of one team.
template <class T, int D>
DEVICE void queries_backward(const Attention& p, const Operands& io, unsigned memory, const KeyStream<D>& keys,
                             unsigned block, unsigned team) {
  constexpr int N = ROWS<D>;
  Sides<T> of(p, io);
  unsigned row = block * BLOCK + team * 64 + warp_of() % 4 * 16, tiles = (p.time + N - 1) / N;
  Strip q[D / 16], g[D / 16];
  load_strip<D>(q, of.q, row);
  load_strip<D>(g, of.d_out, row);
  float dq[D / 2], lse[2], delta[2], factor = p.scale * LOG2_E;
  UNROLL for (int h = 0; h < 2; ++h) {
    unsigned query = row + lane_of() / 4 + 8 * h;
    const float* from = reinterpret_cast<const float*>(statistics_of(p, io) + query / 2) + query % 2;
    lse[h] = from[0];
    delta[h] = from[2];
  }
  UNROLL for (int i = 0; i < D / 2; ++i) dq[i] = 0.0f;
  NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
    float s[N / 2], dp[N / 2];
    Strip operand[N / 16];
    keys.ring.wait_full(turn);
    products_begin();
    scores<T, D, N>(s, q, keys.x(turn));
    products_commit();
    scores<T, D, N>(dp, g, keys.y(turn));
    products_commit();
    products_wait<1>();
    UNROLL for (int i = 0; i < N / 2; ++i) s[i] = exp2_of(fma_of(s[i], factor, -lse[i / 2 % 2]));
    // Keys past the last are zero, but their probability may be infinite. That this is a branch keeps the
    // exponentials ahead of the next wait: without one the compiler puts the wait first.
    if (p.time - turn * N < N) {
      UNROLL for (int i = 0; i < N / 2; ++i)
        if (turn * N + i / 4 * 8 + lane_of() % 4 * 2 + i % 2 >= p.time) s[i] = 0.0f;
    }
    products_wait<0>();
    UNROLL for (int i = 0; i < N / 2; ++i) dp[i] = (dp[i] - delta[i / 2 % 2]) * s[i];
    as_operands<T, N>(operand, dp);
    products_begin();
    weigh<T, D, N>(dq, operand, keys.x(turn));
    products_commit();
    products_wait<0>();
    keys.ring.release(turn);
  }
  store_sums<T, D>(part_of(p, output<T>(io, 4), 0), row, memory + team * 64 * D * 2, dq, p.scale, p.scale);
}

template <class T, int D>
DEVICE void keys_block(const Attention& p, const Operands& io, unsigned memory, unsigned block, unsigned team) {
  QueryStream<D> queries(memory + 2 * BLOCK * D * 2);
  if (thread_x() == 0) queries.ring.start(4 * TEAMS);
  barrier();
  if (team == TEAMS) {
    fewer_registers<24>();
    Sides<T> of(p, io);
    queries.template bring<T>(of.q, of.d_out, statistics_of(p, io));
  } else {
    more_registers<240>();
    keys_backward<T, D>(p, io, memory, queries, block, team);
  }
}

template <class T, int D>
DEVICE void queries_block(const Attention& p, const Operands& io, unsigned memory, unsigned block, unsigned team) {
  KeyStream<D> keys(memory + BLOCK * D * 2);
  if (thread_x() == 0) keys.ring.start(4 * TEAMS);
  barrier();
  if (team == TEAMS) {
    fewer_registers<24>();
    Sides<T> of(p, io);
    keys.template bring<T>(of.k, of.v, nullptr);
  } else {
    more_registers<240>();
    queries_backward<T, D>(p, io, memory, keys, block, team);
  }
}

template <class T, int D> DEVICE void attention_backward(const Attention& p, const Operands& io) {
  unsigned memory = (shared_address(dynamic_shared()) + 1023) & ~1023u, half = grid_x() / 2, team = team_of();
  if (block_x() < half) keys_block<T, D>(p, io, memory, block_x(), team);
  else queries_block<T, D>(p, io, memory, block_x() - half, team);
}

}  // namespace

// Head dimensions up to D.
#define NAMED(D, type)                                                                                  \
  GLOBAL void __launch_bounds__(256)                                                                    \
      attention_backward_statistics##D##_##type(ARGUMENT Attention p, ARGUMENT Operands io) {           \
    after_previous();                                                                                   \
    statistics<type, D>(p, io);                                                                         \
  }                                                                                                     \
  GLOBAL void __launch_bounds__((TEAMS + 1) * TEAM, 1)                                                  \
      attention_backward_wgmma##D##_##type(ARGUMENT Attention p, ARGUMENT Operands io) {                \
    after_previous();                                                                                   \
    attention_backward<type, D>(p, io);                                                                 \
  }
NAMED(64, bf16)
NAMED(64, f16)
NAMED(128, bf16)
NAMED(128, f16)
