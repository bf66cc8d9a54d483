// Gradient norm, and updates over the flat arrays of parameters.
//
// Bound by memory: AdamW reads four arrays and writes three, each once, 16 bytes at a time; the
// norm reads one. Learning rates, clipping norm and the like are read from device memory, so that a
// recorded step stays valid. Every 64 elements have one group (ops/optimizer.rs: BLOCK), and a
// thread's 16 bytes never straddle two.
#include "partials.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned BLOCK = 64;

enum : int { GRADS = 0, GROUPS = 1, HYPER = 2, CONTROL = 3, NORM = 4, PARAMS = 5, STATE = 6 };
enum : unsigned { CLIP = 0, UNSCALE = 1, KEEP = 2, BIAS1 = 3, BIAS2 = 4 };

// Learning rate and weight decay of the block an element lies in, and whether it is trained.
struct Rates {
  const int* groups;
  Any hyper;
  DEVICE Rates(const Operands& io) : groups(input<int>(io, GROUPS)), hyper(any(io, HYPER)) {}
  DEVICE unsigned at(unsigned i) const { return unsigned(groups[i / BLOCK]) * 3; }
  DEVICE bool trained(unsigned at) const { return hyper[at + 2] != 0.0f; }
};

// --- Norm ----------------------------------------------------------------------------------------

constexpr unsigned NORM_FLIGHT = 4;  // moves of 16 bytes in flight per thread

// Stage 1: each block leaves the sum of squares of the trained gradients it walks.
template <class T, int N> DEVICE float squares(const GradNorm& p, const Operands& io) {
  const T* grads = input<T>(io, GRADS);
  Rates rates(io);
  unsigned step = THREADS * N, stride = grid_x() * step * NORM_FLIGHT;
  float sum = 0.0f;
  for (unsigned first = block_x() * step * NORM_FLIGHT; first < p.n; first += stride) {
    float values[NORM_FLIGHT][N] = {};
    bool trained[NORM_FLIGHT] = {};
    UNROLL for (unsigned f = 0; f < NORM_FLIGHT; ++f) {
      unsigned i = first + f * step + thread_x() * N;
      if (i >= p.n) continue;
      load_pack(values[f], grads + i);
      trained[f] = rates.trained(rates.at(i));
    }
    UNROLL for (unsigned f = 0; f < NORM_FLIGHT; ++f) {
      float part = 0.0f;
      UNROLL for (int j = 0; j < N; ++j) part = fma_of(values[f][j], values[f][j], part);
      sum += trained[f] ? part : 0.0f;
    }
  }
  return sum;
}

template <class T> DEVICE void grad_norm(const GradNorm& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  bool packed = p.n % BLOCK == 0 && aligned(io.at[GRADS]);
  float sum = packed ? squares<T, PACK<T>>(p, io) : squares<T, 1>(p, io);
  sum = block_sum<THREADS>(sum, memory);
  if (block_x() == 0 && thread_x() == 0) count_partials(io, grid_x());
  if (thread_x() == 0) partials_of(io)[block_x()] = sum;
}

// Stage 2, one block: the norm, and what the update multiplies gradients by.
template <class T> DEVICE void grad_norm_end(const GradNorm&, const Operands& io) {
  SHARED double memory[THREADS];
  const float* sums = partials_of(io);
  unsigned count = partials_count(io);
  double sum = 0.0;
  for (unsigned i = thread_x(); i < count; i += THREADS) sum += double(sums[i]);
  memory[thread_x()] = sum;
  for (unsigned half = THREADS / 2; half > 0; half /= 2) {
    barrier();
    if (thread_x() < half) memory[thread_x()] += memory[thread_x() + half];
  }
  if (thread_x() != 0) return;
  Any control = any(io, CONTROL), out = any(io, NORM);
  double norm = sqrt_of(memory[0]) * double(control[UNSCALE]), clip = double(control[CLIP]);
  double factor = clip > 0.0 && clip < norm + 1e-6 ? clip / (norm + 1e-6) : 1.0;
  // Infinite or no number: the update shall do nothing.
  bool finite = norm - norm == 0.0;
  out.set(0, float(norm));
  out.set(1, finite ? float(factor * double(control[UNSCALE])) : 0.0f);
}

// --- Updates -------------------------------------------------------------------------------------

// Walks all elements in packs of N, then moves the averaged weights, operand `mean` where there is
// one, towards the parameters. `rule` reads what it needs besides parameters before the group's
// rates are known: those are two dependent reads away.
template <class T, int N, class Rule>
DEVICE void walk(unsigned n, const Operands& io, int mean, Rule rule) {
  Rates rates(io);
  T* params = output<T>(io, PARAMS);
  bool averages = io.count > unsigned(mean);
  T* averaged = averages ? output<T>(io, mean) : nullptr;
  float share = averages ? 1.0f - any(io, CONTROL)[KEEP] : 0.0f;
  for (unsigned i = (block_x() * THREADS + thread_x()) * N; i < n; i += grid_x() * THREADS * N) {
    unsigned at = rates.at(i);
    float p[N], a[N];
    load_pack(p, params + i);
    rule.load(i);
    if (averages) load_pack(a, averaged + i);
    if (rates.trained(at)) {
      rule.update(rates.hyper[at], rates.hyper[at + 1], p);
      store_pack(params + i, p);
      rule.store(i);
    }
    if (!averages) continue;
    // Towards the parameter as it is stored: rounded.
    UNROLL for (int j = 0; j < N; ++j)
      a[j] = fma_of(share, value_of(rounded<T>(p[j])) - a[j], a[j]);
    store_pack(averaged + i, a);
  }
}

template <class T, int N> struct AdamWRule {
  const T* grads;
  T *first, *second;
  float factor, beta1, rest1, beta2, rest2, epsilon, bias1, bias2;
  float g[N], m[N], v[N];

  DEVICE AdamWRule(const AdamW& p, const Operands& io, float factor) : factor(factor) {
    grads = input<T>(io, GRADS), first = output<T>(io, STATE), second = output<T>(io, STATE + 1);
    // 1 - beta from doubles: from floats it would be off by 1e-5.
    beta1 = float(p.beta1), rest1 = float(1.0 - p.beta1);
    beta2 = float(p.beta2), rest2 = float(1.0 - p.beta2), epsilon = float(p.epsilon);
    bias1 = any(io, CONTROL)[BIAS1], bias2 = sqrt_of(any(io, CONTROL)[BIAS2]);
  }
  DEVICE void load(unsigned i) {
    load_pack(g, grads + i);
    load_pack(m, first + i);
    load_pack(v, second + i);
  }
  DEVICE void update(float rate, float decay, float (&x)[N]) {
    float keep = 1.0f - rate * decay, step = rate / bias1, scale = 1.0f / bias2;
    UNROLL for (int j = 0; j < N; ++j) {
      g[j] *= factor;
      m[j] = fma_of(m[j], beta1, g[j] * rest1);
      v[j] = fma_of(v[j], beta2, g[j] * g[j] * rest2);
      x[j] = x[j] * keep - step * m[j] / fma_of(sqrt_of(v[j]), scale, epsilon);
    }
  }
  DEVICE void store(unsigned i) const {
    store_pack(first + i, m);
    store_pack(second + i, v);
  }
};

template <class T, int N> struct SgdRule {
  const T* grads;
  T* velocity;
  float factor, momentum;
  bool nesterov;
  float g[N], v[N];

  DEVICE SgdRule(const Sgd& p, const Operands& io, float factor)
      : grads(input<T>(io, GRADS)), velocity(output<T>(io, STATE)), factor(factor),
        momentum(p.momentum), nesterov(p.nesterov != 0) {}
  DEVICE void load(unsigned i) {
    load_pack(g, grads + i);
    load_pack(v, velocity + i);
  }
  DEVICE void update(float rate, float decay, float (&x)[N]) {
    UNROLL for (int j = 0; j < N; ++j) {
      g[j] = fma_of(g[j], factor, decay * x[j]);
      v[j] = fma_of(v[j], momentum, g[j]);
      x[j] -= rate * (nesterov ? fma_of(momentum, v[j], g[j]) : v[j]);
    }
  }
  DEVICE void store(unsigned i) const { store_pack(velocity + i, v); }
};

// True where all arrays allow moves of 16 bytes.
DEVICE bool packable(unsigned n, const Operands& io) {
  bool packed = n % BLOCK == 0 && aligned(io.at[GRADS]);
  UNROLL for (unsigned i = PARAMS; i < STATE + 3; ++i)
    packed = packed && (i >= io.count || aligned(io.at[i]));
  return packed;
}

template <class T> DEVICE void adamw(const AdamW& p, const Operands& io) {
  float factor = any(io, NORM)[1];
  if (factor == 0.0f) return;
  if (packable(p.n, io)) walk<T, PACK<T>>(p.n, io, STATE + 2, AdamWRule<T, PACK<T>>(p, io, factor));
  else walk<T, 1>(p.n, io, STATE + 2, AdamWRule<T, 1>(p, io, factor));
}

template <class T> DEVICE void sgd(const Sgd& p, const Operands& io) {
  float factor = any(io, NORM)[1];
  if (factor == 0.0f) return;
  if (packable(p.n, io)) walk<T, PACK<T>>(p.n, io, STATE + 1, SgdRule<T, PACK<T>>(p, io, factor));
  else walk<T, 1>(p.n, io, STATE + 1, SgdRule<T, 1>(p, io, factor));
}

}  // namespace

ENTRIES(grad_norm, GradNorm, THREADS, grad_norm)
ENTRIES(grad_norm_end, GradNorm, THREADS, grad_norm_end)
ENTRIES(adamw, AdamW, THREADS, adamw)
ENTRIES(sgd, Sgd, THREADS, sgd)
