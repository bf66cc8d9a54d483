// Pooling along the last axis, [rows, time] to [rows, time_out], and its gradient.
//
// A thread takes one output forward and one input sample backward: the gradient is gathered from
// the outputs whose windows hold the sample, in order, so nothing is added atomically. Windows that
// overlap are read from the caches; memory traffic is one pass over x and y.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned AVERAGE = 0;

// Calls f(i, row, place in the row) for this block's 1024 of `rows` x `cols` elements.
template <class F> DEVICE void over_rows(unsigned rows, unsigned cols, const F& f) {
  size_t n = size_t(rows) * cols;
  for (unsigned j = 0; j < 4; ++j) {
    size_t i = size_t(block_x()) * 4 * THREADS + j * THREADS + thread_x();
    if (i >= n) return;
    size_t row = i / cols;
    f(i, row, unsigned(i - row * cols));
  }
}

// Where the largest sample of a window stands; of equal ones, the first.
template <class T> DEVICE unsigned largest(const T* x, unsigned kernel) {
  float best = value_of(x[0]);
  unsigned at = 0;
  for (unsigned k = 1; k < kernel; ++k) {
    float next = value_of(x[k]);
    if (next > best) best = next, at = k;
  }
  return at;
}

template <class T> DEVICE void pool(const Pool& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 1);
  float inverse = 1.0f / float(p.kernel);
  over_rows(p.rows, p.time_out, [&](size_t i, size_t row, unsigned t) {
    const T* span = x + row * p.time + size_t(t) * p.stride;
    if (p.kind == AVERAGE) {
      float sum = 0.0f;
      UNROLL for (unsigned k = 0; k < p.kernel; ++k) sum += value_of(span[k]);
      y[i] = rounded<T>(sum * inverse);
    } else {
      float best = value_of(span[0]);
      for (unsigned k = 1; k < p.kernel; ++k) best = max_of(best, value_of(span[k]));
      y[i] = rounded<T>(best);
    }
  });
}

template <class T> DEVICE void pool_backward(const Pool& p, const Operands& io) {
  const T *dy = input<T>(io, 0), *x = input<T>(io, 1);
  T* dx = output<T>(io, 2);
  float inverse = 1.0f / float(p.kernel);
  over_rows(p.rows, p.time, [&](size_t i, size_t row, unsigned s) {
    // Windows t with t * stride <= s < t * stride + kernel.
    unsigned first = s < p.kernel ? 0 : (s - p.kernel) / p.stride + 1, end = s / p.stride + 1;
    end = end < p.time_out ? end : p.time_out;
    float sum = 0.0f;
    for (unsigned t = first; t < end; ++t) {
      float g = value_of(dy[row * p.time_out + t]);
      unsigned at = t * p.stride;
      if (p.kind == AVERAGE) sum += g * inverse;
      else if (largest(x + row * p.time + at, p.kernel) == s - at) sum += g;
    }
    dx[i] = rounded<T>(p.accumulate ? value_of(dx[i]) + sum : sum);
  });
}

}  // namespace

ENTRIES(pool, Pool, THREADS, pool)
ENTRIES(pool_backward, Pool, THREADS, pool_backward)
