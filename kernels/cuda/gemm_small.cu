// archs: 90a
// Small matrix products of 16-bit types on Hopper, fed by its copy engine: of so few tiles that all are
// under way at once. gemm_tma.cu has the large ones.
//
// A block computes one tile of 64 x 64 or 128, and several are on a multiprocessor. One warp asks the copy engine for
// tiles of A and B, 64 deep, into as many buffers as the launch gives room for; a warpgroup multiplies.
// Everything that needs no results of the kernel before is done before that one has ended. Where A
// lies along m (gradients of weights), its rows are summed (gradients of biases) by 8 more columns of B, ones.
//
// Predicted: parity with cuBLAS' small tiles, 4 to 6 us at 1600 rows, where kernels for large products took 7 to 18.
// Measured on an H200, launches one behind the other in a graph, us here, what was taken before, cuBLAS 13
// where nothing follows; nt 1600 x 1024 x 256 with a GELU 6.5, 7.0; 1600 x 256 x 1024 with dropout and a residual 5.1,
// 14.5 (split sums); 1600 x 768 x 256 3.5, 4.7; 1600 x 512 x 128 with a GELU 4.3, 5.8; 6400 x 128 x 512 with dropout
// and a residual 5.7, 8.3; nn 1600 x 1024 x 256 by a GELU's slope 6.8, 6.7; 1600 x 256 x 1024 4.1, -, 4.3;
// 1600 x 256 x 256 2.3, -, 2.8; 6400 x 128 x 512 3.5, -, 4.1; tn 1024 x 256 x 1600 5.4, 12.4 (split sums), 5.0;
// 128 x 128 x 1600 5.2, 5.6, 4.4. Behind: 6400 x 1024 x 256 with a GELU (21.0, gemm_tma.cu 19.7); tn 256 x 256 x 6400
// (16.8, split sums 8.9). A step of 64 rows and columns each takes 160 ns, what a multiprocessor can fetch.
// Those of tn are with C in 16 bits and without sums of rows. What lost: clusters of 2, 4 or 8 blocks that
// share A, B or both (up to 17 % slower than none at 1600 rows of 128 and 256; up to 13 % faster at 6400 rows of 96);
// all of k = 1024 in buffers at once (5.8 us instead of 5.1 with six: no room for the next kernel's blocks to set up).
#include "gemm_tma.h"

namespace {

constexpr int THREADS = 160;

template <int BN, bool SUMS> struct Shape : Tiles<1, BN, 1, 2, SUMS> {
  static constexpr bool STAYS = false;
  // As many as the launch has room for.
  static DEVICE unsigned stages() {
    unsigned bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return (bytes - Shape::TURNS - Shape::ONES - 8 * Shape::WARPS) / (Shape::STAGE + 16);
  }
  struct Walk {
    bool left = true;
    DEVICE explicit Walk(const Gemm&) {}
    DEVICE bool take(unsigned& row0, unsigned& col0) {
      bool was = left;
      left = false, row0 = block_y() * Shape::BM, col0 = block_x() * BN;
      return was;
    }
  };
};

}  // namespace

#define NAMED(name, a_t, b_t, columns, blocks, type)                                                      \
  GLOBAL void __launch_bounds__(THREADS, blocks) name##_small_##columns##_##type(                         \
      ARGUMENT Gemm p, ARGUMENT Operands io, ARGUMENT TensorMap a, ARGUMENT TensorMap b,                  \
      ARGUMENT TensorMap c, ARGUMENT TensorMap beside) {                                                  \
    product<type, Shape<columns, a_t>, a_t, b_t>(p, io, a, b, c, beside);                                 \
  }
#define LAYOUTS(type)                                                                                     \
  NAMED(gemm_nt, false, false, 64, 3, type) NAMED(gemm_nt, false, false, 128, 2, type)                    \
  NAMED(gemm_nn, false, true, 64, 3, type) NAMED(gemm_nn, false, true, 128, 2, type)                      \
  NAMED(gemm_tn, true, true, 64, 3, type)
LAYOUTS(bf16)
LAYOUTS(f16)
