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

#define DEVICE inline
#define GLOBAL extern "C"
#define BOUNDS(threads)
#define RESTRICT __restrict__
#define UNROLL
#define ROLLED
#define NO_UNROLL
#define SHARED static

namespace emulator {
struct Thread {
  unsigned thread, block[3], grid[3], block_threads;
  char* dynamic_shared;
};
extern Thread* current;
void barrier();
// Waits for every live lane of the wave.
void wave_barrier();
// Puts `bytes` of each lane where all lanes of the wave can read them, until the next exchange.
// Lane i's begin at result + i * bytes.
const char* exchange(const void* mine, size_t bytes);
using Entry = void (*)(const void* params, const void* operands);
struct Registration {
  Registration(const char* name, Entry entry);
};
}  // namespace emulator

inline unsigned thread_x() { return emulator::current->thread; }
inline unsigned block_threads() { return emulator::current->block_threads; }
inline unsigned block_x() { return emulator::current->block[0]; }
inline unsigned block_y() { return emulator::current->block[1]; }
inline unsigned block_z() { return emulator::current->block[2]; }
inline unsigned grid_x() { return emulator::current->grid[0]; }
inline unsigned grid_y() { return emulator::current->grid[1]; }
inline void barrier() { emulator::barrier(); }
inline void wave_barrier() { emulator::wave_barrier(); }
template <class V> V shuffle(V value, int lane) {
  static_assert(sizeof(V) == 4, "shuffles move 4 bytes");
  V found;
  std::memcpy(&found, emulator::exchange(&value, 4) + 4 * (lane & (WAVE - 1)), 4);
  return found;
}
template <class V> V shuffle_xor(V value, int mask) {
  return shuffle(value, int((thread_x() & (WAVE - 1)) ^ unsigned(mask)));
}
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
inline double sqrt_of(double x) { return std::sqrt(x); }
inline unsigned multiply_high(unsigned a, unsigned b) { return unsigned((std::uint64_t(a) * b) >> 32); }
inline unsigned bits_of(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
inline float float_of(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline unsigned short bf16_bits(float x) {
  unsigned bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
unsigned short f16_bits(float x);
float f16_value(unsigned short x);

#define EMULATED(name, Params)                                                             \
  static emulator::Registration registered_##name(#name, [](const void* p, const void* o) { \
    name(*static_cast<const Params*>(p), *static_cast<const Operands*>(o));                \
  });
