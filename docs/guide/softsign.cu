// y = x / (1 + |x|), and its gradient. The kernel of examples/custom_op.rs; docs/guide/custom-op.md
// tells its story. A thread takes one element, 256 of them are a block. Bound by memory: 8 bytes an
// element forward, 12 backward, in f32.
#include "portable.h"

namespace {

constexpr int THREADS = 256;

// Argument 0: the same bytes as `Softsign` in Rust.
struct Softsign { unsigned n, accumulate; };
SIZE(Softsign, 8);

template <class T> DEVICE void softsign(const Softsign& p, const Operands& io) {
  unsigned i = block_x() * THREADS + thread_x();
  if (i >= p.n) return;
  float x = value_of(input<T>(io, 0)[i]);
  output<T>(io, 1)[i] = rounded<T>(x / (1.0f + abs_of(x)));
}

// dx (+)= dy / (1 + |x|)²
template <class T> DEVICE void softsign_backward(const Softsign& p, const Operands& io) {
  unsigned i = block_x() * THREADS + thread_x();
  if (i >= p.n) return;
  float dy = value_of(input<T>(io, 0)[i]), x = value_of(input<T>(io, 1)[i]);
  float below = 1.0f + abs_of(x), slope = dy / (below * below);
  T* dx = output<T>(io, 2) + i;
  *dx = rounded<T>(p.accumulate ? value_of(*dx) + slope : slope);
}

}  // namespace

ENTRIES(softsign, Softsign, THREADS, softsign)
ENTRIES(softsign_backward, Softsign, THREADS, softsign_backward)
