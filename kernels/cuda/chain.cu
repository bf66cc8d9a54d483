// Ops that go row by row, one after the other, in one launch.
//
// Between two attentions a transformer layer takes each token's row by itself: a projection, a layer
// norm, the two products of the MLP, a layer norm, the next projection; and the same backwards. Where
// rows are few, each of these as a launch of its own costs 6 to 7 us on an H200, of which the work is
// one. Here a block takes ROWS rows through all of them. What an op leaves is stored as the op alone
// would store it, for the gradients, and kept in shared memory for the next one: two panels in turn.
// Weights come as one stream of tiles through STAGES buffers of asynchronous copies that does not stop
// at the ends of products, so that while a block normalises rows its next weights are on their way.
//
// A block reads all weights of its ops: 393 KB for one layer of 128 channels.
//
// Predicted: 6 us for the forward chain of such a layer, what its weights take from the second-level
// cache. Measured on an H200, 1600 rows, 128 channels: 24 us forward (six ops), 29 us backward (eight),
// where single launches take some 39 and 52; the whole step of six layers 0.80 ms, then 0.64 with what
// hung beside it spread over three queues. It is bound by the instructions of a few warps, 5000 a
// warp at 6 cycles each: without any copy, or without any product, it takes 95 % of the time. So a product of
// more than 128 K weights is faster as a launch of its own, and so are more rows than one block on each
// multiprocessor has. What lost: blocks of 32 rows (35 us forward) and of 64; 8 warps (26 us); one stream
// of weights for the block, with a barrier each tile (29 us); weights copied by each lane for
// itself, in the order of its own reads, without ldmatrix, 8 columns a warp (27 us); 6 and 9 buffers (the same).
// src/backend/gpu/chain.rs puts chains together.
#define ROOMY
#include "../gemm.h"
#include "mma.h"

namespace {

enum : unsigned { LINK_GEMM, LINK_LAYERNORM, LINK_LAYERNORM_BACKWARD, LINK_DROPOUT };

// One op of a chain: its own parameters and operands. It reads rows of `width` elements. `limit` and
// `keep` are its Mask's.
struct Link {
  unsigned kind, width, limit;
  float keep;
  union {
    Gemm gemm;
    LayerNorm norm;
    LayerNormBackward norm_backward;
    Dropout dropout;
    unsigned words[14];
  };
  Operands io;
};
SIZE(Link, 184);
constexpr int MAX_LINKS = 8;
// Buffers of a warp; src/backend/gpu/chain.rs plans their bytes.
constexpr int STAGES = 3;
// `pitch`: elements between rows of either panel; 8 more than a multiple of 16, so that ldmatrix's rows
// do not meet in a bank.
struct Chain { unsigned rows, count, pitch[2]; Link links[MAX_LINKS]; };
SIZE(Chain, 16 + MAX_LINKS * 184);

// A warp has COLS columns of a product at a time, for all rows, and brings its own weights, BK deep.
constexpr int WARPS = 16, THREADS = 32 * WARPS, ROWS = 16, COLS = 16, BK = 64;

// The weights of all of a chain's products as one warp needs them.
template <class T> struct Weights {
  static constexpr unsigned TILE = COLS * BK * 2;

  const Chain& p;
  unsigned tiles, warp, lane;
  // Of the next tile to fetch: its product, its first column, what is left along k, and this lane's
  // four pieces of 16 bytes: the first, bytes to the next, and from tile to tile. Weights lie as [n, k],
  // where eight pieces make a row of a tile, or as [k, n], where two do.
  unsigned link, n, left;
  const char* from;
  unsigned hop, step, to, turn;
  bool across_n, low;
  // Buffers that the next tile to fetch and the next to use lie in, in bytes.
  unsigned filled, used;

  // Bytes at which a piece lies: of eight rows of a column of pieces no two meet in a bank.
  static DEVICE unsigned at_n(unsigned row, unsigned piece) { return (row * 8 + (piece ^ (row & 7))) * 16; }
  static DEVICE unsigned at_k(unsigned row, unsigned piece) { return (row * 2 + (piece ^ (row >> 2 & 1))) * 16; }

  DEVICE Weights(const Chain& p, char* memory)
      : p(p), warp(thread_x() / 32), lane(thread_x() % 32), link(0), n(warp * COLS), left(0), filled(0), used(0) {
    tiles = shared_address(memory) + warp * STAGES * TILE;
    strip();
  }

  // To the next columns of the warp, of this product or a later one.
  DEVICE void strip() {
    for (; link < p.count; ++link, n = warp * COLS) {
      const Gemm& g = p.links[link].gemm;
      if (p.links[link].kind != LINK_GEMM || n >= g.n) continue;
      across_n = g.b_rs == 1;
      left = g.k;
      unsigned ld = across_n ? g.b_cs : g.b_rs;
      unsigned row = across_n ? lane / 8 : lane / 2, piece = across_n ? lane % 8 : lane % 2;
      from = input<char>(p.links[link].io, 1) + 2 * (across_n ? size_t(n + row) * ld : size_t(row) * ld + n) + 16 * piece;
      hop = 2 * ld * (across_n ? 4 : 16);
      step = 2 * BK * (across_n ? 1 : ld);
      to = across_n ? at_n(row, piece) : at_k(row, piece);
      // Four rows further on, at_n's exclusive-or turns a piece by four.
      turn = across_n ? to ^ 64u : to;
      low = !across_n || piece < 4;
      return;
    }
  }

  // Begins the copy of the next tile; an empty group where there are no more.
  DEVICE void fetch() {
    if (left > 0) {
      bool whole = left >= BK;
      unsigned at = tiles + filled;
      const char* source = from;
      if (whole || low) copy(at + to, source), copy(at + turn + 512, source + hop);
      if (whole || (low && across_n)) {
        source += 2 * size_t(hop);
        copy(at + to + 1024, source), copy(at + turn + 1536, source + hop);
      }
      from += step;
      left = whole ? left - BK : 0;
      if (left == 0) n += WARPS * COLS, strip();
      filled = filled == (STAGES - 1) * TILE ? 0 : filled + TILE;
    }
    copy_async_commit();
  }

  static DEVICE void copy(unsigned shared, const char* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(shared), "l"(global) : "memory");
  }
  static DEVICE void load(unsigned (&r)[4], unsigned shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared) : "memory");
  }
  static DEVICE void load_transposed(unsigned (&r)[4], unsigned shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared) : "memory");
  }

  // c += the panel's rows times the warp's next columns, `depth` deep.
  template <bool ACROSS_N>
  DEVICE void add_products(float (&c)[2][4], unsigned panel, unsigned pitch, unsigned depth) {
    unsigned a_at = panel + (lane % 16 * pitch + lane / 16 * 8) * 2;
    unsigned b_at = ACROSS_N ? at_n(lane % 8 + lane / 16 * 8, lane / 8 % 2) : at_k(lane % 16, lane / 16);
    NO_UNROLL for (unsigned k = 0; k < depth; k += BK) {
      copy_async_wait<STAGES - 2>();
      wave_barrier();
      fetch();
      unsigned tile = tiles + used;
      UNROLL for (int half = 0; half < 2; ++half) {
        if (half && k + 32 >= depth) break;
        unsigned a[2][4], b[2][4];
        UNROLL for (int s = 0; s < 2; ++s) {
          int at = half * 2 + s;
          if (ACROSS_N) load(b[s], tile + (b_at ^ unsigned(at * 32)));
          else load_transposed(b[s], tile + b_at + at * 512);
          load(a[s], a_at + at * 32);
        }
        UNROLL for (int s = 0; s < 2; ++s) UNROLL for (int j = 0; j < 2; ++j) {
          unsigned pair[2] = {b[s][2 * j], b[s][2 * j + 1]};
          mma<T>(c[j], a[s], pair);
        }
      }
      a_at += 2 * BK;
      used = used == (STAGES - 1) * TILE ? 0 : used + TILE;
    }
  }
};

template <class T> struct Chained {
  static constexpr int PITCH = COLS + 4, PASSAGE = WARPS * ROWS * PITCH * 4;
  // What is no product has a warp to a row, a lane PACKS times 8 elements of it.
  static constexpr int PACKS = 2;
  static_assert(WARPS == ROWS, "a warp a row");

  const Chain& p;
  Weights<T> weights;
  float* passage;
  T* first_panel;
  unsigned row0, warp, lane;

  DEVICE explicit Chained(const Chain& p)
      : p(p), weights(p, dynamic_shared()), row0(block_x() * ROWS), warp(thread_x() / 32), lane(thread_x() % 32) {
    char* memory = dynamic_shared() + WARPS * STAGES * Weights<T>::TILE;
    passage = reinterpret_cast<float*>(memory) + warp * ROWS * PITCH;
    first_panel = reinterpret_cast<T*>(memory + PASSAGE);
  }

  DEVICE T* panel(unsigned l) const { return first_panel + l % 2 * ROWS * p.pitch[0]; }

  DEVICE void product(const Link& link, const T* from, unsigned from_pitch, T* to, unsigned to_pitch) {
    const Gemm& g = link.gemm;
    Mask mask;
    if (g.flags & GEMM_DROPOUT) mask = Mask(Epilogue::state(g, link.io), g.stream, link.limit, link.keep);
    Epilogue epilogue(g, link.io, mask);
    // Two lanes to a row of the warp's columns.
    unsigned row = row0 + lane / 2;
    bool live = row < p.rows;
    NO_UNROLL for (unsigned n = warp * COLS; n < g.n; n += WARPS * COLS) {
      unsigned col = n + lane % 2 * 8;
      // Asked for now, so that it has come when the sums are there.
      float bias[8];
      Epilogue::Beside<T, 8> beside = {};
      epilogue.template load_bias<8>(col, 8, bias);
      if (live) epilogue.template fetch<T, 8>(size_t(row) * g.n + col, beside);
      float c[2][4] = {};
      if (g.b_rs == 1) weights.template add_products<true>(c, shared_address(from), from_pitch, g.k);
      else weights.template add_products<false>(c, shared_address(from), from_pitch, g.k);
      UNROLL for (int j = 0; j < 2; ++j) {
        float* at = passage + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
        at[0] = c[j][0], at[1] = c[j][1];
        at[8 * PITCH] = c[j][2], at[8 * PITCH + 1] = c[j][3];
      }
      wave_barrier();
      float x[8];
      load_pack(x, passage + lane / 2 * PITCH + lane % 2 * 8);
      UNROLL for (int e = 0; e < 8; ++e) x[e] += bias[e];
      if (live) epilogue.template finish<T, 8>(size_t(row) * g.n + col, x, beside);
      if (to) store_pack(to + lane / 2 * to_pitch + col, x);
      wave_barrier();
    }
  }

  // As layernorm of norm.cu.
  DEVICE void normalise(const LayerNorm& n, const Operands& io, const T* from, unsigned from_pitch, T* to,
                        unsigned to_pitch) const {
    Any gamma = any(io, 1), beta = any(io, 2), mean = any(io, 4), rstd = any(io, 5);
    T* y = output<T>(io, 3);
    float inverse = 1.0f / float(n.cols);
    unsigned row = row0 + warp;
    float x[PACKS][8] = {}, sum = 0.0f, squares = 0.0f;
    UNROLL for (int k = 0; k < PACKS; ++k) {
      unsigned col = (unsigned(k) * 32 + lane) * 8;
      if (col >= n.cols) continue;
      load_pack(x[k], from + warp * from_pitch + col);
      UNROLL for (int i = 0; i < 8; ++i) sum += x[k][i];
    }
    float mu = lanes_sum(sum) * inverse;
    UNROLL for (int k = 0; k < PACKS; ++k) {
      if ((unsigned(k) * 32 + lane) * 8 >= n.cols) continue;
      UNROLL for (int i = 0; i < 8; ++i) {
        float d = x[k][i] - mu;
        squares = fma_of(d, d, squares);
      }
    }
    float scale = rsqrt_of(fma_of(lanes_sum(squares), inverse, n.epsilon));
    UNROLL for (int k = 0; k < PACKS; ++k) {
      unsigned col = (unsigned(k) * 32 + lane) * 8;
      if (col >= n.cols) continue;
      float g[8], b[8];
      gamma.load(g, col);
      beta.load(b, col);
      UNROLL for (int i = 0; i < 8; ++i) x[k][i] = fma_of((x[k][i] - mu) * scale, g[i], b[i]);
      if (row < p.rows) store_pack(y + size_t(row) * n.cols + col, x[k]);
      if (to) store_pack(to + warp * to_pitch + col, x[k]);
    }
    if (lane == 0 && row < p.rows) mean.set(row, mu), rstd.set(row, scale);
  }

  // As layernorm_backward of norm.cu.
  DEVICE void normalise_backward(const LayerNormBackward& n, const Operands& io, const T* from,
                                 unsigned from_pitch, T* to, unsigned to_pitch) const {
    const T* x = input<T>(io, 1);
    Any gamma = any(io, 2), mean = any(io, 3), rstd = any(io, 4);
    T* dx = output<T>(io, 5);
    float inverse = 1.0f / float(n.cols);
    unsigned row = row0 + warp;
    bool live = row < p.rows;
    float mu = live ? mean[row] : 0.0f, scale = live ? rstd[row] : 0.0f;
    float grad[PACKS][8] = {}, normal[PACKS][8] = {}, sum = 0.0f, dot = 0.0f;
    Pack<T, 8> held[PACKS] = {};
    UNROLL for (int k = 0; k < PACKS; ++k) {
      unsigned col = (unsigned(k) * 32 + lane) * 8;
      if (col >= n.cols) continue;
      size_t at = size_t(row) * n.cols + col;
      if (live) load_pack(normal[k], x + at);
      if (live && n.accumulate) held[k] = *reinterpret_cast<const Pack<T, 8>*>(dx + at);
      float g[8];
      gamma.load(g, col);
      load_pack(grad[k], from + warp * from_pitch + col);
      UNROLL for (int i = 0; i < 8; ++i) {
        normal[k][i] = (normal[k][i] - mu) * scale;
        grad[k][i] *= g[i];
        sum += grad[k][i];
        dot = fma_of(grad[k][i], normal[k][i], dot);
      }
    }
    float mean_g = lanes_sum(sum) * inverse, mean_gx = lanes_sum(dot) * inverse;
    UNROLL for (int k = 0; k < PACKS; ++k) {
      unsigned col = (unsigned(k) * 32 + lane) * 8;
      if (col >= n.cols) continue;
      UNROLL for (int i = 0; i < 8; ++i)
        grad[k][i] = fma_of(scale, grad[k][i] - mean_g - normal[k][i] * mean_gx, value_of(held[k].at[i]));
      if (live) store_pack(dx + size_t(row) * n.cols + col, grad[k]);
      if (to) store_pack(to + warp * to_pitch + col, grad[k]);
    }
  }

  // As dropout of elementwise.cu; the next op reads what it leaves.
  DEVICE void drop(const Link& link, const T* from, unsigned from_pitch, T* to, unsigned to_pitch) const {
    const Dropout& d = link.dropout;
    Mask mask(input<int>(link.io, 1), d.stream, link.limit, link.keep);
    T* y = output<T>(link.io, 2);
    unsigned width = link.width, chunks = width / 4;
    NO_UNROLL for (unsigned i = thread_x(); i < ROWS * chunks; i += THREADS) {
      unsigned line = i / chunks, col = i % chunks * 4;
      size_t first = size_t(row0 + line) * width + col;
      bool live = row0 + line < p.rows;
      float x[4], out[4] = {};
      load_pack(x, from + line * from_pitch + col);
      if (d.accumulate && live) load_pack(out, y + first);
      Words words = mask.words(unsigned(first) / 4);
      UNROLL for (int e = 0; e < 4; ++e) out[e] = fma_of(x[e], mask.factor(words.at[e]), out[e]);
      if (live) store_pack(y + first, out);
      if (to) store_pack(to + line * to_pitch + col, out);
    }
  }

  DEVICE void run() {
    const Link& first = p.links[0];
    const T* x = input<T>(first.io, 0);
    unsigned chunks = first.width / 8;
    for (unsigned i = thread_x(); i < ROWS * chunks; i += THREADS) {
      unsigned line = i / chunks, chunk = i % chunks;
      bool live = row0 + line < p.rows;
      const T* from = x + (live ? size_t(row0 + line) * first.width + chunk * 8 : 0);
      copy_async(first_panel + line * p.pitch[0] + chunk * 8, from, live);
    }
    copy_async_commit();
    UNROLL for (int s = 0; s < STAGES - 1; ++s) weights.fetch();
    copy_async_wait<STAGES - 1>();
    NO_UNROLL for (unsigned l = 0; l < p.count; ++l) {
      // The panel before is whole; what is written now nobody reads any more.
      barrier();
      const Link& link = p.links[l];
      const T* from = panel(l);
      T* to = l + 1 < p.count ? panel(l + 1) : nullptr;
      unsigned from_pitch = p.pitch[l % 2], to_pitch = p.pitch[(l + 1) % 2];
      switch (link.kind) {
        case LINK_GEMM: product(link, from, from_pitch, to, to_pitch); break;
        case LINK_LAYERNORM: normalise(link.norm, link.io, from, from_pitch, to, to_pitch); break;
        case LINK_LAYERNORM_BACKWARD:
          normalise_backward(link.norm_backward, link.io, from, from_pitch, to, to_pitch);
          break;
        default: drop(link, from, from_pitch, to, to_pitch);
      }
    }
  }
};

template <class T> DEVICE void chain(const Chain& p, const Operands&) { Chained<T>(p).run(); }

}  // namespace

ENTRY(chain, bf16, bf16, Chain, THREADS, chain)
ENTRY(chain, f16, f16, Chain, THREADS, chain)
