// The only file that asks which compiler it is: nvcc, a HIP compiler without HIP's headers, or the
// host compiler of the emulator. Everything else in kernels/*.cu is written in what stands here.
//
// A kernel is an entry `name_type` with two arguments: the op's parameter struct (params.h) and its
// operands. It is a function template over the type T of the op's first float operand, in whose
// type activations are stored; sums are always in f32.
#pragma once
#include "params.h"

#if defined(ENGINE_EMULATOR)
#include "emulator/device.h"
#elif defined(__CUDACC__)
#define DEVICE __device__ __forceinline__
#define GLOBAL extern "C" __global__
// Left alone, ptxas spills to fit more blocks a unit. A file defines ROOMY ahead of this one where its
// kernels would lose more by that than they gain.
#ifdef ROOMY
#define BOUNDS(threads) __launch_bounds__(threads, 1)
#else
#define BOUNDS(threads) __launch_bounds__(threads)
#endif
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define SHARED __shared__
// Parameters stay where the launch put them, also where they are indexed at run time.
#define ARGUMENT const __grid_constant__
constexpr int WAVE = 32;
// Blocks of 256 threads that a kernel with much in registers should leave room for on a unit. On AMD
// shared memory is the tighter bound, and the compiler spills where it is pressed.
constexpr int CROWD = 3;
// Whether long code is not written out once for each of a thread's results: clang has a bound for
// what it unrolls, beyond which arrays are no longer kept in registers.
constexpr bool COMPACT = false;
DEVICE unsigned thread_x() { return threadIdx.x; }
DEVICE unsigned block_threads() { return blockDim.x; }
DEVICE unsigned block_x() { return blockIdx.x; }
DEVICE unsigned block_y() { return blockIdx.y; }
DEVICE unsigned block_z() { return blockIdx.z; }
DEVICE unsigned grid_x() { return gridDim.x; }
DEVICE unsigned grid_y() { return gridDim.y; }
DEVICE void barrier() { __syncthreads(); }
DEVICE void wave_barrier() { __syncwarp(); }
// Memory that is read soon may be fetched into the card's cache.
DEVICE void fetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
template <class V> DEVICE V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) == 4, "shuffles move 4 bytes");
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V> DEVICE V shuffle(V value, int lane) {
  static_assert(sizeof(V) == 4, "shuffles move 4 bytes");
  return __shfl_sync(0xffffffffu, value, lane);
}
// Shared memory whose size is given at launch; one array a kernel, 16-byte aligned.
DEVICE char* dynamic_shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
DEVICE float exp_of(float x) { return __expf(x); }          // error about 2 ulp + |x| 2^-24
DEVICE float exp2_of(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal_of(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float log_of(float x) { return logf(x); }
DEVICE float sqrt_of(float x) { return sqrtf(x); }
DEVICE float rsqrt_of(float x) { return 1.0f / sqrtf(x); }
DEVICE float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float abs_of(float x) { return fabsf(x); }
DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
DEVICE float min_of(float a, float b) { return fminf(a, b); }
DEVICE double sqrt_of(double x) { return sqrt(x); }
// x, the same in all lanes of a wave, but the compiler does not know its value: what is derived from
// it is not kept over the loop it is in. `opaque_lane` is for numbers that differ among lanes.
DEVICE unsigned opaque(unsigned x) { asm volatile("" : "+r"(x)); return x; }
DEVICE unsigned opaque_lane(unsigned x) { asm volatile("" : "+r"(x)); return x; }
// An argument of the kernel, `at` bytes from the first, once more from where the launch put it.
template <class V> DEVICE const V& read_again(const V& argument, size_t) { return argument; }
// An address of global memory, and known to be one.
DEVICE void* global(void* p) { return p; }
DEVICE unsigned multiply_high(unsigned a, unsigned b) { return __umulhi(a, b); }
DEVICE unsigned bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned short bf16_bits(float x) {
  unsigned short y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
DEVICE unsigned short f16_bits(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
DEVICE float f16_value(unsigned short x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
#elif defined(__HIP__) || defined(__AMDGCN__)
#define DEVICE __attribute__((device, always_inline)) inline
#define GLOBAL extern "C" __attribute__((global))
#define BOUNDS(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#define SHARED __attribute__((shared))
constexpr int WAVE = __AMDGCN_WAVEFRONT_SIZE;
constexpr int CROWD = 1;
constexpr bool COMPACT = true;
DEVICE unsigned thread_x() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE unsigned block_threads() { return __builtin_amdgcn_workgroup_size_x(); }
DEVICE unsigned block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE unsigned block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE unsigned block_z() { return __builtin_amdgcn_workgroup_id_z(); }
DEVICE unsigned grid_x() { return __builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x(); }
DEVICE unsigned grid_y() { return __builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y(); }
DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
DEVICE void wave_barrier() { __builtin_amdgcn_wave_barrier(); }
DEVICE void fetch(const void*) {}
template <class V> DEVICE V shuffle(V value, int lane) {
  static_assert(sizeof(V) == 4, "shuffles move 4 bytes");
  int moved = __builtin_amdgcn_ds_bpermute(lane << 2, __builtin_bit_cast(int, value));
  return __builtin_bit_cast(V, moved);
}
template <class V> DEVICE V shuffle_xor(V value, int mask) {
  return shuffle(value, int((thread_x() & (WAVE - 1)) ^ unsigned(mask)));
}
extern "C" {
extern __attribute__((shared, aligned(128))) char engine_dynamic_shared[];
}
DEVICE char* dynamic_shared() { return (char*)engine_dynamic_shared; }
DEVICE float exp2_of(float x) { return __builtin_amdgcn_exp2f(x); }
DEVICE float exp_of(float x) { return __builtin_amdgcn_exp2f(x * 1.44269504f); }
DEVICE float reciprocal_of(float x) { return __builtin_amdgcn_rcpf(x); }
DEVICE float log_of(float x) { return __builtin_logf(x); }
DEVICE float sqrt_of(float x) { return __builtin_sqrtf(x); }
DEVICE float rsqrt_of(float x) { return 1.0f / __builtin_sqrtf(x); }
DEVICE float fma_of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float abs_of(float x) { return __builtin_fabsf(x); }
DEVICE float max_of(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE float min_of(float a, float b) { return __builtin_fminf(a, b); }
DEVICE double sqrt_of(double x) { return __builtin_sqrt(x); }
DEVICE unsigned opaque(unsigned x) {
  x = __builtin_amdgcn_readfirstlane(x);
  asm volatile("" : "+s"(x));
  return x;
}
DEVICE unsigned opaque_lane(unsigned x) { asm volatile("" : "+v"(x)); return x; }
// What stands before it is issued before what follows.
DEVICE void in_order() { __builtin_amdgcn_sched_barrier(0); }
template <class V> DEVICE const V& read_again(const V&, size_t at) {
  auto launch = reinterpret_cast<size_t>(__builtin_amdgcn_kernarg_segment_ptr());
  asm volatile("" : "+s"(launch));
  return *(const V*)(const __attribute__((address_space(4))) V*)(launch + at);
}
DEVICE void* global(void* p) {
  return (void*)(__attribute__((address_space(1))) void*)reinterpret_cast<size_t>(p);
}
// N words from an address that all lanes share and nothing writes while the kernel runs: one read for
// the wave, through the scalar cache into scalar registers.
template <int N> DEVICE void load_uniform(unsigned (&to)[N], const void* from) {
  typedef unsigned Line __attribute__((ext_vector_type(N), aligned(4)));
  Line line = *(const __attribute__((address_space(4))) Line*)reinterpret_cast<size_t>(from);
  UNROLL for (int i = 0; i < N; ++i) to[i] = line[i];
}
DEVICE unsigned multiply_high(unsigned a, unsigned b) {
  return unsigned((static_cast<unsigned long long>(a) * b) >> 32);
}
DEVICE unsigned bits_of(float x) { return __builtin_bit_cast(unsigned, x); }
DEVICE float float_of(unsigned bits) { return __builtin_bit_cast(float, bits); }
DEVICE unsigned short bf16_bits(float x) {
  unsigned bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
DEVICE unsigned short f16_bits(float x) { return __builtin_bit_cast(unsigned short, (_Float16)x); }
DEVICE float f16_value(unsigned short x) { return (float)__builtin_bit_cast(_Float16, x); }
#else
#error "kernels are compiled by nvcc, by a HIP compiler, or for the emulator"
#endif

#if defined(ENGINE_EMULATOR)
#define UNROLL_BY(n)
#else
#define UNROLL_BY(n) ENGINE_PRAGMA(unroll n)
#define ENGINE_PRAGMA(words) _Pragma(#words)
#endif

// --- Element types -------------------------------------------------------------------------------

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

DEVICE float value_of(float x) { return x; }
DEVICE float value_of(bf16 x) { return float_of(unsigned(x.bits) << 16); }
DEVICE float value_of(f16 x) { return f16_value(x.bits); }

template <class T> DEVICE T rounded(float x);
template <> DEVICE float rounded<float>(float x) { return x; }
template <> DEVICE bf16 rounded<bf16>(float x) { return bf16{bf16_bits(x)}; }
template <> DEVICE f16 rounded<f16>(float x) { return f16{f16_bits(x)}; }

// N elements that are moved at once. N * sizeof(T) is at most 16.
template <class T, int N> struct alignas(N * sizeof(T)) Pack { T at[N]; };

// Elements that fit 16 bytes.
template <class T> constexpr int PACK = 16 / int(sizeof(T));

// `bytes` is a power of two.
DEVICE bool aligned(const void* p, unsigned bytes = 16) {
  return (reinterpret_cast<size_t>(p) & (bytes - 1)) == 0;
}

// Moves of N elements; where they take more than 16 bytes, in pieces of 16.
template <class T, int N> constexpr int PIECE_OF = N * int(sizeof(T)) > 16 ? PACK<T> : N;
template <class T, int N> DEVICE void load_pack(float (&to)[N], const T* from) {
  constexpr int n = PIECE_OF<T, N>;
  Pack<T, n> pack[N / n];
  UNROLL for (int i = 0; i < N / n; ++i) pack[i] = reinterpret_cast<const Pack<T, n>*>(from)[i];
  UNROLL for (int i = 0; i < N; ++i) to[i] = value_of(pack[i / n].at[i % n]);
}

template <class T, int N> DEVICE void store_pack(T* to, const float (&from)[N]) {
  constexpr int n = PIECE_OF<T, N>;
  Pack<T, n> pack[N / n];
  UNROLL for (int i = 0; i < N; ++i) pack[i / n].at[i % n] = rounded<T>(from[i]);
  UNROLL for (int i = 0; i < N / n; ++i) reinterpret_cast<Pack<T, n>*>(to)[i] = pack[i];
}

struct alignas(16) Words { unsigned at[4]; };

// The elements of 16 bytes as they were read.
template <class T> DEVICE void unpack(float (&to)[PACK<T>], const Words& words) {
  UNROLL for (int i = 0; i < 4; ++i) {
    unsigned word = words.at[i];
    if constexpr (sizeof(T) == 4) {
      to[i] = float_of(word);
    } else {
      to[2 * i] = value_of(T{static_cast<unsigned short>(word)});
      to[2 * i + 1] = value_of(T{static_cast<unsigned short>(word >> 16)});
    }
  }
}

// --- Operands ------------------------------------------------------------------------------------

// Argument 1 of every kernel: where the operands lie, inputs first, then outputs.
struct Operands {
  void* at[MAX_AT];
  void* workspace;       // bytes the op's plan asked for; not initialised
  unsigned kinds;        // KIND_* of operand i in bits 2i and 2i + 1
  unsigned count;        // operands
};
static_assert(sizeof(Operands) == 8 * MAX_AT + 16, "as in src/backend/gpu");

enum : unsigned { KIND_F32 = 0, KIND_BF16 = 1, KIND_F16 = 2, KIND_I32 = 3 };

// The arguments of a kernel once more. Where COMPACT, what was derived from them before is not kept
// in registers for what follows: this is for long code.
template <class Params> struct Arguments {
  const Params& p;
  const Operands& io;
};
template <class Params> DEVICE Arguments<Params> again(const Params& p, const Operands& io) {
  return {read_again(p, 0), read_again(io, (sizeof(Params) + 7) / 8 * 8)};
}

template <class T> DEVICE const T* input(const Operands& io, int i) {
  return static_cast<const T*>(global(io.at[i]));
}
template <class T> DEVICE T* output(const Operands& io, int i) {
  return static_cast<T*>(global(io.at[i]));
}
DEVICE unsigned kind_of(const Operands& io, int i) { return (io.kinds >> (2 * i)) & 3u; }

// An operand whose type is known at run time only: vectors (bias, gamma), and sums.
struct Any {
  void* base;
  unsigned kind;
  DEVICE float operator[](size_t i) const {
    switch (kind) {
      case KIND_BF16: return value_of(static_cast<const bf16*>(base)[i]);
      case KIND_F16: return value_of(static_cast<const f16*>(base)[i]);
      default: return static_cast<const float*>(base)[i];
    }
  }
  DEVICE void set(size_t i, float x) const {
    switch (kind) {
      case KIND_BF16: static_cast<bf16*>(base)[i] = rounded<bf16>(x); break;
      case KIND_F16: static_cast<f16*>(base)[i] = rounded<f16>(x); break;
      default: static_cast<float*>(base)[i] = x;
    }
  }
  DEVICE void put(size_t i, float x, bool add) const { set(i, add ? (*this)[i] + x : x); }
  // Elements i .. i + N - 1, where `base` is 16-byte aligned and i a multiple of N.
  template <int N> DEVICE void load(float (&to)[N], size_t i) const {
    switch (kind) {
      case KIND_BF16: load_pack(to, static_cast<const bf16*>(base) + i); break;
      case KIND_F16: load_pack(to, static_cast<const f16*>(base) + i); break;
      default: load_pack(to, static_cast<const float*>(base) + i); break;
    }
  }
};
DEVICE Any any(const Operands& io, int i) { return Any{global(io.at[i]), kind_of(io, i)}; }

// Entries of a kernel for the three storage types. `body` is a function template over T.
#define ENTRY(name, type, T, Params, threads, body)                                                \
  GLOBAL void BOUNDS(threads) name##_##type(ARGUMENT Params p, ARGUMENT Operands io) {  \
    after_previous();                                                                              \
    body<T>(p, io);                                                                                \
  }   \
  EMULATED(name##_##type, Params)
#define ENTRIES(name, Params, threads, body)                                                       \
  ENTRY(name, f32, float, Params, threads, body)                                                   \
  ENTRY(name, bf16, bf16, Params, threads, body)                                                   \
  ENTRY(name, f16, f16, Params, threads, body)
#ifndef EMULATED
#define EMULATED(name, Params)
#endif
#ifndef ARGUMENT
#define ARGUMENT const
#endif

// The first thing every kernel does. From sm_90 on a kernel may be launched while the one before it
// still runs (programmatic dependent launch): it waits here until its predecessor is done and its
// results can be seen, and lets its own successor come only then. Let through before it waits, kernels
// pile up on the card: a step of 250 small ones took 1.01 ms instead of 0.89 on an H200.
DEVICE void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// --- Reductions ----------------------------------------------------------------------------------

// Sum over aligned groups of LANES neighbouring lanes; every lane gets it. The order of addition is
// a tree over lanes, the same every time.
template <int LANES = WAVE> DEVICE float lanes_sum(float x) {
  UNROLL for (int step = LANES / 2; step > 0; step /= 2) x += shuffle_xor(x, step);
  return x;
}
template <int LANES = WAVE> DEVICE float lanes_max(float x) {
  UNROLL for (int step = LANES / 2; step > 0; step /= 2) x = max_of(x, shuffle_xor(x, step));
  return x;
}

// Sum over a block of THREADS; every thread gets it. All threads must call. `memory` holds
// THREADS / WAVE numbers and may be used again after the call.
template <int THREADS> DEVICE float block_sum(float x, float* memory) {
  x = lanes_sum(x);
  if constexpr (THREADS > WAVE) {
    if (thread_x() % WAVE == 0) memory[thread_x() / WAVE] = x;
    barrier();
    float sum = 0.0f;
    for (int i = 0; i < THREADS / WAVE; ++i) sum += memory[i];
    barrier();
    return sum;
  }
  return x;
}
template <int THREADS> DEVICE float block_max(float x, float* memory) {
  x = lanes_max(x);
  if constexpr (THREADS > WAVE) {
    if (thread_x() % WAVE == 0) memory[thread_x() / WAVE] = x;
    barrier();
    float top = memory[0];
    for (int i = 1; i < THREADS / WAVE; ++i) top = max_of(top, memory[i]);
    barrier();
    return top;
  }
  return x;
}

// --- Random numbers ------------------------------------------------------------------------------

// Philox 4x32-10 (Salmon et al. 2011), as src/ops/philox.rs: element i of stream s takes word i % 4
// of the block with counter (i / 4, s, step low, step high) and key (seed low, seed high).
DEVICE Words philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned k0, unsigned k1) {
  UNROLL for (int round = 0; round < 10; ++round) {
    unsigned h0 = multiply_high(c0, 0xD2511F53u), l0 = c0 * 0xD2511F53u;
    unsigned h1 = multiply_high(c2, 0xCD9E8D57u), l1 = c2 * 0xCD9E8D57u;
    c0 = h1 ^ c1 ^ k0;
    c2 = h0 ^ c3 ^ k1;
    c1 = l1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

// Dropout factors: 0 where dropped, 1 / (1 - p) elsewhere.
struct Mask {
  unsigned key[2], step[2], stream, limit;
  float keep;
  DEVICE Mask() {}
  DEVICE Mask(const int* state, unsigned stream, unsigned limit, float keep)
      : stream(stream), limit(limit), keep(keep) {
    key[0] = unsigned(state[0]), key[1] = unsigned(state[1]);
    step[0] = unsigned(state[2]), step[1] = unsigned(state[3]);
  }
  DEVICE Mask(const int* state, unsigned stream, float probability) : Mask(state, stream, 0u, 0.0f) {
    double p = probability < 0.0f ? 0.0 : probability > 1.0f ? 1.0 : double(probability);
    double scaled = p * 4294967296.0;
    limit = scaled > 4294967295.0 ? 0xffffffffu : unsigned(scaled);
    keep = float(1.0 / (1.0 - double(probability)));
  }
  // Words of elements 4 * four .. 4 * four + 3.
  DEVICE Words words(unsigned four) const {
    return philox(four, stream, step[0], step[1], key[0], key[1]);
  }
  DEVICE float factor(unsigned word) const { return word < limit ? 0.0f : keep; }
  DEVICE float at(unsigned i) const {
    Words w = words(i / 4);
    unsigned word = i % 4 == 0 ? w.at[0] : i % 4 == 1 ? w.at[1] : i % 4 == 2 ? w.at[2] : w.at[3];
    return factor(word);
  }
};

// --- Mathematics ---------------------------------------------------------------------------------

// Standard normal distribution function and density, for GELU: erf by formula 7.1.26 of Abramowitz
// and Stegun, whose error, 1.5e-7 of 1, is what x * cdf(x) can show in f32. One exponential serves
// both.
struct Normal { float cdf, pdf; };
DEVICE Normal normal(float x) {
  float z = abs_of(x) * 0.70710678f;
  float t = reciprocal_of(fma_of(0.3275911f, z, 1.0f));
  float e = exp_of(-z * z);
  float poly = 1.061405429f;
  poly = fma_of(poly, t, -1.453152027f);
  poly = fma_of(poly, t, 1.421413741f);
  poly = fma_of(poly, t, -0.284496736f);
  poly = fma_of(poly, t, 0.254829592f);
  float tail = 0.5f * t * poly * e;
  return Normal{x < 0.0f ? tail : 1.0f - tail, 0.39894228f * e};
}
DEVICE float gelu(float x) { return x * normal(x).cdf; }
DEVICE float gelu_slope(float x) {
  Normal n = normal(x);
  return fma_of(x, n.pdf, n.cdf);
}
