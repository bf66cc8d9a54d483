// What the matrix products share: what follows a product, and how split sums are put together.
#pragma once
#include "portable.h"

// Where the operands of a product's epilogue lie: inputs a, b, then bias, rng, residual, the sum
// before a GELU whose slope is wanted, each only where its flag is set; outputs c, then the sum before the
// GELU, or the sums of A's rows.
struct Epilogue {
  unsigned flags, n;
  Any c, bias;
  const void* residual;
  const void* before;
  void* pre_gelu;
  Mask mask;

  static DEVICE unsigned inputs(unsigned flags) {
    return 2 + ((flags & GEMM_BIAS) != 0) + ((flags & GEMM_DROPOUT) != 0) +
           ((flags & GEMM_RESIDUAL) != 0) + ((flags & GEMM_GELU_SLOPE) != 0);
  }
  static DEVICE const int* state(const Gemm& p, const Operands& io) {
    return input<int>(io, 2 + ((p.flags & GEMM_BIAS) != 0));
  }
  static DEVICE Any sums(const Gemm& p, const Operands& io) {
    return any(io, int(inputs(p.flags)) + 1);
  }

  // The mask's limits are worth a division in double precision: only where they are used.
  DEVICE Epilogue(const Gemm& p, const Operands& io)
      : Epilogue(p, io, p.flags & GEMM_DROPOUT ? Mask(state(p, io), p.stream, p.probability) : Mask()) {}
  DEVICE Epilogue(const Gemm& p, const Operands& io, const Mask& mask) : flags(p.flags), n(p.n), mask(mask) {
    int next = 2;
    bias = any(io, next);
    next += (flags & GEMM_BIAS) != 0;
    next += (flags & GEMM_DROPOUT) != 0;
    residual = global(io.at[next]);
    next += (flags & GEMM_RESIDUAL) != 0;
    before = global(io.at[next]);
    next += (flags & GEMM_GELU_SLOPE) != 0;
    c = any(io, next);
    pre_gelu = global(io.at[next + 1]);
  }

  // What is derived from flags is not kept over the loop that this is called in.
  DEVICE void forget() {
    flags = opaque(flags), c.kind = opaque(c.kind), bias.kind = opaque(bias.kind);
    mask.key[0] = opaque(mask.key[0]), mask.key[1] = opaque(mask.key[1]);
    mask.step[0] = opaque(mask.step[0]);
  }

  // The bias of N neighbouring columns, `count` of which exist; zeros where there is none.
  template <int N> DEVICE void load_bias(unsigned col, unsigned count, float (&to)[N]) const {
    bool wanted = (flags & GEMM_BIAS) != 0;
    const float* from = static_cast<const float*>(bias.base) + col;
    if (wanted && count == N && bias.kind == KIND_F32 && aligned(from, 16)) {
      UNROLL for (int j = 0; j < N; j += 4) {
        float four[4];
        load_pack(four, from + j);
        UNROLL for (int i = 0; i < 4; ++i) to[j + i] = four[i];
      }
    } else if constexpr (COMPACT) {
      NO_UNROLL for (unsigned j = 0; j < N; ++j) {
        UNROLL for (int i = 0; i + 1 < N; ++i) to[i] = to[i + 1];
        to[N - 1] = wanted && j < count ? bias[col + j] : 0.0f;
      }
    } else {
      UNROLL for (int j = 0; j < N; ++j) to[j] = wanted && unsigned(j) < count ? bias[col + j] : 0.0f;
    }
  }

  // Finishes and stores N neighbouring elements of one row, the bias added already; `first` is the index of the first of
  // them in C. `count` of them exist. `packed`: whole packs may be moved; x is then what
  // was stored.
  template <class T, int N>
  DEVICE void finish(size_t first, float (&x)[N], unsigned count, bool packed) const {
    if (packed && count == N) {
      whole<T, N>(first, x);
    } else if constexpr (COMPACT) {
      NO_UNROLL for (unsigned j = 0; j < count; ++j) {
        one<T>(first + j, x[0]);
        UNROLL for (int i = 0; i + 1 < N; ++i) x[i] = x[i + 1];
      }
    } else {
      UNROLL for (int j = 0; j < N; ++j)
        if (unsigned(j) < count) one<T>(first + j, x[j]);
    }
  }

  // What lies beside N neighbouring elements of C, fetched while their sums are not yet known.
  template <class T, int N> struct Beside { Pack<T, N> before, residual; };
  template <class T, int N> DEVICE void fetch(size_t first, Beside<T, N>& to) const {
    if (flags & GEMM_GELU_SLOPE)
      to.before = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(before) + first);
    if (flags & GEMM_RESIDUAL)
      to.residual = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(residual) + first);
  }
  template <class T, int N>
  DEVICE void finish(size_t first, float (&x)[N], const Beside<T, N>& beside) const {
    whole<T, N>(
        first, x, [&](float(&z)[N]) { load_pack(z, beside.before.at); },
        [&](float(&r)[N]) { load_pack(r, beside.residual.at); });
  }

 private:
  template <class T> DEVICE void one(size_t i, float x) const {
    if (flags & GEMM_GELU_SLOPE) x *= gelu_slope(value_of(static_cast<const T*>(before)[i]));
    if (flags & GEMM_GELU) {
      static_cast<T*>(pre_gelu)[i] = rounded<T>(x);
      x = gelu(x);
    }
    if (flags & GEMM_DROPOUT) x *= mask.at(unsigned(i));
    if (flags & GEMM_RESIDUAL) x += value_of(static_cast<const T*>(residual)[i]);
    c.put(i, x, flags & GEMM_ACCUMULATE);
  }

  template <class T, int N> DEVICE void whole(size_t first, float (&x)[N]) const {
    whole<T, N>(
        first, x, [&](float(&z)[N]) { load_pack(z, static_cast<const T*>(before) + first); },
        [&](float(&r)[N]) { load_pack(r, static_cast<const T*>(residual) + first); });
  }

  template <class T, int N, class Before, class Residual>
  DEVICE void whole(size_t first, float (&x)[N], Before before_at, Residual residual_at) const {
    if (flags & GEMM_GELU_SLOPE) {
      float z[N];
      before_at(z);
      UNROLL for (int j = 0; j < N; ++j) x[j] *= gelu_slope(z[j]);
    }
    if (flags & GEMM_GELU) {
      store_pack(static_cast<T*>(pre_gelu) + first, x);
      UNROLL for (int j = 0; j < N; ++j) x[j] = gelu(x[j]);
    }
    if (flags & GEMM_DROPOUT) {
      UNROLL for (int j = 0; j < N; j += 4) {
        Words words = mask.words(unsigned(first + j) / 4);
        UNROLL for (int i = 0; i < 4; ++i) x[j + i] *= mask.factor(words.at[i]);
      }
    }
    if (flags & GEMM_RESIDUAL) {
      float r[N];
      residual_at(r);
      UNROLL for (int j = 0; j < N; ++j) x[j] += r[j];
    }
    if (c.kind == KIND_F32) store(static_cast<float*>(c.base) + first, x);
    else store(static_cast<T*>(c.base) + first, x);
  }

  template <class C, int N> DEVICE void store(C* to, float (&x)[N]) const {
    constexpr int STEP = PACK<C> < N ? PACK<C> : N;
    UNROLL for (int j = 0; j < N; j += STEP) {
      float part[STEP];
      if (flags & GEMM_ACCUMULATE) load_pack(part, to + j);
      UNROLL for (int i = 0; i < STEP; ++i)
        x[j + i] = part[i] = flags & GEMM_ACCUMULATE ? part[i] + x[j + i] : x[j + i];
      store_pack(to + j, part);
    }
  }
};

// Sums over k that are split among blocks lie in the workspace: a header of 256 bytes with the
// number of splits, then C of each split [splits, batch, m, n], then A's sums of each split [splits, m].
constexpr unsigned SPLIT_HEADER = 64;  // in floats

// Stores 8 sums of one split.
DEVICE void store_split(float* to, const float (&x)[8], unsigned count, bool packed) {
  if (packed && count == 8) {
    float low[4] = {x[0], x[1], x[2], x[3]}, high[4] = {x[4], x[5], x[6], x[7]};
    store_pack(to, low);
    store_pack(to + 4, high);
  } else {
    UNROLL for (int e = 0; e < 8; ++e)
      if (unsigned(e) < count) to[e] = x[e];
  }
}

DEVICE float* split_products(const Operands& io) {
  return static_cast<float*>(global(io.workspace)) + SPLIT_HEADER;
}
