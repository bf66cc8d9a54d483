// Discrete Fourier transforms of a column of numbers by one block: roots of unity, butterflies of
// small radices, and the passes that chain them.
//
// A block transforms `pairs` columns side by side. Element i of column p lies at i * pairs + p, so
// that neighbouring lanes touch neighbouring words whatever the stride of a butterfly is, and
// roots, which depend on i only, are broadcast. The forward transform decimates in frequency and
// leaves bins in digit-reversed order; the inverse decimates in time and takes them in that order.
// Both work in place with one barrier a pass, and nothing is ever sorted. The inverse is the forward
// transform of numbers whose real and imaginary parts have changed places.
#pragma once
#include "portable.h"

namespace {

struct alignas(8) Complex { float re, im; };
DEVICE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
DEVICE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
DEVICE Complex operator*(Complex a, Complex b) {
  return {fma_of(a.re, b.re, -a.im * b.im), fma_of(a.re, b.im, a.im * b.re)};
}
DEVICE Complex swapped(Complex a) { return {a.im, a.re}; }
DEVICE Complex minus_i_times(Complex a) { return {a.im, -a.re}; }

// exp(-2 pi i k / n), k < n < 2^24, within 1 ulp of 1. The angle is reduced to [0, pi / 4] in
// integers, where the Taylor series to the tenth power is exact to f32; what its rounding to f32
// loses is added to first order.
DEVICE Complex root(unsigned k, unsigned n) {
  unsigned octant = 8 * k / n, rest = 8 * k - octant * n;
  float part = float(octant & 1 ? n - rest : rest), whole = float(n);
  float q = part / whole;
  float q_low = fma_of(-q, whole, part) / whole;
  const float PI4 = 0.785398185253143f, PI4_LOW = -2.18556950e-8f;
  float x = q * PI4;
  float x_low = fma_of(q, PI4, -x) + fma_of(q, PI4_LOW, q_low * PI4);
  float z = x * x;
  float s = fma_of(z, 1.0f / 362880.0f, -1.0f / 5040.0f);
  s = fma_of(s, z, 1.0f / 120.0f);
  s = fma_of(s, z, -1.0f / 6.0f);
  s = fma_of(s * z, x, x);
  float c = fma_of(z, -1.0f / 3628800.0f, 1.0f / 40320.0f);
  c = fma_of(c, z, -1.0f / 720.0f);
  c = fma_of(c, z, 1.0f / 24.0f);
  c = fma_of(c, z, -0.5f);
  c = fma_of(c, z, 1.0f);
  float sine = fma_of(x_low, c, s), cosine = fma_of(-x_low, s, c);
  if (octant & 1) sine = -sine;
  switch (((octant + 1) / 2) & 3u) {
    case 0: return {cosine, -sine};
    case 1: return {-sine, -cosine};
    case 2: return {-cosine, sine};
    default: return {sine, cosine};
  }
}

// A constant that, where COMPACT, is not kept in a register over the loop it is in.
DEVICE float factor(float x) { return COMPACT ? float_of(opaque(bits_of(x))) : x; }

// --- Butterflies: a[k] becomes the sum over q of a[q] exp(-2 pi i k q / R) -------------------------

DEVICE void butterfly(Complex (&)[1]) {}

DEVICE void butterfly(Complex (&a)[2]) {
  Complex b = a[0] - a[1];
  a[0] = a[0] + a[1];
  a[1] = b;
}

DEVICE void butterfly(Complex (&a)[4]) {
  Complex s = a[0] + a[2], d = a[0] - a[2], t = a[1] + a[3], e = minus_i_times(a[1] - a[3]);
  a[0] = s + t, a[1] = d + e, a[2] = s - t, a[3] = d - e;
}

// R = 3, 5, 7: sums and differences of opposite numbers, weighted by cosines and sines.
template <int R> DEVICE void odd(Complex (&a)[R], const float (&cosine)[R], const float (&sine)[R]) {
  constexpr int H = R / 2;
  Complex first = a[0], sum[H], difference[H];
  float real[R], imaginary[R];
  UNROLL for (int j = 1; j <= H; ++j) {
    real[j] = real[R - j] = factor(cosine[j]);
    imaginary[j] = factor(sine[j]);
    imaginary[R - j] = -imaginary[j];
  }
  UNROLL for (int j = 0; j < H; ++j) {
    sum[j] = a[j + 1] + a[R - 1 - j];
    difference[j] = minus_i_times(a[j + 1] - a[R - 1 - j]);
    a[0] = a[0] + sum[j];
  }
  UNROLL for (int k = 1; k <= H; ++k) {
    Complex even = first, rest = {0.0f, 0.0f};
    UNROLL for (int j = 1; j <= H; ++j) {
      float c = real[j * k % R], s = imaginary[j * k % R];
      even = {fma_of(c, sum[j - 1].re, even.re), fma_of(c, sum[j - 1].im, even.im)};
      rest = {fma_of(s, difference[j - 1].re, rest.re), fma_of(s, difference[j - 1].im, rest.im)};
    }
    a[k] = even + rest, a[R - k] = even - rest;
  }
}

DEVICE void butterfly(Complex (&a)[3]) {
  constexpr float c[3] = {1.0f, -0.5f, -0.5f};
  constexpr float s[3] = {0.0f, 0.866025404f, -0.866025404f};
  odd<3>(a, c, s);
}

DEVICE void butterfly(Complex (&a)[5]) {
  constexpr float c[5] = {1.0f, 0.309016994f, -0.809016994f, -0.809016994f, 0.309016994f};
  constexpr float s[5] = {0.0f, 0.951056516f, 0.587785252f, -0.587785252f, -0.951056516f};
  odd<5>(a, c, s);
}

DEVICE void butterfly(Complex (&a)[7]) {
  constexpr float c[7] = {1.0f,          0.623489802f,  -0.222520934f, -0.900968868f,
                          -0.900968868f, -0.222520934f, 0.623489802f};
  constexpr float s[7] = {0.0f,          0.781831482f,  0.974927912f, 0.433883739f,
                          -0.433883739f, -0.974927912f, -0.781831482f};
  odd<7>(a, c, s);
}

DEVICE void butterfly(Complex (&a)[8]) {
  constexpr float H = 0.707106781f;
  Complex even[4] = {a[0], a[2], a[4], a[6]}, odds[4] = {a[1], a[3], a[5], a[7]};
  butterfly(even);
  butterfly(odds);
  odds[1] = {H * (odds[1].re + odds[1].im), H * (odds[1].im - odds[1].re)};
  odds[2] = minus_i_times(odds[2]);
  odds[3] = {H * (odds[3].im - odds[3].re), -H * (odds[3].re + odds[3].im)};
  UNROLL for (int k = 0; k < 4; ++k) a[k] = even[k] + odds[k], a[k + 4] = even[k] - odds[k];
}

DEVICE void butterfly(Complex (&a)[16]) {
  const float C = factor(0.923879533f), S = factor(0.382683432f), H = factor(0.707106781f);
  const float re[10] = {1.0f, C, H, S, 0.0f, -S, -H, -C, -1.0f, -C};
  const float im[10] = {0.0f, -S, -H, -C, -1.0f, -C, -H, -S, 0.0f, S};
  Complex part[4][4];
  UNROLL for (int q = 0; q < 4; ++q) {
    UNROLL for (int j = 0; j < 4; ++j) part[q][j] = a[q + 4 * j];
    butterfly(part[q]);
    UNROLL for (int k = 1; k < 4; ++k)
      if (q > 0) part[q][k] = part[q][k] * Complex{re[q * k], im[q * k]};
  }
  UNROLL for (int k = 0; k < 4; ++k) {
    Complex row[4] = {part[0][k], part[1][k], part[2][k], part[3][k]};
    butterfly(row);
    UNROLL for (int j = 0; j < 4; ++j) a[k + 4 * j] = row[j];
  }
}

// --- Passes --------------------------------------------------------------------------------------

// A length n = the product of `passes` radices, the first in the lowest 4 bits of `radices` (less
// 1), as src/ops/spectral.rs chooses them: the first of 1, 4, 5, 8, 16, the last of 2, 3, 4, 5, 8,
// those between of 2, 3, 4, 5, 7, 8. Each place has its own code, and fewer radices make less of it.
struct Length {
  unsigned n, passes, radices;
  DEVICE unsigned radix(unsigned pass) const { return ((radices >> (4 * pass)) & 15u) + 1; }
};

// The columns of a block and this thread's part in them.
struct Columns {
  unsigned pairs, pair, row, rows;
  const Complex* roots;  // exp(-2 pi i k / n), k < n, in shared memory

  // The same, but what is derived from it is not kept over the loop that this is called in.
  DEVICE Columns forgotten() const {
    if constexpr (!COMPACT) return *this;
    return {opaque(pairs), opaque_lane(pair), opaque_lane(row), opaque(rows), roots};
  }
};

// Moves what stands in an array one place forward.
template <int N> DEVICE void advance(Complex (&a)[N]) {
  UNROLL for (int q = 0; q + 1 < N; ++q) a[q] = a[q + 1];
}

// One decimation: `count` butterflies over stretches of m * R, of a transform of which `split`
// stretches are already apart. Numbers come from source(a, first, step) and go to sink(a, first,
// step), element q being at first + q * step.
template <int R, bool INVERSE, class Source, class Sink>
DEVICE void pass(const Columns& on, unsigned count, unsigned m, unsigned split,
                 const Source& source, const Sink& sink) {
  // Division by m through its reciprocal: exact while count * m < 2^32.
  unsigned reciprocal = m > 1 ? 0xffffffffu / m + 1 : 0;
  NO_UNROLL for (unsigned b = on.row; b < count; b += on.rows) {
    unsigned stretch = m > 1 ? multiply_high(b, reciprocal) : b;
    unsigned j = b - stretch * m, first = stretch * m * R + j, turn = j * split;
    Complex a[R];
    source(a, first, m);
    if constexpr (INVERSE) {
      UNROLL for (int q = 1; q < R; ++q) a[q] = a[q] * on.roots[turn * q];
    }
    butterfly(a);
    if constexpr (!INVERSE) {
      UNROLL for (int q = 1; q < R; ++q) a[q] = a[q] * on.roots[turn * q];
    }
    sink(a, first, m);
  }
}

// The first forward or last inverse pass, which touches global memory.
template <bool INVERSE, class Source, class Sink>
DEVICE void outer_pass(const Length& of, const Columns& on, unsigned total, const Source& source,
                       const Sink& sink) {
  unsigned radix = of.radix(0), count = total / radix, m = of.n / radix;
  switch (radix) {
    case 1: pass<1, INVERSE>(on, count, m, 1, source, sink); break;
    case 4: pass<4, INVERSE>(on, count, m, 1, source, sink); break;
    case 5: pass<5, INVERSE>(on, count, m, 1, source, sink); break;
    case 8: pass<8, INVERSE>(on, count, m, 1, source, sink); break;
    default: pass<16, INVERSE>(on, count, m, 1, source, sink);
  }
}

// This thread's column in shared memory.
struct Column {
  Complex* base;
  unsigned pairs;
  template <int R> DEVICE void load(Complex (&a)[R], unsigned first, unsigned step) const {
    UNROLL for (int q = 0; q < R; ++q) a[q] = base[(first + q * step) * pairs];
  }
  template <int R> DEVICE void store(const Complex (&a)[R], unsigned first, unsigned step) const {
    UNROLL for (int q = 0; q < R; ++q) base[(first + q * step) * pairs] = a[q];
  }
};

// A pass within shared memory.
template <bool INVERSE>
DEVICE void inner_pass(unsigned radix, const Columns& on, unsigned total, unsigned m, unsigned split,
                       Column z) {
  auto source = [&](auto& a, unsigned first, unsigned step) { z.load(a, first, step); };
  auto sink = [&](auto& a, unsigned first, unsigned step) { z.store(a, first, step); };
  unsigned count = total / radix;
  switch (radix) {
    case 2: pass<2, INVERSE>(on, count, m, split, source, sink); break;
    case 3: pass<3, INVERSE>(on, count, m, split, source, sink); break;
    case 4: pass<4, INVERSE>(on, count, m, split, source, sink); break;
    case 5: pass<5, INVERSE>(on, count, m, split, source, sink); break;
    case 7: pass<7, INVERSE>(on, count, m, split, source, sink); break;
    default: pass<8, INVERSE>(on, count, m, split, source, sink);
  }
  barrier();
}

// Forward passes but the first, the last of `both` transforms that lie one after the other, of
// n numbers each, only in the first of them.
DEVICE void inner_forward(const Length& of, const Columns& on, bool both, Column z) {
  unsigned split = of.radix(0), m = of.n / split;
  NO_UNROLL for (unsigned i = 1; i + 1 < of.passes + both; ++i) {
    unsigned radix = of.radix(i);
    m /= radix;
    inner_pass<false>(radix, on, both && m > 1 ? 2 * of.n : of.n, m, split, z);
    split *= radix;
  }
}

// The way back from `middle` to the last pass.
DEVICE void inner_inverse(const Length& of, const Columns& on, Column z) {
  unsigned m = of.radix(of.passes - 1);
  NO_UNROLL for (unsigned i = of.passes - 2; i > 0; --i) {
    unsigned radix = of.radix(i);
    inner_pass<true>(radix, on, of.n, m, of.n / (m * radix), z);
    m *= radix;
  }
}

// Fills `roots` (n) and `place`: where the bins k, k + n / R, k + 2 n / R ... lie side by side
// before the last pass, R its radix, k < n / R. Ends in a barrier.
DEVICE void prepare(const Length& of, Complex* roots, unsigned short* place) {
  NO_UNROLL for (unsigned k = thread_x(); k < of.n; k += block_threads()) roots[k] = root(k, of.n);
  unsigned groups = of.n / of.radix(of.passes - 1);
  NO_UNROLL for (unsigned k = thread_x(); k < groups; k += block_threads()) {
    unsigned left = k, m = of.n, at = 0;
    NO_UNROLL for (unsigned i = 0; i + 1 < of.passes; ++i) {
      unsigned radix = of.radix(i), rest = left / radix;
      m /= radix;
      at += (left - rest * radix) * m;
      left = rest;
    }
    place[k] = (unsigned short)at;
  }
  barrier();
}

// The last forward pass, visit(k, z[k], z[n - k], at, mirror, alone) for bins, and the first inverse
// pass, in registers: bins k and n - k stand in groups that mirror each other, and one thread takes
// both.
// `visit` leaves in its arguments what is to be transformed back, real and imaginary parts swapped.
// `at` and `mirror` are where the bins would lie after the last pass. A group that mirrors itself
// is visited bin by bin (`alone`), and what is left in z[n - k] is dropped.
template <int R, class Visit>
DEVICE void middle(unsigned n, const Columns& on, const unsigned short* place, Column z,
                   const Visit& visit) {
  unsigned groups = n / R;
  NO_UNROLL for (unsigned u = on.row; u <= groups / 2; u += on.rows) {
    unsigned v = u == 0 ? 0 : groups - u, at = place[u], mirror = place[v];
    bool alone = u == v;
    Complex a[R], b[R];
    z.load(a, at, 1);
    butterfly(a);
    z.load(b, mirror, 1);
    butterfly(b);
    unsigned turn = 0;
    if (u == 0) {  // n - k has the opposite digit here, not the complement
      Complex head = b[0];
      UNROLL for (int q = 0; q + 1 < R; ++q) b[q] = b[q + 1];
      b[R - 1] = head;
      turn = 1;
    }
    UNROLL for (int q = 0; q < R; ++q) {
      unsigned other = R - 1 - q + turn;
      visit(u + groups * q, a[q], b[R - 1 - q], at + q, mirror + (other == R ? 0 : other), alone);
    }
    butterfly(a);
    z.store(a, at, 1);
    butterfly(b);
    if (!alone) z.store(b, mirror, 1);
  }
}

template <class Visit>
DEVICE void middle_of(const Length& of, const Columns& on, const unsigned short* place, Column z,
                      const Visit& visit) {
  switch (of.radix(of.passes - 1)) {
    case 2: middle<2>(of.n, on, place, z, visit); break;
    case 3: middle<3>(of.n, on, place, z, visit); break;
    case 4: middle<4>(of.n, on, place, z, visit); break;
    case 5: middle<5>(of.n, on, place, z, visit); break;
    default: middle<8>(of.n, on, place, z, visit);
  }
  barrier();
}

// --- Any length ----------------------------------------------------------------------------------

// The largest divisor of `left` up to 16, else its smallest prime factor.
DEVICE unsigned next_radix(unsigned left) {
  NO_UNROLL for (unsigned r = 16; r > 1; --r)
    if (left % r == 0) return r;
  NO_UNROLL for (unsigned r = 17; r * r <= left; r += 2)
    if (left % r == 0) return r;
  return left;
}

// Transforms a column of any length, from `z` by way of `spare`, and leaves it, in order, in `z`
// (Stockham's algorithm). Every output is a sum over the radix: slow where a prime factor is large,
// but always right. Ends in a barrier.
DEVICE void transform(unsigned n, const Columns& on, Complex*& z, Complex*& spare) {
  unsigned stride = 1;
  for (unsigned length = n; length > 1;) {
    unsigned radix = next_radix(length), m = length / radix;
    const Complex* from = z + on.pair;
    for (unsigned i = on.row; i < n; i += on.rows) {
      unsigned rest = i / stride, q = i - rest * stride, p = rest / radix, t = rest - p * radix;
      unsigned turn = t * p * stride, step = t * (n / radix);
      Complex sum = {0.0f, 0.0f};
      for (unsigned u = 0; u < radix; ++u) {
        sum = sum + from[size_t(q + stride * (p + m * u)) * on.pairs] * on.roots[turn];
        turn += step;
        if (turn >= n) turn -= n;
      }
      spare[size_t(i) * on.pairs + on.pair] = sum;
    }
    barrier();
    Complex* last = z;
    z = spare, spare = last;
    length = m, stride *= radix;
  }
}

}  // namespace
