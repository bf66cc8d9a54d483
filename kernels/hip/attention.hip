// archs: gfx1*
// Attention and its gradient for RDNA cards, heads of 16 or 32 (forward also 64), f32 and f16.
//
// A lane owns a row: a query with its output, or a key and a value with their gradients, all in
// registers. The rows of the other side come one after another, the same for all lanes, so that a wave
// reads each once, through the scalar cache into scalar registers, of which v_fma_f32 takes one as an
// operand for nothing. No products of tiles, therefore: no shared memory, no shuffles, no barrier and no
// padding along the rows that pass (200 of them are 200; of the lanes, 200 of 224 have a row). f16
// numbers stay packed in scalar registers, v_fma_mix_f32 takes them as they are. bf16 would have to be
// unpacked by as many scalar instructions: attention.cu has it, and all other heads.
//
// attention: grid (waves of 32 queries, heads, batch). The softmax runs online, in powers of two. A sum
// of scores begins at minus the reference `top`, the first key's score, so that its end is an exponent;
// `top` moves only where a score exceeds it by 8, which is rare, and spares the other steps the
// rescaling (exponentials stay below 256, and no row's largest is below 1). attention_backward: grid
// (waves of keys + waves of queries, heads, batch), the longer ones first. Nothing is summed across
// waves: keys' waves compute dK and dV, queries' waves dQ, each the probabilities again. With P =
// exp(scale S - lse), delta = rowsum(dO out), dS = P (dP - delta): dV = P^T dO, dK = scale dS^T Q,
// dQ = scale dS K.
//
// On gfx1010, llvm-mca counts for the whole loop, softmax and addresses included, 74, 80 and 83 %
// multiply-adds forward at heads of 16, 32 and 64, and 82 % backward for keys (queries 83 and 86 %). A
// scalar instruction counts as a slot there, though another wave may use the vector unit in that cycle.
// The tiles of attention.cu have 84 % in their products alone, and at 200 rows a third more of padding.
// A wave waits for each of its reads: other waves hide that. A SIMD has room for 20, 14 and 7 forward
// and for 9 and 5 backward, bounded by registers (41 and 108 of 1024 at 16); at batch 8 and 6 heads of
// 200 queries there are 5 and 10. Heads of 8 reached 61 %, with scalar registers spilled.
#include "portable.h"

namespace {

constexpr unsigned THREADS = 32;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// A row of D elements that all lanes read. Heads are multiples of 8 and tensors begin at 256 bytes, so
// that it begins at a word.
template <class T, int D> struct Row {
  unsigned words[D * sizeof(T) / 4];
  DEVICE explicit Row(const char* from) { load_uniform(words, from); }
  DEVICE float operator[](int i) const {
    if constexpr (sizeof(T) == 4) return float_of(words[i]);
    else return value_of(T{static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2))});
  }
};

template <class T, int D> DEVICE float dot(const float (&x)[D], const Row<T, D>& y, float sum) {
  UNROLL for (int i = 0; i < D; ++i) sum = fma_of(x[i], y[i], sum);
  return sum;
}
template <class T, int D> DEVICE void add(float (&sum)[D], float factor, const Row<T, D>& row) {
  UNROLL for (int i = 0; i < D; ++i) sum[i] = fma_of(factor, row[i], sum[i]);
}
template <int D> DEVICE void scale(float (&x)[D], float factor) {
  UNROLL for (int i = 0; i < D; ++i) x[i] *= factor;
}
template <int D> DEVICE void clear(float (&x)[D]) {
  UNROLL for (int i = 0; i < D; ++i) x[i] = 0.0f;
}

// Where this wave's head lies: of qkv, its first query's row; of a tensor of tokens, its first row.
template <int D> struct Place {
  unsigned width, step;  // elements of a token, and between rows of qkv
  size_t token;          // this item's first
  DEVICE explicit Place(const Attention& p)
      : width(p.heads * D), step(3 * width), token(size_t(block_z()) * p.time) {}
  template <class T> DEVICE T* queries(T* qkv) const { return qkv + token * step + block_y() * D; }
  template <class T> DEVICE T* tokens(T* x) const { return x + token * width + block_y() * D; }
  template <class T> DEVICE T* statistics(const Attention& p, T* x) const { return x + token * p.heads + block_y(); }
};

// The row that a lane owns; one past the last computes the last once more, and stores nothing.
struct Own {
  unsigned at;
  bool real;
  DEVICE Own(unsigned block, unsigned rows) {
    unsigned row = block * THREADS + thread_x();
    real = row < rows;
    at = real ? row : rows - 1;
  }
};

template <class T, int D> struct Query {
  float q[D], out[D], sum = 0.0f, top = 0.0f;

  // The next N keys, `step` bytes apart, and their values, `to_value` bytes further.
  template <int N> DEVICE void take(const char* keys, unsigned step, unsigned to_value) {
    float s[N];
    UNROLL for (int i = 0; i < N; ++i) s[i] = dot(q, Row<T, D>(keys + i * step), -top);
    float most = s[0];
    UNROLL for (int i = 1; i < N; ++i) most = max_of(most, s[i]);
    if (most > 8.0f) {
      float factor = exp2_of(-most);
      top += most;
      sum *= factor;
      scale(out, factor);
      UNROLL for (int i = 0; i < N; ++i) s[i] -= most;
    }
    UNROLL for (int i = 0; i < N; ++i) {
      float weight = exp2_of(s[i]);
      sum += weight;
      add(out, weight, Row<T, D>(keys + to_value + i * step));
    }
  }
};

template <class T, int D> DEVICE void forward(const Attention& p, const Operands& io) {
  constexpr unsigned AT_ONCE = 64 / D;  // keys of which 64 elements fill scalar registers
  Place<D> place(p);
  Own own(block_x(), p.time);
  const T* qkv = place.queries(input<T>(io, 0));
  const char* keys = reinterpret_cast<const char*>(qkv + place.width);
  unsigned step = place.step * sizeof(T), to_value = place.width * sizeof(T);
  Query<T, D> query;
  load_pack(query.q, qkv + size_t(own.at) * place.step);
  scale(query.q, p.scale * LOG2_E);
  clear(query.out);
  query.top = dot(query.q, Row<T, D>(keys), 0.0f);
  unsigned left = p.time;
  for (; left >= AT_ONCE; left -= AT_ONCE, keys += AT_ONCE * step)
    query.template take<AT_ONCE>(keys, step, to_value);
  if constexpr (AT_ONCE > 1)
    for (; left > 0; --left, keys += step) query.template take<1>(keys, step, to_value);
  if (!own.real) return;
  scale(query.out, 1.0f / query.sum);
  store_pack(place.tokens(output<T>(io, 1)) + size_t(own.at) * place.width, query.out);
  float* lse = place.statistics(p, output<float>(io, 2));
  lse[size_t(own.at) * p.heads] = fma_of(LN_2, query.top, log_of(query.sum));
}

// What the backward pass knows of a query ahead: both negated, lse as a power of two.
struct Statistics {
  float lse, delta;
};
template <class T, int D>
DEVICE Statistics statistics_of(const Attention& p, const Operands& io, const Place<D>& place, unsigned query,
                                const float (&d_out)[D]) {
  float out[D], delta = 0.0f;
  load_pack(out, place.tokens(input<T>(io, 2)) + size_t(query) * place.width);
  UNROLL for (int i = 0; i < D; ++i) delta = fma_of(-out[i], d_out[i], delta);
  return {-LOG2_E * place.statistics(p, input<float>(io, 3))[size_t(query) * p.heads], delta};
}

// Rows of up to 64 bytes pass two in a turn; more would not fit scalar registers.
template <class T, int D> constexpr int AT_ONCE = D * sizeof(T) > 64 ? 1 : 2;

// dQ of 32 queries.
template <class T, int D> DEVICE void backward_of_queries(const Attention& p, const Operands& io, unsigned block) {
  constexpr int TURNS = AT_ONCE<T, D>;
  Place<D> place(p);
  Own own(block, p.time);
  const T* qkv = place.queries(input<T>(io, 1));
  float q[D], d_out[D], sum[D];
  load_pack(q, qkv + size_t(own.at) * place.step);
  load_pack(d_out, place.tokens(input<T>(io, 0)) + size_t(own.at) * place.width);
  scale(q, p.scale * LOG2_E);
  clear(sum);
  Statistics known = statistics_of<T>(p, io, place, own.at, d_out);
  const char* key = reinterpret_cast<const char*>(qkv + place.width);
  unsigned step = place.step * sizeof(T), to_value = place.width * sizeof(T);
  UNROLL_BY(TURNS) for (unsigned i = 0; i < p.time; ++i, key += step) {
    Row<T, D> k(key), v(key + to_value);
    float weight = exp2_of(dot(q, k, known.lse));
    add(sum, weight * dot(d_out, v, known.delta), k);
  }
  if (!own.real) return;
  scale(sum, p.scale);
  store_pack(place.queries(output<T>(io, 4)) + size_t(own.at) * place.step, sum);
}

// dK and dV of 32 keys. What is known of queries passes through shared memory, so many at a time.
template <class T, int D> DEVICE void backward_of_keys(const Attention& p, const Operands& io, unsigned block) {
  constexpr int TURNS = AT_ONCE<T, D>;
  constexpr unsigned QUERIES = 128;
  SHARED Statistics known[QUERIES];
  Place<D> place(p);
  Own own(block, p.time);
  const T *qkv = place.queries(input<T>(io, 1)), *d_outs = place.tokens(input<T>(io, 0));
  size_t own_key = size_t(own.at) * place.step + place.width;
  float k[D], v[D], dk[D], dv[D];
  load_pack(k, qkv + own_key);
  load_pack(v, qkv + own_key + place.width);
  scale(k, p.scale * LOG2_E);
  clear(dk);
  clear(dv);
  const char *query = reinterpret_cast<const char*>(qkv), *gradient = reinterpret_cast<const char*>(d_outs);
  unsigned step = place.step * sizeof(T), to_gradient = place.width * sizeof(T);
  for (unsigned first = 0; first < p.time; first += QUERIES) {
    unsigned count = p.time - first < QUERIES ? p.time - first : QUERIES;
    barrier();
    for (unsigned i = thread_x(); i < count; i += THREADS) {
      float d_out[D];
      load_pack(d_out, d_outs + size_t(first + i) * place.width);
      known[i] = statistics_of<T>(p, io, place, first + i, d_out);
    }
    barrier();
    UNROLL_BY(TURNS) for (unsigned i = 0; i < count; ++i, query += step, gradient += to_gradient) {
      Row<T, D> q(query), d_out(gradient);
      float weight = exp2_of(dot(k, q, known[i].lse));
      add(dv, weight, d_out);
      add(dk, weight * dot(v, d_out, known[i].delta), q);
    }
  }
  if (!own.real) return;
  scale(dk, p.scale);
  T* d_qkv = place.queries(output<T>(io, 4)) + own_key;
  store_pack(d_qkv, dk);
  store_pack(d_qkv + place.width, dv);
}

template <class T, int D> DEVICE void backward(const Attention& p, const Operands& io) {
  unsigned half = grid_x() / 2;
  if (block_x() < half) backward_of_keys<T, D>(p, io, block_x());
  else backward_of_queries<T, D>(p, io, block_x() - half);
}

template <class T> DEVICE void forward16(const Attention& p, const Operands& io) { forward<T, 16>(p, io); }
template <class T> DEVICE void forward32(const Attention& p, const Operands& io) { forward<T, 32>(p, io); }
template <class T> DEVICE void forward64(const Attention& p, const Operands& io) { forward<T, 64>(p, io); }
template <class T> DEVICE void backward16(const Attention& p, const Operands& io) { backward<T, 16>(p, io); }
template <class T> DEVICE void backward32(const Attention& p, const Operands& io) { backward<T, 32>(p, io); }

}  // namespace

#define BOTH(name, body)                         \
  ENTRY(name, f32, float, Attention, THREADS, body) \
  ENTRY(name, f16, f16, Attention, THREADS, body)

BOTH(attention_rdna_d16, forward16)
BOTH(attention_rdna_d32, forward32)
BOTH(attention_rdna_d64, forward64)
BOTH(attention_backward_rdna_d16, backward16)
BOTH(attention_backward_rdna_d32, backward32)
