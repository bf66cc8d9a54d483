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
#include "../gemm.h"
#include "tma.h"
#include "wgmma.h"

namespace {

constexpr int BM = 128, BK = 64, THREADS = 384, CLUSTER = 2, BAND = 8;
// What the copy engine moves at once: 64 x 64 elements of A or B, of C 16 x 64.
constexpr int BOX = 64 * BK * 2, SLOT = 16 * 64 * 2;
// All that a block can have, less what rounding its start up takes.
constexpr int MEMORY = 232448 - 1024;

template <int BN> struct Shape {
  static constexpr int STAGE = (BM + BN) / 64 * BOX;
  // Slots of a warp for C on its way. What C is put together with comes into as many as a tile has pieces
  // of 64 columns; 256 columns leave no room for that.
  static constexpr int SLOTS = BN == 192 ? 4 : 2, TURN = SLOTS * SLOT, TURNS = 8 * TURN;
  static constexpr bool BRINGS = SLOTS >= BN / 64;
  static constexpr int STAGES = (MEMORY - TURNS - 64) / (STAGE + 16);
};

// The buffers in shared memory, and how far this thread has come in them: slots, buffers, for each
// buffer a barrier that says it is full and one that says it is empty, a barrier for each warp.
template <int BN> struct Ring {
  using S = Shape<BN>;
  unsigned memory, stage = 0, parity = 0;
  DEVICE explicit Ring(unsigned memory) : memory(memory) {}
  DEVICE unsigned tile() const { return memory + S::TURNS + stage * S::STAGE; }
  DEVICE unsigned full() const { return full_at(memory, stage); }
  DEVICE unsigned empty() const { return full() + 8 * S::STAGES; }
  DEVICE void next() {
    if (++stage == S::STAGES) stage = 0, parity ^= 1;
  }
  static DEVICE unsigned full_at(unsigned memory, unsigned stage) {
    return memory + S::TURNS + S::STAGES * S::STAGE + 8 * stage;
  }
  static DEVICE unsigned come_at(unsigned memory, unsigned warp) { return full_at(memory, 2 * S::STAGES + warp); }
  static DEVICE void make(unsigned memory) {
    for (unsigned stage = 0; stage < S::STAGES; ++stage) {
      barrier_init(full_at(memory, stage), 1);
      barrier_init(full_at(memory, S::STAGES + stage), 8 * CLUSTER);
    }
    for (unsigned warp = 0; warp < 8; ++warp) barrier_init(come_at(memory, warp), 1);
    barriers_are_made();
  }
};

// The tiles of C in the order in which clusters take them: bands of rows, walked column by column. What
// is computed at the same time shares rows of A and columns of B in the second-level cache.
template <int BN> struct Walk {
  unsigned rows, columns, next;
  DEVICE explicit Walk(const Gemm& p)
      : rows((p.m + CLUSTER * BM - 1) / (CLUSTER * BM)), columns((p.n + BN - 1) / BN), next(block_x() / CLUSTER) {}
  DEVICE bool take(unsigned& row0, unsigned& col0) {
    if (next >= rows * columns) return false;
    unsigned band = next / (BAND * columns), inside = next % (BAND * columns);
    unsigned high = rows - band * BAND < BAND ? rows - band * BAND : BAND;
    row0 = (band * BAND + inside % high) * (CLUSTER * BM) + block_x() % CLUSTER * BM;
    col0 = inside / high * BN;
    next += grid_x() / CLUSTER;
    return true;
  }
};

// One thread asks for all tiles, each as soon as the cluster has read what lay in its place. What lies
// beyond the matrices comes as zeros. A_T: A lies along m; B_T: B lies along n.
template <bool A_T, bool B_T, int BN>
DEVICE void produce(const Gemm& p, const TensorMap& a, const TensorMap& b, unsigned memory) {
  Ring<BN> ring(memory);
  Walk<BN> walk(p);
  unsigned row0, col0, rank = block_x() % CLUSTER;
  while (walk.take(row0, col0)) {
    for (unsigned k = 0; k < p.k; k += BK) {
      barrier_wait(ring.empty(), ring.parity ^ 1);
      unsigned full = ring.full(), tile = ring.tile();
      barrier_expect(full, Shape<BN>::STAGE);
      UNROLL for (unsigned i = 0; i < BM / 64; ++i)
        load_box(tile + i * BOX, a, A_T ? row0 + 64 * i : k, A_T ? k : row0 + 64 * i, full);
      // The blocks of a cluster have the same columns: each fetches every other box for both.
      UNROLL for (unsigned i = 0; i < BN / 64; ++i) {
        unsigned x = B_T ? col0 + 64 * i : k, y = B_T ? k : col0 + 64 * i;
        if (i % CLUSTER == rank) load_box(tile + (BM / 64 + i) * BOX, b, x, y, full, (1 << CLUSTER) - 1);
      }
      ring.next();
    }
  }
}

// Where a warp's part of C lies, 16 rows from `top`, columns from `col0`; its slots in shared memory.
struct Place {
  unsigned top, col0, slots, lane;
};

// What follows a product, where it can be done to accumulators in registers.
struct After {
  unsigned flags;
  const float* bias;
  const int* state;
  bool in_registers;

  template <class T> DEVICE void read(const Gemm& p, const Operands& io) {
    flags = p.flags;
    unsigned out = Epilogue::inputs(flags), kind = __is_same(T, bf16) ? KIND_BF16 : KIND_F16;
    bool with_bias = (flags & GEMM_BIAS) != 0;
    bias = with_bias ? input<float>(io, 2) : nullptr;
    state = input<int>(io, 2 + with_bias);
    // Of matrices besides C one at most: the host gives one map.
    unsigned others = flags & (GEMM_GELU | GEMM_RESIDUAL | GEMM_ACCUMULATE | GEMM_GELU_SLOPE);
    in_registers = (others & (others - 1)) == 0 && p.n % 8 == 0 && kind_of(io, int(out)) == kind &&
                   aligned(io.at[out]) && (!with_bias || (kind_of(io, 2) == KIND_F32 && aligned(bias, 8)));
    if (flags & GEMM_GELU) in_registers = in_registers && aligned(io.at[out + 1]);
    if (flags & (GEMM_RESIDUAL | GEMM_GELU_SLOPE)) in_registers = in_registers && aligned(io.at[out - 1]);
  }
  DEVICE bool is_plain() const { return (flags & ~GEMM_BIAS) == 0; }
  // A matrix is put together with C.
  DEVICE bool brings() const { return (flags & (GEMM_RESIDUAL | GEMM_ACCUMULATE | GEMM_GELU_SLOPE)) != 0; }
};

// A lane's part of the bias of 64 columns, read before anything is waited for.
struct Bias {
  float2 pair[8];
  DEVICE Bias(const float* bias, unsigned column, unsigned n, unsigned lane) {
    UNROLL for (unsigned j = 0; j < 8; ++j) {
      unsigned col = column + j * 8 + lane % 4 * 2;
      pair[j] = bias && col < n ? *reinterpret_cast<const float2*>(bias + col) : float2{0.0f, 0.0f};
    }
  }
  DEVICE float of(int i) const { return i % 2 ? pair[i / 4].y : pair[i / 4].x; }
};

// The slots of a warp in turn.
template <int BN> struct Slots {
  unsigned next = 0;
  DEVICE unsigned take(Place at) {
    unsigned slot = at.slots + next * SLOT;
    next = (next + 1) % Shape<BN>::SLOTS;
    return slot;
  }
};

// Where in a slot a lane's row of four matrices lies, columns 16 q ..: rows of 128 bytes, swizzled.
DEVICE unsigned row_in(unsigned slot, unsigned lane, int q) {
  unsigned line = lane % 16;
  return slot + line * 128 + ((unsigned(q) * 2 + lane / 16) ^ (line & 7)) * 16;
}
// A lane's 8 elements of 16 columns, to a slot and from there.
template <class T> DEVICE void put(unsigned row, const float* x) {
  store_matrices(row, pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
}
template <class T> DEVICE void get(float* x, unsigned row) {
  unsigned pairs[4];
  load_matrices(pairs, row);
  UNROLL for (int e = 0; e < 8; ++e)
    x[e] = value_of(T{(unsigned short)(e % 2 ? pairs[e / 2] >> 16 : pairs[e / 2])});
}

// C with nothing but a bias.
template <class T, int BN>
DEVICE void store_plain(const Gemm& p, const After& after, const TensorMap& map, const float (&c)[BN / 2], Place at,
                        Slots<BN>& slots) {
  UNROLL for (int chunk = 0; chunk < BN / 64; ++chunk) {
    unsigned column = at.col0 + chunk * 64;
    if (column >= p.n) break;
    Bias bias(after.bias, column, p.n, at.lane);
    unsigned slot = slots.take(at);
    stores_wait<Shape<BN>::SLOTS - 1>();
    wave_barrier();
    UNROLL for (int q = 0; q < 4; ++q) {
      float x[8];
      UNROLL for (int e = 0; e < 8; ++e) x[e] = c[chunk * 32 + q * 8 + e] + bias.of(q * 8 + e);
      put<T>(row_in(slot, at.lane, q), x);
    }
    to_matrix_units();
    wave_barrier();
    if (at.lane == 0) store_box(map, column, at.top, slot);
    stores_commit();
  }
}

// Asks for what this tile of C is put together with, into the slots that the tile will take.
template <int BN>
DEVICE void bring(const Gemm& p, const TensorMap& map, Place at, Slots<BN> slots, unsigned come) {
  stores_wait<Shape<BN>::SLOTS - BN / 64>();
  wave_barrier();
  if (at.lane != 0) return;
  unsigned columns = p.n - at.col0 < BN ? p.n - at.col0 : BN, chunks = (columns + 63) / 64;
  barrier_expect(come, chunks * SLOT);
  NO_UNROLL for (unsigned chunk = 0; chunk < chunks; ++chunk)
    load_box(slots.take(at), map, at.col0 + chunk * 64, at.top, come);
}

// A lane's 32 elements of 64 columns times the mask's factors: two lanes draw for four columns of a row
// each, and exchange halves.
DEVICE void drop(const Gemm& p, const Mask& mask, unsigned top, unsigned column, unsigned lane, float (&x)[32]) {
  bool odd = lane & 1;
  unsigned first = (top + lane / 4 + (odd ? 8 : 0)) * p.n + column;
  UNROLL for (unsigned j = 0; j < 8; ++j) {
    Words w = mask.words((first + j * 8) / 4 + lane % 4 / 2);
    unsigned kept[2] = {odd ? w.at[2] : w.at[0], odd ? w.at[3] : w.at[1]};
    unsigned got[2] = {shuffle_xor(odd ? w.at[0] : w.at[2], 1), shuffle_xor(odd ? w.at[1] : w.at[3], 1)};
    UNROLL for (int e = 0; e < 2; ++e) {
      x[4 * j + e] *= mask.factor(odd ? got[e] : kept[e]);
      x[4 * j + 2 + e] *= mask.factor(odd ? kept[e] : got[e]);
    }
  }
}

// C with what follows it, in registers: one thing after the other to all 32 elements of a lane, so that
// there is much independent work between two branches.
template <class T, int BN>
DEVICE void store_followed(const Gemm& p, const After& after, const TensorMap& map, const TensorMap& beside,
                           const float (&c)[BN / 2], Place at, Slots<BN>& slots) {
  unsigned lane = at.lane, flags = after.flags;
  Mask mask;
  if (flags & GEMM_DROPOUT) mask = Mask(after.state, p.stream, p.probability);
  // Written out once for all chunks: only what reads the accumulators knows which it is.
  NO_UNROLL for (unsigned chunk = 0; chunk < BN / 64; ++chunk) {
    unsigned column = at.col0 + chunk * 64;
    if (column >= p.n) break;
    float x[32];
    UNROLL for (int i = 0; i < 32; ++i) {
      x[i] = c[i];
      UNROLL for (unsigned which = 1; which < BN / 64; ++which) x[i] = chunk == which ? c[which * 32 + i] : x[i];
    }
    Bias bias(after.bias, column, p.n, lane);
    UNROLL for (int i = 0; i < 32; ++i) x[i] += bias.of(i);
    unsigned slot = slots.take(at), before = flags & GEMM_GELU ? slots.take(at) : slot;
    if constexpr (Shape<BN>::BRINGS) {
      if (after.brings()) {
        float y[32];
        UNROLL for (int q = 0; q < 4; ++q) get<T>(y + 8 * q, row_in(slot, lane, q));
        if (flags & GEMM_GELU_SLOPE) {
          UNROLL for (int i = 0; i < 32; ++i) x[i] *= gelu_slope(y[i]);
        }
        if (flags & GEMM_DROPOUT) drop(p, mask, at.top, column, lane, x);
        if (!(flags & GEMM_GELU_SLOPE)) {
          UNROLL for (int i = 0; i < 32; ++i) x[i] += y[i];
        }
      }
    }
    if (!after.brings()) {
      if (flags & GEMM_GELU) {
        stores_wait<Shape<BN>::SLOTS / 2 - 1>();
        wave_barrier();
        UNROLL for (int q = 0; q < 4; ++q) put<T>(row_in(before, lane, q), x + 8 * q);
        UNROLL for (int i = 0; i < 32; ++i) x[i] = gelu(x[i]);
      } else {
        stores_wait<Shape<BN>::SLOTS - 1>();
        wave_barrier();
      }
      if (flags & GEMM_DROPOUT) drop(p, mask, at.top, column, lane, x);
    }
    UNROLL for (int q = 0; q < 4; ++q) put<T>(row_in(slot, lane, q), x + 8 * q);
    to_matrix_units();
    wave_barrier();
    if (lane == 0) {
      store_box(map, column, at.top, slot);
      if (flags & GEMM_GELU) store_box(beside, column, at.top, before);
    }
    stores_commit();
  }
}

// C with all that can follow it, of any type and width, by way of f32 in shared memory.
template <class T, int BN>
DEVICE void store_finished(const Gemm& p, const Operands& io, char* slots, const float (&c)[BN / 2], Place at) {
  Epilogue epilogue(p, io);
  bool packed = p.n % 8 == 0;
  float* turn = reinterpret_cast<float*>(slots);
  unsigned lane = at.lane, g = lane / 4;
  NO_UNROLL for (unsigned chunk = 0; chunk < BN / 64; ++chunk) {
    if (at.col0 + chunk * 64 >= p.n) break;
    wave_barrier();
    UNROLL for (unsigned which = 0; which < BN / 64; ++which) {
      if (chunk != which) continue;
      UNROLL for (unsigned j = 0; j < 8; ++j) {
        // Groups of 8 columns are exchanged by the row, so that lanes meet in no bank.
        float* to = turn + g * 64 + (j ^ g) * 8 + lane % 4 * 2;
        unsigned i = 4 * (which * 8 + j);
        *reinterpret_cast<float2*>(to) = float2{c[i], c[i + 1]};
        *reinterpret_cast<float2*>(to + 8 * 64) = float2{c[i + 2], c[i + 3]};
      }
    }
    wave_barrier();
    unsigned col = at.col0 + chunk * 64 + lane % 8 * 8;
    unsigned count = col >= p.n ? 0 : p.n - col < 8 ? p.n - col : 8;
    float bias[8];
    epilogue.template load_bias<8>(col, count, bias);
    NO_UNROLL for (unsigned line = lane / 8; line < 16; line += 4) {
      if (at.top + line >= p.m || count == 0) continue;
      float x[8];
      load_pack(x, turn + line * 64 + ((lane ^ line) & 7) * 8);
      UNROLL for (int e = 0; e < 8; ++e) x[e] += bias[e];
      epilogue.template finish<T, 8>(size_t(at.top + line) * p.n + col, x, count, packed);
    }
  }
}

// A warpgroup computes 64 rows of each tile.
template <class T, bool A_T, bool B_T, int BN>
DEVICE void consume(const Gemm& p, const Operands& io, const TensorMap& map, const TensorMap& beside, char* shared,
                    unsigned memory) {
  using S = Shape<BN>;
  Ring<BN> ring(memory);
  Walk<BN> walk(p);
  Slots<BN> slots;
  After after;
  after.read<T>(p, io);
  unsigned warp = thread_x() / 32 - 4, lane = thread_x() % 32;
  unsigned come = Ring<BN>::come_at(memory, warp), came = 0;
  bool in_registers = after.in_registers && (S::BRINGS || !after.brings()), brings = in_registers && after.brings();
  unsigned first_a = piece_at(ring.tile() + warp / 4 * BOX), first_b = piece_at(ring.tile() + BM / 64 * BOX);
  unsigned row0, col0;
  while (walk.take(row0, col0)) {
    Place at{row0 + warp * 16, col0, memory + warp * S::TURN, lane};
    if constexpr (S::BRINGS) {
      if (brings && at.top < p.m) bring<BN>(p, beside, at, slots, come);
    }
    float c[BN / 2];
    unsigned before = 0;
    for (unsigned k0 = 0; k0 < p.k; k0 += BK) {
      barrier_wait(ring.full(), ring.parity);
      unsigned a = first_a + ring.stage * (S::STAGE / 16), b = first_b + ring.stage * (S::STAGE / 16);
      products_begin();
      UNROLL for (unsigned k = 0; k < BK; k += 16)
        multiply<T, A_T, B_T>(c, a + k * (A_T ? 128 : 2) / 16, b + k * (B_T ? 128 : 2) / 16, k > 0 || k0 > 0);
      products_commit();
      // The buffer of the step before has been read; both blocks' producers write there.
      products_wait<1>();
      if (k0 > 0 && lane < CLUSTER) barrier_arrive(before, lane);
      before = ring.empty();
      ring.next();
    }
    products_wait<0>();
    if (lane < CLUSTER) barrier_arrive(before, lane);
    // Nothing that reads the accumulators stands before the wait.
    UNROLL for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(c[i]) :: "memory");
    if (at.top >= p.m) continue;
    if (brings) barrier_wait(come, came), came ^= 1;
    if (!in_registers) store_finished<T, BN>(p, io, shared + warp * S::TURN, c, at);
    else if (after.is_plain()) store_plain<T, BN>(p, after, map, c, at, slots);
    else store_followed<T, BN>(p, after, map, beside, c, at, slots);
  }
  stores_wait<0>();
}

// `beside`: what C is put together with, or the sum before a GELU.
template <class T, bool A_T, bool B_T, int BN>
DEVICE void product(const Gemm& p, const Operands& io, const TensorMap& a, const TensorMap& b, const TensorMap& c,
                    const TensorMap& beside) {
  // Swizzled tiles begin on 1024 bytes.
  char* shared = reinterpret_cast<char*>((reinterpret_cast<size_t>(dynamic_shared()) + 1023) & ~size_t(1023));
  unsigned memory = opaque(shared_address(shared));
  if (thread_x() == 0) {
    prefetch(a), prefetch(b), prefetch(c), prefetch(beside);
    Ring<BN>::make(memory);
  }
  wave_barrier();
  cluster_barrier();
  after_previous();
  if (thread_x() < 128) {
    fewer_registers<24>();
    if (thread_x() == 0) produce<A_T, B_T, BN>(p, a, b, memory);
    wave_barrier();
  } else {
    more_registers<240>();
    consume<T, A_T, B_T, BN>(p, io, c, beside, shared, memory);
  }
  // A block's memory and barriers are there until its neighbour needs them no more.
  wave_barrier();
  cluster_barrier();
}

}  // namespace

#define NAMED(name, a_t, b_t, columns, type)                                                               \
  GLOBAL void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1) name##_tma_##columns##_##type( \
      ARGUMENT Gemm p, ARGUMENT Operands io, ARGUMENT TensorMap a, ARGUMENT TensorMap b,                   \
      ARGUMENT TensorMap c, ARGUMENT TensorMap beside) {                                                   \
    product<type, a_t, b_t, columns>(p, io, a, b, c, beside);                                              \
  }
#define WIDTHS(name, a_t, b_t, type) \
  NAMED(name, a_t, b_t, 128, type) NAMED(name, a_t, b_t, 192, type) NAMED(name, a_t, b_t, 256, type)
#define LAYOUTS(type) \
  WIDTHS(gemm_nt, false, false, type) WIDTHS(gemm_nn, false, true, type) WIDTHS(gemm_tn, true, true, type)
LAYOUTS(bf16)
LAYOUTS(f16)
