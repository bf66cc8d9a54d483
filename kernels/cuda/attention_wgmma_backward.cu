// archs: 90a
// Gradient of attention on Hopper's warpgroup instructions, head dimensions up to 64 and 128.
#include "attention_wgmma.h"

namespace {

constexpr unsigned TEAMS = 2, BLOCK = 64 * TEAMS;  // computing teams; rows of a block
#ifndef KEYS_ROWS64
#define KEYS_ROWS64 128
#endif
#ifndef QUERIES_ROWS64
#define QUERIES_ROWS64 128
#endif
#ifndef QUERIES_ROWS128
#define QUERIES_ROWS128 64
#endif
#ifndef LATE
#define LATE 1
#endif
#ifndef KLATE
#define KLATE 1
#endif

// Rows of a streamed tile: of queries past a block of keys, of keys past a block of queries.
template <int D> constexpr int QUERY_ROWS = D == 64 ? KEYS_ROWS64 : 64;
template <int D> constexpr int KEY_ROWS = D == 64 ? QUERIES_ROWS64 : QUERIES_ROWS128;
template <int D> constexpr int QUERY_STAGES = QUERY_ROWS<D> * D == 64 * 64 ? 6 : QUERY_ROWS<D> * D == 64 * 128 ? 3 : 2;
template <int D> constexpr int KEY_STAGES = KEY_ROWS<D> * D == 64 * 64 ? 6 : KEY_ROWS<D> * D == 64 * 128 ? 4 : 2;

struct Extents {
  unsigned padded, pairs;  // queries of a head, with those past the last; of two neighbours
  DEVICE explicit Extents(const Attention& p) : padded((p.time + 127) / 128 * 128), pairs(padded / 2) {}
};
DEVICE float4* statistics_of(const Attention& p, const Operands& io) {
  return static_cast<float4*>(io.workspace) + size_t(block_z() * p.heads + block_y()) * Extents(p).pairs;
}

// First stage: of each two neighbouring queries of a head lse log2(e) of both, then delta of both. Queries
// past the last get an infinite lse, so that their probabilities are zero. A group of lanes takes a row.
template <class T> DEVICE void statistics(const Attention& p, const Operands& io) {
  constexpr unsigned LANES = 16;
  unsigned row = (block_x() * block_threads() + thread_x()) / LANES, lane = thread_x() % LANES;
  unsigned time = row / p.heads, head = row % p.heads;
  if (time >= Extents(p).padded) return;
  float sum = 0.0f;
  bool real = time < p.time;
  if (real) {
    size_t at = ((size_t(block_z()) * p.time + time) * p.heads + head) * p.head_dim;
    const T *out = input<T>(io, 2) + at, *d_out = input<T>(io, 0) + at;
    if (p.head_dim % 8 == 0 && aligned16(input<T>(io, 2)) && aligned16(input<T>(io, 0))) {
      if (8 * lane < p.head_dim) {
        float a[8], b[8];
        load_pack(a, out + 8 * lane);
        load_pack(b, d_out + 8 * lane);
        UNROLL for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
      }
    } else {
      for (unsigned i = lane; i < p.head_dim; i += LANES) sum += value_of(out[i]) * value_of(d_out[i]);
    }
  }
  sum = lanes_sum<LANES>(sum);
  if (lane != 0) return;
  float lse = real ? LOG2_E * input<float>(io, 3)[(size_t(block_z()) * p.time + time) * p.heads + head] : float_of(0x7f800000u);
  float* to = static_cast<float*>(io.workspace) +
              (size_t(block_z() * p.heads + head) * Extents(p).pairs + time / 2) * 4 + time % 2;
  to[0] = lse;
  to[2] = sum;
}

template <class T> struct Sides {
  Rows<const T> q, k, v, d_out;
  DEVICE Sides(const Attention& p, const Operands& io)
      : q(part_of(p, input<T>(io, 1), 0)), k(part_of(p, input<T>(io, 1), 1)), v(part_of(p, input<T>(io, 1), 2)),
        d_out(head_of(p, input<T>(io, 0))) {}
};

// Two tiles a stage, x and y of the same rows, and statistics where WITH.
template <int D, int ROWS, int STAGES, bool WITH> struct Stream {
  static constexpr unsigned TILE = ROWS * D * 2, STAGE = 2 * TILE, BESIDE = WITH ? ROWS * 8 : 0;
  static constexpr unsigned BYTES = STAGES * (STAGE + BESIDE) + 16 * STAGES;
  unsigned memory;
  Ring<STAGES> ring;
  DEVICE explicit Stream(unsigned memory) : memory(memory), ring(memory + STAGES * (STAGE + BESIDE)) {}
  DEVICE unsigned x(unsigned turn) const { return memory + turn % STAGES * STAGE; }
  DEVICE unsigned y(unsigned turn) const { return x(turn) + TILE; }
  DEVICE unsigned beside(unsigned turn) const { return memory + STAGES * STAGE + turn % STAGES * BESIDE; }

  template <class T> DEVICE void bring(const Rows<const T>& from_x, const Rows<const T>& from_y, const float4* statistics) const {
    unsigned tiles = (from_x.rows + ROWS - 1) / ROWS, own = thread_x() % TEAM;
    bool packed = from_x.packed && from_y.packed;
    Mover<T, D, TEAM / 2> mover(own < TEAM / 2 ? from_x : from_y, 0);
    const float4* source = statistics + own;
    NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
      ring.wait_free(turn);
      mover.template load<ROWS>(own < TEAM / 2 ? x(turn) : y(turn));
      if (WITH) {
        if (own < ROWS / 2)
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(beside(turn) + 16 * own), "l"(source) : "memory");
        source += ROWS / 2;
      }
      if (!packed) {
        copy_async_wait<0>();
        to_matrix_units();
      }
      ring.fill(turn, packed);
    }
    copy_async_wait<0>();
  }
};

// Lse and delta of two neighbouring queries.
DEVICE float4 pair_at(unsigned address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(address));
  return x;
}

template <int D> using QueryStream = Stream<D, QUERY_ROWS<D>, QUERY_STAGES<D>, true>;
template <int D> using KeyStream = Stream<D, KEY_ROWS<D>, KEY_STAGES<D>, false>;

// Zeros that the compiler does not know to be the same.
template <int N> DEVICE void clear(float (&c)[N]) {
  UNROLL for (int i = 0; i < N; ++i) asm volatile("mov.f32 %0, 0f00000000;" : "=f"(c[i]));
}

// dK and dV of 64 keys of one team.
template <class T, int D>
DEVICE void keys_backward(const Attention& p, const Operands& io, unsigned memory, const QueryStream<D>& queries, unsigned team) {
  constexpr int N = QUERY_ROWS<D>;
  constexpr unsigned HALF = 64 * D * 2;
  Sides<T> of(p, io);
  unsigned first = block_x() * BLOCK + team * 64, k = memory + team * 2 * HALF, v = k + HALF;
  Mover<T, D>(of.k, first).template load<64>(k);
  Mover<T, D>(of.v, first).template load<64>(v);
  copy_async_commit();
  copy_async_wait<0>();
  to_matrix_units();
  team_barrier(1 + team, TEAM);
  float dk[D / 2], dv[D / 2], factor = p.scale * LOG2_E;
  clear(dk);
  clear(dv);
  unsigned tiles = (p.time + N - 1) / N;
  float s[N / 2], dp[N / 2];
  unsigned a[N / 16][4], b[N / 16][4];
  NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
    queries.ring.wait_full(turn);
    products_begin();
    scores<T, D, 64, N>(s, k, 0, queries.x(turn));
    products_commit();
    scores<T, D, 64, N>(dp, v, 0, queries.y(turn));
    products_commit();
    products_wait<1>();
    if (KLATE && turn > 0) queries.ring.release(turn - 1);
    unsigned beside = queries.beside(turn) + lane_of() % 4 * 16;
    UNROLL for (int j = 0; j < N / 8; ++j) {
      float4 pair = pair_at(beside + 64 * j);
      UNROLL for (int h = 0; h < 2; ++h) {
        s[4 * j + 2 * h] = exp2_of(fma_of(s[4 * j + 2 * h], factor, -pair.x));
        s[4 * j + 2 * h + 1] = exp2_of(fma_of(s[4 * j + 2 * h + 1], factor, -pair.y));
      }
    }
    as_operands<T, N>(a, s);
    if (KLATE == 1 || KLATE == 2) {
      products_wait<0>();
    } else {
      products_begin();
      weigh<T, D, N>(dv, a, queries.y(turn));
      products_commit();
      products_wait<1>();
    }
    UNROLL for (int j = 0; j < N / 8; ++j) {
      float4 pair = pair_at(beside + 64 * j);
      UNROLL for (int h = 0; h < 2; ++h) {
        dp[4 * j + 2 * h] = (dp[4 * j + 2 * h] - pair.z) * s[4 * j + 2 * h];
        dp[4 * j + 2 * h + 1] = (dp[4 * j + 2 * h + 1] - pair.w) * s[4 * j + 2 * h + 1];
      }
    }
    as_operands<T, N>(b, dp);
    products_begin();
    if (KLATE == 1 || KLATE == 2) {
      weigh<T, D, N>(dv, a, queries.y(turn));
      products_commit();
    }
    weigh<T, D, N>(dk, b, queries.x(turn));
    products_commit();
    if (KLATE >= 2) products_wait<1>();
    if (!KLATE) {
      products_wait<0>();
      queries.ring.release(turn);
    }
  }
  products_wait<0>();
  unsigned row = first + warp_of() % 4 * 16;
  store_sums<T, D>(part_of(p, output<T>(io, 4), 2), row, v, dv, 1.0f, 1.0f);
  store_sums<T, D>(part_of(p, output<T>(io, 4), 1), row, k, dk, p.scale, p.scale);
}

// dQ of 64 queries of one team.
template <class T, int D>
DEVICE void queries_backward(const Attention& p, const Operands& io, unsigned memory, const KeyStream<D>& keys, unsigned team) {
  constexpr int N = KEY_ROWS<D>;
  Sides<T> of(p, io);
  unsigned row = block_x() * BLOCK + team * 64 + warp_of() % 4 * 16, tiles = (p.time + N - 1) / N;
  unsigned q[D / 16][4], g[D / 16][4];
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
  float s[N / 2], dp[N / 2];
  unsigned a[N / 16][4];
  NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
    keys.ring.wait_full(turn);
    products_begin();
    scores<T, D, N>(s, q, keys.x(turn));
    products_commit();
    scores<T, D, N>(dp, g, keys.y(turn));
    products_commit();
    products_wait<1>();
    if (LATE && turn > 0) keys.ring.release(turn - 1);
    UNROLL for (int i = 0; i < N / 2; ++i) s[i] = exp2_of(fma_of(s[i], factor, -lse[i / 2 % 2]));
    // Keys past the last are zero, but their probability may be infinite. That this is a branch keeps the
    // exponentials ahead of the wait: in one stretch of code the compiler puts the wait first.
    if (p.time - turn * N < N) {
      UNROLL for (int i = 0; i < N / 2; ++i)
        if (turn * N + i / 4 * 8 + lane_of() % 4 * 2 + i % 2 >= p.time) s[i] = 0.0f;
    }
    products_wait<0>();
    UNROLL for (int i = 0; i < N / 2; ++i) dp[i] = (dp[i] - delta[i / 2 % 2]) * s[i];
    as_operands<T, N>(a, dp);
    products_begin();
    weigh<T, D, N>(dq, a, keys.x(turn));
    products_commit();
    if (!LATE) {
      products_wait<0>();
      keys.ring.release(turn);
    }
  }
  products_wait<0>();
  store_sums<T, D>(part_of(p, output<T>(io, 4), 0), row, memory + team * 64 * D * 2, dq, p.scale, p.scale);
}

template <class T, int D> DEVICE void keys_kernel(const Attention& p, const Operands& io) {
  unsigned memory = (shared_address(dynamic_shared()) + 1023) & ~1023u, team = team_of();
  QueryStream<D> queries(memory + 2 * BLOCK * D * 2);
  if (thread_x() == 0) queries.ring.start(4 * TEAMS);
  barrier();
  if (team == TEAMS) {
    give_registers<24>();
    Sides<T> of(p, io);
    queries.template bring<T>(of.q, of.d_out, statistics_of(p, io));
  } else {
    take_registers<240>();
    keys_backward<T, D>(p, io, memory, queries, team);
  }
}

template <class T, int D> DEVICE void queries_kernel(const Attention& p, const Operands& io) {
  unsigned memory = (shared_address(dynamic_shared()) + 1023) & ~1023u, team = team_of();
  KeyStream<D> keys(memory + BLOCK * D * 2);
  if (thread_x() == 0) keys.ring.start(4 * TEAMS);
  barrier();
  if (team == TEAMS) {
    give_registers<24>();
    Sides<T> of(p, io);
    keys.template bring<T>(of.k, of.v, nullptr);
  } else {
    take_registers<240>();
    queries_backward<T, D>(p, io, memory, keys, team);
  }
}

}  // namespace

#define ENTRY_OF(name, threads, type, body)                                              \
  GLOBAL void __launch_bounds__(threads, 1) name##_##type(ARGUMENT Attention p, ARGUMENT Operands io) {   \
    after_previous();                                                                   \
    body;                                                   \
  }
#define NAMED(D, type) \
  ENTRY_OF(attention_backward_keys_wgmma##D, 384, type, (keys_kernel<type, D>(p, io)))    \
  ENTRY_OF(attention_backward_queries_wgmma##D, 384, type, (queries_kernel<type, D>(p, io)))
NAMED(64, bf16)
NAMED(128, bf16)
NAMED(64, f16)
NAMED(128, f16)
ENTRY_OF(attention_backward_statistics, 256, bf16, (statistics<bf16>(p, io)))
ENTRY_OF(attention_backward_statistics, 256, f16, (statistics<f16>(p, io)))
