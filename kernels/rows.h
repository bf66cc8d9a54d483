// Rows of a matrix held in registers, for ops that need a whole row before they can write it.
#pragma once
#include "portable.h"

namespace {

constexpr int THREADS = 256;  // most threads of a block
// Longest row that is held in registers.
constexpr unsigned HELD_COLUMNS = 4096;

// N sums over teams of LANES neighbouring threads. A team is part of a wave or several waves; in
// the second case all threads of the block must call, and `memory` holds N numbers a wave.
template <int LANES, int N> DEVICE void row_sums(float (&x)[N], float* memory) {
  UNROLL for (int n = 0; n < N; ++n) x[n] = lanes_sum<(LANES < WAVE ? LANES : WAVE)>(x[n]);
  if constexpr (LANES > WAVE) {
    constexpr unsigned waves = LANES / WAVE;
    unsigned wave = thread_x() / WAVE, first = wave / waves * waves;
    if (thread_x() % WAVE == 0) UNROLL for (int n = 0; n < N; ++n) memory[wave * N + n] = x[n];
    barrier();
    UNROLL for (int n = 0; n < N; ++n) {
      x[n] = 0.0f;
      UNROLL for (unsigned i = 0; i < waves; ++i) x[n] += memory[(first + i) * N + n];
    }
    barrier();
  }
}

// Walks `rows` with LANES lanes a row and R rows in flight a group of lanes. Neighbouring groups
// take neighbouring rows. Any grid covers all rows.
template <int LANES, int R> struct Walk {
  unsigned lane, group, groups, rows, first;
  DEVICE Walk(unsigned rows) : rows(rows) {
    lane = thread_x() % LANES, group = thread_x() / LANES, groups = block_threads() / LANES;
    first = block_x() * groups * R;
  }
  DEVICE bool more() const { return first < rows; }
  DEVICE unsigned stride() const { return grid_x() * groups * R; }
  DEVICE void next() { first += stride(); }
  DEVICE unsigned row(int r) const { return first + r * groups + group; }
};

// Elements of a row that one lane holds.
constexpr int HELD = 16;

// Calls f.run<LANES>() with the lanes that hold a row of `cols`, as ops::plans has them: a part of a
// block for up to NARROW_COLUMNS, all of THREADS for more, or MOST, where there are more, beyond
// HELD_COLUMNS.
constexpr unsigned NARROW_COLUMNS = 1024;
template <class F> DEVICE void by_narrow_width(unsigned cols, F f) {
  if (cols <= 64) f.template run<4>();
  else if (cols <= 128) f.template run<8>();
  else if (cols <= 256) f.template run<16>();
  else if (cols <= 512) f.template run<32>();
  else f.template run<64>();
}
template <int MOST = THREADS, class F> DEVICE void by_width(unsigned cols, F f) {
  if (cols <= NARROW_COLUMNS) by_narrow_width(cols, f);
  else if (MOST == THREADS || cols <= HELD_COLUMNS) f.template run<THREADS>();
  else f.template run<MOST>();
}

template <int LANES, int N> DEVICE void row_tops(float (&x)[N], float* memory) {
  UNROLL for (int n = 0; n < N; ++n) x[n] = lanes_max<(LANES < WAVE ? LANES : WAVE)>(x[n]);
  if constexpr (LANES > WAVE) {
    constexpr unsigned waves = LANES / WAVE;
    unsigned wave = thread_x() / WAVE, first = wave / waves * waves;
    if (thread_x() % WAVE == 0) UNROLL for (int n = 0; n < N; ++n) memory[wave * N + n] = x[n];
    barrier();
    UNROLL for (int n = 0; n < N; ++n)
      UNROLL for (unsigned i = 0; i < waves; ++i) x[n] = max_of(x[n], memory[(first + i) * N + n]);
    barrier();
  }
}

}  // namespace
