// Pointwise functions: fill, scaled copies, sums, products, activations, dropout, positions.
//
// All are bound by memory: a thread moves 16 bytes at a time where addresses allow it, 8 elements
// in all, and loads of a thread come before its stores.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
// Elements of a thread, and of a block as ops::elementwise plans.
constexpr int EACH = 8;
constexpr unsigned PIECE = EACH * THREADS;

// The 8 elements of one thread: PACK<T> neighbours at a time, with the rest of the block between
// them; or, where addresses forbid that or fewer are left, one by one.
template <class T> struct Share {
  static constexpr int P = PACK<T>;
  unsigned first, n;
  bool packed;
  DEVICE Share(unsigned n, bool allowed) : first(block_x() * PIECE), n(n) {
    packed = allowed && first < n && n - first >= PIECE;
  }
  DEVICE unsigned at(int i) const {
    return packed ? first + (i / P * THREADS + thread_x()) * P + i % P
                  : first + i * THREADS + thread_x();
  }
  DEVICE bool inside(int i) const { return packed || at(i) < n; }

  template <class From> DEVICE void load(float (&to)[EACH], const From* from) const {
    if (packed) {
      UNROLL for (int i = 0; i < EACH; i += P) {
        float pack[P];
        load_pack(pack, from + at(i));
        UNROLL for (int j = 0; j < P; ++j) to[i + j] = pack[j];
      }
    } else {
      UNROLL for (int i = 0; i < EACH; ++i) to[i] = inside(i) ? value_of(from[at(i)]) : 0.0f;
    }
  }
  template <class To> DEVICE void store(To* to, const float (&from)[EACH]) const {
    if (packed) {
      UNROLL for (int i = 0; i < EACH; i += P) {
        float pack[P];
        UNROLL for (int j = 0; j < P; ++j) pack[j] = from[i + j];
        store_pack(to + at(i), pack);
      }
    } else {
      UNROLL for (int i = 0; i < EACH; ++i)
        if (inside(i)) to[at(i)] = rounded<To>(from[i]);
    }
  }
  // Adds what `to` holds where `add`, then stores.
  template <class To> DEVICE void put(To* to, float (&values)[EACH], bool add) const {
    if (add) {
      float before[EACH];
      load(before, to);
      UNROLL for (int i = 0; i < EACH; ++i) values[i] += before[i];
    }
    store(to, values);
  }
};

template <class T> DEVICE void fill(const Fill& p, const Operands& io) {
  T* x = output<T>(io, 0);
  Share<T> share(p.n, aligned(x));
  float values[EACH];
  UNROLL for (int i = 0; i < EACH; ++i) values[i] = p.value;
  share.store(x, values);
}

// Packs of the wider type's 16 bytes: of the other they are 8.
template <bool FIRST, class A, class B> struct Choose { using Type = A; };
template <class A, class B> struct Choose<false, A, B> { using Type = B; };
template <class T, class To> DEVICE void axpy_to(const Axpy& p, const T* x, To* y) {
  using Wider = typename Choose<(sizeof(T) > sizeof(To)), T, To>::Type;
  Share<Wider> share(p.n, aligned(x) && aligned(y));
  float values[EACH];
  share.load(values, x);
  UNROLL for (int i = 0; i < EACH; ++i) values[i] *= p.scale;
  share.put(y, values, p.accumulate);
}

template <class T> DEVICE void axpy(const Axpy& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  switch (kind_of(io, 1)) {
    case KIND_BF16: axpy_to(p, x, output<bf16>(io, 1)); break;
    case KIND_F16: axpy_to(p, x, output<f16>(io, 1)); break;
    default: axpy_to(p, x, output<float>(io, 1)); break;
  }
}

template <class T> DEVICE void binary(const Binary& p, const Operands& io) {
  const T *x = input<T>(io, 0), *y = input<T>(io, 1);
  T* z = output<T>(io, 2);
  Share<T> share(p.n, aligned(x) && aligned(y) && aligned(z));
  float a[EACH], b[EACH];
  share.load(a, x);
  share.load(b, y);
  UNROLL for (int i = 0; i < EACH; ++i) a[i] = p.multiply ? a[i] * b[i] : a[i] + b[i];
  share.put(z, a, p.accumulate);
}

template <class T> DEVICE void dropout(const Dropout& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 2);
  Mask mask(input<int>(io, 1), p.stream, p.probability);
  Share<T> share(p.n, aligned(x) && aligned(y));
  float values[EACH];
  share.load(values, x);
  if (share.packed) {
    UNROLL for (int i = 0; i < EACH; i += 4) {
      Words words = mask.words(share.at(i) / 4);
      UNROLL for (int j = 0; j < 4; ++j) values[i + j] *= mask.factor(words.at[j]);
    }
  } else {
    UNROLL for (int i = 0; i < EACH; ++i)
      if (share.inside(i)) values[i] *= mask.at(share.at(i));
  }
  share.put(y, values, p.accumulate);
}

// y[b] = x[b] + table.
template <class T> DEVICE void add_table(const AddTable& p, const Operands& io) {
  constexpr int P = PACK<T>;
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 2);
  Any table = any(io, 1);
  Share<T> share(p.batch * p.n, p.n % P == 0 && aligned(x) && aligned(y) && aligned(table.base));
  float values[EACH];
  share.load(values, x);
  if (share.packed) {
    UNROLL for (int i = 0; i < EACH; i += P) {
      float pack[P];
      table.load(pack, share.at(i) % p.n);
      UNROLL for (int j = 0; j < P; ++j) values[i + j] += pack[j];
    }
  } else {
    UNROLL for (int i = 0; i < EACH; ++i)
      if (share.inside(i)) values[i] += table[share.at(i) % p.n];
  }
  share.store(y, values);
}

// --- Activations ---------------------------------------------------------------------------------

// As ops::elementwise::Function.
enum : unsigned { RELU = 0, ELU = 1, SQUARE = 2, LOG = 3, GELU = 4 };
constexpr float LOG_FLOOR = 1e-6f;

// e^x - 1 for x <= 0: a difference would lose the digits of small x.
DEVICE float exp_minus_one(float x) {
  float series = fma_of(x, 1.0f / 120.0f, 1.0f / 24.0f);
  series = fma_of(fma_of(fma_of(series, x, 1.0f / 6.0f), x, 0.5f), x * x, x);
  return x > -0.1f ? series : exp_of(x) - 1.0f;
}

template <unsigned F> DEVICE float value(float x) {
  if constexpr (F == RELU) return x > 0.0f || x != x ? x : 0.0f;
  if constexpr (F == ELU) return x > 0.0f ? x : exp_minus_one(x);
  if constexpr (F == SQUARE) return x * x;
  if constexpr (F == LOG) return log_of(x < LOG_FLOOR ? LOG_FLOOR : x);
  return gelu(x);
}

template <unsigned F> DEVICE float slope(float x) {
  if constexpr (F == RELU) return x > 0.0f ? 1.0f : 0.0f;
  if constexpr (F == ELU) return x > 0.0f ? 1.0f : exp_of(x);
  if constexpr (F == SQUARE) return x + x;
  if constexpr (F == LOG) return x > LOG_FLOOR ? 1.0f / x : 0.0f;
  return gelu_slope(x);
}

// Calls f.run<F>() for the function's number.
template <class F> DEVICE void per_function(unsigned function, F f) {
  switch (function) {
    case RELU: f.template run<RELU>(); break;
    case ELU: f.template run<ELU>(); break;
    case SQUARE: f.template run<SQUARE>(); break;
    case LOG: f.template run<LOG>(); break;
    default: f.template run<GELU>(); break;
  }
}

template <class T> struct Forward {
  Share<T> share;
  const T* x;
  T* y;
  template <unsigned F> DEVICE void run() const {
    float values[EACH];
    share.load(values, x);
    UNROLL for (int i = 0; i < EACH; ++i) values[i] = value<F>(values[i]);
    share.store(y, values);
  }
};

template <class T> DEVICE void unary(const Unary& p, const Operands& io) {
  const T* x = input<T>(io, 0);
  T* y = output<T>(io, 1);
  per_function(p.function, Forward<T>{Share<T>(p.n, aligned(x) && aligned(y)), x, y});
}

template <class T> struct Backward {
  Share<T> share;
  const T *dy, *x;
  T* dx;
  bool add;
  template <unsigned F> DEVICE void run() const {
    float grad[EACH], values[EACH];
    share.load(grad, dy);
    share.load(values, x);
    UNROLL for (int i = 0; i < EACH; ++i) grad[i] *= slope<F>(values[i]);
    share.put(dx, grad, add);
  }
};

template <class T> DEVICE void unary_backward(const UnaryBackward& p, const Operands& io) {
  const T *dy = input<T>(io, 0), *x = input<T>(io, 1);
  T* dx = output<T>(io, 2);
  Share<T> share(p.n, aligned(dy) && aligned(x) && aligned(dx));
  per_function(p.function, Backward<T>{share, dy, x, dx, p.accumulate != 0});
}

}  // namespace

ENTRIES(fill, Fill, THREADS, fill)
ENTRIES(axpy, Axpy, THREADS, axpy)
ENTRIES(binary, Binary, THREADS, binary)
ENTRIES(dropout, Dropout, THREADS, dropout)
ENTRIES(add_table, AddTable, THREADS, add_table)
ENTRIES(unary, Unary, THREADS, unary)
ENTRIES(unary_backward, UnaryBackward, THREADS, unary_backward)
