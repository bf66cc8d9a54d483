// Pointwise functions: fill, scaled copies, sums, activations, dropout, positions, patches.
//
// All are bound by memory: a thread moves 16 bytes at a time where addresses and counts allow it.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
// Elements of one block, as Route::elements plans.
constexpr unsigned PIECE = 4 * THREADS;

// Calls f(i) with i a multiple of 4 for whole groups of 4 elements of this block's piece, then
// g(i) for the elements left over, or for all where `packed` is false.
template <class F, class G> DEVICE void by_fours(unsigned n, bool packed, F f, G g) {
  unsigned first = block_x() * PIECE;
  unsigned count = first >= n ? 0 : n - first < PIECE ? n - first : PIECE;
  unsigned fours = packed ? count / 4 : 0;
  if (thread_x() < fours) f(first + 4 * thread_x());
  for (unsigned i = 4 * fours + thread_x(); i < count; i += THREADS) g(first + i);
}

template <class T> DEVICE void fill(const Fill& p, const Operands& io) {
  T* x = output<T>(io, 0);
  by_fours(
      p.n, aligned(x, 4 * sizeof(T)),
      [&](unsigned i) {
        float four[4] = {p.value, p.value, p.value, p.value};
        store_pack(x + i, four);
      },
      [&](unsigned i) { x[i] = rounded<T>(p.value); });
}

template <class T, class To> DEVICE void axpy_to(const Axpy& p, const T* x, To* y) {
  bool packed = aligned(x, 4 * sizeof(T)) && aligned(y, 4 * sizeof(To));
  by_fours(
      p.n, packed,
      [&](unsigned i) {
        float from[4], to[4];
        load_pack(from, x + i);
        if (p.accumulate) load_pack(to, y + i);
        UNROLL for (int j = 0; j < 4; ++j) to[j] = (p.accumulate ? to[j] : 0.0f) + p.scale * from[j];
        store_pack(y + i, to);
      },
      [&](unsigned i) {
        y[i] = rounded<To>((p.accumulate ? value_of(y[i]) : 0.0f) + p.scale * value_of(x[i]));
      });
}

template <class T> DEVICE void axpy(const Axpy& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  switch (kind_of(io, 1)) {
    case KIND_BF16: axpy_to(p, x, output<bf16>(io, 1)); break;
    case KIND_F16: axpy_to(p, x, output<f16>(io, 1)); break;
    default: axpy_to(p, x, output<float>(io, 1)); break;
  }
}

template <class T> DEVICE void dropout(const Dropout& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 2);
  Mask mask(input<int>(io, 1), p.stream, p.probability);
  by_fours(
      p.n, aligned(x, 4 * sizeof(T)) && aligned(y, 4 * sizeof(T)),
      [&](unsigned i) {
        float from[4], to[4];
        load_pack(from, x + i);
        if (p.accumulate) load_pack(to, y + i);
        Words words = mask.words(i / 4);
        UNROLL for (int j = 0; j < 4; ++j)
          to[j] = (p.accumulate ? to[j] : 0.0f) + from[j] * mask.factor(words.at[j]);
        store_pack(y + i, to);
      },
      [&](unsigned i) {
        y[i] = rounded<T>((p.accumulate ? value_of(y[i]) : 0.0f) + value_of(x[i]) * mask.at(i));
      });
}

}  // namespace

ENTRIES(fill, Fill, THREADS, fill)
ENTRIES(axpy, Axpy, THREADS, axpy)
ENTRIES(dropout, Dropout, THREADS, dropout)
