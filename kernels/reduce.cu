// Sums over rows: the gradient of a bias (column_sums), and means over time with their gradient.
//
// Bound by memory. A block adds up a strip of columns over a range of rows: a thread keeps the sums
// of 16 bytes of columns in registers and has 8 rows in flight; the threads of a column are then
// added up in shared memory. column_sums cuts the rows among grid_y() blocks, whose sums a second
// stage adds (partials.h), unless there is one range only.
#include "partials.h"

namespace {

constexpr int THREADS = 256;
constexpr unsigned FLIGHT = 8;  // rows in flight per thread
constexpr int MOST = 8;         // most columns of a thread

// Sums the columns first .. first + lanes * N - 1 (below `cols`) of the rows `from` .. `to` - 1 of
// x [.., cols], and calls store(column, sum). `lanes` threads, a power of two, stand side by side;
// `memory` holds THREADS * N numbers. All threads of the block must call.
template <class T, int N, class Store>
DEVICE void sum_strip(const T* x, unsigned cols, unsigned from, unsigned to, unsigned first,
                      unsigned lanes, float* memory, Store store) {
  unsigned lane = thread_x() % lanes, deep = THREADS / lanes, col = first + lane * N;
  float sums[N] = {};
  if (col < cols)
    for (unsigned row = from + thread_x() / lanes; row < to; row += FLIGHT * deep) {
      Pack<T, N> packs[FLIGHT];
      // Past the end the last row again, without a branch between the loads.
      UNROLL for (unsigned i = 0; i < FLIGHT; ++i) {
        unsigned at = row + i * deep < to ? row + i * deep : to - 1;
        packs[i] = *reinterpret_cast<const Pack<T, N>*>(x + size_t(at) * cols + col);
      }
      UNROLL for (unsigned i = 0; i < FLIGHT; ++i) UNROLL for (int j = 0; j < N; ++j)
        sums[j] += row + i * deep < to ? value_of(packs[i].at[j]) : 0.0f;
    }
  UNROLL for (int j = 0; j < N; ++j) memory[thread_x() * N + j] = sums[j];
  barrier();
  unsigned width = lanes * N;
  if (thread_x() < width && first + thread_x() < cols) {
    float sum = 0.0f;
    for (unsigned i = 0; i < deep; ++i) sum += memory[i * width + thread_x()];
    store(first + thread_x(), sum);
  }
  barrier();
}

// The least power of two of threads, from 8 to 32, that spans `cols` columns of N a thread.
DEVICE unsigned lanes_for(unsigned cols, unsigned n) {
  return cols <= 8 * n ? 8 : cols <= 16 * n ? 16 : 32;
}

template <class T, int N, class Store>
DEVICE void sum_range(const ColumnSums& p, const T* x, float* memory, Store store) {
  unsigned lanes = lanes_for(p.cols, N);
  unsigned each = (p.rows + grid_y() - 1) / grid_y(), from = block_y() * each;
  unsigned to = from + each < p.rows ? from + each : p.rows;
  for (unsigned tile = block_x(); tile * lanes * N < p.cols; tile += grid_x())
    sum_strip<T, N>(x, p.cols, from, to, tile * lanes * N, lanes, memory, store);
}

template <class T> DEVICE void column_sums(const ColumnSums& p, const Operands& io) {
  SHARED float memory[THREADS * MOST];
  const T* x = input<T>(io, 0);
  Any sums = any(io, 1);
  bool in_ranges = grid_y() > 1;
  float* partials = partials_of(io) + size_t(block_y()) * p.cols;
  if (in_ranges && block_x() == 0 && block_y() == 0 && thread_x() == 0) count_partials(io, grid_y());
  auto store = [&](unsigned col, float sum) {
    if (in_ranges) partials[col] = sum;
    else sums.put(col, sum, p.accumulate);
  };
  if (p.cols % PACK<T> == 0 && aligned(x)) sum_range<T, PACK<T>>(p, x, memory, store);
  else sum_range<T, 1>(p, x, memory, store);
}

template <class T> DEVICE void column_sums_end(const ColumnSums& p, const Operands& io) {
  Any sums = any(io, 1);
  add_partials(io, p.cols, [&](unsigned col, float sum) { sums.put(col, sum, p.accumulate); });
}

// --- Means over time -----------------------------------------------------------------------------

// Strips of 8 lanes: as many blocks as there can be at small batches, each with whole sectors.
constexpr unsigned STRIP_LANES = 8;

template <class T, int N> DEVICE void mean_strips(const MeanTime& p, const Operands& io, float* memory) {
  unsigned width = STRIP_LANES * N, strips = (p.channels + width - 1) / width;
  float inverse = 1.0f / float(p.time);
  for (unsigned task = block_x(); task < p.batch * strips; task += grid_x()) {
    unsigned item = task / strips;
    const T* x = input<T>(io, 0) + size_t(item) * p.time * p.channels;
    T* y = output<T>(io, 1) + size_t(item) * p.channels;
    sum_strip<T, N>(x, p.channels, 0, p.time, task % strips * width, STRIP_LANES, memory,
                    [&](unsigned c, float sum) { y[c] = rounded<T>(sum * inverse); });
  }
}

// dx[b, t] (+)= dy[b] / time. A thread keeps its columns of dy over the rows of its block.
constexpr unsigned SPREAD_ROWS = 32;

template <class T, int N> DEVICE void spread(const MeanTime& p, const Operands& io) {
  unsigned lanes = lanes_for(p.channels, N), deep = THREADS / lanes;
  unsigned pieces = (p.time + SPREAD_ROWS - 1) / SPREAD_ROWS;
  float inverse = 1.0f / float(p.time);
  for (unsigned task = block_x(); task < p.batch * pieces; task += grid_x()) {
    unsigned item = task / pieces, from = task % pieces * SPREAD_ROWS;
    unsigned to = from + SPREAD_ROWS < p.time ? from + SPREAD_ROWS : p.time;
    for (unsigned col = thread_x() % lanes * N; col < p.channels; col += lanes * N) {
      float grad[N];
      load_pack(grad, input<T>(io, 0) + size_t(item) * p.channels + col);
      for (unsigned row = from + thread_x() / lanes; row < to; row += deep) {
        T* dx = output<T>(io, 1) + (size_t(item) * p.time + row) * p.channels + col;
        float out[N] = {};
        if (p.accumulate) load_pack(out, dx);
        UNROLL for (int j = 0; j < N; ++j) out[j] = fma_of(grad[j], inverse, out[j]);
        store_pack(dx, out);
      }
    }
  }
}

template <class T> DEVICE void mean_time(const MeanTime& p, const Operands& io) {
  SHARED float memory[THREADS * MOST];
  bool packed = p.channels % PACK<T> == 0 && aligned(io.at[0]) && aligned(io.at[1]);
  if (p.backward) {
    if (packed) spread<T, PACK<T>>(p, io);
    else spread<T, 1>(p, io);
  } else {
    if (packed) mean_strips<T, PACK<T>>(p, io, memory);
    else mean_strips<T, 1>(p, io, memory);
  }
}

}  // namespace

ENTRIES(column_sums, ColumnSums, THREADS, column_sums)
ENTRIES(column_sums_end, ColumnSums, PARTIALS_THREADS, column_sums_end)
ENTRIES(mean_time, MeanTime, THREADS, mean_time)
