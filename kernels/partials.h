// Second stage of sums over many rows: the blocks of the first stage leave rows of partial sums in
// the workspace, and here each column of those is added up, in the same order every time.
#pragma once
#include "portable.h"

// The workspace begins with the number of rows; the rows follow, of `width` floats each.
constexpr unsigned PARTIALS_HEADER = 64;

DEVICE float* partials_of(const Operands& io) {
  return static_cast<float*>(global(io.workspace)) + PARTIALS_HEADER;
}

// Thread 0 of block 0 of the first stage says how many rows there will be.
DEVICE void count_partials(const Operands& io, unsigned rows) {
  *static_cast<unsigned*>(global(io.workspace)) = rows;
}

DEVICE unsigned partials_count(const Operands& io) {
  return *static_cast<const unsigned*>(global(io.workspace));
}

constexpr int PARTIALS_THREADS = 256;
// Columns of a block: 32 bytes, the least that memory moves.
constexpr unsigned PARTIALS_COLUMNS = 8;

// Calls store(column, sum) for each of `width` columns. Grid: width / PARTIALS_COLUMNS, rounded up.
template <class Store> DEVICE void add_partials(const Operands& io, unsigned width, Store store) {
  // A turn takes the sums of four blocks on each of an H200's multiprocessors.
  constexpr unsigned lanes = PARTIALS_THREADS / PARTIALS_COLUMNS, AT_ONCE = 17;
  SHARED float sums[PARTIALS_THREADS];
  unsigned rows = partials_count(io);
  const float* partials = partials_of(io);
  unsigned column = block_x() * PARTIALS_COLUMNS + thread_x() % PARTIALS_COLUMNS;
  float sum = 0.0f;
  if (column < width)
    for (unsigned row = thread_x() / PARTIALS_COLUMNS; row < rows; row += AT_ONCE * lanes) {
      float at_once[AT_ONCE];
      UNROLL for (unsigned i = 0; i < AT_ONCE; ++i) {
        unsigned at = row + i * lanes;
        at_once[i] = at < rows ? partials[size_t(at) * width + column] : 0.0f;
      }
      UNROLL for (unsigned i = 0; i < AT_ONCE; ++i) sum += at_once[i];
    }
  sums[thread_x()] = sum;
  barrier();
  if (thread_x() < PARTIALS_COLUMNS && column < width) {
    float total = 0.0f;
    UNROLL for (unsigned i = 0; i < lanes; ++i) total += sums[i * PARTIALS_COLUMNS + thread_x()];
    store(column, total);
  }
}
