// Batch normalisation of [batch, channels, time]: statistics, values, sums and gradients by channel.
//
// Reductions take two stages: a block sums one channel over one slice of the batch, and the last
// stage, a thread a channel, joins the slices in order. Statistics of a slice are a mean and the
// squares about it, found in two passes of which the second reads what the caches hold; slices are
// joined by the formula of Chan, Golub and LeVeque (1979). All kernels are bound by memory.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned HEADER = 64;  // floats of the workspace before the sums: the number of slices

// What slices leave in the workspace: [slices, 3, channels].
struct Slices {
  float* base;
  unsigned channels;
  DEVICE Slices(const BatchNorm& p, const Operands& io)
      : base(static_cast<float*>(io.workspace) + HEADER), channels(p.channels) {}
  DEVICE float& at(unsigned slice, unsigned what, unsigned channel) const {
    return base[(size_t(slice) * 3 + what) * channels + channel];
  }
  DEVICE static void leave_count(const Operands& io) {
    if (block_x() == 0 && block_y() == 0 && thread_x() == 0)
      *static_cast<unsigned*>(io.workspace) = grid_y();
  }
  DEVICE static unsigned count(const Operands& io) {
    return *static_cast<const unsigned*>(io.workspace);
  }
};

// The items of this block: from `first` on, `count` of them.
struct Items {
  unsigned first, count;
  DEVICE explicit Items(unsigned batch) {
    unsigned each = (batch + grid_y() - 1) / grid_y();
    first = block_y() * each;
    count = first >= batch ? 0 : batch - first < each ? batch - first : each;
  }
};

// Calls f(index) for this thread's elements of the block's channel and items: 4 neighbours at a time
// through f4 where `packed`.
template <class F4, class F>
DEVICE void over_slice(const BatchNorm& p, const Items& items, bool packed, const F4& f4, const F& f) {
  unsigned width = packed ? 4 : 1, row = p.time / width, count = items.count * row;
  size_t start = (size_t(items.first) * p.channels + block_x()) * p.time;
  size_t stride = size_t(p.channels) * p.time;
  for (unsigned i = thread_x(); i < count; i += THREADS) {
    unsigned item = i / row;
    size_t at = start + item * stride + size_t(i - item * row) * width;
    if (packed) f4(at);
    else f(at);
  }
}

template <class T> DEVICE void batchnorm_stats(const BatchNorm& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  const T* x = input<T>(io, 0);
  bool packed = p.time % 4 == 0 && aligned(x, 4 * sizeof(T));
  Items items(p.batch);
  float n = float(items.count) * float(p.time);
  // Sums are of differences from one sample: a large mean takes nothing from their precision.
  size_t start = (size_t(items.first) * p.channels + block_x()) * p.time;
  float shift = items.count > 0 ? value_of(x[start]) : 0.0f;
  float sum = 0.0f;
  over_slice(
      p, items, packed,
      [&](size_t at) {
        float four[4];
        load_pack(four, x + at);
        UNROLL for (int j = 0; j < 4; ++j) sum += four[j] - shift;
      },
      [&](size_t at) { sum += value_of(x[at]) - shift; });
  float mean = block_sum<THREADS>(sum, memory) / (n > 0.0f ? n : 1.0f) + shift;
  float squares = 0.0f;
  over_slice(
      p, items, packed,
      [&](size_t at) {
        float four[4];
        load_pack(four, x + at);
        UNROLL for (int j = 0; j < 4; ++j) squares = fma_of(four[j] - mean, four[j] - mean, squares);
      },
      [&](size_t at) {
        float d = value_of(x[at]) - mean;
        squares = fma_of(d, d, squares);
      });
  squares = block_sum<THREADS>(squares, memory);
  Slices::leave_count(io);
  if (thread_x() == 0) {
    Slices slices(p, io);
    slices.at(block_y(), 0, block_x()) = n;
    slices.at(block_y(), 1, block_x()) = mean;
    slices.at(block_y(), 2, block_x()) = squares;
  }
}

// Joins the slices of a channel, or takes the running statistics, and updates those in training.
template <class T> DEVICE void batchnorm_stats_end(const BatchNorm& p, const Operands& io) {
  unsigned c = block_x() * THREADS + thread_x();
  if (c >= p.channels) return;
  Any mean = any(io, 1), rstd = any(io, 2), running_mean = any(io, 3), running_var = any(io, 4);
  if (!p.training) {
    mean.set(c, running_mean[c]);
    rstd.set(c, rsqrt_of(running_var[c] + p.epsilon));
    return;
  }
  Slices slices(p, io);
  unsigned count = Slices::count(io);
  float all = float(p.batch) * float(p.time), first = slices.at(0, 1, c), sum = 0.0f;
  for (unsigned s = 0; s < count; ++s) {
    float n = slices.at(s, 0, c);
    if (n > 0.0f) sum = fma_of(n, slices.at(s, 1, c) - first, sum);
  }
  float mu = first + sum / all, squares = 0.0f;
  for (unsigned s = 0; s < count; ++s) {
    float n = slices.at(s, 0, c), off = slices.at(s, 1, c) - mu;
    if (n > 0.0f) squares += fma_of(n * off, off, slices.at(s, 2, c));
  }
  float variance = squares / all;
  mean.set(c, mu);
  rstd.set(c, rsqrt_of(variance + p.epsilon));
  // The update that a bad batch leads to is skipped; its statistics must be as well.
  if (!(abs_of(variance) <= 3.4028235e38f)) return;
  float unbiased = all / max_of(all - 1.0f, 1.0f), old = running_mean[c], old_var = running_var[c];
  running_mean.set(c, fma_of(p.momentum, mu - old, old));
  running_var.set(c, fma_of(p.momentum, variance * unbiased - old_var, old_var));
}

// Calls f4 or f for elements of the block's 1024, as Plan::elements plans.
template <class F4, class F>
DEVICE void over_elements(const BatchNorm& p, bool packed, const F4& f4, const F& f) {
  size_t n = size_t(p.batch) * p.channels * p.time, first = size_t(block_x()) * 4 * THREADS;
  if (packed) {
    size_t at = first + 4 * thread_x();
    if (at < n) f4(at, unsigned(at / p.time % p.channels));
    return;
  }
  UNROLL for (unsigned j = 0; j < 4; ++j) {
    size_t at = first + j * THREADS + thread_x();
    if (at < n) f(at, unsigned(at / p.time % p.channels));
  }
}

// The mean is subtracted first: what is left of a large one would otherwise be rounding.
struct Affine {
  float mean, scale, shift;
  DEVICE Affine(const Operands& io, unsigned c)
      : mean(any(io, 1)[c]), scale(any(io, 2)[c] * any(io, 3)[c]), shift(any(io, 4)[c]) {}
  DEVICE float of(float x) const { return fma_of(x - mean, scale, shift); }
};

template <class T> DEVICE void batchnorm(const BatchNorm& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 5);
  over_elements(
      p, p.time % 4 == 0 && aligned(x, 4 * sizeof(T)) && aligned(y, 4 * sizeof(T)),
      [&](size_t at, unsigned c) {
        float four[4];
        load_pack(four, x + at);
        Affine map(io, c);
        UNROLL for (int j = 0; j < 4; ++j) four[j] = map.of(four[j]);
        store_pack(y + at, four);
      },
      [&](size_t at, unsigned c) {
        y[at] = rounded<T>(Affine(io, c).of(value_of(x[at])));
      });
}

template <class T> DEVICE void batchnorm_sums(const BatchNorm& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  const T *dy = input<T>(io, 0), *x = input<T>(io, 1);
  bool packed = p.time % 4 == 0 && aligned(x, 4 * sizeof(T)) && aligned(dy, 4 * sizeof(T));
  float mean = any(io, 2)[block_x()], rstd = any(io, 3)[block_x()], sum = 0.0f, dot = 0.0f;
  over_slice(
      p, Items(p.batch), packed,
      [&](size_t at) {
        float g[4], v[4];
        load_pack(g, dy + at);
        load_pack(v, x + at);
        UNROLL for (int j = 0; j < 4; ++j) {
          sum += g[j];
          dot = fma_of(g[j], (v[j] - mean) * rstd, dot);
        }
      },
      [&](size_t at) {
        float g = value_of(dy[at]);
        sum += g;
        dot = fma_of(g, (value_of(x[at]) - mean) * rstd, dot);
      });
  sum = block_sum<THREADS>(sum, memory);
  dot = block_sum<THREADS>(dot, memory);
  Slices::leave_count(io);
  if (thread_x() == 0) {
    Slices slices(p, io);
    slices.at(block_y(), 0, block_x()) = sum;
    slices.at(block_y(), 1, block_x()) = dot;
  }
}

template <class T> DEVICE void batchnorm_sums_end(const BatchNorm& p, const Operands& io) {
  unsigned c = block_x() * THREADS + thread_x();
  if (c >= p.channels) return;
  Slices slices(p, io);
  float sum = 0.0f, dot = 0.0f;
  for (unsigned s = 0, count = Slices::count(io); s < count; ++s)
    sum += slices.at(s, 0, c), dot += slices.at(s, 1, c);
  any(io, 4).set(c, sum);
  any(io, 4).set(p.channels + c, dot);
  any(io, 5).put(c, dot, true);
  any(io, 6).put(c, sum, true);
}

// dx = scale * (dy - shift - (x - mean) * slope) of one channel.
struct Slope {
  float mean, scale, shift, slope;
  DEVICE Slope(const BatchNorm& p, const Operands& io, unsigned c) {
    // Fixed statistics do not depend on x: the two correction terms vanish.
    float live = p.training ? 1.0f / (float(p.batch) * float(p.time)) : 0.0f;
    float rstd = any(io, 3)[c];
    Any sums = any(io, 5);
    mean = any(io, 2)[c], scale = any(io, 4)[c] * rstd;
    shift = sums[c] * live, slope = sums[p.channels + c] * live * rstd;
  }
  DEVICE float of(float dy, float x) const { return scale * (dy - shift - (x - mean) * slope); }
};

template <class T> DEVICE void batchnorm_backward(const BatchNorm& p, const Operands& io) {
  const T *dy = input<T>(io, 0), *x = input<T>(io, 1);
  T* dx = output<T>(io, 6);
  bool add = p.accumulate != 0, packed = p.time % 4 == 0 && aligned(x, 4 * sizeof(T)) &&
                                         aligned(dy, 4 * sizeof(T)) && aligned(dx, 4 * sizeof(T));
  over_elements(
      p, packed,
      [&](size_t at, unsigned c) {
        float g[4], v[4], old[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        load_pack(g, dy + at);
        load_pack(v, x + at);
        if (add) load_pack(old, dx + at);
        Slope map(p, io, c);
        UNROLL for (int j = 0; j < 4; ++j) old[j] += map.of(g[j], v[j]);
        store_pack(dx + at, old);
      },
      [&](size_t at, unsigned c) {
        float grad = Slope(p, io, c).of(value_of(dy[at]), value_of(x[at]));
        dx[at] = rounded<T>(add ? value_of(dx[at]) + grad : grad);
      });
}

}  // namespace

ENTRIES(batchnorm_stats, BatchNorm, THREADS, batchnorm_stats)
ENTRIES(batchnorm_stats_end, BatchNorm, THREADS, batchnorm_stats_end)
ENTRIES(batchnorm, BatchNorm, THREADS, batchnorm)
ENTRIES(batchnorm_sums, BatchNorm, THREADS, batchnorm_sums)
ENTRIES(batchnorm_sums_end, BatchNorm, THREADS, batchnorm_sums_end)
ENTRIES(batchnorm_backward, BatchNorm, THREADS, batchnorm_backward)
