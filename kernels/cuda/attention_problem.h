// What the backward attention kernels share: their operands and the statistics of queries.
#pragma once
#include "attention_tile.h"

namespace {

// Operands of one head.
template <class T> struct Problem {
  Rows<const T> q, k, v, out, d_out;
  const float* lse;
  unsigned heads;
  float factor;  // scale log2(e)
  DEVICE Problem(const Attention& p, const Operands& io)
      : q(part_of(p, input<T>(io, 1), 0)), k(part_of(p, input<T>(io, 1), 1)),
        v(part_of(p, input<T>(io, 1), 2)), out(head_of(p, input<T>(io, 2))),
        d_out(head_of(p, input<T>(io, 0))),
        lse(input<float>(io, 3) + size_t(block_z()) * p.time * p.heads + block_y()),
        heads(p.heads), factor(p.scale * LOG2_E) {}
};

// Sum over 8 columns of d_out * out.
template <class T> DEVICE float part_of_delta(const Problem<T>& of, unsigned row, unsigned col) {
  float sum = 0.0f;
  if (row >= of.out.rows || col >= of.out.d) return sum;
  const T *x = of.out.at(row) + col, *y = of.d_out.at(row) + col;
  if (of.out.packed && of.d_out.packed) {
    float a[8], b[8];
    load_pack(a, x);
    load_pack(b, y);
    UNROLL for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
  } else {
    UNROLL for (unsigned i = 0; i < 8; ++i)
      if (col + i < of.out.d) sum += value_of(x[i]) * value_of(y[i]);
  }
  return sum;
}

// Statistics of `count` queries, for two neighbours side by side: lse log2(e) of both, -delta of
// both. Queries past the last get an infinite lse, so that their probabilities are zero.
template <int D, class T>
DEVICE void load_statistics(float* to, const Problem<T>& of, unsigned first, unsigned count) {
  constexpr unsigned LANES = D / 8;
  for (unsigned i = thread_x(); i < count * LANES; i += block_threads()) {
    unsigned row = i / LANES;
    float delta = lanes_sum<LANES>(part_of_delta(of, first + row, 8 * (i % LANES)));
    if (i % LANES == 0) {
      bool real = first + row < of.q.rows;
      float* at = to + 4 * (row / 2) + row % 2;
      at[0] = real ? LOG2_E * of.lse[(first + row) * of.heads] : float_of(0x7f800000u);
      at[2] = -delta;
    }
  }
}

}  // namespace
