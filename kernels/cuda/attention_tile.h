// What the attention kernels on matrix instructions share: tiles of rows of one head in shared
// memory, and fragments of mma m16n8k16 from them or from global memory.
//
// A tile is [rows, D] of 2-byte elements, D the head dimension padded to 16, 32, 64 or 128, in
// chunks of 16 bytes. Eight rows of one chunk, which ldmatrix reads at once, must lie in different
// banks, so chunks change places by an exclusive or with bits of the row.
#pragma once
#include "mma.h"

// Launch bounds with the blocks that shall fit a multiprocessor.
#if defined(__CUDACC__)
#define FITTING(threads, blocks) __launch_bounds__(threads, blocks)
#else
#define FITTING(threads, blocks)
#endif

namespace {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Rows of one head inside [batch, time, ..., heads, head_dim].
template <class T> struct Rows {
  T* base;
  size_t stride;  // elements from one row to the next
  unsigned rows, d;
  bool packed;  // rows can be moved by 16 bytes
  DEVICE T* at(unsigned row) const { return base + row * stride; }
};

DEVICE bool aligned16(const void* p) { return (reinterpret_cast<size_t>(p) & 15) == 0; }

// Part 0, 1, 2 (Q, K, V) of head h of item b of qkv [batch, time, 3, heads, head_dim].
template <class T> DEVICE Rows<T> part_of(const Attention& p, T* qkv, unsigned part) {
  unsigned width = p.heads * p.head_dim;
  T* base = qkv + size_t(block_z()) * p.time * 3 * width + (part * p.heads + block_y()) * p.head_dim;
  return {base, 3 * width, p.time, p.head_dim, p.head_dim % 8 == 0 && aligned16(qkv)};
}
// Head h of item b of [batch, time, heads, head_dim].
template <class T> DEVICE Rows<T> head_of(const Attention& p, T* x) {
  unsigned width = p.heads * p.head_dim;
  T* base = x + size_t(block_z()) * p.time * width + block_y() * p.head_dim;
  return {base, width, p.time, p.head_dim, p.head_dim % 8 == 0 && aligned16(x)};
}

// Element where chunk `chunk` of row `row` of a tile begins.
template <int D> DEVICE unsigned chunk_at(unsigned row, unsigned chunk) {
  constexpr unsigned CHUNKS = D / 8, SHIFT = D == 16 ? 2 : D == 32 ? 1 : 0;
  constexpr unsigned MASK = (CHUNKS < 8 ? CHUNKS : 8) - 1;
  return row * D + 8 * (chunk ^ ((row >> SHIFT) & MASK));
}

// Copies rows first .. first + count to a tile, by all threads of the block; zeros past the last
// row and the head dimension. Done after copy_async_wait and a barrier.
template <int D, class T>
DEVICE void load_tile(T* tile, const Rows<const T>& from, unsigned first, unsigned count) {
  constexpr unsigned CHUNKS = D / 8;
  for (unsigned i = thread_x(); i < count * CHUNKS; i += block_threads()) {
    unsigned row = i / CHUNKS, col = 8 * (i % CHUNKS);
    T* to = tile + chunk_at<D>(row, i % CHUNKS);
    bool real = first + row < from.rows && col < from.d;
    const T* at = from.at(real ? first + row : 0) + (real ? col : 0);
    if (from.packed) {
      copy_async(to, at, real);
    } else {
      UNROLL for (unsigned j = 0; j < 8; ++j) to[j] = real && col + j < from.d ? at[j] : rounded<T>(0.0f);
    }
  }
}

// Elements 0 and 1 from `at` in one register, of which `count` are real, the others zero.
template <class T> DEVICE unsigned pair_of(const T* at, unsigned count) {
  return count == 0 ? 0u : unsigned(at[0].bits) | (count > 1 ? unsigned(at[1].bits) << 16 : 0u);
}
template <class T> DEVICE unsigned whole_pair(const T* at) { return *reinterpret_cast<const unsigned*>(at); }

template <class T> DEVICE float element(unsigned pair, int i) {
  return value_of(T{(unsigned short)(i ? pair >> 16 : pair)});
}

DEVICE unsigned lane_of() { return thread_x() % 32; }
DEVICE unsigned warp_of() { return thread_x() / 32; }

// Operand A: 16 rows from `first`, all D columns.
template <int D, class T>
DEVICE void load_strip(unsigned (&a)[D / 16][4], const Rows<const T>& from, unsigned first) {
  unsigned g = lane_of() / 4, t = lane_of() % 4;
  UNROLL for (int h = 0; h < 2; ++h) {
    unsigned row = first + g + 8 * h, d = row < from.rows ? from.d : 0;
    const T* at = from.at(d ? row : 0) + 2 * t;
    if (from.packed) {
      UNROLL for (unsigned c = 0; c < D / 8; ++c)
        a[c / 2][h + c % 2 * 2] = 8 * c < d ? whole_pair(at + 8 * c) : 0u;
    } else {
      UNROLL for (unsigned c = 0; c < D / 8; ++c) {
        unsigned col = 8 * c + 2 * t;
        a[c / 2][h + c % 2 * 2] = pair_of(at + 8 * c, col < d ? d - col : 0u);
      }
    }
  }
}

// Stores [16, D] sums, scaled by row.
template <int D, class T>
DEVICE void store_strip(const Rows<T>& to, unsigned first, const float (&x)[D / 8][4], float low_rows,
                        float high_rows) {
  unsigned g = lane_of() / 4, t = lane_of() % 4;
  UNROLL for (int h = 0; h < 2; ++h) {
    unsigned row = first + g + 8 * h;
    if (row >= to.rows) continue;
    T* at = to.at(row) + 2 * t;
    float scale = h ? high_rows : low_rows;
    if (to.packed) {
      UNROLL for (unsigned c = 0; c < D / 8; ++c)
        if (8 * c < to.d)
          *reinterpret_cast<unsigned*>(at + 8 * c) = pack2<T>(scale * x[c][2 * h], scale * x[c][2 * h + 1]);
    } else {
      UNROLL for (unsigned c = 0; c < D / 8; ++c)
        UNROLL for (unsigned i = 0; i < 2; ++i)
          if (8 * c + 2 * t + i < to.d) at[8 * c + i] = rounded<T>(scale * x[c][2 * h + i]);
    }
  }
}

// Operands B of a product over columns: rows first .. first + 15 of the tile are the 16 columns of
// B (registers 0, 1: the first 8), elements 16k .. 16k + 15 its rows.
template <int D, class T>
DEVICE void rows_as_columns(unsigned (&b)[4], const T* tile, unsigned first, unsigned k) {
  unsigned lane = lane_of();
  load_matrices(b, tile + first * D + chunk_at<D>(lane % 8 + 8 * (lane / 16), 2 * k + lane / 8 % 2));
}
// Operands B of a product over rows: rows first .. first + 15 of the tile are the rows of B,
// elements 16n .. 16n + 15 its columns (registers 0, 1: the first 8).
template <int D, class T>
DEVICE void rows_as_rows(unsigned (&b)[4], const T* tile, unsigned first, unsigned n) {
  unsigned lane = lane_of();
  load_matrices_transposed(b, tile + first * D + chunk_at<D>(lane % 16, 2 * n + lane / 16));
}

// Two products that share A: with columns 0-7 and 8-15 of B.
template <class T>
DEVICE void mma_two(float (&d0)[4], float (&d1)[4], const unsigned (&a)[4], const unsigned (&b)[4]) {
  const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
  mma<T>(d0, a, low);
  mma<T>(d1, a, high);
}

// D = A B + C, of which C stays.
#if defined(__CUDACC__)
#define MMA_ONTO(T, type)                                                                                   \
  template <> DEVICE void mma_onto<T>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,      \
                                      const float (&c)[4]) {                                                \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                     \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                           \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),      \
                   "f"(c[2]), "f"(c[3]));                                                                   \
  }
template <class T>
DEVICE void mma_onto(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]);
MMA_ONTO(bf16, "bf16")
MMA_ONTO(f16, "f16")
#else
template <class T>
DEVICE void mma_onto(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, const float (&c)[4]) {
  const unsigned b[2] = {b0, b1};
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  mma<T>(d, a, b);
}
#endif

// Sums [16, 16] of a product as operand A of the next.
template <class T>
DEVICE void as_operand(unsigned (&a)[4], const float (&d0)[4], const float (&d1)[4]) {
  a[0] = pack2<T>(d0[0], d0[1]);
  a[1] = pack2<T>(d0[2], d0[3]);
  a[2] = pack2<T>(d1[0], d1[1]);
  a[3] = pack2<T>(d1[2], d1[3]);
}

}  // namespace
