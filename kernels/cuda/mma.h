// The matrix instructions and asynchronous copies of sm_80, as functions. The emulator has them too,
// so that the kernels built on them run without a card.
#pragma once
#include "../portable.h"

// Two neighbouring elements in one register, the first in the low half.
template <class T> DEVICE unsigned pack2(float low, float high);
#if defined(__CUDACC__)
template <> DEVICE unsigned pack2<bf16>(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <> DEVICE unsigned pack2<f16>(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// x rounded to the 10 bits of mantissa that TF32 has.
DEVICE unsigned tf32_of(float x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// D += A B for A [16, 16] row by row, B [16, 8] column by column, both T, D [16, 8] in f32. With
// g = lane / 4 and t = lane % 4, a lane holds of A: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..),
// (g + 8, 2t + 8..), of B: (2t.., g), (2t + 8.., g), of D: (g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1).
template <class T> DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <> DEVICE void mma<bf16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> DEVICE void mma<f16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// In TF32, one element a register, as `tf32_of` gives it: A [16, 8], B [8, 8]. A lane holds of A: (g, t), (g + 8, t), (g, t + 4),
// (g + 8, t + 4), of B: (t, g), (t + 4, g); D as above.
template <> DEVICE void mma<float>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices of 2-byte elements from shared memory: lane i gives the address of row i % 8
// of matrix i / 8 (16-byte aligned); register j gets of matrix j the elements (g, 2t), (g, 2t + 1),
// or, transposed, (2t, g), (2t + 1, g).
DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}
DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}

// 16 bytes from global to shared memory without passing registers; zeros where not `valid`.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` groups are under way.
template <int PENDING> DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}
#else
template <> DEVICE unsigned pack2<bf16>(float low, float high) {
  return unsigned(bf16_bits(low)) | unsigned(bf16_bits(high)) << 16;
}
template <> DEVICE unsigned pack2<f16>(float low, float high) {
  return unsigned(f16_bits(low)) | unsigned(f16_bits(high)) << 16;
}
DEVICE unsigned tf32_of(float x) { return (bits_of(x) + 0x1000u) & 0xffffe000u; }

template <class T> DEVICE float half_of(unsigned pair, int i) {
  unsigned short bits = (unsigned short)(i ? pair >> 16 : pair);
  return value_of(T{bits});
}
template <class T> DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned* all = reinterpret_cast<const unsigned*>(emulator::exchange(mine, sizeof mine));
  int lane = int(thread_x() % 32), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      int from_a = (row % 8) * 4 + (k % 8) / 2, from_b = col * 4 + (k % 8) / 2;
      float x = half_of<T>(all[6 * from_a + row / 8 + 2 * (k / 8)], k % 2);
      float y = half_of<T>(all[6 * from_b + 4 + k / 8], k % 2);
      d[i] += x * y;
    }
  }
}
template <> DEVICE void mma<float>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned* all = reinterpret_cast<const unsigned*>(emulator::exchange(mine, sizeof mine));
  int lane = int(thread_x() % 32), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k) {
      float x = float_of(all[6 * ((row % 8) * 4 + k % 4) + row / 8 + 2 * (k / 4)]);
      float y = float_of(all[6 * (col * 4 + k % 4) + 4 + k / 4]);
      d[i] += x * y;
    }
  }
}
DEVICE void load_matrices_as(unsigned (&r)[4], const void* row, bool transposed) {
  const void* const* rows = reinterpret_cast<const void* const*>(emulator::exchange(&row, sizeof row));
  int lane = int(thread_x() % 32), g = lane / 4, t = lane % 4;
  for (int j = 0; j < 4; ++j) {
    unsigned short low, high;
    if (transposed) {
      low = static_cast<const unsigned short*>(rows[8 * j + 2 * t])[g];
      high = static_cast<const unsigned short*>(rows[8 * j + 2 * t + 1])[g];
    } else {
      low = static_cast<const unsigned short*>(rows[8 * j + g])[2 * t];
      high = static_cast<const unsigned short*>(rows[8 * j + g])[2 * t + 1];
    }
    r[j] = unsigned(low) | unsigned(high) << 16;
  }
  // No lane may write the rows before all have read them.
  emulator::wave_barrier();
}
DEVICE void load_matrices(unsigned (&r)[4], const void* row) { load_matrices_as(r, row, false); }
DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* row) { load_matrices_as(r, row, true); }
DEVICE void copy_async(void* shared, const void* global, bool valid) {
  if (valid) std::memcpy(shared, global, 16);
  else std::memset(shared, 0, 16);
}
DEVICE void copy_async_commit() {}
template <int PENDING> DEVICE void copy_async_wait() {}
#endif

// A register of ones, as `mma` takes it.
template <class T> DEVICE unsigned ones_of() {
  if constexpr (sizeof(T) == 4) return bits_of(1.0f);
  else return pack2<T>(1.0f, 1.0f);
}
