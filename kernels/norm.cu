// Layer normalisation over rows, and its gradients.
//
// Bound by memory: each row is read once and written once. A row of up to 4096 elements (8192 on
// NVIDIA cards) stays in the registers of 4 to 512 lanes, 16 elements each, from its statistics to its
// output; the variance is taken around the mean (two passes, both over registers). Lanes move 16 bytes
// at a time. Rows that cannot be held so, or do not divide into 16 bytes, are walked in several passes, by
// a wave up to 1024 elements, by a block beyond.
//
// Gradients of gamma and beta are sums over all rows: a lane keeps the sums of its columns in
// registers over the rows its block walks, the block adds them up, and a second stage adds the
// blocks' sums (partials.h). `layernorm_both` does this in the same pass as dx. There instructions count
// as much as bytes: of 2-byte rows a multiprocessor issued in half of all cycles when gamma was read and
// converted again for each row and statistics had a type known at run time only.
#include "partials.h"
#include "rows.h"

namespace {

// Lanes that hold the longest rows.
constexpr int LONG = COMPACT ? THREADS : 512;
constexpr unsigned LONGEST = HELD * LONG;

// What a lane holds of a row, if it is `live`, from column `col` on; what there is not stays as it was. As
// words: elements of 2 bytes would be taken out of their registers here and put together again.
template <int LANES, class T>
DEVICE void read_row(Words (&to)[HELD / PACK<T>], const T* row, unsigned col, unsigned cols, bool live) {
  const Words* from = reinterpret_cast<const Words*>(row + col);
  UNROLL for (int k = 0; k < HELD / PACK<T>; ++k)
    if (k * LANES * PACK<T> + col < cols && live) to[k] = from[k * LANES];
}

// --- Forward -------------------------------------------------------------------------------------

template <class T> struct Forward {
  const T* x;
  Any gamma, beta;
  T* y;
  float *mean, *rstd;
  unsigned rows, cols;
  float epsilon;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= LONGEST && aligned(x) && aligned(y) &&
           aligned(gamma.base) && aligned(beta.base);
  }

  // Zeros where there is no such row.
  template <int LANES, int R>
  DEVICE void read(Words (&to)[HELD / PACK<T>], const Walk<LANES, R>& walk, int r) const {
    UNROLL for (int k = 0; k < HELD / PACK<T>; ++k) to[k] = Words{};
    unsigned row = walk.row(r);
    read_row<LANES>(to, x + size_t(row) * cols, walk.lane * PACK<T>, cols, row < rows);
  }

  // A group of lanes has two rows in flight. One that is a block or more works on one, with the next
  // under way: too few others fit beside it to hide what it waits for.
  template <int LANES> DEVICE void run() const {
    constexpr bool AHEAD = LANES >= THREADS;
    constexpr int P = PACK<T>, K = HELD / P, R = AHEAD ? 1 : 2;
    float inverse = 1.0f / float(cols);
    Walk<LANES, R> walk(rows);
    Words next[R][K];
    if (AHEAD) read(next[0], walk, 0);
    while (walk.more()) {
      if (!AHEAD) UNROLL for (int r = 0; r < R; ++r) read(next[r], walk, r);
      float values[R][K][P], mu[R], scale[R];
      UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int k = 0; k < K; ++k) unpack<T>(values[r][k], next[r][k]);
      Walk<LANES, R> now = walk;
      walk.next();
      if (AHEAD && walk.more()) read(next[0], walk, 0);
      UNROLL for (int r = 0; r < R; ++r) {
        mu[r] = scale[r] = 0.0f;
        UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i) mu[r] += values[r][k][i];
      }
      row_sums<LANES>(mu, memory);
      UNROLL for (int r = 0; r < R; ++r) {
        mu[r] *= inverse;
        UNROLL for (int k = 0; k < K; ++k) {
          bool inside = (k * LANES + now.lane) * P < cols;
          UNROLL for (int i = 0; i < P; ++i) {
            float d = values[r][k][i] - mu[r];
            if (inside) scale[r] = fma_of(d, d, scale[r]);
          }
        }
      }
      row_sums<LANES>(scale, memory);
      UNROLL for (int r = 0; r < R; ++r) scale[r] = rsqrt_of(fma_of(scale[r], inverse, epsilon));
      finish<LANES, K, R>(now, values, mu, scale);
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
        mean[walk.row(r)] = mu[r], rstd[walk.row(r)] = scale[r];
  }

  template <int LANES> DEVICE void looped() const {
    float inverse = 1.0f / float(cols);
    for (Walk<LANES, 1> walk(rows); walk.more(); walk.next()) {
      bool live = walk.row(0) < rows;
      size_t at = size_t(live ? walk.row(0) : 0) * cols;
      float sum[1] = {}, squares[1] = {};
      for (unsigned c = walk.lane; c < cols; c += LANES) sum[0] += value_of(x[at + c]);
      row_sums<LANES>(sum, memory);
      float mu = sum[0] * inverse;
      for (unsigned c = walk.lane; c < cols; c += LANES) {
        float d = value_of(x[at + c]) - mu;
        squares[0] = fma_of(d, d, squares[0]);
      }
      row_sums<LANES>(squares, memory);
      float scale = rsqrt_of(squares[0] * inverse + epsilon);
      if (!live) continue;
      for (unsigned c = walk.lane; c < cols; c += LANES)
        y[at + c] = rounded<T>(fma_of((value_of(x[at + c]) - mu) * scale, gamma[c], beta[c]));
      if (walk.lane == 0) mean[walk.row(0)] = mu, rstd[walk.row(0)] = scale;
    }
  }
};

template <class T> DEVICE Forward<T> forward(const LayerNorm& p, const Operands& io, float* memory) {
  return {input<T>(io, 0),      any(io, 1), any(io, 2), output<T>(io, 3), output<float>(io, 4),
          output<float>(io, 5), p.rows,     p.cols,     p.epsilon,        memory};
}

template <class T> DEVICE void layernorm(const LayerNorm& p, const Operands& io) {
  SHARED float memory[2 * (THREADS / WAVE)];
  Forward<T> f = forward<T>(p, io, memory);
  if (f.packed()) by_narrow_width(p.cols, f);
  else f.template looped<WAVE>();
}

// Rows of more than 1024 elements: by a kernel of their own, which has room for two of the largest blocks
// a multiprocessor.
template <class T> DEVICE void layernorm_wide(const LayerNorm& p, const Operands& io) {
  SHARED float memory[2 * (LONG / WAVE)];
  Forward<T> f = forward<T>(p, io, memory);
  if (!f.packed()) f.template looped<THREADS>();
  else if (p.cols <= HELD_COLUMNS) f.template run<THREADS>();
  else f.template run<LONG>();
}

// --- Backward ------------------------------------------------------------------------------------

// With x^ the normalised row and g = dy gamma: dx = rstd (g - mean(g) - x^ mean(g x^)) where DX, and
// sums over rows of dy x^ and dy, for gamma and beta, where SUMS.
template <class T, bool DX, bool SUMS> struct Backward {
  const T *dy, *x;
  Any gamma;
  const float *mean, *rstd;
  T* dx;
  float* sums;  // [blocks, 2, cols]
  unsigned rows, cols, accumulate;
  float* memory;

  DEVICE bool packed() const {
    return cols % PACK<T> == 0 && cols <= LONGEST && aligned(dy) && aligned(x) &&
           (!DX || (aligned(dx) && aligned(gamma.base)));
  }
  DEVICE float* own_sums() const { return sums + size_t(block_x()) * 2 * cols; }

  // The last row comes first: what the op before wrote last, or read, is still in the card's cache. What
  // is no row stays none.
  template <int LANES> DEVICE unsigned row_of(const Walk<LANES, 1>& walk) const {
    return rows - 1 - walk.row(0);
  }

  // Whether a row's statistics are read with it: with rows of 4-byte elements there are no registers left
  // for those of the next row, and they are in a cache.
  static constexpr bool STATS_AHEAD = sizeof(T) < 4;

  // What a lane reads of a row; zeros outside the matrix.
  struct Read {
    Words dy[HELD / PACK<T>], x[HELD / PACK<T>];
    float mean, rstd;
  };
  template <int LANES> DEVICE Read read(const Walk<LANES, 1>& walk) const {
    Read r = {};
    unsigned row = row_of(walk), col = walk.lane * PACK<T>;
    if (row >= rows) return r;
    read_row<LANES>(r.dy, dy + size_t(row) * cols, col, cols, true);
    read_row<LANES>(r.x, x + size_t(row) * cols, col, cols, true);
    if (STATS_AHEAD) r.mean = mean[row], r.rstd = rstd[row];
    return r;
  }

  DEVICE void fetch_row(unsigned row, unsigned col, unsigned step) const {
    if (row >= rows) return;
    UNROLL for (int k = 0; k < HELD / PACK<T>; ++k) {
      size_t at = size_t(row) * cols + k * step + col;
      if (k * step + col < cols) fetch(dy + at), fetch(x + at);
    }
  }

  template <int LANES> DEVICE void run() const {
    constexpr int P = PACK<T>, K = HELD / P;
    float dg[K][P] = {}, db[K][P] = {};
    // Blocks that walk many rows have the next one under way while they work on this one, where there are
    // registers for both. One that fills a multiprocessor has too little under way even so: the row after
    // is fetched into the cache.
    constexpr bool AHEAD = SUMS && (sizeof(T) < 4 || LANES < THREADS);
    constexpr bool FETCHED = AHEAD && LANES >= THREADS;
    Walk<LANES, 1> walk(rows);
    Read next;
    if constexpr (AHEAD) next = read(walk);
    while (walk.more()) {
      Read now;
      if constexpr (AHEAD) now = next;
      else now = read(walk);
      unsigned row = row_of(walk), lane = walk.lane;
      float mu = now.mean, scale = now.rstd;
      if constexpr (!STATS_AHEAD) mu = row < rows ? mean[row] : 0.0f, scale = row < rows ? rstd[row] : 0.0f;
      walk.next();
      if (AHEAD && walk.more()) next = read(walk);
      if (FETCHED) fetch_row(row_of(walk) - walk.stride(), lane * P, LANES * P);
      float grad[K][P], normal[K][P];
      UNROLL for (int k = 0; k < K; ++k) {
        unpack<T>(grad[k], now.dy[k]);
        unpack<T>(normal[k], now.x[k]);
        UNROLL for (int i = 0; i < P; ++i) {
          normal[k][i] = (normal[k][i] - mu) * scale;
          if constexpr (SUMS) {
            dg[k][i] = fma_of(grad[k][i], normal[k][i], dg[k][i]);
            db[k][i] += grad[k][i];
          }
        }
      }
      if constexpr (DX) {
        weigh<LANES>(grad, lane * P);
        write<LANES>(row, lane * P, grad, normal, scale);
      }
    }
    if constexpr (SUMS) add_up<LANES, K>(dg, db);
  }

  // Held in registers over the rows, gamma would take those that the next row comes in.
  template <int LANES, int K> DEVICE void weigh(float (&grad)[K][PACK<T>], unsigned col) const {
    constexpr int P = PACK<T>;
    float scales[K][P] = {};
    auto each = [&](auto load) {
      UNROLL for (int k = 0; k < K; ++k)
        if (k * LANES * P + col < cols) load(scales[k], k * LANES * P);
    };
    const float* of_f32 = static_cast<const float*>(gamma.base) + col;
    if (gamma.kind == KIND_F32) each([&](float (&to)[P], unsigned at) { load_pack(to, of_f32 + at); });
    else each([&](float (&to)[P], unsigned at) { gamma.load(to, col + at); });
    UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i) grad[k][i] *= scales[k][i];
  }

  // `grad` is dy gamma, zero past the last column.
  template <int LANES, int K>
  DEVICE void write(unsigned row, unsigned col, const float (&grad)[K][PACK<T>],
                    const float (&normal)[K][PACK<T>], float scale) const {
    constexpr int P = PACK<T>;
    float sums[2] = {};  // of g and of g x^
    UNROLL for (int k = 0; k < K; ++k) UNROLL for (int i = 0; i < P; ++i) {
      sums[0] += grad[k][i];
      sums[1] = fma_of(grad[k][i], normal[k][i], sums[1]);
    }
    row_sums<LANES>(sums, memory);
    if (row >= rows) return;
    float part = -scale * reciprocal_of(float(cols)), shift = part * sums[0], slope = part * sums[1];
    T* to = dx + size_t(row) * cols + col;
    UNROLL for (int k = 0; k < K; ++k) {
      if (k * LANES * P + col >= cols) continue;
      float out[P] = {}, base[P];
      if (accumulate) load_pack(out, to + k * LANES * P);
      UNROLL for (int i = 0; i < P; ++i) base[i] = accumulate ? out[i] + shift : shift;
      UNROLL for (int i = 0; i < P; ++i)
        out[i] = fma_of(scale, grad[k][i], fma_of(normal[k][i], slope, base[i]));
      store_pack(to + k * LANES * P, out);
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

  template <int LANES> DEVICE void looped() const {
    if constexpr (DX)
      for (Walk<LANES, 1> walk(rows); walk.more(); walk.next()) looped_row(walk);
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

  template <int LANES> DEVICE void looped_row(const Walk<LANES, 1>& walk) const {
    bool live = walk.row(0) < rows;
    size_t row = live ? walk.row(0) : 0;
    float sums[2] = {}, scale = rstd[row];
    for (unsigned c = walk.lane; c < cols; c += LANES) {
      float g = value_of(dy[row * cols + c]) * gamma[c];
      sums[0] += g;
      sums[1] = fma_of(g, normal_at(row, c), sums[1]);
    }
    row_sums<LANES>(sums, memory);
    if (!live) return;
    float inverse = 1.0f / float(cols), mean_g = sums[0] * inverse, mean_gx = sums[1] * inverse;
    for (unsigned c = walk.lane; c < cols; c += LANES) {
      T* to = dx + row * cols + c;
      float g = value_of(dy[row * cols + c]) * gamma[c];
      float grad = scale * (g - mean_g - normal_at(row, c) * mean_gx);
      *to = rounded<T>(accumulate ? value_of(*to) + grad : grad);
    }
  }

  DEVICE void all(const Operands& io) {
    // Two sums of each column of what several teams of a block may hold; before that, two of each
    // wave.
    SHARED float space[SUMS ? 2 * NARROW_COLUMNS : 2 * (LONG / WAVE)];
    memory = space;
    if (SUMS && block_x() == 0 && thread_x() == 0) count_partials(io, grid_x());
    if (packed()) by_width<LONG>(cols, *this);
    else if (cols <= NARROW_COLUMNS) looped<WAVE>();
    else looped<THREADS>();
  }
};

template <class T> DEVICE void layernorm_backward(const LayerNormBackward& p, const Operands& io) {
  Backward<T, true, false>{input<T>(io, 0), input<T>(io, 1), any(io, 2), input<float>(io, 3), input<float>(io, 4),
                           output<T>(io, 5), nullptr, p.rows, p.cols, p.accumulate, nullptr}
      .all(io);
}

template <class T> DEVICE void layernorm_params(const LayerNormParams& p, const Operands& io) {
  Backward<T, false, true>{input<T>(io, 0), input<T>(io, 1), Any{}, input<float>(io, 2), input<float>(io, 3),
                           nullptr, partials_of(io), p.rows, p.cols, 0, nullptr}
      .all(io);
}

template <class T> DEVICE void layernorm_both(const LayerNormBackward& p, const Operands& io) {
  Backward<T, true, true>{input<T>(io, 0), input<T>(io, 1), any(io, 2), input<float>(io, 3), input<float>(io, 4),
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
ENTRIES(layernorm_wide, LayerNorm, LONG, layernorm_wide)
ENTRIES(layernorm_backward, LayerNormBackward, LONG, layernorm_backward)
ENTRIES(layernorm_params, LayerNormParams, LONG, layernorm_params)
ENTRIES(layernorm_params_end, LayerNormParams, PARTIALS_THREADS, layernorm_params_end)
ENTRIES(layernorm_both, LayerNormBackward, LONG, layernorm_both)
ENTRIES(layernorm_both_end, LayerNormBackward, PARTIALS_THREADS, layernorm_both_end)
