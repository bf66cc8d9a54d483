// Layer normalisation over rows, and its gradients.
//
// Bound by memory: each row is read once and written once. A row of up to 4096 elements stays in
// the registers of 4 to 256 lanes, 16 elements each, from its statistics to its output; the variance
// is taken around the mean (two passes, both over registers). Lanes move 16 bytes at a time. Rows
// that do not divide into 16 bytes, or are longer, are walked by a wave in several passes.
//
// Gradients of gamma and beta are sums over all rows: a lane keeps the sums of its columns in
// registers over the rows its block walks, the block adds them up, and a second stage adds the
// blocks' sums (partials.h). `layernorm_both` does this in the same pass as dx.
#include "partials.h"
#include "rows.h"

namespace {

// --- Forward -------------------------------------------------------------------------------------

template <class T> struct Forward {
  const T* x;
  Any gamma, beta;
  T* y;
  Any mean, rstd;
  unsigned rows, cols;
  float epsilon;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= HELD_COLUMNS && aligned(x) && aligned(y) &&
           aligned(gamma.base) && aligned(beta.base);
  }

  template <int LANES> DEVICE void run() const {
    constexpr int P = PACK<T>, K = HELD / P, R = 2;
    float inverse = 1.0f / float(cols);
    for (Walk<LANES, R> walk(rows); walk.more(); walk.next()) {
      float values[R][K][P], mu[R], scale[R];
      UNROLL for (int r = 0; r < R; ++r) UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + walk.lane) * P;
        UNROLL for (int i = 0; i < P; ++i) values[r][k][i] = 0.0f;
        if (col < cols && walk.row(r) < rows)
          load_pack(values[r][k], x + size_t(walk.row(r)) * cols + col);
      }
      UNROLL for (int r = 0; r < R; ++r) {
        mu[r] = scale[r] = 0.0f;
        UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i) mu[r] += values[r][k][i];
      }
      row_sums<LANES>(mu, memory);
      UNROLL for (int r = 0; r < R; ++r) {
        mu[r] *= inverse;
        UNROLL for (int k = 0; k < K; ++k) {
          bool inside = (k * LANES + walk.lane) * P < cols;
          UNROLL for (int i = 0; i < P; ++i) {
            float d = values[r][k][i] - mu[r];
            if (inside) scale[r] = fma_of(d, d, scale[r]);
          }
        }
      }
      row_sums<LANES>(scale, memory);
      UNROLL for (int r = 0; r < R; ++r) scale[r] = rsqrt_of(fma_of(scale[r], inverse, epsilon));
      finish<LANES, K, R>(walk, values, mu, scale);
    }
  }

  template <int LANES, int K, int R>
  DEVICE void finish(const Walk<LANES, R>& walk, float (&values)[R][K][PACK<T>], float (&mu)[R],
                     float (&scale)[R]) const {
    constexpr int P = PACK<T>;
    UNROLL for (int k = 0; k < K; ++k) {
      unsigned col = (k * LANES + walk.lane) * P;
      if (col >= cols) continue;
      float g[P], b[P];
      gamma.load(g, col);
      beta.load(b, col);
      UNROLL for (int r = 0; r < R; ++r) {
        if (walk.row(r) >= rows) continue;
        float out[P];
        UNROLL for (int i = 0; i < P; ++i)
          out[i] = fma_of((values[r][k][i] - mu[r]) * scale[r], g[i], b[i]);
        store_pack(y + size_t(walk.row(r)) * cols + col, out);
      }
    }
    UNROLL for (int r = 0; r < R; ++r)
      if (walk.lane == 0 && walk.row(r) < rows)
        mean.set(walk.row(r), mu[r]), rstd.set(walk.row(r), scale[r]);
  }

  DEVICE void looped() const {
    float inverse = 1.0f / float(cols);
    for (Walk<WAVE, 1> walk(rows); walk.more(); walk.next()) {
      bool live = walk.row(0) < rows;
      size_t at = size_t(live ? walk.row(0) : 0) * cols;
      float sum = 0.0f, squares = 0.0f;
      for (unsigned c = walk.lane; c < cols; c += WAVE) sum += value_of(x[at + c]);
      float mu = lanes_sum(sum) * inverse;
      for (unsigned c = walk.lane; c < cols; c += WAVE) {
        float d = value_of(x[at + c]) - mu;
        squares = fma_of(d, d, squares);
      }
      float scale = rsqrt_of(lanes_sum(squares) * inverse + epsilon);
      if (!live) continue;
      for (unsigned c = walk.lane; c < cols; c += WAVE)
        y[at + c] = rounded<T>(fma_of((value_of(x[at + c]) - mu) * scale, gamma[c], beta[c]));
      if (walk.lane == 0) mean.set(walk.row(0), mu), rstd.set(walk.row(0), scale);
    }
  }
};

template <class T> DEVICE void layernorm(const LayerNorm& p, const Operands& io) {
  SHARED float memory[2 * (THREADS / WAVE)];
  Forward<T> f{input<T>(io, 0), any(io, 1), any(io, 2), output<T>(io, 3), any(io, 4), any(io, 5),
               p.rows, p.cols, p.epsilon, memory};
  if (f.packed()) by_width(p.cols, f);
  else f.looped();
}

// --- Backward ------------------------------------------------------------------------------------

// With x^ the normalised row and g = dy gamma: dx = rstd (g - mean(g) - x^ mean(g x^)) where DX, and
// sums over rows of dy x^ and dy, for gamma and beta, where SUMS.
template <class T, bool DX, bool SUMS> struct Backward {
  const T *dy, *x;
  Any gamma, mean, rstd;
  T* dx;
  float* sums;  // [blocks, 2, cols]
  unsigned rows, cols, accumulate;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= HELD_COLUMNS && aligned(dy) && aligned(x) &&
           (!DX || (aligned(dx) && aligned(gamma.base)));
  }
  DEVICE float* own_sums() const { return sums + size_t(block_x()) * 2 * cols; }

  // What a lane reads of a row; zeros outside the matrix.
  struct Read {
    Pack<T, PACK<T>> dy[HELD / PACK<T>], x[HELD / PACK<T>];
    float mean, rstd;
  };
  template <int LANES> DEVICE Read read(const Walk<LANES, 1>& walk) const {
    constexpr int P = PACK<T>, K = HELD / P;
    Read r = {};
    unsigned row = walk.row(0);
    if (row >= rows) return r;
    UNROLL for (int k = 0; k < K; ++k) {
      unsigned col = (k * LANES + walk.lane) * P;
      if (col >= cols) continue;
      r.dy[k] = *reinterpret_cast<const Pack<T, P>*>(dy + size_t(row) * cols + col);
      r.x[k] = *reinterpret_cast<const Pack<T, P>*>(x + size_t(row) * cols + col);
    }
    r.mean = mean[row], r.rstd = rstd[row];
    return r;
  }

  template <int LANES> DEVICE void run() const {
    constexpr int P = PACK<T>, K = HELD / P;
    float dg[K][P] = {}, db[K][P] = {};
    Walk<LANES, 1> walk(rows);
    Read next;
    if constexpr (SUMS) next = read(walk);
    while (walk.more()) {
      Read now;
      if constexpr (SUMS) now = next;
      else now = read(walk);
      unsigned row = walk.row(0), lane = walk.lane;
      walk.next();
      // Blocks that walk many rows have the next one under way while they work on this one.
      if (SUMS && walk.more()) next = read(walk);
      float grad[K][P], normal[K][P];
      UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i) {
        grad[k][i] = value_of(now.dy[k].at[i]);
        normal[k][i] = (value_of(now.x[k].at[i]) - now.mean) * now.rstd;
        if constexpr (SUMS) {
          dg[k][i] = fma_of(grad[k][i], normal[k][i], dg[k][i]);
          db[k][i] += grad[k][i];
        }
      }
      if constexpr (DX) write<LANES, K>(row, lane, grad, normal, now.rstd);
    }
    if constexpr (SUMS) add_up<LANES, K>(dg, db);
  }

  template <int LANES, int K>
  DEVICE void write(unsigned row, unsigned lane, float (&grad)[K][PACK<T>],
                    float (&normal)[K][PACK<T>], float scale) const {
    constexpr int P = PACK<T>;
    float sums[2] = {}, inverse = 1.0f / float(cols);  // of g and of g x^
    UNROLL for (int k = 0; k < K; ++k) {
      unsigned col = (k * LANES + lane) * P;
      float g[P] = {};
      if (col < cols) gamma.load(g, col);
      UNROLL for (int i = 0; i < P; ++i) {
        grad[k][i] *= g[i];
        sums[0] += grad[k][i];
        sums[1] = fma_of(grad[k][i], normal[k][i], sums[1]);
      }
    }
    row_sums<LANES>(sums, memory);
    float mean_g = sums[0] * inverse, mean_gx = sums[1] * inverse;
    UNROLL for (int k = 0; k < K; ++k) {
      unsigned col = (k * LANES + lane) * P;
      if (col >= cols || row >= rows) continue;
      T* to = dx + size_t(row) * cols + col;
      float out[P] = {};
      if (accumulate) load_pack(out, to);
      UNROLL for (int i = 0; i < P; ++i)
        out[i] = fma_of(scale, grad[k][i] - mean_g - normal[k][i] * mean_gx, out[i]);
      store_pack(to, out);
    }
  }

  // Adds the sums of the block's teams, turn by turn, and leaves them in the workspace.
  template <int LANES, int K>
  DEVICE void add_up(float (&dg)[K][PACK<T>], float (&db)[K][PACK<T>]) const {
    constexpr int P = PACK<T>, TEAM = LANES > WAVE ? LANES : WAVE;
    unsigned lane = thread_x() % TEAM, team = thread_x() / TEAM;
    UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i)
      UNROLL for (int step = LANES; step < WAVE; step *= 2) {
        dg[k][i] += shuffle_xor(dg[k][i], step);
        db[k][i] += shuffle_xor(db[k][i], step);
      }
    // One team: nothing to add, and its columns may be more than `memory` holds.
    if (block_threads() == TEAM) {
      UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + lane) * P;
        if (lane >= LANES || col >= cols) continue;
        UNROLL for (int i = 0; i < P; ++i) {
          own_sums()[col + i] = dg[k][i];
          own_sums()[cols + col + i] = db[k][i];
        }
      }
      return;
    }
    for (unsigned turn = 0; turn < block_threads() / TEAM; ++turn) {
      UNROLL for (int k = 0; k < K; ++k) {
        unsigned col = (k * LANES + lane) * P;
        if (turn != team || lane >= LANES || col >= cols) continue;
        UNROLL for (int i = 0; i < P; ++i) {
          memory[col + i] = dg[k][i] + (turn ? memory[col + i] : 0.0f);
          memory[cols + col + i] = db[k][i] + (turn ? memory[cols + col + i] : 0.0f);
        }
      }
      barrier();
    }
    for (unsigned i = thread_x(); i < 2 * cols; i += block_threads()) own_sums()[i] = memory[i];
  }

  DEVICE float normal_at(size_t row, unsigned c) const {
    return (value_of(x[row * cols + c]) - mean[row]) * rstd[row];
  }

  DEVICE void looped() const {
    if constexpr (DX)
      for (Walk<WAVE, 1> walk(rows); walk.more(); walk.next()) looped_row(walk);
    if constexpr (SUMS)
      for (unsigned c = thread_x(); c < cols; c += block_threads()) {
        float dg = 0.0f, db = 0.0f;
        for (size_t row = block_x(); row < rows; row += grid_x()) {
          float grad = value_of(dy[row * cols + c]);
          dg = fma_of(grad, normal_at(row, c), dg);
          db += grad;
        }
        own_sums()[c] = dg, own_sums()[cols + c] = db;
      }
  }

  DEVICE void looped_row(const Walk<WAVE, 1>& walk) const {
    bool live = walk.row(0) < rows;
    size_t row = live ? walk.row(0) : 0;
    float sum = 0.0f, dot = 0.0f, inverse = 1.0f / float(cols), scale = rstd[row];
    for (unsigned c = walk.lane; c < cols; c += WAVE) {
      float g = value_of(dy[row * cols + c]) * gamma[c];
      sum += g;
      dot = fma_of(g, normal_at(row, c), dot);
    }
    sum = lanes_sum(sum) * inverse;
    dot = lanes_sum(dot) * inverse;
    if (!live) return;
    for (unsigned c = walk.lane; c < cols; c += WAVE) {
      T* to = dx + row * cols + c;
      float g = value_of(dy[row * cols + c]) * gamma[c];
      float grad = scale * (g - sum - normal_at(row, c) * dot);
      *to = rounded<T>(accumulate ? value_of(*to) + grad : grad);
    }
  }

  DEVICE void all(const Operands& io) {
    // Two sums of each column of what several teams of a block may hold; before that, two of each
    // wave.
    SHARED float space[SUMS ? 2 * 1024 : 2 * (THREADS / WAVE)];
    memory = space;
    if (SUMS && block_x() == 0 && thread_x() == 0) count_partials(io, grid_x());
    if (packed()) by_width(cols, *this);
    else looped();
  }
};

template <class T> DEVICE void layernorm_backward(const LayerNormBackward& p, const Operands& io) {
  Backward<T, true, false>{input<T>(io, 0), input<T>(io, 1), any(io, 2), any(io, 3), any(io, 4),
                           output<T>(io, 5), nullptr, p.rows, p.cols, p.accumulate, nullptr}
      .all(io);
}

template <class T> DEVICE void layernorm_params(const LayerNormParams& p, const Operands& io) {
  Backward<T, false, true>{input<T>(io, 0), input<T>(io, 1), Any{}, any(io, 2), any(io, 3),
                           nullptr, partials_of(io), p.rows, p.cols, 0, nullptr}
      .all(io);
}

template <class T> DEVICE void layernorm_both(const LayerNormBackward& p, const Operands& io) {
  Backward<T, true, true>{input<T>(io, 0), input<T>(io, 1), any(io, 2), any(io, 3), any(io, 4),
                          output<T>(io, 5), partials_of(io), p.rows, p.cols, p.accumulate, nullptr}
      .all(io);
}

// dgamma and dbeta are operands `first` and `first` + 1; both are added to.
DEVICE void add_params(const Operands& io, int first, unsigned cols) {
  Any dgamma = any(io, first), dbeta = any(io, first + 1);
  add_partials(io, 2 * cols, [&](unsigned c, float sum) {
    if (c < cols) dgamma.put(c, sum, true);
    else dbeta.put(c - cols, sum, true);
  });
}

template <class T> DEVICE void layernorm_params_end(const LayerNormParams& p, const Operands& io) {
  add_params(io, 4, p.cols);
}

template <class T> DEVICE void layernorm_both_end(const LayerNormBackward& p, const Operands& io) {
  add_params(io, 6, p.cols);
}

}  // namespace

ENTRIES(layernorm, LayerNorm, THREADS, layernorm)
ENTRIES(layernorm_backward, LayerNormBackward, THREADS, layernorm_backward)
ENTRIES(layernorm_params, LayerNormParams, THREADS, layernorm_params)
ENTRIES(layernorm_params_end, LayerNormParams, PARTIALS_THREADS, layernorm_params_end)
ENTRIES(layernorm_both, LayerNormBackward, THREADS, layernorm_both)
ENTRIES(layernorm_both_end, LayerNormBackward, PARTIALS_THREADS, layernorm_both_end)
