// Losses, each one number, and their gradients. Few elements: what counts is how long the chain of
// dependent steps is, so one block of many threads adds up a loss.
//
// The type in an entry's name is that of the first float operand, which for a gradient is the
// loss's: everything is read as what it is at run time.
#include "portable.h"

namespace {

constexpr int THREADS = 256, LOSS_THREADS = 512;

// Loss and slope at one prediction, by PointLoss::kind.
struct Point { float loss, slope; };
enum : unsigned { MSE = 0, L1 = 1, HUBER = 2 };

DEVICE Point point(const PointLoss& p, float x, float y) {
  float e = x - y, size = abs_of(e), sign = e > 0.0f ? 1.0f : -1.0f;
  if (p.kind == MSE) return {e * e, e + e};
  if (p.kind == L1) return {size, e == 0.0f ? 0.0f : sign};
  if (p.kind == HUBER) {
    if (size <= p.parameter) return {0.5f * e * e, e};
    // A prediction that is no number gives such a slope, too.
    return {p.parameter * (size - 0.5f * p.parameter), e == e ? p.parameter * sign : e};
  }
  // Binary cross-entropy of a logit. ln(1 + e^-|x|) stays finite for any logit.
  float small = exp_of(-abs_of(x)), softplus = log_of(1.0f + small);
  float weight = 1.0f + (p.parameter - 1.0f) * y;
  float sigmoid = (x >= 0.0f ? 1.0f : small) / (1.0f + small);
  float loss = (1.0f - y) * x + weight * (softplus + max_of(-x, 0.0f));
  return {loss, (1.0f - y) - weight * (1.0f - sigmoid)};
}

DEVICE unsigned at_least_one(unsigned n) { return n ? n : 1; }

template <class T> DEVICE void point_loss(const PointLoss& p, const Operands& io) {
  SHARED float memory[LOSS_THREADS / WAVE];
  Any x = any(io, 0), y = any(io, 1);
  float sum = 0.0f;
  for (unsigned i = thread_x(); i < p.n; i += LOSS_THREADS) sum += point(p, x[i], y[i]).loss;
  sum = block_sum<LOSS_THREADS>(sum, memory);
  if (thread_x() == 0) any(io, 2).set(0, sum / float(at_least_one(p.n)));
}

template <class T> DEVICE void point_loss_backward(const PointLossBackward& p, const Operands& io) {
  Any x = any(io, 1), y = any(io, 2), dx = any(io, 3);
  float scale = any(io, 0)[0] / float(at_least_one(p.of.n));
  for (unsigned i = block_x() * THREADS + thread_x(); i < p.of.n; i += grid_x() * THREADS)
    dx.put(i, scale * point(p.of, x[i], y[i]).slope, p.accumulate);
}

// --- Cross-entropy -------------------------------------------------------------------------------

// A label that is no class counts as none, and its weight is not a number: the loss and all
// gradients then are not, and the update does nothing. Nothing is read out of bounds.
struct Labels {
  const int* at;
  Any weights;
  unsigned classes;
  float smoothing;
  DEVICE unsigned label(unsigned row) const { return unsigned(at[row]); }
  DEVICE float weight(unsigned row) const {
    return label(row) < classes ? weights[label(row)] : float_of(0x7fc00000u);
  }
  // Weight of class c in the loss of a row of class `label`.
  DEVICE float share(unsigned label, unsigned c) const {
    float weight = weights[c], spread = smoothing / float(classes) * weight;
    return c == label ? fma_of(1.0f - smoothing, weight, spread) : spread;
  }
};

// LANES neighbouring lanes take a row: one where classes are few, a wave where they are many.
constexpr unsigned FEW = 16;

// log of the sum of the exponentials of a row. All lanes of the wave must call.
template <int LANES>
DEVICE float log_sum_exp(const Any& x, size_t row, unsigned classes, unsigned lane) {
  float top = -float_of(0x7f800000u), sum = 0.0f;
  for (unsigned c = lane; c < classes; c += LANES) top = max_of(top, x[row * classes + c]);
  top = lanes_max<LANES>(top);
  for (unsigned c = lane; c < classes; c += LANES) sum += exp_of(x[row * classes + c] - top);
  return top + log_of(lanes_sum<LANES>(sum));
}

template <int LANES>
DEVICE float loss_of_rows(const CrossEntropy& p, const Any& x, const Labels& labels) {
  unsigned lane = thread_x() % LANES, groups = LOSS_THREADS / LANES;
  float sum = 0.0f;
  for (unsigned first = 0; first < p.n; first += groups) {
    unsigned row = first + thread_x() / LANES;
    bool live = row < p.n;
    float lse = log_sum_exp<LANES>(x, live ? row : 0, p.classes, lane);
    if (!live) continue;
    unsigned label = labels.label(row);
    for (unsigned c = lane; c < p.classes; c += LANES)
      sum = fma_of(labels.share(label, c), lse - x[size_t(row) * p.classes + c], sum);
  }
  return sum;
}

template <class T> DEVICE void cross_entropy(const CrossEntropy& p, const Operands& io) {
  SHARED float memory[LOSS_THREADS / WAVE];
  Labels labels{input<int>(io, 1), any(io, 2), p.classes, p.smoothing};
  Any x = any(io, 0);
  float mass = 0.0f;
  for (unsigned i = thread_x(); i < p.n; i += LOSS_THREADS) mass += labels.weight(i);
  float sum = p.classes <= FEW ? loss_of_rows<1>(p, x, labels) : loss_of_rows<WAVE>(p, x, labels);
  mass = block_sum<LOSS_THREADS>(mass, memory);
  sum = block_sum<LOSS_THREADS>(sum, memory);
  if (thread_x() == 0) any(io, 3).set(0, sum / mass);
}

template <int LANES>
DEVICE void backward_rows(const CrossEntropy& p, const Operands& io, const Labels& labels, float scale) {
  Any x = any(io, 1), dx = any(io, 4);
  unsigned lane = thread_x() % LANES, groups = THREADS / LANES;
  for (unsigned first = block_x() * groups; first < p.n; first += grid_x() * groups) {
    unsigned row = first + thread_x() / LANES;
    bool live = row < p.n;
    float lse = log_sum_exp<LANES>(x, live ? row : 0, p.classes, lane), all = 0.0f;
    unsigned label = live ? labels.label(row) : 0;
    for (unsigned c = lane; c < p.classes; c += LANES) all += labels.share(label, c);
    all = lanes_sum<LANES>(all);
    if (!live) continue;
    for (unsigned c = lane; c < p.classes; c += LANES) {
      size_t i = size_t(row) * p.classes + c;
      dx.put(i, scale * fma_of(all, exp_of(x[i] - lse), -labels.share(label, c)), p.accumulate);
    }
  }
}

template <class T> DEVICE void cross_entropy_backward(const CrossEntropy& p, const Operands& io) {
  SHARED float memory[THREADS / WAVE];
  Labels labels{input<int>(io, 2), any(io, 3), p.classes, p.smoothing};
  // Every block adds up the weights of all labels, which are few.
  float mass = 0.0f;
  for (unsigned i = thread_x(); i < p.n; i += THREADS) mass += labels.weight(i);
  float scale = any(io, 0)[0] / block_sum<THREADS>(mass, memory);
  if (p.classes <= FEW) backward_rows<1>(p, io, labels, scale);
  else backward_rows<WAVE>(p, io, labels, scale);
}

}  // namespace

ENTRIES(point_loss, PointLoss, LOSS_THREADS, point_loss)
ENTRIES(point_loss_backward, PointLossBackward, THREADS, point_loss_backward)
ENTRIES(cross_entropy, CrossEntropy, LOSS_THREADS, cross_entropy)
ENTRIES(cross_entropy_backward, CrossEntropy, THREADS, cross_entropy_backward)
