// Softmax over rows, and its gradient: bound by memory, one read and one write, with a row in
// registers between them (rows.h). Rows that cannot be held so are walked by a wave in passes.
#include "rows.h"

namespace {

template <class T> struct Forward {
  const T* x;
  T* y;
  unsigned rows, cols;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= HELD_COLUMNS && aligned(x) && aligned(y);
  }

  template <int LANES> DEVICE void run() const {
    constexpr int P = PACK<T>, K = HELD / P, R = 2;
    const float lowest = -float_of(0x7f800000u);
    for (Walk<LANES, R> walk(rows); walk.more(); walk.next()) {
      float values[R][K][P], top[R], sum[R];
      UNROLL for (int r = 0; r < R; ++r) {
        top[r] = lowest, sum[r] = 0.0f;
        UNROLL for (int k = 0; k < K; ++k) {
          unsigned col = (k * LANES + walk.lane) * P;
          UNROLL for (int i = 0; i < P; ++i) values[r][k][i] = lowest;
          if (col < cols && walk.row(r) < rows)
            load_pack(values[r][k], x + size_t(walk.row(r)) * cols + col);
        }
      }
      UNROLL for (int r = 0; r < R; ++r) UNROLL for (int k = 0; k < K; ++k)
        UNROLL for (int i = 0; i < P; ++i) top[r] = max_of(top[r], values[r][k][i]);
      row_tops<LANES>(top, memory);
      UNROLL for (int r = 0; r < R; ++r) UNROLL for (int k = 0; k < K; ++k)
        UNROLL for (int i = 0; i < P; ++i) {
          values[r][k][i] = exp_of(values[r][k][i] - top[r]);
          sum[r] += values[r][k][i];
        }
      row_sums<LANES>(sum, memory);
      UNROLL for (int r = 0; r < R; ++r) UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + walk.lane) * P;
        if (col >= cols || walk.row(r) >= rows) continue;
        float scale = 1.0f / sum[r];
        UNROLL for (int i = 0; i < P; ++i) values[r][k][i] *= scale;
        store_pack(y + size_t(walk.row(r)) * cols + col, values[r][k]);
      }
    }
  }

  DEVICE void looped() const {
    for (Walk<WAVE, 1> walk(rows); walk.more(); walk.next()) {
      bool live = walk.row(0) < rows;
      size_t at = size_t(live ? walk.row(0) : 0) * cols;
      float top = value_of(x[at]), sum = 0.0f;
      for (unsigned c = walk.lane; c < cols; c += WAVE) top = max_of(top, value_of(x[at + c]));
      top = lanes_max(top);
      for (unsigned c = walk.lane; c < cols; c += WAVE) sum += exp_of(value_of(x[at + c]) - top);
      float scale = 1.0f / lanes_sum(sum);
      if (!live) continue;
      for (unsigned c = walk.lane; c < cols; c += WAVE)
        y[at + c] = rounded<T>(exp_of(value_of(x[at + c]) - top) * scale);
    }
  }
};

template <class T> DEVICE void softmax(const Softmax& p, const Operands& io) {
  SHARED float memory[4 * (THREADS / WAVE)];
  Forward<T> f{input<T>(io, 0), output<T>(io, 1), p.rows, p.cols, memory};
  if (f.packed()) by_width(p.cols, f);
  else f.looped();
}

// dx (+)= y (dy - dot(dy, y)).
template <class T> struct Backward {
  const T *dy, *y;
  T* dx;
  unsigned rows, cols, accumulate;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= HELD_COLUMNS && aligned(dy) && aligned(y) && aligned(dx);
  }

  template <int LANES> DEVICE void run() const {
    constexpr int P = PACK<T>, K = HELD / P;
    for (Walk<LANES, 1> walk(rows); walk.more(); walk.next()) {
      float grad[K][P], result[K][P], dot[1] = {};
      size_t row = size_t(walk.row(0)) * cols;
      UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + walk.lane) * P;
        UNROLL for (int i = 0; i < P; ++i) grad[k][i] = result[k][i] = 0.0f;
        if (col >= cols || walk.row(0) >= rows) continue;
        load_pack(grad[k], dy + row + col);
        load_pack(result[k], y + row + col);
      }
      UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i)
        dot[0] = fma_of(grad[k][i], result[k][i], dot[0]);
      row_sums<LANES>(dot, memory);
      UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + walk.lane) * P;
        if (col >= cols || walk.row(0) >= rows) continue;
        float out[P] = {};
        if (accumulate) load_pack(out, dx + row + col);
        UNROLL for (int i = 0; i < P; ++i) out[i] = fma_of(result[k][i], grad[k][i] - dot[0], out[i]);
        store_pack(dx + row + col, out);
      }
    }
  }

  DEVICE void looped() const {
    for (Walk<WAVE, 1> walk(rows); walk.more(); walk.next()) {
      bool live = walk.row(0) < rows;
      size_t at = size_t(live ? walk.row(0) : 0) * cols;
      float dot = 0.0f;
      for (unsigned c = walk.lane; c < cols; c += WAVE)
        dot = fma_of(value_of(dy[at + c]), value_of(y[at + c]), dot);
      dot = lanes_sum(dot);
      if (!live) continue;
      for (unsigned c = walk.lane; c < cols; c += WAVE) {
        float grad = value_of(y[at + c]) * (value_of(dy[at + c]) - dot);
        dx[at + c] = rounded<T>(accumulate ? value_of(dx[at + c]) + grad : grad);
      }
    }
  }
};

template <class T> DEVICE void softmax_backward(const SoftmaxBackward& p, const Operands& io) {
  SHARED float memory[4 * (THREADS / WAVE)];
  Backward<T> f{input<T>(io, 0), input<T>(io, 1), output<T>(io, 2), p.rows, p.cols, p.accumulate,
                memory};
  if (f.packed()) by_width(p.cols, f);
  else f.looped();
}

}  // namespace

ENTRIES(softmax, Softmax, THREADS, softmax)
ENTRIES(softmax_backward, SoftmaxBackward, THREADS, softmax_backward)
