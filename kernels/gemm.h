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
  static DEVICE Any sums(const Gemm& p, const Operands& io) {
    return any(io, int(inputs(p.flags)) + 1);
  }

  DEVICE Epilogue(const Gemm& p, const Operands& io)
      : flags(p.flags), n(p.n), mask(state(p, io), p.stream, p.probability) {
    int next = 2;
    bias = any(io, next);
    next += (flags & GEMM_BIAS) != 0;
    next += (flags & GEMM_DROPOUT) != 0;
    residual = io.at[next];
    next += (flags & GEMM_RESIDUAL) != 0;
    before = io.at[next];
    next += (flags & GEMM_GELU_SLOPE) != 0;
    c = any(io, next);
    pre_gelu = io.at[next + 1];
  }

  // Finishes and stores N neighbouring elements of one row; `first` is the index of the first of
  // them in C, `col` its column. `count` of them exist. `packed`: whole packs may be moved.
  template <class T, int N>
  DEVICE void finish(size_t first, unsigned col, float (&x)[N], unsigned count, bool packed) const {
    if (packed && count == N) whole<T, N>(first, col, x);
    else UNROLL for (int j = 0; j < N; ++j)
      if (unsigned(j) < count) one<T>(first + j, col + j, x[j]);
  }

 private:
  static DEVICE const int* state(const Gemm& p, const Operands& io) {
    static const int none[4] = {0, 0, 0, 0};
    return p.flags & GEMM_DROPOUT ? input<int>(io, 2 + ((p.flags & GEMM_BIAS) != 0)) : none;
  }

  template <class T> DEVICE void one(size_t i, unsigned col, float x) const {
    if (flags & GEMM_BIAS) x += bias[col];
    if (flags & GEMM_GELU_SLOPE) x *= gelu_slope(value_of(static_cast<const T*>(before)[i]));
    if (flags & GEMM_GELU) {
      static_cast<T*>(pre_gelu)[i] = rounded<T>(x);
      x = gelu(x);
    }
    if (flags & GEMM_DROPOUT) x *= mask.at(unsigned(i));
    if (flags & GEMM_RESIDUAL) x += value_of(static_cast<const T*>(residual)[i]);
    c.put(i, x, flags & GEMM_ACCUMULATE);
  }

  template <class T, int N> DEVICE void whole(size_t first, unsigned col, float (&x)[N]) const {
    if (flags & GEMM_BIAS) UNROLL for (int j = 0; j < N; ++j) x[j] += bias[col + j];
    if (flags & GEMM_GELU_SLOPE) {
      float z[N];
      load_pack(z, static_cast<const T*>(before) + first);
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
      load_pack(r, static_cast<const T*>(residual) + first);
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
        part[i] = flags & GEMM_ACCUMULATE ? part[i] + x[j + i] : x[j + i];
      store_pack(to + j, part);
    }
  }
};

// Sums over k that are split among blocks lie in the workspace: a header of 256 bytes with the
// number of splits, then C of each split [splits, batch, m, n], then A's sums of each split [splits, m].
constexpr unsigned SPLIT_HEADER = 64;  // in floats

DEVICE float* split_products(const Operands& io) {
  return static_cast<float*>(io.workspace) + SPLIT_HEADER;
}
