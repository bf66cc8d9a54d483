// Convolution along time and its gradients, and the composition of two filter banks into one.
//
// conv1d and conv1d_input are one matrix product in disguise, [outputs, inputs * taps] times
// [inputs * taps, times], whose right factor is never built: a block takes 64 outputs and 96 times
// of one item and group, brings pieces of the input and of the weight to shared memory, and every
// thread keeps 8 outputs x 3 times in registers. The gradient of the input is the same product with
// inputs and outputs exchanged, taps reversed, and dy spread out by the stride. conv1d_weight is
// [outputs, times] times [times, inputs * taps], its sum over the batch cut into slices that the
// last stage adds up in a fixed order. Arithmetic is f32 on the ordinary units and bounds all three.
#define ROOMY
#include "partials.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned OUTPUTS = 64, TIMES = 96, LANES = 32;
constexpr unsigned MINE_O = 8, MINE_T = TIMES / LANES;  // a thread's outputs and times
constexpr unsigned TAPS = 64;                            // inputs x taps of one step

DEVICE unsigned smaller(unsigned a, unsigned b) { return a < b ? a : b; }

// What the tile kernel convolves: y[o, t] = sum over i, k of weight(o, i, k) *
// source(i, t * stride + k - padding), where source is 0 outside its range.
struct Shape {
  unsigned outputs, inputs, taps, stride, time_out;
  int padding;
};

// One step's pieces: `inputs` rows of x that begin `row` apart, the samples of neighbouring times
// `pitch` apart; weights as [input, tap, OUTPUTS].
struct Step {
  unsigned inputs, taps, pitch, row;
  DEVICE Step(const Shape& s) {
    taps = smaller(s.taps, TAPS);
    pitch = smaller(s.stride, taps);  // a longer stride skips samples: they are not fetched
    row = (TIMES - 1) * pitch + taps;
    inputs = smaller(smaller(TAPS / taps, TIMES * TAPS / row), s.inputs);
  }
};

template <class Weight, class Source, class Sink>
DEVICE void tile(const Shape& s, unsigned o0, unsigned t0, const Weight& weight,
                 const Source& source, const Sink& sink) {
  SHARED float xs[TIMES * TAPS];
  alignas(16) SHARED float ws[TAPS * OUTPUTS];
  Step step(s);
  unsigned lane = thread_x() % LANES, mine = thread_x() / LANES * MINE_O;
  float sum[MINE_O][MINE_T];
  UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
    UNROLL for (unsigned t = 0; t < MINE_T; ++t) sum[o][t] = 0.0f;
  }
  for (unsigned i0 = 0; i0 < s.inputs; i0 += step.inputs) {
    for (unsigned k0 = 0; k0 < s.taps; k0 += step.taps) {
      unsigned inputs = smaller(step.inputs, s.inputs - i0), taps = smaller(step.taps, s.taps - k0);
      for (unsigned e = thread_x(); e < inputs * step.row; e += THREADS) {
        unsigned i = e / step.row, at = e - i * step.row;
        unsigned t = step.pitch < s.stride ? at / step.pitch : 0;
        int sample = int(t0 * s.stride + t * s.stride + (at - t * step.pitch) + k0) - s.padding;
        xs[e] = source(i0 + i, sample);
      }
      for (unsigned e = thread_x(); e < inputs * taps * OUTPUTS; e += THREADS) {
        unsigned o = e / (inputs * taps), ik = e - o * inputs * taps, i = ik / taps;
        ws[ik * OUTPUTS + o] = o0 + o < s.outputs ? weight(o0 + o, i0 + i, k0 + ik - i * taps) : 0.0f;
      }
      barrier();
      if (o0 + mine < s.outputs) {
        for (unsigned i = 0; i < inputs; ++i) {
          const float* x = xs + i * step.row + lane * step.pitch;
          const float* w = ws + i * taps * OUTPUTS + mine;
          for (unsigned k = 0; k < taps; ++k, w += OUTPUTS) {
            float a[2][4], b[MINE_T];
            load_pack(a[0], w);
            load_pack(a[1], w + 4);
            UNROLL for (unsigned t = 0; t < MINE_T; ++t) b[t] = x[t * LANES * step.pitch + k];
            UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
              UNROLL for (unsigned t = 0; t < MINE_T; ++t)
                sum[o][t] = fma_of(a[o / 4][o % 4], b[t], sum[o][t]);
            }
          }
        }
      }
      barrier();
    }
  }
  UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
    UNROLL for (unsigned t = 0; t < MINE_T; ++t) {
      unsigned to = o0 + mine + o, at = t0 + lane + t * LANES;
      if (to < s.outputs && at < s.time_out) sink(to, at, sum[o][t]);
    }
  }
}

// The tile of this block: along x tiles of times, of outputs, groups, items.
struct Place {
  unsigned t0, o0, group;
  size_t item;
  DEVICE Place(const Shape& s, unsigned groups) {
    unsigned times = (s.time_out + TIMES - 1) / TIMES, outputs = (s.outputs + OUTPUTS - 1) / OUTPUTS;
    unsigned at = block_x();
    t0 = at % times * TIMES, at /= times;
    o0 = at % outputs * OUTPUTS, at /= outputs;
    group = at % groups, item = at / groups;
  }
};

template <class T> DEVICE void conv1d(const Conv1d& p, const Operands& io) {
  Shape s{p.outputs, p.inputs, p.kernel, p.stride, p.time_out, int(p.padding)};
  Place at(s, p.groups);
  const T* x = input<T>(io, 0) + (at.item * p.groups + at.group) * p.inputs * p.time;
  Any w = any(io, 1), bias = any(io, 2);
  T* y = p.has_bias ? output<T>(io, 3) : output<T>(io, 2);
  y += (at.item * p.groups + at.group) * p.outputs * p.time_out;
  unsigned first = at.group * p.outputs;
  tile(
      s, at.o0, at.t0,
      [&](unsigned o, unsigned i, unsigned k) {
        return w[(size_t(first + o) * p.inputs + i) * p.kernel + k];
      },
      [&](unsigned i, int sample) {
        return unsigned(sample) < p.time ? value_of(x[size_t(i) * p.time + sample]) : 0.0f;
      },
      [&](unsigned o, unsigned t, float sum) {
        y[size_t(o) * p.time_out + t] = rounded<T>(p.has_bias ? sum + bias[first + o] : sum);
      });
}

template <class T> DEVICE void conv1d_input(const Conv1d& p, const Operands& io) {
  // x[t] met tap k of output u where t = u * stride + k - padding. With taps reversed, k' = kernel -
  // 1 - k, this asks for the sample t + k' - (kernel - 1 - padding) of dy spread by the stride.
  Shape s{p.inputs, p.outputs, p.kernel, 1, p.time, int(p.kernel) - 1 - int(p.padding)};
  Place at(s, p.groups);
  const T* dy = input<T>(io, 0) + (at.item * p.groups + at.group) * p.outputs * p.time_out;
  Any w = any(io, 1);
  T* dx = output<T>(io, 2) + (at.item * p.groups + at.group) * p.inputs * p.time;
  unsigned first = at.group * p.outputs;
  tile(
      s, at.o0, at.t0,
      [&](unsigned i, unsigned o, unsigned k) {
        return w[(size_t(first + o) * p.inputs + i) * p.kernel + (p.kernel - 1 - k)];
      },
      [&](unsigned o, int sample) {
        unsigned u = unsigned(sample) / p.stride;
        bool there = sample >= 0 && u * p.stride == unsigned(sample) && u < p.time_out;
        return there ? value_of(dy[size_t(o) * p.time_out + u]) : 0.0f;
      },
      [&](unsigned i, unsigned t, float sum) {
        T* to = dx + size_t(i) * p.time + t;
        *to = rounded<T>(p.accumulate ? value_of(*to) + sum : sum);
      });
}

// --- Gradient of the weight ----------------------------------------------------------------------

constexpr unsigned COLUMNS = 96;  // inputs x taps of a block
constexpr unsigned DEPTH = 32;    // times of a step
constexpr unsigned DY_ROW = OUTPUTS + 4;

// Columns of a block: `inputs` x `taps`, tiles of which cover all inputs and taps.
struct Patch {
  unsigned taps, inputs, tap_tiles, input_tiles;
  DEVICE Patch(const Conv1d& p) {
    tap_tiles = (p.kernel + COLUMNS - 1) / COLUMNS;
    taps = (p.kernel + tap_tiles - 1) / tap_tiles;
    inputs = smaller(COLUMNS / taps, p.inputs);
    input_tiles = (p.inputs + inputs - 1) / inputs;
  }
};

template <class T> DEVICE void conv1d_weight(const Conv1d& p, const Operands& io) {
  SHARED float xs[COLUMNS * (DEPTH + 1)];
  alignas(16) SHARED float ds[DEPTH * DY_ROW];
  Patch patch(p);
  unsigned at = block_x();
  unsigned k0 = at % patch.tap_tiles * patch.taps;
  at /= patch.tap_tiles;
  unsigned i0 = at % patch.input_tiles * patch.inputs;
  at /= patch.input_tiles;
  unsigned o_tiles = (p.outputs + OUTPUTS - 1) / OUTPUTS;
  unsigned o0 = at % o_tiles * OUTPUTS, group = at / o_tiles;
  unsigned pitch = smaller(p.stride, patch.taps), row = ((DEPTH - 1) * pitch + patch.taps) | 1;
  unsigned lane = thread_x() % LANES, mine = thread_x() / LANES * MINE_O;
  unsigned column[MINE_T];
  UNROLL for (unsigned t = 0; t < MINE_T; ++t) {
    unsigned c = lane + t * LANES;
    c = c < patch.inputs * patch.taps ? c : 0;
    column[t] = c / patch.taps * row + c % patch.taps;
  }
  float sum[MINE_O][MINE_T];
  UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
    UNROLL for (unsigned t = 0; t < MINE_T; ++t) sum[o][t] = 0.0f;
  }
  for (unsigned item = block_y(); item < p.batch; item += grid_y()) {
    const T* dy = input<T>(io, 0) + (size_t(item) * p.groups + group) * p.outputs * p.time_out;
    const T* x = input<T>(io, 1) + (size_t(item) * p.groups + group) * p.inputs * p.time;
    for (unsigned t0 = 0; t0 < p.time_out; t0 += DEPTH) {
      for (unsigned e = thread_x(); e < patch.inputs * row; e += THREADS) {
        unsigned i = e / row, offset = e - i * row, t = pitch < p.stride ? offset / pitch : 0;
        int sample = int((t0 + t) * p.stride + (offset - t * pitch) + k0) - int(p.padding);
        bool there = unsigned(sample) < p.time && i0 + i < p.inputs;
        xs[e] = there ? value_of(x[size_t(i0 + i) * p.time + sample]) : 0.0f;
      }
      for (unsigned e = thread_x(); e < DEPTH * OUTPUTS; e += THREADS) {
        unsigned o = e / DEPTH, t = e % DEPTH;
        bool there = o0 + o < p.outputs && t0 + t < p.time_out;
        ds[t * DY_ROW + o] = there ? value_of(dy[size_t(o0 + o) * p.time_out + t0 + t]) : 0.0f;
      }
      barrier();
      if (o0 + mine < p.outputs) {
        for (unsigned t = 0; t < DEPTH; ++t) {
          float a[2][4], b[MINE_T];
          load_pack(a[0], ds + t * DY_ROW + mine);
          load_pack(a[1], ds + t * DY_ROW + mine + 4);
          UNROLL for (unsigned c = 0; c < MINE_T; ++c) b[c] = xs[column[c] + t * pitch];
          UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
            UNROLL for (unsigned c = 0; c < MINE_T; ++c)
              sum[o][c] = fma_of(a[o / 4][o % 4], b[c], sum[o][c]);
          }
        }
      }
      barrier();
    }
  }
  if (block_x() == 0 && block_y() == 0 && thread_x() == 0) count_partials(io, grid_y());
  size_t extent = size_t(p.groups) * p.outputs * p.inputs * p.kernel;
  float* to = partials_of(io) + block_y() * extent;
  UNROLL for (unsigned c = 0; c < MINE_T; ++c) {
    unsigned n = lane + c * LANES, i = i0 + n / patch.taps, k = k0 + n % patch.taps;
    bool there = n < patch.inputs * patch.taps && i < p.inputs && k < p.kernel;
    UNROLL for (unsigned o = 0; o < MINE_O; ++o) {
      size_t w = (size_t(group * p.outputs + o0 + mine + o) * p.inputs + i) * p.kernel + k;
      if (there && o0 + mine + o < p.outputs) to[w] = sum[o][c];
    }
  }
}

// dw += the sums of all slices.
template <class T> DEVICE void conv1d_weight_end(const Conv1d& p, const Operands& io) {
  size_t extent = size_t(p.groups) * p.outputs * p.inputs * p.kernel;
  size_t i = size_t(block_x()) * THREADS + thread_x();
  if (i >= extent) return;
  unsigned slices = partials_count(io);
  const float* from = partials_of(io) + i;
  float sum = 0.0f;
  UNROLL for (unsigned slice = 0; slice < slices; ++slice) sum += from[slice * extent];
  any(io, 2).put(i, sum, true);
}

// A block sums one output channel.
template <class T> DEVICE void conv1d_bias(const Conv1d& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  unsigned channels = p.groups * p.outputs, channel = block_x();
  const T* dy = input<T>(io, 0) + size_t(channel) * p.time_out;
  size_t stride = size_t(channels) * p.time_out, count = size_t(p.batch) * p.time_out;
  float sum = 0.0f;
  for (size_t i = thread_x(); i < count; i += THREADS) {
    unsigned item = unsigned(i) / p.time_out;
    sum += value_of(dy[item * stride + (unsigned(i) - item * p.time_out)]);
  }
  sum = block_sum<THREADS>(sum, memory);
  if (thread_x() == 0) any(io, 1).put(channel, sum, true);
}

// --- Two filter banks as one ---------------------------------------------------------------------

// The first blocks take elements of w, one a thread; then each takes one output's bias.
template <class T> DEVICE void compose_filters(const ComposeFilters& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  Any time = any(io, 0), bias = any(io, 1), space = any(io, 2), w = any(io, 3), b = any(io, 4);
  unsigned n = p.outputs * p.channels * p.kernel, elements = (n + THREADS - 1) / THREADS;
  if (block_x() < elements) {
    unsigned i = block_x() * THREADS + thread_x();
    if (i >= n) return;
    unsigned oc = i / p.kernel, k = i - oc * p.kernel, o = oc / p.channels, c = oc - o * p.channels;
    float sum = 0.0f;
    for (unsigned f = 0; f < p.filters; ++f)
      sum = fma_of(space[(o * p.filters + f) * p.channels + c], time[f * p.kernel + k], sum);
    w.set(i, sum);
    return;
  }
  unsigned o = block_x() - elements, size = p.filters * p.channels;
  float sum = 0.0f;
  for (unsigned i = thread_x(); i < size; i += THREADS)
    sum = fma_of(space[o * size + i], bias[i / p.channels], sum);
  sum = block_sum<THREADS>(sum, memory);
  if (thread_x() == 0) b.set(o, sum);
}

// A block takes one output and one filter: all of their d_space, and their part of d_time and
// d_bias, [outputs, filters, kernel + 1] of the workspace.
template <class T>
DEVICE void compose_filters_backward(const ComposeFilters& p, const Operands& io) {
  constexpr unsigned PARTS = THREADS / LANES;
  SHARED float memory[THREADS / WAVE];
  SHARED float parts[PARTS][LANES];
  Any dw = any(io, 0), db = any(io, 1), time = any(io, 2), bias = any(io, 3), space = any(io, 4);
  unsigned o = block_x() / p.filters, f = block_x() - o * p.filters;
  size_t mix = size_t(block_x()) * p.channels, slab = size_t(o) * p.channels * p.kernel;
  float mixed = 0.0f;
  for (unsigned c = thread_x(); c < p.channels; c += THREADS) {
    float sum = db[o] * bias[f];
    for (unsigned k = 0; k < p.kernel; ++k)
      sum = fma_of(time[f * p.kernel + k], dw[slab + size_t(c) * p.kernel + k], sum);
    any(io, 7).put(mix + c, sum, true);
    mixed += space[mix + c];
  }
  mixed = block_sum<THREADS>(mixed, memory);
  float* to = static_cast<float*>(io.workspace) + size_t(block_x()) * (p.kernel + 1);
  if (thread_x() == 0) to[p.kernel] = db[o] * mixed;
  unsigned lane = thread_x() % LANES, part = thread_x() / LANES;
  for (unsigned k0 = 0; k0 < p.kernel; k0 += LANES) {
    unsigned k = k0 + lane;
    float sum = 0.0f;
    for (unsigned c = part; k < p.kernel && c < p.channels; c += PARTS)
      sum = fma_of(space[mix + c], dw[slab + size_t(c) * p.kernel + k], sum);
    parts[part][lane] = sum;
    barrier();
    if (part == 0 && k < p.kernel) {
      UNROLL for (unsigned other = 1; other < PARTS; ++other) sum += parts[other][lane];
      to[k] = sum;
    }
    barrier();
  }
}

// Adds the parts of all outputs: a thread takes one filter and tap, or the filter's bias.
template <class T>
DEVICE void compose_filters_backward_end(const ComposeFilters& p, const Operands& io) {
  unsigned size = p.kernel + 1, i = block_x() * THREADS + thread_x(), n = p.filters * size;
  if (i >= n) return;
  const float* from = static_cast<const float*>(io.workspace) + i;
  float sum = 0.0f;
  for (unsigned o = 0; o < p.outputs; ++o) sum += from[size_t(o) * n];
  unsigned f = i / size, k = i - f * size;
  if (k < p.kernel) any(io, 5).put(f * p.kernel + k, sum, true);
  else any(io, 6).put(f, sum, true);
}

}  // namespace

ENTRIES(conv1d, Conv1d, THREADS, conv1d)
ENTRIES(conv1d_input, Conv1d, THREADS, conv1d_input)
ENTRIES(conv1d_weight, Conv1d, THREADS, conv1d_weight)
ENTRIES(conv1d_weight_end, Conv1d, THREADS, conv1d_weight_end)
ENTRIES(conv1d_bias, Conv1d, THREADS, conv1d_bias)
ENTRIES(compose_filters, ComposeFilters, THREADS, compose_filters)
ENTRIES(compose_filters_backward, ComposeFilters, THREADS, compose_filters_backward)
ENTRIES(compose_filters_backward_end, ComposeFilters, THREADS, compose_filters_backward_end)
