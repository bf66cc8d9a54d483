// archs: 90a
// Attention on Hopper's warpgroup instructions, head dimensions up to 64 and 128.
#include "attention_wgmma.h"

namespace {

constexpr int KEYS = 128;  // of a tile
constexpr float LAZY = 8.0f;
#ifndef PINGPONG
#define PINGPONG 0
#endif

#ifndef TIED
#define TIED 1
#endif

template <int D> constexpr int STAGES = D == 64 ? 4 : 2;
template <int D> constexpr unsigned TILE = KEYS * D * 2;

// The part of 64 queries of one team.
template <class T, int D> struct Queries {
  float s[KEYS / 2], out[D / 2];
  unsigned p[KEYS / 16][4];
  float top[2], sum[2], shrink[2];  // of rows g and g + 8; `top` times scale log2(e)
  float factor;

  DEVICE void start(float scale) {
    factor = scale * LOG2_E;
    UNROLL for (int h = 0; h < 2; ++h) top[h] = -1.0e30f, sum[h] = 0.0f, shrink[h] = 1.0f;
    UNROLL for (int i = 0; i < D / 2; ++i) out[i] = 0.0f;
  }

  // Keys from `valid` on count nothing.
  DEVICE void cut(unsigned valid) {
    UNROLL for (int i = 0; i < KEYS / 2; ++i)
      if (i / 4 * 8 + lane_of() % 4 * 2 + i % 2 >= valid) s[i] = -1.0e30f;
  }

  // Scores to powers of two.
  DEVICE void exponentials() {
    UNROLL for (int h = 0; h < 2; ++h) {
      float most = max_of(s[2 * h], s[2 * h + 1]), other = max_of(s[4 + 2 * h], s[5 + 2 * h]);
      UNROLL for (int j = 2; j < KEYS / 8; j += 2) {
        most = max_of(most, max_of(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        other = max_of(other, max_of(s[4 * j + 4 + 2 * h], s[4 * j + 5 + 2 * h]));
      }
      most = lanes_max<4>(max_of(most, other)) * factor;
      float next = most > top[h] + LAZY ? most : top[h];
      shrink[h] = exp2_of(top[h] - next);
      top[h] = next;
      float all[2] = {0.0f, 0.0f};
      UNROLL for (int j = 0; j < KEYS / 8; ++j)
        UNROLL for (int i = 2 * h; i < 2 * h + 2; ++i) {
          s[4 * j + i] = exp2_of(fma_of(s[4 * j + i], factor, -next));
          all[i % 2] += s[4 * j + i];
        }
      sum[h] = fma_of(sum[h], shrink[h], all[0] + all[1]);
    }
  }

  // To be called where no product is under way.
  DEVICE void pack() {
    if (shrink[0] != 1.0f || shrink[1] != 1.0f) {
      UNROLL for (int i = 0; i < D / 2; ++i) out[i] *= shrink[i / 2 % 2];
    }
    as_operands<T, KEYS>(p, s);
  }
};

template <class T, int D> struct Places {
  unsigned q, k, v;
  Ring<STAGES<D>> keys, values;
  DEVICE Places(unsigned memory, unsigned teams)
      : q(memory), k(q + teams * 64 * D * 2), v(k + STAGES<D> * TILE<D>), keys(v + STAGES<D> * TILE<D>),
        values(v + STAGES<D> * TILE<D> + 16 * STAGES<D>) {}
  DEVICE unsigned key_tile(unsigned turn) const { return k + turn % STAGES<D> * TILE<D>; }
  DEVICE unsigned value_tile(unsigned turn) const { return v + turn % STAGES<D> * TILE<D>; }
};

// The last tile, which may not be whole, is taken first.
template <class T, int D> DEVICE void bring(const Attention& p, const Operands& io, const Places<T, D>& at, unsigned tiles) {
  constexpr int STEPS = KEYS / Mover<T, D>::STEP;
  unsigned last = (tiles - 1) * KEYS;
  Mover<T, D> keys(part_of(p, input<T>(io, 0), 1), last), values(part_of(p, input<T>(io, 0), 2), last);
  NO_UNROLL for (unsigned turn = 0; turn < tiles; ++turn) {
    at.keys.wait_free(turn);
    keys.template load<KEYS>(at.key_tile(turn));
    at.keys.fill(turn, keys.packed);
    at.values.wait_free(turn);
    values.template load<KEYS>(at.value_tile(turn));
    at.values.fill(turn, values.packed);
    if (turn == 0) {
      keys.skip(-int(tiles) * STEPS);
      values.skip(-int(tiles) * STEPS);
    }
  }
  copy_async_wait<0>();
}

template <class T, int D, int TEAMS>
DEVICE void attend(const Attention& p, const Operands& io, const Places<T, D>& at, unsigned tiles, unsigned team) {
  unsigned first = (block_x() * TEAMS + team) * 64;
  unsigned q = at.q + team * 64 * D * 2;
  Mover<T, D>(part_of(p, input<T>(io, 0), 0), first).template load<64>(q);
  copy_async_commit();
  copy_async_wait<0>();
  to_matrix_units();
  team_barrier(1 + team, TEAM);
  Queries<T, D> state;
  state.start(p.scale);
  at.keys.wait_full(0);
  products_begin();
  scores<T, D, 64, KEYS>(state.s, q, 0, at.key_tile(0));
  products_commit();
  products_wait<0>();
  at.keys.release(0);
  unsigned left = p.time - (tiles - 1) * KEYS;
  if (left < KEYS) state.cut(left);
  state.exponentials();
  state.shrink[0] = state.shrink[1] = 1.0f;
  state.pack();
  if (PINGPONG && team == TEAMS - 1) team_arrive(8, 2 * TEAM);
  NO_UNROLL for (unsigned turn = 1; turn < tiles; ++turn) {
    at.keys.wait_full(turn);
    if (PINGPONG) team_barrier(8 + team, 2 * TEAM);
    products_begin();
    scores<T, D, 64, KEYS>(state.s, q, 0, at.key_tile(turn));
    products_commit();
    at.values.wait_full(turn - 1);
    products_begin();
    weigh<T, D, KEYS>(state.out, state.p, at.value_tile(turn - 1));
    products_commit();
    if (PINGPONG) team_arrive(8 + (team + 1) % TEAMS, 2 * TEAM);
    products_wait<1>();
    if (!TIED) at.keys.release(turn);
    state.exponentials();
    if (TIED) at.keys.release(turn, !(state.sum[0] < 0.0f || state.sum[1] < 0.0f));
    products_wait<0>();
    at.values.release(turn - 1);
    state.pack();
  }
  if (PINGPONG && team == 0) team_barrier(8, 2 * TEAM);
  at.values.wait_full(tiles - 1);
  products_begin();
  weigh<T, D, KEYS>(state.out, state.p, at.value_tile(tiles - 1));
  products_commit();
  products_wait<0>();
  float inverse[2];
  unsigned row = first + warp_of() % 4 * 16 + lane_of() / 4;
  float* lse = output<float>(io, 2) + size_t(block_z()) * p.time * p.heads + block_y();
  UNROLL for (unsigned h = 0; h < 2; ++h) {
    float sum = lanes_sum<4>(state.sum[h]);
    inverse[h] = 1.0f / sum;
    if (lane_of() % 4 == 0 && row + 8 * h < p.time)
      lse[size_t(row + 8 * h) * p.heads] = LN_2 * state.top[h] + log_of(sum);
  }
  store_sums<T, D>(head_of(p, output<T>(io, 1)), first + warp_of() % 4 * 16, q, state.out, inverse[0], inverse[1]);
}

template <class T, int D, int TEAMS> DEVICE void attention(const Attention& p, const Operands& io) {
  unsigned memory = (shared_address(dynamic_shared()) + 1023) & ~1023u;
  unsigned tiles = (p.time + KEYS - 1) / KEYS, team = team_of();
  Places<T, D> at(memory, TEAMS);
  if (thread_x() == 0) {
    at.keys.start(4 * TEAMS);
    at.values.start(4 * TEAMS);
  }
  barrier();
  if (team == TEAMS) {
    give_registers<TEAMS == 2 ? 40 : 32>();
    bring<T, D>(p, io, at, tiles);
  } else {
    take_registers<TEAMS == 2 ? 232 : 160>();
    attend<T, D, TEAMS>(p, io, at, tiles, team);
  }
}

}  // namespace

#define NAMED(D, TEAMS, suffix, type)                                                    \
  GLOBAL void __launch_bounds__((TEAMS + 1) * TEAM, 1)                                  \
      attention_wgmma##D##suffix##_##type(ARGUMENT Attention p, ARGUMENT Operands io) {   \
    after_previous();                                                                   \
    attention<type, D, TEAMS>(p, io);                                                   \
  }
NAMED(64, 2, , bf16)
NAMED(64, 3, x3, bf16)
NAMED(128, 2, , bf16)
NAMED(64, 2, , f16)
NAMED(128, 2, , f16)
