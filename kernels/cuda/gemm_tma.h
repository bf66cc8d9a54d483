// What the matrix products that Hopper's copy engine feeds share: the buffers, who fills them, who multiplies,
// and what follows a product. gemm_tma.cu has the kernel that stays for many tiles, gemm_small.cu those of
// one tile a block.
//
// One thread asks the copy engine for tiles of A and B, 64 deep, into buffers in turn; warpgroups
// multiply 64 rows each. What follows a product is done in registers; C and what is like it
// (the sum before a GELU, a residual, ...) pass through shared memory, 16 x 64 a warp, and over the
// copy engine.
#pragma once
#include "../gemm.h"
#include "tma.h"
#include "wgmma.h"

constexpr int BK = 64;
// What the copy engine moves at once: 64 x 64 elements of A or B, of C 16 x 64.
constexpr int BOX = 64 * BK * 2, SLOT = 16 * 64 * 2;

// A block's tile of C, 64 GROUPS x BN, and how many blocks above each other are a cluster. Each warp has
// SLOTS for C on its way. What C is put together with comes into as many as a tile has pieces of 64 columns;
// where there are fewer the kernel does without. SUMS: A's rows can be summed as well.
template <int GROUPS, int BN_, int CLUSTER_, int SLOTS_, bool SUMS_ = false> struct Tiles {
  static constexpr int BM = 64 * GROUPS, BN = BN_, CLUSTER = CLUSTER_, WARPS = 4 * GROUPS;
  static constexpr int STAGE = (BM + BN) / 64 * BOX;
  static constexpr int SLOTS = SLOTS_, TURN = SLOTS * SLOT, TURNS = WARPS * TURN;
  static constexpr bool BRINGS = SLOTS >= BN / 64, SUMS = SUMS_;
  // Eight rows of ones to multiply A with.
  static constexpr int ONES = SUMS ? 1024 : 0;
};

// The buffers in shared memory, and how far this thread has come in them: slots, buffers, ones, for each
// buffer a barrier that says it is full and one that says it is empty, a barrier for each warp.
template <class S> struct Ring {
  unsigned memory, stages = S::stages(), stage = 0, parity = 0;
  DEVICE explicit Ring(unsigned memory) : memory(memory) {}
  DEVICE unsigned tile() const { return memory + S::TURNS + stage * S::STAGE; }
  DEVICE unsigned ones() const { return memory + S::TURNS + stages * S::STAGE; }
  DEVICE unsigned full() const { return barrier_at(stage); }
  DEVICE unsigned empty() const { return barrier_at(stages + stage); }
  DEVICE unsigned come(unsigned warp) const { return barrier_at(2 * stages + warp); }
  DEVICE void next() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
  // By one warp.
  DEVICE void make() const {
    for (unsigned i = thread_x(); i < 2 * stages + S::WARPS; i += WAVE)
      barrier_init(barrier_at(i), i >= stages && i < 2 * stages ? S::WARPS * S::CLUSTER : 1);
    barriers_are_made();
  }

 private:
  DEVICE unsigned barrier_at(unsigned which) const { return ones() + S::ONES + 8 * which; }
};

// One thread asks for all tiles, each as soon as the cluster has read what lay in its place. What lies
// beyond the matrices comes as zeros. A_T: A lies along m; B_T: B lies along n.
template <class S, bool A_T, bool B_T>
DEVICE void produce(const Gemm& p, const TensorMap& a, const TensorMap& b, unsigned memory) {
  Ring<S> ring(memory);
  typename S::Walk walk(p);
  unsigned row0, col0, rank = block_x() % S::CLUSTER;
  while (walk.take(row0, col0)) {
    for (unsigned k = 0; k < p.k; k += BK) {
      barrier_wait(ring.empty(), ring.parity ^ 1);
      unsigned full = ring.full(), tile = ring.tile();
      barrier_expect(full, S::STAGE);
      UNROLL for (unsigned i = 0; i < S::BM / 64; ++i)
        load_box(tile + i * BOX, a, A_T ? row0 + 64 * i : k, A_T ? k : row0 + 64 * i, full);
      UNROLL for (unsigned i = 0; i < S::BN / 64; ++i) {
        unsigned x = B_T ? col0 + 64 * i : k, y = B_T ? k : col0 + 64 * i, to = tile + (S::BM / 64 + i) * BOX;
        // The blocks of a cluster have the same columns: each fetches every other box for both.
        if constexpr (S::CLUSTER == 1) load_box(to, b, x, y, full);
        else if (i % S::CLUSTER == rank) load_box(to, b, x, y, full, (1 << S::CLUSTER) - 1);
      }
      ring.next();
    }
  }
}

// Where a warp's part of C lies, 16 rows from `top`, columns from `col0`; its slots in shared memory.
struct Place {
  unsigned top, col0, slots, lane;
};

// What follows a product, where it can be done to accumulators in registers; A's sums are apart.
struct After {
  unsigned flags;
  const float* bias;
  const int* state;
  bool in_registers;

  // `kind`: of the product's operands.
  DEVICE After(const Gemm& p, const Operands& io, unsigned kind) {
    flags = p.flags & ~(GEMM_SUMS | GEMM_SUMS_ACCUMULATE);
    unsigned out = Epilogue::inputs(flags);
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
template <class S> struct Slots {
  unsigned next = 0;
  DEVICE unsigned take(Place at) {
    unsigned slot = at.slots + next * SLOT;
    next = (next + 1) % S::SLOTS;
    return slot;
  }
};

// Where in a slot a lane's row of four matrices lies, columns 16 q ..: rows of 128 bytes, swizzled.
DEVICE unsigned row_in(unsigned slot, unsigned lane, int q) {
  unsigned line = lane % 16;
  return slot + line * 128 + ((unsigned(q) * 2 + lane / 16) ^ (line & 7)) * 16;
}
// A lane's 8 elements of 16 columns, to a slot; one of 64 columns that came from there.
template <class T> DEVICE void put(unsigned row, const float* x) {
  store_matrices(row, pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
}
template <class T> DEVICE float element(const unsigned (&pairs)[4][4], int i) {
  unsigned pair = pairs[i / 8][i % 8 / 2];
  return value_of(T{(unsigned short)(i % 2 ? pair >> 16 : pair)});
}

// C with nothing but a bias.
template <class T, class S>
DEVICE void store_plain(const Gemm& p, const After& after, const TensorMap& map, const float (&c)[S::BN / 2], Place at,
                        Slots<S>& slots) {
  UNROLL for (int chunk = 0; chunk < S::BN / 64; ++chunk) {
    unsigned column = at.col0 + chunk * 64;
    if (column >= p.n) break;
    Bias bias(after.bias, column, p.n, at.lane);
    unsigned slot = slots.take(at);
    stores_wait<S::SLOTS - 1>();
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
template <class S>
DEVICE void bring(const Gemm& p, const TensorMap& map, Place at, Slots<S> slots, unsigned come) {
  stores_wait<S::SLOTS - S::BN / 64>();
  wave_barrier();
  if (at.lane != 0) return;
  unsigned columns = p.n - at.col0 < S::BN ? p.n - at.col0 : S::BN, chunks = (columns + 63) / 64;
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
template <class T, class S>
DEVICE void store_followed(const Gemm& p, const After& after, const TensorMap& map, const TensorMap& beside,
                           const Mask& mask, const float (&c)[S::BN / 2], Place at, Slots<S>& slots) {
  unsigned lane = at.lane, flags = after.flags;
  // Written out once for all chunks: only what reads the accumulators knows which it is.
  NO_UNROLL for (unsigned chunk = 0; chunk < S::BN / 64; ++chunk) {
    unsigned column = at.col0 + chunk * 64;
    if (column >= p.n) break;
    float x[32];
    UNROLL for (int i = 0; i < 32; ++i) {
      x[i] = c[i];
      UNROLL for (unsigned which = 1; which < S::BN / 64; ++which) x[i] = chunk == which ? c[which * 32 + i] : x[i];
    }
    Bias bias(after.bias, column, p.n, lane);
    UNROLL for (int i = 0; i < 32; ++i) x[i] += bias.of(i);
    unsigned slot = slots.take(at), before = flags & GEMM_GELU ? slots.take(at) : slot;
    if constexpr (S::BRINGS) {
      if (after.brings()) {
        unsigned y[4][4];
        UNROLL for (int q = 0; q < 4; ++q) load_matrices(y[q], row_in(slot, lane, q));
        if (flags & GEMM_GELU_SLOPE) {
          UNROLL for (int i = 0; i < 32; ++i) x[i] *= gelu_slope(element<T>(y, i));
        }
        if (flags & GEMM_DROPOUT) drop(p, mask, at.top, column, lane, x);
        if (!(flags & GEMM_GELU_SLOPE)) {
          UNROLL for (int i = 0; i < 32; ++i) x[i] += element<T>(y, i);
        }
      }
    }
    if (!after.brings()) {
      if (flags & GEMM_GELU) {
        stores_wait<S::SLOTS / 2 - 1>();
        wave_barrier();
        UNROLL for (int q = 0; q < 4; ++q) put<T>(row_in(before, lane, q), x + 8 * q);
        UNROLL for (int i = 0; i < 32; ++i) x[i] = gelu(x[i]);
      } else {
        stores_wait<S::SLOTS - 1>();
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
template <class T, class S>
DEVICE void store_finished(const Gemm& p, const Operands& io, char* slots, const float (&c)[S::BN / 2], Place at) {
  Epilogue epilogue(p, io);
  bool packed = p.n % 8 == 0;
  float* turn = reinterpret_cast<float*>(slots);
  unsigned lane = at.lane, g = lane / 4;
  NO_UNROLL for (unsigned chunk = 0; chunk < S::BN / 64; ++chunk) {
    if (at.col0 + chunk * 64 >= p.n) break;
    wave_barrier();
    UNROLL for (unsigned which = 0; which < S::BN / 64; ++which) {
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

// Sums over k of A's rows: the columns of its product with ones, all alike.
DEVICE void store_sums(const Gemm& p, const Operands& io, const float (&sums)[4], Place at) {
  if (at.lane % 4 != 0) return;
  UNROLL for (unsigned h = 0; h < 2; ++h) {
    unsigned row = at.top + at.lane / 4 + 8 * h;
    if (row < p.m) Epilogue::sums(p, io).put(row, sums[2 * h], p.flags & GEMM_SUMS_ACCUMULATE);
  }
}

// A choice made when a kernel is compiled.
template <bool CHOSEN> struct With { static constexpr bool YES = CHOSEN; };

// A warpgroup computes 64 rows of each tile.
template <class T, class S, bool A_T, bool B_T>
DEVICE void consume(const Gemm& p, const Operands& io, const TensorMap& map, const TensorMap& beside, char* shared,
                    unsigned memory) {
  Ring<S> ring(memory);
  typename S::Walk walk(p);
  Slots<S> slots;
  After after(p, io, __is_same(T, bf16) ? KIND_BF16 : KIND_F16);
  // Before operands come, unless it were held in registers over many tiles.
  Mask mask;
  bool drops = (after.flags & GEMM_DROPOUT) != 0;
  if (!S::STAYS && drops) mask = Mask(after.state, p.stream, p.probability);
  unsigned warp = thread_x() / 32, lane = thread_x() % 32, come = ring.come(warp), came = 0;
  bool in_registers = after.in_registers && (S::BRINGS || !after.brings()), brings = in_registers && after.brings();
  unsigned first_a = piece_at(ring.tile() + warp / 4 * BOX), first_b = piece_at(ring.tile() + S::BM / 64 * BOX);
  unsigned ones = piece_at(ring.ones());
  unsigned row0, col0;
  while (walk.take(row0, col0)) {
    Place at{row0 + warp * 16, col0, memory + warp * S::TURN, lane};
    if constexpr (S::BRINGS) {
      if (brings && at.top < p.m) bring<S>(p, beside, at, slots, come);
    }
    // The bias comes to the first-level cache while operands come.
    float first = 0.0f;
    unsigned column = col0 + lane * (S::BN / 32);
    if (!S::STAYS && after.in_registers && after.bias && column < p.n) first = after.bias[column];
    float c[S::BN / 2], sums[4];
    bool wants_sums = S::SUMS && (p.flags & GEMM_SUMS) && col0 == 0;
    unsigned before = 0;
    // Two loops: a branch in the middle of a group of products would end the group, and each step wait for
    // its own products (8.2 us instead of 5.2 at tn 128 x 128 x 1600).
    auto steps = [&](auto sums_too) {
      for (unsigned k0 = 0; k0 < p.k; k0 += BK) {
        barrier_wait(ring.full(), ring.parity);
        unsigned a = first_a + ring.stage * (S::STAGE / 16), b = first_b + ring.stage * (S::STAGE / 16);
        products_begin();
        UNROLL for (unsigned k = 0; k < BK; k += 16)
          multiply<T, A_T, B_T>(c, a + k * (A_T ? 128 : 2) / 16, b + k * (B_T ? 128 : 2) / 16, k > 0 || k0 > 0);
        if constexpr (decltype(sums_too)::YES) {
          UNROLL for (unsigned k = 0; k < BK; k += 16)
            multiply<T, A_T, false>(sums, a + k * (A_T ? 128 : 2) / 16, ones + k * 2 / 16, k > 0 || k0 > 0);
        }
        products_commit();
        // The buffer of the step before has been read; the producers of the cluster write there, if any does.
        products_wait<1>();
        bool again = S::STAYS || k0 + (ring.stages - 1) * BK < p.k;
        if (k0 > 0 && again && lane < S::CLUSTER) barrier_arrive(before, lane);
        before = ring.empty();
        ring.next();
      }
    };
    if (wants_sums) steps(With<S::SUMS>{});
    else steps(With<false>{});
    products_wait<0>();
    if (S::STAYS && lane < S::CLUSTER) barrier_arrive(before, lane);
    if constexpr (!S::STAYS) asm volatile("" :: "f"(first));
    // Nothing that reads the accumulators stands before the wait.
    UNROLL for (int i = 0; i < S::BN / 2; ++i) asm volatile("" : "+f"(c[i]) :: "memory");
    if constexpr (S::SUMS) {
      UNROLL for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[i]) :: "memory");
      if (wants_sums) store_sums(p, io, sums, at);
    }
    if (at.top >= p.m) continue;
    if (S::STAYS && drops) mask = Mask(after.state, p.stream, p.probability);
    if (brings) barrier_wait(come, came), came ^= 1;
    if (!in_registers) store_finished<T, S>(p, io, shared + warp * S::TURN, c, at);
    else if (after.is_plain()) store_plain<T, S>(p, after, map, c, at, slots);
    else store_followed<T, S>(p, after, map, beside, mask, c, at, slots);
  }
  stores_wait<0>();
}

// `beside`: what C is put together with, or the sum before a GELU. The last threads produce.
template <class T, class S, bool A_T, bool B_T>
DEVICE void product(const Gemm& p, const Operands& io, const TensorMap& a, const TensorMap& b, const TensorMap& c,
                    const TensorMap& beside) {
  // Swizzled tiles begin on 1024 bytes.
  extern __shared__ __align__(1024) char tiles[];
  unsigned memory = opaque(shared_address(tiles));
  if (thread_x() < WAVE) Ring<S>(memory).make();
  if (thread_x() == 32 * S::WARPS) prefetch(a), prefetch(b), prefetch(c), prefetch(beside);
  if constexpr (S::SUMS) {
    unsigned one = ones_of<T>();
    if (thread_x() < S::ONES / 8)
      *reinterpret_cast<uint2*>(tiles + (Ring<S>(memory).ones() - memory) + thread_x() * 8) = uint2{one, one};
    to_matrix_units();
  }
  wave_barrier();
  if constexpr (S::CLUSTER > 1) cluster_barrier();
  else barrier();
  after_previous();
  if (thread_x() >= 32 * S::WARPS) {
    if constexpr (S::STAYS) fewer_registers<24>();
    if (thread_x() == 32 * S::WARPS) produce<S, A_T, B_T>(p, a, b, memory);
    wave_barrier();
  } else {
    if constexpr (S::STAYS) more_registers<240>();
    consume<T, S, A_T, B_T>(p, io, c, beside, tiles, memory);
  }
  // A block's memory and barriers are there until its neighbours need them no more. Where a block has one tile,
  // it waits for all that comes, and nothing comes later.
  if constexpr (S::STAYS) {
    wave_barrier();
    cluster_barrier();
  }
}
