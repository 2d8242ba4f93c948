// Involution on the CPU: forward, gradient of the input and gradient of the kernel.
//
// Each is one of two operations on an outer image (N, C, Ho, Wo), an inner image (N, C, H, W) and the kernel:
//   weighted sum    outer[c, y, x] = sum over (u, v) of kernel[u, v, y, x] * inner[c, y sy + u dy + oy, ...]
//   inner product   kernel[u, v, y, x] = sum over c of outer[c, y, x] * inner[c, y sy + u dy + oy, ...]
// The forward pass is the weighted sum, with the output outside and the input inside. The gradient of the kernel is the
// inner product. The gradient of the input is one weighted sum for each of its sy x sx phases, over the taps that meet
// the phase. There the input's gradient is the outer image and the output's gradient the inner image.
//
// As in a matrix product, a work item first packs its operands into a buffer: rows of the inner image, with zeros
// around them and one run of columns for each phase of the stride. Then it computes tiles in registers. A tile is kRows
// rows of outputs x one vector of columns x some channels (or taps). All rows of the tile use the same vector of an
// inner row, and all channels use the same vector of kernel values. The order of every sum is fixed: the result does
// not depend on the tile, the work item or the threads.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <numeric>

#include "walk.h"

namespace {

constexpr int64_t kMappedBytes = 32 << 20;  // glibc maps fresh pages for a larger allocation
constexpr double kMostBytes = 256 << 20;    // Limit of a work item. A window far larger than the image needs more
constexpr size_t kKeptBytes = 16 << 20;     // Limit of the memory that a thread keeps between calls
constexpr int64_t kGrain = 1 << 18;         // Fewest multiply-adds for which another thread is used

// The arguments from Python. ARGUMENTS is FIELD(name, offset) for each field.
struct Arguments {
  int64_t threads;
  void *output, *input, *kernel;
  ImageDims output_strides, input_strides;
  KernelDims kernel_strides;
  ImageDims input_shape;
  KernelDims kernel_shape;
  Pair stride, padding, dilation;
  const void *features, *weight, *bias;
  int64_t reduced;
  ImageDims features_strides;
};
#define FIELD(name, offset) static_assert(offsetof(Arguments, name) == offset, #name " is elsewhere in Python");
ARGUMENTS
static_assert(sizeof(Arguments) == ARGUMENTS_SIZE, "Arguments has other fields in Python");

// Computes the work items on OpenMP's threads, which are torch's.
struct OpenMP {
  int64_t threads;

  template <class F>
  void operator()(int64_t items, int team, const F& compute) const {
#pragma omp parallel for num_threads(team) if (team > 1) schedule(dynamic)
    for (int64_t index = 0; index < items; ++index) compute(index);
  }
};

// Returns whether the memory of a work item is within its limit and all sizes fit into their integers.
template <class S>
bool is_manageable(const Problem<S>& p) {
  const auto size = [](double outer, double taps, double stride, double dilation) {
    return stride * outer + taps * dilation;
  };
  const double rows = size(2 * kRows, p.taps.y, p.stride.y, p.dilation.y);
  const double columns = size(p.outer_size.x + 2 * kLanes<Accumulator<S>>, p.taps.x, p.stride.x, p.dilation.x);
  return rows * columns * (p.channels + kLanes<Accumulator<S>>)*sizeof(Accumulator<S>) <= kMostBytes;
}

template <class S, class Team>
void run(const std::vector<Problem<S>>& problems, Operation operation, const Team& team) {
  int64_t work = 0;
  for (const auto& p : problems)
    work += p.batch * p.groups * p.channels * p.outer_size.y * p.outer_size.x * p.taps.y * p.taps.x;
  const int threads = static_cast<int>(std::clamp<int64_t>(work / kGrain, 1, team.threads));
  std::vector<Plan<S>> plans;
  int64_t items = 0, size = 0;
  for (const auto& p : problems) {
    plans.emplace_back(p, operation, threads);
    items = std::max(items, plans.back().items());
    size = std::max(size, plans.back().buffer.end);
  }
  const size_t bytes = size * sizeof(Accumulator<S>);
  team(items, threads, [&](int64_t index) {
    // The memory is kept between calls, since fresh memory costs page faults.
    static thread_local std::vector<char> kept;
    std::vector<char> large;
    auto& memory = bytes > kKeptBytes ? large : kept;
    if (memory.size() < bytes + 64) memory.resize(bytes + 64);
    auto buffer = reinterpret_cast<Accumulator<S>*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    // All phases of one part of the image in a row, while the data that they share is in the cache
    for (const auto& plan : plans) {
      if (index >= plan.items()) continue;
      const Item<S> item(plan, index);
      plan.channels_last ? run_channels_last(plan, item, buffer) : run_planar(plan, item, operation, buffer);
    }
  });
}

// The taps of one axis that meet the phase of the input's pixels, as the taps of a convolution with stride 1 over the
// outputs.
struct PhaseTaps {
  int64_t count = 0, first, step, dilation, offset;

  PhaseTaps(int64_t phase, int64_t taps, int64_t stride, int64_t padding, int64_t dilation_) {
    const int64_t divisor = std::gcd(stride, dilation_);
    step = stride / divisor;
    dilation = dilation_ / divisor;
    for (first = 0; first < std::min(step, taps); ++first) {
      if ((phase + padding - first * dilation_) % stride == 0) {
        count = (taps - first + step - 1) / step;
        break;
      }
    }
    // In reverse order, so that the coordinates of the outputs ascend
    offset = (phase + padding - first * dilation_) / stride - (count - 1) * dilation;
  }
};

// Requests huge pages for a large result: the page faults of small pages take longer than the sums.
template <class S>
void prefer_huge_pages(void* memory, int64_t elements) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const int64_t bytes = elements * static_cast<int64_t>(sizeof(S));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), aligned = (begin + kHuge - 1) / kHuge * kHuge;
  if (bytes >= kMappedBytes) madvise(reinterpret_cast<void*>(aligned), begin + bytes - aligned, MADV_HUGEPAGE);
#endif
}

// Eq. 4: the output is the outer image, the input the inner image.
template <class S>
Problem<S> forward_problem(const Arguments& a) {
  const auto& ks = a.kernel_strides;
  const auto& size = a.kernel_shape;
  Problem<S> p;
  p.batch = size.n;
  p.groups = size.g;
  p.channels = a.input_shape.c / size.g;
  p.taps = {size.u, size.v};
  p.outer_size = {size.y, size.x};
  p.inner_size = {a.input_shape.y, a.input_shape.x};
  p.stride = a.stride;
  p.dilation = a.dilation;
  p.offset = {-a.padding.y, -a.padding.x};
  p.outer = static_cast<S*>(a.output);
  p.inner = static_cast<S*>(a.input);
  p.kernel = static_cast<S*>(a.kernel);
  p.outer_strides = a.output_strides;
  p.inner_strides = a.input_strides;
  p.kernel_strides = ks;
  p.kernel_begin = p.kernel;
  p.kernel_end = p.kernel + (size.n - 1) * ks.n + (size.g - 1) * ks.g + (size.u - 1) * ks.u + (size.v - 1) * ks.v +
                 (size.y - 1) * ks.y + (size.x - 1) * ks.x + 1;
  if (a.reduced) {
    p.generation.features = static_cast<const S*>(a.features);
    p.generation.weight = static_cast<const S*>(a.weight);
    p.generation.bias = static_cast<const S*>(a.bias);
    p.generation.reduced = a.reduced;
    p.generation.strides = a.features_strides;
  }
  return p;
}

// These functions return false, without a result, if a work item would need too much memory.

template <class S, class Team>
bool involution2d(const Arguments& a, const Team& team) {
  const Problem<S> problem = forward_problem<S>(a);
  if (!is_manageable(problem)) return false;
  prefer_huge_pages<S>(a.output, a.kernel_shape.n * a.input_shape.c * a.kernel_shape.y * a.kernel_shape.x);
  run<S>({problem}, Operation::kWeightedSum, team);
  return true;
}

template <class S, class Team>
bool grad_kernel(const Arguments& a, const Team& team) {
  const Problem<S> problem = forward_problem<S>(a);
  if (!is_manageable(problem)) return false;
  const auto& size = a.kernel_shape;
  prefer_huge_pages<S>(a.kernel, size.n * size.g * size.u * size.v * size.y * size.x);
  run<S>({problem}, Operation::kInnerProduct, team);
  return true;
}

template <class S, class Team>
bool grad_input(const Arguments& a, const Team& team) {
  const Problem<S> forward = forward_problem<S>(a);
  if (!is_manageable(forward)) return false;
  const auto& is = a.input_strides;
  const auto& ks = a.kernel_strides;
  const auto& size = a.input_shape;
  prefer_huge_pages<S>(a.input, size.n * size.c * size.y * size.x);
  std::vector<Problem<S>> phases;
  for (int64_t y = 0; y < std::min(a.stride.y, size.y); ++y) {
    const PhaseTaps u(y, a.kernel_shape.u, a.stride.y, a.padding.y, a.dilation.y);
    for (int64_t x = 0; x < std::min(a.stride.x, size.x); ++x) {
      const PhaseTaps v(x, a.kernel_shape.v, a.stride.x, a.padding.x, a.dilation.x);
      Problem<S> p = forward;
      p.outer = forward.inner + y * is.y + x * is.x;
      p.outer_size = {ceil_div(size.y - y, a.stride.y), ceil_div(size.x - x, a.stride.x)};
      p.outer_strides = {is.n, is.c, is.y * a.stride.y, is.x * a.stride.x};
      p.inner = forward.outer;
      p.inner_size = forward.outer_size;
      p.inner_strides = forward.outer_strides;
      p.stride = {1, 1};
      p.taps = u.count && v.count ? Pair{u.count, v.count} : Pair{0, 0};
      p.dilation = {u.dilation, v.dilation};
      p.offset = {u.offset, v.offset};
      // The kernel value of a tap belongs to the output pixel that the tap finds, so its position depends on the tap.
      p.kernel += (u.first + (u.count - 1) * u.step) * ks.u + u.offset * ks.y +
                  (v.first + (v.count - 1) * v.step) * ks.v + v.offset * ks.x;
      p.kernel_strides = {ks.n, ks.g, u.dilation * ks.y - u.step * ks.u, v.dilation * ks.x - v.step * ks.v, ks.y, ks.x};
      p.kernel_inside = true;
      phases.push_back(p);
    }
  }
  run<S>(phases, Operation::kWeightedSum, team);
  return true;
}

}  // namespace

#define ENTRY(operation, dtype, S)                                  \
  extern "C" bool operation##_##dtype(const Arguments* arguments) { \
    return operation<S>(*arguments, OpenMP{arguments->threads});    \
  }
#define ENTRIES(dtype, S)       \
  ENTRY(involution2d, dtype, S) \
  ENTRY(grad_input, dtype, S)   \
  ENTRY(grad_kernel, dtype, S)

ENTRIES(float16, c10::Half)
ENTRIES(bfloat16, c10::BFloat16)
ENTRIES(float32, float)
ENTRIES(float64, double)
