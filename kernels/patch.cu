// From windows to tokens and back: tokens[b, t, c * patch + k] = window[b, c, t * patch + k].
//
// Bound by memory, if both sides are walked along their rows. Long patches are whole runs of both:
// elements are moved one by one in the output's order. Short ones go through shared memory, a tile
// of 64 channels and about 64 samples at a time: read along time, written along tokens. Windows and
// tokens may differ in type.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned CHANNELS = 64, SAMPLES = 64;  // most of a tile
constexpr unsigned SHORT = 32;                   // patches below this go through shared memory
// Rows of a tile are apart by the patch modulo 32, which makes the writing side free of conflicts:
// neighbouring elements of a token then lie in neighbouring banks.
constexpr unsigned STRIDE = SAMPLES + 32;
constexpr unsigned EACH = 8;  // elements of a thread in the direct moves

template <class T, class To> struct Mover {
  const T* from;
  To* to;
  unsigned batch, channels, time, patch, tokens, width;
  bool add;
  DEVICE Mover(const Patchify& p, const T* from, To* to)
      : from(from), to(to), batch(p.batch), channels(p.channels), time(p.time), patch(p.patch),
        tokens(p.time / p.patch), width(p.channels * p.patch), add(p.accumulate != 0) {}

  // A block's tile: first channel and token, how many of each, and the item of the batch.
  struct Tile { unsigned item, channel, channels, token, tokens; };
  DEVICE Tile tile(unsigned task, unsigned per) const {
    unsigned along = (tokens + per - 1) / per, across = (channels + CHANNELS - 1) / CHANNELS;
    Tile t;
    t.token = task % along * per, task /= along;
    t.channel = task % across * CHANNELS, t.item = task / across;
    t.channels = channels - t.channel < CHANNELS ? channels - t.channel : CHANNELS;
    t.tokens = tokens - t.token < per ? tokens - t.token : per;
    return t;
  }

  DEVICE void by_tiles(float* memory) const {
    unsigned per = SAMPLES / patch, stride = per * patch + (patch - per * patch) % 32;
    unsigned along = (tokens + per - 1) / per, across = (channels + CHANNELS - 1) / CHANNELS;
    for (unsigned task = block_x(); task < batch * along * across; task += grid_x()) {
      Tile t = tile(task, per);
      read(t, stride, memory);
      barrier();
      write(t, stride, memory);
      barrier();
    }
  }

  // 32 threads along time, 8 channels at once.
  DEVICE void read(const Tile& t, unsigned stride, float* memory) const {
    constexpr unsigned at_once = THREADS / 32;
    const T* row = from + (size_t(t.item) * channels + t.channel) * time + t.token * patch;
    for (unsigned s = thread_x() % 32; s < t.tokens * patch; s += 32)
      UNROLL for (unsigned i = 0; i < CHANNELS / at_once; ++i) {
        unsigned c = i * at_once + thread_x() / 32;
        if (c < t.channels) memory[c * stride + s] = value_of(row[size_t(c) * time + s]);
      }
  }

  // All threads along a token's elements, or several tokens at a time where those are fewer; channel and
  // sample step without divisions.
  DEVICE void write(const Tile& t, unsigned stride, const float* memory) const {
    unsigned n = t.channels * patch, lanes = n <= 64 ? 64 : n <= 128 ? 128 : THREADS;
    unsigned lane = thread_x() % lanes, step_c = lanes / patch, step_k = lanes % patch;
    unsigned c0 = lane / patch, k0 = lane % patch;
    for (unsigned token = thread_x() / lanes; token < t.tokens; token += THREADS / lanes) {
      To* row = to + (size_t(t.item) * tokens + t.token + token) * width + t.channel * patch;
      unsigned c = c0, k = k0;
      for (unsigned j = lane; j < n; j += lanes) {
        float x = memory[c * stride + token * patch + k];
        row[j] = rounded<To>(add ? value_of(row[j]) + x : x);
        c += step_c, k += step_k;
        if (k >= patch) k -= patch, c += 1;
      }
    }
  }

  // Element i of the output, from wherever it lies in the input.
  DEVICE void put(unsigned i, float x) const {
    to[i] = rounded<To>(add ? value_of(to[i]) + x : x);
  }
  DEVICE void forward_one(unsigned i) const {
    unsigned row = i / width, j = i % width, c = j / patch, k = j % patch;
    size_t channel = size_t(row / tokens) * channels + c;
    put(i, value_of(from[channel * time + row % tokens * patch + k]));
  }
  // Samples past the last whole patch have gradient 0.
  DEVICE void backward_one(unsigned i) const {
    unsigned row = i / time, s = i % time, token = s / patch;
    size_t at = size_t(row / channels) * tokens + token;
    put(i, token < tokens ? value_of(from[at * width + row % channels * patch + s % patch]) : 0.0f);
  }
  template <class F> DEVICE void one_by_one(unsigned n, F f) const {
    for (unsigned first = block_x() * THREADS * EACH; first < n; first += grid_x() * THREADS * EACH)
      UNROLL for (unsigned i = 0; i < EACH; ++i) {
        unsigned at = first + i * THREADS + thread_x();
        if (at < n) f(at);
      }
  }
};

template <class T, class To> DEVICE void patchify_to(const Patchify& p, const Operands& io, float* memory) {
  Mover<T, To> mover(p, input<T>(io, 0), output<To>(io, 1));
  if (p.backward)
    mover.one_by_one(p.batch * p.channels * p.time, [&](unsigned i) { mover.backward_one(i); });
  else if (p.patch >= SHORT)
    mover.one_by_one(p.batch * mover.tokens * mover.width, [&](unsigned i) { mover.forward_one(i); });
  else
    mover.by_tiles(memory);
}

template <class T> DEVICE void patchify(const Patchify& p, const Operands& io) {
  SHARED float memory[CHANNELS * STRIDE];
  switch (kind_of(io, 1)) {
    case KIND_BF16: patchify_to<T, bf16>(p, io, memory); break;
    case KIND_F16: patchify_to<T, f16>(p, io, memory); break;
    default: patchify_to<T, float>(p, io, memory); break;
  }
}

}  // namespace

ENTRIES(patchify, Patchify, THREADS, patchify)
