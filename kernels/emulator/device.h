// What portable.h needs, on the host: every GPU thread is a fiber, one block runs at a time, and
// barriers and shuffles are points where fibers wait for each other (emulator.cpp).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef ENGINE_WAVE
#define ENGINE_WAVE 32
#endif
constexpr int WAVE = ENGINE_WAVE;
constexpr int CROWD = 1;
constexpr bool COMPACT = true;

#define DEVICE inline
#define GLOBAL extern "C"
#define BOUNDS(threads)
#define RESTRICT __restrict__
#define UNROLL
#define NO_UNROLL
#define SHARED static

namespace emulator {
struct Thread {
  unsigned thread, block[3], grid[3], block_threads;
  char* dynamic_shared;
  char* stack_end;
  // Between which barriers the thread is, as race.cpp numbers it.
  unsigned stamp;
};
extern Thread* current;
// `file` and `line` are where the kernel calls; lanes that meet from different places diverge.
void barrier(const char* file, int line);
// Waits for every live lane of the wave.
void wave_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE());
// Puts `bytes` of each lane where all lanes of the wave can read them, until the next exchange.
// Lane i's begin at result + i * bytes.
const char* exchange(const void* mine, size_t bytes, const char* file = __builtin_FILE(),
                     int line = __builtin_LINE());
// Refuses if `lane` gave nothing to the last exchange: there is no such thread, or it had ended.
void expect_lane(unsigned lane);
using Entry = void (*)(const void* params, const void* operands);
struct Registration {
  Registration(const char* name, Entry entry, unsigned params);
};
}  // namespace emulator

inline unsigned thread_x() { return emulator::current->thread; }
inline unsigned block_threads() { return emulator::current->block_threads; }
inline unsigned block_x() { return emulator::current->block[0]; }
inline unsigned block_y() { return emulator::current->block[1]; }
inline unsigned block_z() { return emulator::current->block[2]; }
inline unsigned grid_x() { return emulator::current->grid[0]; }
inline unsigned grid_y() { return emulator::current->grid[1]; }
inline void barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::barrier(file, line);
}
inline void wave_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::wave_barrier(file, line);
}
template <class V>
V shuffle(V value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  static_assert(sizeof(V) == 4, "shuffles move 4 bytes");
  const char* all = emulator::exchange(&value, 4, file, line);
  emulator::expect_lane(unsigned(lane) & (WAVE - 1));
  V found;
  std::memcpy(&found, all + 4 * (lane & (WAVE - 1)), 4);
  return found;
}
template <class V>
V shuffle_xor(V value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return shuffle(value, int((thread_x() & (WAVE - 1)) ^ unsigned(mask)), file, line);
}
inline void fetch(const void*) {}
inline char* dynamic_shared() { return emulator::current->dynamic_shared; }
inline float exp_of(float x) { return std::exp(x); }
inline float exp2_of(float x) { return std::exp2(x); }
inline float reciprocal_of(float x) { return 1.0f / x; }
inline float log_of(float x) { return std::log(x); }
inline float sqrt_of(float x) { return std::sqrt(x); }
inline float rsqrt_of(float x) { return 1.0f / std::sqrt(x); }
inline float fma_of(float a, float b, float c) { return std::fma(a, b, c); }
inline float abs_of(float x) { return std::fabs(x); }
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline float min_of(float a, float b) { return std::fmin(a, b); }
inline unsigned opaque(unsigned x) { return x; }
inline unsigned opaque_lane(unsigned x) { return x; }
inline void in_order() {}
template <class V> const V& read_again(const V& argument, size_t) { return argument; }
inline void* global(void* p) { return p; }
template <int N> void load_uniform(unsigned (&to)[N], const void* from) { std::memcpy(to, from, 4 * N); }
inline double sqrt_of(double x) { return std::sqrt(x); }
inline unsigned multiply_high(unsigned a, unsigned b) { return unsigned((std::uint64_t(a) * b) >> 32); }
inline unsigned bits_of(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline float float_of(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned short bf16_bits(float x) {
  unsigned bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline unsigned short f16_bits(float x) {
  unsigned bits = bits_of(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);
  if (rest >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);
  if (rest < 0x38800000u) {  // subnormal: the sum with 0.5 rounds at the right bit
    float shifted = float_of(rest) + 0.5f;
    return (unsigned short)(sign | (bits_of(shifted) - 0x3f000000u));
  }
  unsigned rounded = rest + 0xfffu + ((rest >> 13) & 1u);
  return (unsigned short)(sign | ((rounded - 0x38000000u) >> 13));
}

inline float f16_value(unsigned short x) {
  unsigned sign = unsigned(x & 0x8000u) << 16, rest = x & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest < 0x400u) return float_of(sign) + (sign ? -1.0f : 1.0f) * float(rest) * 5.9604644775390625e-08f;
  return float_of(sign | ((rest << 13) + 0x38000000u));
}

#define EMULATED(name, Params)                                      \
  static emulator::Registration registered_##name(                  \
      #name,                                                        \
      [](const void* p, const void* o) {                            \
        name(*static_cast<const Params*>(p), *static_cast<const Operands*>(o)); \
      },                                                            \
      sizeof(Params));
