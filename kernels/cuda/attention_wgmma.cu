// archs: 90a
// Attention on Hopper's warpgroup instructions (wgmma.mma_async), for head dimensions of 33 to 128 (up to 64
// as 64, the rest as 128), any length, bf16 and f16. Operands and results as attention.cu beside this has
// them.
//
// Grid (blocks of queries, heads, batch). A block is TEAMS warpgroups that compute, of 64 queries each, and
// one that loads: tiles of 128 keys and of 128 values go in turn through a ring in shared memory
// (cp.async, so that rows need no tensor map, may end anywhere and are padded with zeros on the way). A
// team's scores of a tile stay in registers and become operand A of P V in place. Its turn is: S of the
// next tile = Q K^T and O += P V of this one are both started, and while the latter runs, S becomes
// exponentials (Shah et al. 2024). Teams take turns at starting products, so that one computes
// exponentials while the other has the matrix units. The largest score so far is replaced only when a new
// one exceeds it by 2^LAZY, so sums are seldom scaled again. The last tile, which may not be whole, comes
// first, where nothing else is under way: no other tile has keys to cut off.
//
// Registers decide the sizes: with 64 x 128 scores a thread holds 64 of them, 32 registers of P and D / 2
// sums; two teams of 232 registers for D = 128, three of 160 for D = 64, 7 % faster than two where
// blocks are many. The compiler puts the wait for P V ahead of the exponentials if it may: therefore the
// stage of K is given back only where their sums allow it (they always do), and that it leaves alone.
//
// Predicted for D = 64: a tile of 64 x 128 takes 512 clocks of the matrix unit, and as many of the
// exponential unit, so 495 TFLOP/s at most. Measured on an H200 beside attention.cu and cuDNN 9.19,
// TFLOP/s: D = 64, 64 heads of 2048: 401, 207, 407-430; D = 128, 16 heads of 8192: 636, 214, 642-647.
// Starting products in turn is worth 5 %. Whether the loading team fences its copies for the matrix units or
// computing teams fence what they read is the same (447, 445 for D = 64 at 8192); without a fence, which
// CUDA does not promise to work, it would be 457.
#include "attention_wgmma.h"

namespace {

constexpr int KEYS = 128;  // of a tile
constexpr float LAZY = 8.0f;
// Tiles in shared memory, of keys and of values.
template <int D> constexpr int STAGES = D == 64 ? 8 : 4;
template <int D> constexpr unsigned TILE = KEYS * D * 2;

// Shared memory: a tile of queries for each team, the ring and its barriers, and what aligns them.
template <int D, int TEAMS> constexpr unsigned SHARED_BYTES =
    TEAMS * 64 * D * 2 + STAGES<D> * TILE<D> + Ring<STAGES<D>>::BYTES + 1024;
static_assert(SHARED_BYTES<64, 2> == 148608 && SHARED_BYTES<64, 3> == 156800 && SHARED_BYTES<128, 2> == 164928,
              "as in src/ops/attention/plans.rs");

// Tiles of keys and of values in turn.
template <int D> struct Places {
  unsigned q, tiles;
  Ring<STAGES<D>> ring;
  DEVICE Places(unsigned memory, unsigned teams)
      : q(memory), tiles(q + teams * 64 * D * 2), ring(tiles + STAGES<D> * TILE<D>) {}
  DEVICE unsigned tile(unsigned turn) const { return tiles + turn % STAGES<D> * TILE<D>; }
};

// What a team knows of its 64 queries.
template <class T, int D> struct Queries {
  float s[KEYS / 2], out[D / 2];
  Strip p[KEYS / 16];
  float top[2], sum[2], shrink[2];  // of rows g and g + 8; `top` times scale log2(e)
  float factor;                     // scale log2(e)

  DEVICE explicit Queries(float scale) : factor(scale * LOG2_E) {
    UNROLL for (int h = 0; h < 2; ++h) top[h] = -1.0e30f, sum[h] = 0.0f;
    UNROLL for (int i = 0; i < D / 2; ++i) out[i] = 0.0f;
  }

  // Keys from `valid` on count nothing.
  DEVICE void cut(unsigned valid) {
    UNROLL for (int i = 0; i < KEYS / 2; ++i)
      if (i / 4 * 8 + lane_of() % 4 * 2 + i % 2 >= valid) s[i] = -1.0e30f;
  }

  DEVICE float largest(int h) const {
    float most = max_of(s[2 * h], s[2 * h + 1]), other = max_of(s[4 + 2 * h], s[5 + 2 * h]);
    UNROLL for (int j = 2; j < KEYS / 8; j += 2) {
      most = max_of(most, max_of(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
      other = max_of(other, max_of(s[4 * j + 4 + 2 * h], s[4 * j + 5 + 2 * h]));
    }
    return lanes_max<4>(max_of(most, other)) * factor;
  }

  // Scores to powers of two.
  DEVICE void exponentials() {
    UNROLL for (int h = 0; h < 2; ++h) {
      float most = largest(h), next = most > top[h] + LAZY ? most : top[h], all[2] = {0.0f, 0.0f};
      shrink[h] = exp2_of(top[h] - next);
      top[h] = next;
      UNROLL for (int j = 0; j < KEYS / 8; ++j)
        UNROLL for (int i = 2 * h; i < 2 * h + 2; ++i) {
          s[4 * j + i] = exp2_of(fma_of(s[4 * j + i], factor, -next));
          all[i % 2] += s[4 * j + i];
        }
      sum[h] = fma_of(sum[h], shrink[h], all[0] + all[1]);
    }
  }
  DEVICE bool sums_are_there() const { return !(sum[0] < 0.0f || sum[1] < 0.0f); }

  // Makes the exponentials an operand, when no product is under way.
  DEVICE void pack() {
    if (shrink[0] != 1.0f || shrink[1] != 1.0f) {
      UNROLL for (int i = 0; i < D / 2; ++i) out[i] *= shrink[i / 2 % 2];
    }
    as_operands<T, KEYS>(p, s);
  }

  // Stores the results of rows first .. first + 15, the warp's, by way of `tile`.
  DEVICE void finish(const Rows<T>& to, float* lse, unsigned heads, unsigned first, unsigned tile) {
    float inverse[2];
    UNROLL for (unsigned h = 0; h < 2; ++h) {
      float all = lanes_sum<4>(sum[h]);
      unsigned row = first + lane_of() / 4 + 8 * h;
      inverse[h] = 1.0f / all;
      if (lane_of() % 4 == 0 && row < to.rows) lse[size_t(row) * heads] = LN_2 * top[h] + log_of(all);
    }
    store_sums<T, D>(to, first, tile, out, inverse[0], inverse[1]);
  }
};

// The loading team: the last tile, then the others in order.
template <class T, int D>
DEVICE void bring(const Attention& p, const Operands& io, const Places<D>& at, unsigned tiles) {
  constexpr int STEPS = KEYS / Mover<T, D>::STEP;
  unsigned last = (tiles - 1) * KEYS;
  Mover<T, D> keys(part_of(p, input<T>(io, 0), 1), last), values(part_of(p, input<T>(io, 0), 2), last);
  at.ring.feed(2 * tiles, [&](unsigned turn) {
    if (turn % 2 == 0) {
      keys.template load<KEYS>(at.tile(turn));
      if (turn == 0) keys.skip(-int(tiles) * STEPS);
    } else {
      values.template load<KEYS>(at.tile(turn));
      if (turn == 1) values.skip(-int(tiles) * STEPS);
    }
  });
}

// Teams start products in turn: each waits for the one before it, the first for the last.
template <int TEAMS> struct Order {
  static constexpr unsigned FIRST = 8;  // of its barriers; a team's own is `1 + team`
  unsigned team;
  DEVICE void begin() const { if (team == TEAMS - 1) pass(); }
  DEVICE void wait() const { team_barrier(FIRST + team, 2 * TEAM); }
  DEVICE void pass() const { team_arrive(FIRST + (team + 1) % TEAMS, 2 * TEAM); }
  DEVICE void end() const { if (team == 0) wait(); }
};

template <class T, int D, int TEAMS>
DEVICE void attend(const Attention& p, const Operands& io, const Places<D>& at, unsigned tiles, unsigned team) {
  unsigned first = (block_x() * TEAMS + team) * 64, q = at.q + team * 64 * D * 2;
  Mover<T, D>(part_of(p, input<T>(io, 0), 0), first).template load<64>(q);
  copy_async_commit();
  copy_async_wait<0>();
  to_matrix_units();
  team_barrier(1 + team, TEAM);
  Order<TEAMS> order{team};
  Queries<T, D> state(p.scale);
  at.ring.wait_full(0);
  products_begin();
  scores<T, D, KEYS>(state.s, q, at.tile(0));
  products_commit();
  products_wait<0>();
  at.ring.release(0);
  unsigned left = p.time - (tiles - 1) * KEYS;
  if (left < KEYS) state.cut(left);
  state.exponentials();
  state.shrink[0] = state.shrink[1] = 1.0f;  // there is nothing to scale yet
  state.pack();
  order.begin();
  NO_UNROLL for (unsigned turn = 1; turn < tiles; ++turn) {
    at.ring.wait_full(2 * turn);
    order.wait();
    products_begin();
    scores<T, D, KEYS>(state.s, q, at.tile(2 * turn));
    products_commit();
    at.ring.wait_full(2 * turn - 1);
    products_begin();
    weigh<T, D, KEYS>(state.out, state.p, at.tile(2 * turn - 1));
    products_commit();
    order.pass();
    products_wait<1>();
    state.exponentials();
    at.ring.release(2 * turn, state.sums_are_there());
    products_wait<0>();
    at.ring.release(2 * turn - 1);
    state.pack();
  }
  order.end();
  at.ring.wait_full(2 * tiles - 1);
  products_begin();
  weigh<T, D, KEYS>(state.out, state.p, at.tile(2 * tiles - 1));
  products_commit();
  products_wait<0>();
  team_barrier(1 + team, TEAM);
  float* lse = output<float>(io, 2) + size_t(block_z()) * p.time * p.heads + block_y();
  state.finish(head_of(p, output<T>(io, 1)), lse, p.heads, first + warp_of() % 4 * 16, q);
}

template <class T, int D, int TEAMS> DEVICE void attention(const Attention& p, const Operands& io) {
  unsigned memory = (shared_address(dynamic_shared()) + 1023) & ~1023u;
  unsigned tiles = (p.time + KEYS - 1) / KEYS, team = team_of();
  Places<D> at(memory, TEAMS);
  if (thread_x() == 0) at.ring.start(4 * TEAMS);
  barrier();
  // All teams start with 168 or 128 registers a thread, and can only take what the loading one gives.
  if (team == TEAMS) {
    fewer_registers<TEAMS == 2 ? 40 : 32>();
    bring<T, D>(p, io, at, tiles);
  } else {
    more_registers<TEAMS == 2 ? 232 : 160>();
    attend<T, D, TEAMS>(p, io, at, tiles, team);
  }
}

}  // namespace

// Head dimensions up to D, by `TEAMS` computing warpgroups.
#define NAMED(D, TEAMS, type)                                                                  \
  GLOBAL void __launch_bounds__((TEAMS + 1) * TEAM, 1)                                         \
      attention_wgmma##D##x##TEAMS##_##type(ARGUMENT Attention p, ARGUMENT Operands io) {      \
    after_previous();                                                                          \
    attention<type, D, TEAMS>(p, io);                                                          \
  }
#define HALVES(D, TEAMS) NAMED(D, TEAMS, bf16) NAMED(D, TEAMS, f16)

HALVES(64, 2)
HALVES(64, 3)
HALVES(128, 2)
