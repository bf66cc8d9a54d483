// Windows out of recordings that lie in device memory: gathered, scaled and augmented in one pass.
//
// A block takes 16 channels of one window, a wave a channel at a time, its lanes along time: reads are
// runs of up to 64 neighbouring samples (128 bytes), writes are whole rows. What augmentation moves,
// scales or blanks comes as a few words a window, drawn by the host (src/data/augment), so that a
// window is the host's bit for bit. Bound by memory: 2 bytes read and 4 written a sample, 6 us for 256
// windows of 129 x 200 at 4 TB/s; there is nothing to reuse.
#include "portable.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned CHANNELS = 16, TILE = 64, HEAD = 9;  // as src/ops/window.rs

template <class T> DEVICE void window_gather(const WindowGather& p, const Operands& io) {
  unsigned groups = (p.channels + CHANNELS - 1) / CHANNELS;
  unsigned window = block_x() / groups, first = block_x() % groups * CHANNELS;
  const unsigned* words = input<unsigned>(io, 2) + size_t(window) * (HEAD + p.channels);
  const short* samples = input<short>(io, 0) + size_t(words[0]) * 32;
  const T* scales = input<T>(io, 1) + words[1];
  unsigned stored = words[2], start = words[3], shift = words[4];
  bool reversed = words[5] != 0;
  float factor = float_of(words[6]);
  unsigned mask = words[7], masked = words[8];
  unsigned lane = thread_x() % WAVE;
  for (unsigned c = first + thread_x() / WAVE; c < first + CHANNELS && c < p.channels; c += THREADS / WAVE) {
    int row = int(words[HEAD + c]);
    T* out = output<T>(io, 3) + (size_t(window) * p.channels + c) * p.time;
    float scale = row < 0 ? 0.0f : value_of(scales[row]);
    for (unsigned t = lane; t < p.time; t += WAVE) {
      unsigned turned = (reversed ? p.time - 1 - t : t) + p.time - shift;
      unsigned at = start + (turned < p.time ? turned : turned - p.time);
      bool blank = row < 0 || (t >= mask && t - mask < masked);
      float x = 0.0f;
      if (!blank) x = float(samples[(size_t(at / TILE) * stored + unsigned(row)) * TILE + at % TILE]) * scale * factor;
      out[t] = rounded<T>(x);
    }
  }
}

}  // namespace

ENTRY(window_gather, f32, float, WindowGather, THREADS, window_gather)
