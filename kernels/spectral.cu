// The spectral block: y = irfft(rfft(x) * gain) along time for every channel, and its gradients.
//
// A block takes a group of channels of one item after the other. Two real channels are the real and
// the imaginary part of one complex column; the columns of the group lie side by side in shared
// memory and are transformed there (fft.h). The first pass reads x, the last writes y, and the pass
// in between transforms, multiplies by the gains and begins the way back in registers, so that 200
// samples = 8 * 5 * 5 cross shared memory 8 times in all. Global traffic is x, y and the gains.
//
// Gradients: dx = irfft(rfft(dy) * conj(gain)), the first kernel again, and d_gain = the sum over
// items of conj(rfft(x)) * rfft(dy). `spectral_grad` gives both: x and dy are transformed together,
// products are summed in shared memory over the items of the block, its sums go to the workspace,
// and spectral_grad_end adds them up in a fixed order.
//
// Lengths with a prime factor above 7, and lengths too long for shared memory, are taken by the
// `_any` kernels: buffers in the workspace and direct sums over each radix.
#include "fft.h"
#include "partials.h"

namespace {

constexpr int THREADS = 256;
// Launch bounds of the transforms: as if their blocks were so large.
constexpr int RESIDENT = CROWD * THREADS;

// The channel pair of this thread within a tensor [batch, time, channels].
template <class T> struct Signal {
  T* base;
  unsigned channels;
  bool packed, first, second;

  DEVICE Signal(const void* tensor, unsigned channels, unsigned channel)
      : base(static_cast<T*>(global(const_cast<void*>(tensor))) + channel), channels(channels),
        packed(channels % 2 == 0 && aligned(tensor, 2 * sizeof(T))), first(channel < channels),
        second(channel + 1 < channels) {}

  template <int R>
  DEVICE void load(Complex (&a)[R], size_t item, unsigned from, unsigned step) const {
    const T* x = base + item + size_t(from) * channels;
    size_t stride = size_t(step) * channels;
    if (packed && first) {
      // Multiples of the stride are kept where there is room for them.
      const T* at = x;
      UNROLL for (int q = 0; q < R; ++q, at += stride) {
        float two[2];
        load_pack(two, COMPACT ? at : x + q * stride);
        a[q] = {two[0], two[1]};
      }
      return;
    }
    auto at = [&](const T* x) -> Complex {
      return {first ? value_of(x[0]) : 0.0f, second ? value_of(x[1]) : 0.0f};
    };
    if constexpr (COMPACT) {
      NO_UNROLL for (int q = 0; q < R; ++q, x += stride) advance(a), a[R - 1] = at(x);
    } else {
      UNROLL for (int q = 0; q < R; ++q) a[q] = at(x + q * stride);
    }
  }

  template <int R>
  DEVICE void store(const Complex (&a)[R], size_t item, unsigned from, unsigned step, bool add) const {
    T* y = base + item + size_t(from) * channels;
    size_t stride = size_t(step) * channels;
    if constexpr (COMPACT) {
      Complex left[R];
      UNROLL for (int q = 0; q < R; ++q) left[q] = a[q];
      NO_UNROLL for (int q = 0; q < R; ++q, y += stride) put(y, left[0], add), advance(left);
    } else {
      UNROLL for (int q = 0; q < R; ++q) put(y + q * stride, a[q], add);
    }
  }

  DEVICE void put(T* at, Complex value, bool add) const {
    float two[2] = {value.im, value.re};
    if (packed && first) {
      if (add) {
        float old[2];
        load_pack(old, at);
        two[0] += old[0], two[1] += old[1];
      }
      store_pack(at, two);
    } else {
      if (first) at[0] = rounded<T>(add ? value_of(at[0]) + two[0] : two[0]);
      if (second) at[1] = rounded<T>(add ? value_of(at[1]) + two[1] : two[1]);
    }
  }
};

// The gains of this thread's channel pair.
struct Gains {
  Any base;
  unsigned channels, channel;
  bool packed;

  DEVICE Gains(Any base, unsigned channels, unsigned channel)
      : base(base), channels(channels), channel(channel),
        packed(base.kind == KIND_F32 && channels % 2 == 0 && aligned(base.base, 16)) {}

  // Real and imaginary part of one channel, then of the other.
  DEVICE void load(float (&g)[4], unsigned bin) const {
    size_t at = (size_t(bin) * channels + channel) * 2;
    if (packed && channel < channels) {
      load_pack(g, static_cast<const float*>(base.base) + at);
      return;
    }
    if constexpr (COMPACT) {
      NO_UNROLL for (unsigned i = 0; i < 4; ++i) {
        g[0] = g[1], g[1] = g[2], g[2] = g[3];
        g[3] = channel + i / 2 < channels ? one(at + i) : 0.0f;
      }
    } else {
      UNROLL for (int i = 0; i < 4; ++i) g[i] = channel + i / 2 < channels ? one(at + i) : 0.0f;
    }
  }

  // `Any` with less code: this is in every butterfly.
  DEVICE float one(size_t at) const {
    if (base.kind == KIND_F32) return static_cast<const float*>(base.base)[at];
    unsigned short bits = static_cast<const unsigned short*>(base.base)[at];
    return base.kind == KIND_BF16 ? value_of(bf16{bits}) : value_of(f16{bits});
  }
};

// Bins k and n - k of a column, taken apart into twice the bin k of either channel.
struct Two {
  Complex a, b;
  DEVICE Two(Complex z, Complex mirror)
      : a{z.re + mirror.re, z.im - mirror.im}, b{z.im + mirror.im, mirror.re - z.re} {}
};

// Multiplies bin k of both channels by their gains (by their conjugates) and puts bins k and n - k
// together again for the way back.
DEVICE void amplify(unsigned n, unsigned k, bool conjugate, const Gains& gains, Complex& z,
                    Complex& mirror) {
  bool upper = 2 * k > n, edge = k == 0 || 2 * k == n;
  float g[4];
  gains.load(g, upper ? n - k : k);
  // The first bin, and the last of an even length, are real and stay so. A bin above the middle
  // has the conjugate gain of its mirror.
  float scale = 0.5f / float(n), sign = edge ? 0.0f : upper != conjugate ? -scale : scale;
  Two x(z, mirror);
  Complex a = x.a * Complex{scale * g[0], sign * g[1]}, b = x.b * Complex{scale * g[2], sign * g[3]};
  z = {a.im + b.re, a.re - b.im};
  mirror = {b.re - a.im, a.re + b.im};
}

// Who does what: `pairs` is the power of two that the plan chose, found again from the grid.
DEVICE Columns columns(unsigned channels, const Complex* roots) {
  unsigned all = (channels + 1) / 2, pairs = 1;
  while (pairs * grid_x() < all) pairs *= 2;
  return {pairs, thread_x() % pairs, thread_x() / pairs, block_threads() / pairs, roots};
}

DEVICE unsigned channel_of(const Columns& on) { return 2 * (block_x() * on.pairs + on.pair); }

// Where a block's numbers lie in shared memory: the columns, roots of unity, places of bins; for
// gradients also the sums of this thread's channels.
struct Layout {
  Columns on;
  Complex* z;
  const unsigned short* place;
  float* sums;
};

// One item. Extents are made opaque here: strides of all radices would else be kept in registers.
template <class T>
DEVICE void spectral_item(const Spectral& p, const Operands& io, const Layout& in, unsigned item) {
  Columns on = in.on.forgotten();
  unsigned n = opaque(p.time), channels = opaque(p.channels), channel = channel_of(on);
  Length of{n, p.passes, p.radices};
  Column column{in.z + on.pair, opaque(on.pairs)};
  size_t start = size_t(item) * n * channels;
  Signal<T> x(io.at[0], channels, channel);
  outer_pass<false>(
      of, on, n, [&](auto& a, unsigned first, unsigned step) { x.load(a, start, first, step); },
      [&](auto& a, unsigned first, unsigned step) { column.store(a, first, step); });
  barrier();
  inner_forward(of, on, false, column);
  Arguments<Spectral> middle = again(p, io);
  Gains gains(any(middle.io, 1), channels, channel);
  middle_of(of, on, in.place, column,
            [&](unsigned k, Complex& a, Complex& b, unsigned, unsigned, bool) {
              amplify(n, k, middle.p.conjugate != 0, gains, a, b);
            });
  inner_inverse(of, on, column);
  Arguments<Spectral> last = again(p, io);
  Signal<T> y(last.io.at[2], channels, channel);
  outer_pass<true>(
      of, on, n, [&](auto& a, unsigned first, unsigned step) { column.load(a, first, step); },
      [&](auto& a, unsigned first, unsigned step) {
        y.store(a, start, first, step, last.p.accumulate != 0);
      });
  barrier();
}

template <class T> DEVICE void spectral(const Spectral& p, const Operands& io) {
  Columns on = columns(p.channels, nullptr);
  Complex* z = reinterpret_cast<Complex*>(dynamic_shared());
  Complex* roots = z + p.time * on.pairs;
  unsigned short* place = reinterpret_cast<unsigned short*>(roots + p.time);
  on.roots = roots;
  prepare(Length{p.time, p.passes, p.radices}, roots, place);
  Layout in{on, z, place, nullptr};
  NO_UNROLL for (unsigned item = block_y(); item < again(p, io).p.batch; item += grid_y()) {
    Arguments<Spectral> now = again(p, io);
    spectral_item<T>(now.p, now.io, in, item);
  }
}

// Adds conj(x) * dy of both channels to four sums, of a bin that `upper` is above the middle.
DEVICE void add_product(float (&sum)[4], const Two& x, const Two& dy, bool upper) {
  Complex a = Complex{x.a.re, -x.a.im} * dy.a, b = Complex{x.b.re, -x.b.im} * dy.b;
  float sign = upper ? -1.0f : 1.0f;
  sum[0] += a.re, sum[1] += sign * a.im, sum[2] += b.re, sum[3] += sign * b.im;
}

// The workspace of the gradient kernels: the number of slices of the batch, which the last stage
// reads, then the sums of each slice, [time / 2 + 1, channels, 2], then the buffers of blocks.
DEVICE size_t sums_extent(const SpectralGrad& p) { return size_t(p.time / 2 + 1) * p.channels * 2; }
DEVICE float* slice_sums(const SpectralGrad& p, const Operands& io) {
  if (block_x() == 0 && block_y() == 0 && thread_x() == 0) count_partials(io, grid_y());
  return partials_of(io) + block_y() * sums_extent(p);
}

DEVICE void store_sums(float* to, unsigned channels, unsigned channel, unsigned bin,
                       const float (&sum)[4], bool add) {
  float* at = to + (size_t(bin) * channels + channel) * 2;
  UNROLL for (int i = 0; i < 4; ++i)
    if (channel + i / 2 < channels) at[i] = add ? at[i] + sum[i] : sum[i];
}

// One item. x's column comes first, dy's right after it: the passes run over both as over one of twice
// the length.
template <class T>
DEVICE void spectral_grad_item(const SpectralGrad& p, const Operands& io, const Layout& in,
                               unsigned item) {
  Columns on = in.on.forgotten();
  unsigned n = opaque(p.time), channels = opaque(p.channels), channel = channel_of(on);
  Length of{n, p.passes, p.radices};
  Column x{in.z + on.pair, opaque(on.pairs)}, dy{x.base + n * on.pairs, x.pairs};
  size_t start = size_t(item) * n * channels;
  Signal<T> of_dy(io.at[0], channels, channel), of_x(io.at[1], channels, channel);
  outer_pass<false>(
      of, on, 2 * n,
      [&](auto& a, unsigned first, unsigned step) {
        if constexpr (COMPACT) {
          Signal<T> either = of_x;
          either.base = first < n ? of_x.base : of_dy.base;
          either.packed = of_x.packed && of_dy.packed;
          either.load(a, start, first < n ? first : first - n, step);
        } else if (first < n) {
          of_x.load(a, start, first, step);
        } else {
          of_dy.load(a, start, first - n, step);
        }
      },
      [&](auto& a, unsigned first, unsigned step) { x.store(a, first, step); });
  barrier();
  inner_forward(of, on, true, x);
  Arguments<SpectralGrad> middle = again(p, io);
  Gains gains(any(middle.io, 2), channels, channel);
  auto visit = [&](unsigned k, Complex& a, Complex& b, unsigned at, unsigned mirror, bool alone) {
    bool upper = 2 * k > n;
    if (!alone || !upper) {
      float* to = in.sums + (upper ? n - k : k) * on.pairs * 4;
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (item != block_y()) load_pack(sum, to);
      add_product(sum, Two(x.base[at * on.pairs], x.base[mirror * on.pairs]), Two(a, b), upper);
      store_pack(to, sum);
    }
    if (middle.p.with_input) amplify(n, k, true, gains, a, b);
  };
  middle_of(of, on, in.place, dy, visit);
  Arguments<SpectralGrad> last = again(p, io);
  if (last.p.with_input) {
    inner_inverse(of, on, dy);
    Signal<T> of_dx(last.io.at[4], channels, channel);
    outer_pass<true>(
        of, on, n, [&](auto& a, unsigned first, unsigned step) { dy.load(a, first, step); },
        [&](auto& a, unsigned first, unsigned step) {
          of_dx.store(a, start, first, step, last.p.accumulate != 0);
        });
  }
  barrier();
}

// Shared memory: two columns, sums by bins, roots, places.
template <class T> DEVICE void spectral_grad(const SpectralGrad& p, const Operands& io) {
  Columns on = columns(p.channels, nullptr);
  Complex* memory = reinterpret_cast<Complex*>(dynamic_shared());
  Complex* roots = memory + 2 * (p.time + p.time / 2 + 1) * on.pairs;
  on.roots = roots;
  unsigned short* place = reinterpret_cast<unsigned short*>(roots + p.time);
  float* sums = reinterpret_cast<float*>(memory + 2 * p.time * on.pairs) + 4 * on.pair;
  prepare(Length{p.time, p.passes, p.radices}, roots, place);
  Layout in{on, memory, place, sums};
  NO_UNROLL for (unsigned item = block_y(); item < again(p, io).p.batch; item += grid_y()) {
    Arguments<SpectralGrad> now = again(p, io);
    spectral_grad_item<T>(now.p, now.io, in, item);
  }
  Arguments<SpectralGrad> last = again(p, io);
  float* to = slice_sums(last.p, last.io);
  const unsigned bins = last.p.time / 2 + 1;
  NO_UNROLL for (unsigned bin = on.row; bin < bins; bin += on.rows) {
    float sum[4];
    load_pack(sum, sums + bin * on.pairs * 4);
    store_sums(to, last.p.channels, channel_of(on), bin, sum, false);
  }
}

// d_gain += the partial sums of all slices, [slices, time / 2 + 1, channels, 2]. Inner bins stand
// for two of the full spectrum; the first, and the last of an even length, for one, and they have
// no imaginary part. The products are of doubled bins, hence the quarter.
template <class T> DEVICE void spectral_grad_end(const SpectralGrad& p, const Operands& io) {
  unsigned extent = unsigned(sums_extent(p)), i = block_x() * THREADS + thread_x();
  if (i >= extent) return;
  unsigned slices = partials_count(io), slice = 0;
  const float* from = partials_of(io) + i;
  float sum = 0.0f;
  for (; slice + 8 <= slices; slice += 8) {
    float part[8];
    UNROLL for (int j = 0; j < 8; ++j) part[j] = from[size_t(slice + j) * extent];
    UNROLL for (int j = 0; j < 8; ++j) sum += part[j];
  }
  for (; slice < slices; ++slice) sum += from[size_t(slice) * extent];
  unsigned bin = i / (2 * p.channels);
  bool edge = bin == 0 || 2 * bin == p.time;
  float weight = (edge ? (i % 2 ? 0.0f : 0.25f) : 0.5f) / float(p.time);
  any(io, 3).put(i, weight * sum, true);
}

// --- Any length ----------------------------------------------------------------------------------

// Buffers of this block, n numbers a column each, after the roots.
struct Buffers {
  Complex *roots, *at[3];
  DEVICE Buffers(void* base, unsigned count, unsigned n, unsigned pairs) {
    size_t block = block_y() * grid_x() + block_x(), buffer = size_t(n) * pairs;
    roots = static_cast<Complex*>(base) + block * (n + count * buffer);
    UNROLL for (unsigned i = 0; i < 3; ++i) at[i] = roots + n + i * buffer;
    for (unsigned k = thread_x(); k < n; k += block_threads()) roots[k] = root(k, n);
  }
};

template <class T>
DEVICE void load_column(const Signal<T>& x, size_t start, unsigned n, const Columns& on, Complex* z) {
  NO_UNROLL for (unsigned t = on.row; t < n; t += on.rows) {
    Complex one[1];
    x.load(one, start, t, 1);
    z[size_t(t) * on.pairs + on.pair] = one[0];
  }
  barrier();
}

template <class T>
DEVICE void store_column(const Signal<T>& y, size_t start, unsigned n, const Columns& on,
                         const Complex* z, bool add) {
  NO_UNROLL for (unsigned t = on.row; t < n; t += on.rows) {
    Complex one[1] = {z[size_t(t) * on.pairs + on.pair]};
    y.store(one, start, t, 1, add);
  }
  barrier();
}

// Multiplies a spectrum in natural order and swaps parts.
DEVICE void amplify_column(unsigned n, bool conjugate, const Gains& gains, const Columns& on,
                           Complex* z) {
  NO_UNROLL for (unsigned k = on.row; 2 * k <= n; k += on.rows) {
    Complex* at = z + size_t(k) * on.pairs + on.pair;
    Complex* mirror = z + size_t(k == 0 ? 0 : n - k) * on.pairs + on.pair;
    Complex a = *at, b = *mirror;
    amplify(n, k, conjugate, gains, a, b);
    *mirror = b;
    *at = a;
  }
  barrier();
}

template <class T> DEVICE void spectral_any(const Spectral& p, const Operands& io) {
  Columns on = columns(p.channels, nullptr);
  unsigned channel = channel_of(on);
  Buffers buffers(io.workspace, 2, p.time, on.pairs);
  on.roots = buffers.roots;
  Signal<T> x(io.at[0], p.channels, channel), y(io.at[2], p.channels, channel);
  Gains gains(any(io, 1), p.channels, channel);
  Complex *z = buffers.at[0], *spare = buffers.at[1];
  NO_UNROLL for (unsigned item = block_y(); item < p.batch; item += grid_y()) {
    size_t start = size_t(item) * p.time * p.channels;
    load_column(x, start, p.time, on, z);
    transform(p.time, on, z, spare);
    amplify_column(p.time, p.conjugate != 0, gains, on, z);
    transform(p.time, on, z, spare);
    store_column(y, start, p.time, on, z, p.accumulate != 0);
  }
}

template <class T> DEVICE void spectral_grad_any(const SpectralGrad& p, const Operands& io) {
  Columns on = columns(p.channels, nullptr);
  unsigned n = p.time, channel = channel_of(on);
  float* sums = slice_sums(p, io);
  float* after = partials_of(io) + (sums_extent(p) * grid_y() + 3) / 4 * 4;
  Buffers buffers(after, 3, n, on.pairs);
  on.roots = buffers.roots;
  Signal<T> of_dy(io.at[0], p.channels, channel), of_x(io.at[1], p.channels, channel);
  Signal<T> of_dx(p.with_input ? io.at[4] : nullptr, p.channels, channel);
  Gains gains(any(io, 2), p.channels, channel);
  Complex *x = buffers.at[0], *dy = buffers.at[1], *spare = buffers.at[2];
  NO_UNROLL for (unsigned item = block_y(); item < p.batch; item += grid_y()) {
    size_t start = size_t(item) * n * p.channels;
    load_column(of_x, start, n, on, x);
    load_column(of_dy, start, n, on, dy);
    transform(n, on, x, spare);
    transform(n, on, dy, spare);
    NO_UNROLL for (unsigned k = on.row; 2 * k <= n; k += on.rows) {
      size_t at = size_t(k) * on.pairs + on.pair;
      size_t mirror = size_t(k == 0 ? 0 : n - k) * on.pairs + on.pair;
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      add_product(sum, Two(x[at], x[mirror]), Two(dy[at], dy[mirror]), false);
      store_sums(sums, p.channels, channel, k, sum, item != block_y());
    }
    barrier();
    if (p.with_input) {
      amplify_column(n, true, gains, on, dy);
      transform(n, on, dy, spare);
      store_column(of_dx, start, n, on, dy, p.accumulate != 0);
    }
  }
}

}  // namespace

ENTRIES(spectral, Spectral, RESIDENT, spectral)
ENTRIES(spectral_any, Spectral, THREADS, spectral_any)
ENTRIES(spectral_grad, SpectralGrad, RESIDENT, spectral_grad)
ENTRIES(spectral_grad_any, SpectralGrad, THREADS, spectral_grad_any)
ENTRIES(spectral_grad_end, SpectralGrad, THREADS, spectral_grad_end)
