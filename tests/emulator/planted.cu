// Kernels with one mistake each, and one without, for the tests of the emulator. Each adds up or moves
// n elements of operand 0 into operand 1.
#include "portable.h"

namespace {

constexpr int THREADS = 128;

// No mistake: every block turns its piece around.
template <class T> DEVICE void clean(const Fill& p, const Operands& io) {
  SHARED float tile[THREADS];
  unsigned first = block_x() * THREADS;
  tile[thread_x()] = value_of(input<T>(io, 0)[first + thread_x()]);
  barrier();
  float x = tile[THREADS - 1 - thread_x()];
  x += lanes_sum(p.value);
  output<T>(io, 1)[first + thread_x()] = rounded<T>(x);
}

template <class T> DEVICE void no_barrier(const Fill& p, const Operands& io) {
  SHARED float tile[THREADS];
  unsigned first = block_x() * THREADS;
  tile[thread_x()] = value_of(input<T>(io, 0)[first + thread_x()]);
  output<T>(io, 1)[first + thread_x()] = rounded<T>(tile[THREADS - 1 - thread_x()] + p.value);
}

// The second pass writes what the first may still read.
template <class T> DEVICE void write_after_read(const Fill& p, const Operands& io) {
  SHARED float tile[THREADS];
  float sum = 0.0f;
  for (int pass = 0; pass < 2; ++pass) {
    tile[thread_x()] = value_of(input<T>(io, 0)[thread_x()]) + float(pass);
    barrier();
    sum += tile[(thread_x() + WAVE) % THREADS];
  }
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(sum + p.value);
}

// Lanes of one wave, with nothing between them.
template <class T> DEVICE void in_wave(const Fill& p, const Operands& io) {
  float* tile = reinterpret_cast<float*>(dynamic_shared());
  tile[thread_x()] = p.value;
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(tile[thread_x() ^ 1]);
}

// As above, right: a wave barrier orders it.
template <class T> DEVICE void in_wave_right(const Fill& p, const Operands& io) {
  float* tile = reinterpret_cast<float*>(dynamic_shared());
  tile[thread_x()] = p.value;
  wave_barrier();
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(tile[thread_x() ^ 1]);
}

// All blocks write element 0.
template <class T> DEVICE void across_blocks(const Fill& p, const Operands& io) {
  if (thread_x() == 0) output<T>(io, 1)[0] = rounded<T>(p.value);
}

// Block 1 reads what block 0 writes.
template <class T> DEVICE void reads_other_block(const Fill& p, const Operands& io) {
  T* x = output<T>(io, 1);
  if (thread_x() == 0 && block_x() == 0) x[0] = rounded<T>(p.value);
  if (thread_x() == 0 && block_x() == 1) x[1] = x[0];
}

template <class T> DEVICE void divergent_barrier(const Fill& p, const Operands& io) {
  if (thread_x() < 64) barrier();
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(p.value);
}

template <class T> DEVICE void two_barriers(const Fill& p, const Operands& io) {
  if (thread_x() < 64) {
    barrier();
  } else {
    barrier();
  }
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(p.value);
}

template <class T> DEVICE void divergent_shuffle(const Fill& p, const Operands& io) {
  float x = p.value;
  if (thread_x() % WAVE < 5) x = shuffle_xor(x, 1);
  barrier();
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(x);
}

// Lane 5 ends, lane 4 asks for its value.
template <class T> DEVICE void absent_lane(const Fill& p, const Operands& io) {
  if (thread_x() == 5) return;
  float x = shuffle_xor(p.value, 1);
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(x);
}

template <class T> DEVICE void past_shared(const Fill& p, const Operands& io) {
  SHARED float tile[THREADS];
  tile[thread_x()] = p.value;
  barrier();
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(tile[thread_x() + 1]);
}

template <class T> DEVICE void past_dynamic(const Fill& p, const Operands& io) {
  float* tile = reinterpret_cast<float*>(dynamic_shared());
  tile[thread_x() + 1] = p.value;
  barrier();
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(tile[thread_x()]);
}

template <class T> DEVICE void past_global(const Fill& p, const Operands& io) {
  unsigned i = block_x() * THREADS + thread_x();
  output<T>(io, 1)[i] = rounded<T>(value_of(input<T>(io, 0)[i + 1]) + p.value);
}

// Adds to shared memory that nobody has set.
template <class T> DEVICE void unset_shared(const Fill& p, const Operands& io) {
  SHARED float tile[THREADS];
  float* more = reinterpret_cast<float*>(dynamic_shared());
  if (thread_x() == 0) tile[thread_x()] += p.value;
  else more[thread_x()] += p.value;
  output<T>(io, 1)[block_x() * THREADS + thread_x()] = rounded<T>(thread_x() ? more[thread_x()] : tile[0]);
}

}  // namespace

#define PLANTED(name) ENTRY(name, f32, float, Fill, THREADS, name)
PLANTED(clean)
PLANTED(no_barrier)
PLANTED(write_after_read)
PLANTED(in_wave)
PLANTED(in_wave_right)
PLANTED(across_blocks)
PLANTED(reads_other_block)
PLANTED(divergent_barrier)
PLANTED(two_barriers)
PLANTED(divergent_shuffle)
PLANTED(absent_lane)
PLANTED(past_shared)
PLANTED(past_dynamic)
PLANTED(past_global)
PLANTED(unset_shared)
