// archs: 90a
// Matrix products of 16-bit types on Hopper, fed by its copy engine: for operands that it can take (rows on
// 16 bytes, one product, k in one piece) and tiles that fill the card. gemm_wgmma.cu has the rest.
//
// A block computes tiles of 128 x 128, 192 or 256; it stays and takes one tile after the other. One
// thread asks the copy engine for tiles of A and B, 64 deep, into four to six buffers in turn; two
// warpgroups of 240 registers multiply 64 rows each. Two blocks, one below the other, are a cluster:
// each fetches half of the columns of B, for both. While one tile's results leave, the next tile's
// operands come. What follows a product is done in registers; C and what is like it (the sum before a
// GELU, a residual, ...) pass through shared memory, 16 x 64 a warp, and over the copy engine.
//
// Predicted: parity with cuBLAS, 1.5 times gemm_wgmma.cu, whose cp.async keeps all threads busy with
// addresses and whose blocks read twice as much of the second-level cache. Measured on an H200, medians
// interleaved in one run, here, cuBLAS 13, gemm_wgmma.cu; TFLOP/s: 4096^3 701, 706, 477; 8192^3 696, 679,
// 465; 3072^3 708, 716, 425; 1024^3 249, 352, 169. us: 65536 x 1024 x 256 73.7, 69.7, 107.9; 51200 x 512 x 128
// 23.1, 22.8, 32.3; 51200 x 128 x 512 20.4, 21.1, 23.8; 16384 x 384 x 128 8.1, 7.8, 10.9; 16384 x 128 x 128 5.3,
// 5.0, 5.5. With what follows, here and gemm_wgmma.cu: 51200 x 512 x 128 with a GELU 53, 63, by its slope 57,
// 85; 51200 x 128 x 512 with dropout and a residual 33, 40; 51200 x 128 x 384 onto what is there 20, 30. Behind
// gemm_wgmma.cu: 12800 x 72 x 128 (5.0, 4.6), 6400 x 512 x 128 with a GELU (12.8, 11.5).
// What lost: 16-byte stores of C instead of the copy engine's (8 % at 65536 x 1024 x 256); all that
// follows a product by way of f32 in shared memory (0.7 of gemm_wgmma.cu), and in registers 8 elements
// at a time (1.0; 32 at a time 1.2 to 1.5); one block a cluster (496 TFLOP/s instead of 652 at 8192^3 with 128
// columns); three buffers of 256 columns for more room for C (659 instead of 689 at 4096^3). Tiles of 64
// columns gained at 1024^3 alone (7.9 us instead of 9.1). Bands of 4, 8 or 16: the same.
#include "gemm_tma.h"

namespace {

constexpr int THREADS = 384, BAND = 8;
// All that a block can have.
constexpr int MEMORY = 232448;

template <int BN> struct Shape : Tiles<2, BN, 2, BN == 192 ? 4 : 2> {
  static constexpr bool STAYS = true;
  static constexpr DEVICE unsigned stages() { return (MEMORY - Shape::TURNS - 64) / (Shape::STAGE + 16); }

  // The tiles of C in the order in which clusters take them: bands of rows, walked column by column. What
  // is computed at the same time shares rows of A and columns of B in the second-level cache.
  struct Walk {
    static constexpr unsigned HIGH = Shape::CLUSTER * Shape::BM;
    unsigned rows, columns, next;
    DEVICE explicit Walk(const Gemm& p)
        : rows((p.m + HIGH - 1) / HIGH), columns((p.n + BN - 1) / BN), next(block_x() / Shape::CLUSTER) {}
    DEVICE bool take(unsigned& row0, unsigned& col0) {
      if (next >= rows * columns) return false;
      unsigned band = next / (BAND * columns), inside = next % (BAND * columns);
      unsigned high = rows - band * BAND < BAND ? rows - band * BAND : BAND;
      row0 = (band * BAND + inside % high) * HIGH + block_x() % Shape::CLUSTER * Shape::BM;
      col0 = inside / high * BN;
      next += grid_x() / Shape::CLUSTER;
      return true;
    }
  };
};

}  // namespace

#define NAMED(name, a_t, b_t, columns, type)                                                            \
  GLOBAL void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, 1) name##_tma_##columns##_##type(    \
      ARGUMENT Gemm p, ARGUMENT Operands io, ARGUMENT TensorMap a, ARGUMENT TensorMap b,                \
      ARGUMENT TensorMap c, ARGUMENT TensorMap beside) {                                                \
    product<type, Shape<columns>, a_t, b_t>(p, io, a, b, c, beside);                                    \
  }
#define WIDTHS(name, a_t, b_t, type) \
  NAMED(name, a_t, b_t, 128, type) NAMED(name, a_t, b_t, 192, type) NAMED(name, a_t, b_t, 256, type)
#define LAYOUTS(type) \
  WIDTHS(gemm_nt, false, false, type) WIDTHS(gemm_nn, false, true, type) WIDTHS(gemm_tn, true, true, type)
LAYOUTS(bf16)
LAYOUTS(f16)
