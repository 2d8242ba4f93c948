// Involution on the CPU: forward, gradient of the input and gradient of the kernel.
//
// All three are one of two operations on an outer image (N, C, Ho, Wo), an inner image (N, C, H, W) and the kernel:
//   weighted sum    outer[c, y, x] = sum over (u, v) of kernel[u, v, y, x] * inner[c, y sy + u dy + oy, ...]
//   inner product   kernel[u, v, y, x] = sum over c of outer[c, y, x] * inner[c, y sy + u dy + oy, ...]
// The forward and the gradient of the kernel are these two as they stand. The gradient of the input is one weighted sum
// for each of its sy x sx phases, over the taps that meet the phase, with the two images' roles exchanged.
//
// As in a matrix product, a work item packs what it reads into a buffer (rows of the inner image with zeros around them
// and one run of columns for each phase of the stride) and computes tiles in registers: kRows rows of outputs x one
// vector of columns x some channels, or taps. A vector from an inner row serves all rows of the tile, a vector of
// kernel values all channels. The order of every sum is fixed: the result does not depend on the tile, the work item or
// the threads.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#define INLINE __attribute__((always_inline))

namespace {

#if defined(__AVX__)
constexpr int kVectorBytes = 32;  // Loads, many of them across cache lines, limit wider ones
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int kChannels = 4;  // Channels of a tile: 16 sums, 4 weights and a value fit into 32 registers
#else
constexpr int kChannels = 2;
#endif
constexpr int kRows = 4;
constexpr int kPixels = kChannels / 2;       // Neighbouring pixels of a tile with channels last
constexpr int64_t kBufferBytes = 512 << 10;  // Of a work item where its rows allow, to stay in the second-level cache
constexpr int64_t kFarBytes = 8 << 20;       // A kernel larger than that comes from memory, not from a cache
constexpr int64_t kMappedBytes = 32 << 20;   // From there on, glibc takes fresh pages for an allocation
constexpr int64_t kGrain = 1 << 18;          // Multiply-adds that are worth waking a thread for

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T, class S>
INLINE inline Vector<T> load(const S* from) {
  Vector<T> value;
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(&value, from, sizeof value);
  } else {
    for (int lane = 0; lane < kLanes<T>; ++lane) value[lane] = static_cast<T>(from[lane]);
  }
  return value;
}

// Loads into a register for good: left alone, GCC repeats a load for each of its uses.
template <class T>
INLINE inline Vector<T> load_once(const T* from) {
  Vector<T> value = load<T>(from);
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

template <class T, class S>
INLINE inline void store(S* to, Vector<T> value) {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(to, &value, sizeof value);
  } else {
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] = static_cast<S>(value[lane]);
  }
}

template <class T, class S>
INLINE inline Vector<T> broadcast(const S* from) {
  Vector<T> value = Vector<T>{} + static_cast<T>(*from);
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

// The strides of an image (N, C, H, W) or of a kernel (N, G, Kh, Kw, Ho, Wo), in elements.
struct ImageStrides {
  int64_t n, c, y, x;
};
struct KernelStrides {
  int64_t n, g, u, v, y, x;
};
struct Pair {
  int64_t y, x;
};

// What a 1x1 convolution makes the kernel from: features (N, R, Ho, Wo), weight (G Kh Kw, R) and bias (G Kh Kw).
template <class S>
struct Generation {
  const S *features, *weight, *bias;
  int64_t reduced;
  ImageStrides strides;
};

template <class S>
struct Problem {
  int64_t batch, groups, channels;  // Channels of one group
  Pair taps, outer_size, inner_size, stride, dilation, offset;
  S *outer, *inner, *kernel;
  ImageStrides outer_strides, inner_strides;
  KernelStrides kernel_strides;
  int64_t kernel_begin, kernel_end;  // Elements that may be read around `kernel`, relative to it
  bool kernel_inside;                // The kernel exists only where the inner image does: gradient of the input
  Generation<S> generation = {};     // Takes the place of the kernel where there are features
};

// Where the tile's inner image and kernel values lie.
template <class T>
struct Window {
  const T* inner;
  int64_t channel_step, row_step;
  const int64_t* columns;  // Where the taps of a row begin
  int64_t stride, dilation;
  Pair taps;
};
template <class T>
struct Kernel {
  T* values;
  int64_t u, v, row;
  int64_t ahead = 0;
};

template <int Value>
using Int = std::integral_constant<int, Value>;

template <int First, int... Offsets, class F>
INLINE inline void unroll(std::integer_sequence<int, Offsets...>, F&& function) {
  (function(Int<First + Offsets>{}), ...);
}

// Calls function(Int<i>) for i = First, ..., Last: arrays that are indexed so end up in registers.
template <int First, int Last, class F>
INLINE inline void unroll(F&& function) {
  unroll<First>(std::make_integer_sequence<int, Last - First + 1>{}, function);
}

// Calls visit(first, last, q, row) for the inner rows of a tile from top to bottom: rows [first, last] of the tile have
// the inner row `row` as their tap u = q - Stride * r. It takes at least (kRows - 1) * Stride taps and a dilation of 1.
template <int Stride, class F>
INLINE inline void for_each_row(int64_t taps, F&& visit) {
  unroll<0, kRows - 2>([&](auto m) INLINE {
    for (int s = 0; s < Stride; ++s) visit(Int<0>{}, m, m * Stride + s);
  });
  for (int64_t q = (kRows - 1) * Stride; q < taps; ++q) visit(Int<0>{}, Int<kRows - 1>{}, q);
  unroll<1, kRows - 1>([&](auto m) INLINE {
    for (int s = 0; s < Stride; ++s) visit(m, Int<kRows - 1>{}, taps + (m - 1) * Stride + s);
  });
}

// Where a tile's sums go: row r of channel c to values + c * channel_step + r * row_step.
template <class T>
struct Sums {
  T* values;
  int64_t channel_step, row_step;
};

// Writes the sums of C channels. Stride 0 stands for any stride and dilation: nothing is shared between the rows.
// Ahead: on the way, the kernel values `kernel.ahead` behind those of the first row are fetched into the cache.
template <class T, int Stride, int C, bool Ahead = false>
void weighted_sum(const Window<T>& window, const Kernel<const T>& kernel, const Sums<T>& sums) {
  Vector<T> sum[C][kRows] = {};
  const int64_t channel_step = window.channel_step, kernel_step = kernel.v;
  const int64_t* columns = window.columns;
  const int64_t* const end = columns + window.taps.x;
  if constexpr (Stride == 0) {
    for (int64_t u = 0; u < window.taps.y; ++u) {
      const T* inner = window.inner + u * window.dilation * window.row_step;
      const T* weights = kernel.values + u * kernel.u;
      for (const int64_t* column = columns; column < end; ++column, weights += kernel_step) {
        unroll<0, kRows - 1>([&](auto r) INLINE {
          const Vector<T> weight = load_once<T>(weights + r * kernel.row);
          const T* at = inner + r * window.stride * window.row_step + *column;
          unroll<0, C - 1>([&](auto c) INLINE { sum[c][r] += weight * load<T>(at + c * channel_step); });
        });
      }
    }
  } else {
    for_each_row<Stride>(window.taps.y, [&](auto first, auto last, int64_t q) INLINE {
      const T* inner = window.inner + q * window.row_step;
      const T* weights = kernel.values + q * kernel.u;
      const int64_t weight_row = kernel.row - Stride * kernel.u;
      const T* ahead = weights + kernel.ahead;
      for (const int64_t* column = columns; column < end; ++column, weights += kernel_step) {
        if constexpr (Ahead && first == 0) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += kernel_step;
        }
        Vector<T> weight[kRows];
        unroll<first, last>([&](auto r) INLINE { weight[r] = load_once<T>(weights + r * weight_row); });
        const T* at = inner + *column;
        unroll<0, C - 1>([&](auto c) INLINE {
          const Vector<T> value = load_once<T>(at + c * channel_step);
          unroll<first, last>([&](auto r) INLINE { sum[c][r] += weight[r] * value; });
        });
      }
    });
  }
  unroll<0, C - 1>([&](auto c) INLINE {
    unroll<0, kRows - 1>([&](auto r)
                             INLINE { store<T>(sums.values + c * sums.channel_step + r * sums.row_step, sum[c][r]); });
  });
}

// The same for images with channels last: writes sum[r][pixel][channel] for V vectors of channels. Here `channel_step`
// is the step from pixel to pixel, and kernel values are read one by one, from wherever they lie.
template <class T, class S, int Stride, int V>
void weighted_sum_last(const Window<T>& window, const Kernel<const S>& kernel, int64_t kernel_pixel, T* sums) {
  Vector<T> sum[kRows][kPixels][V] = {};
  const int64_t pixel_step = window.channel_step, kernel_step = kernel.v;
  const int64_t* const end = window.columns + window.taps.x;
  if constexpr (Stride == 0) {
    for (int64_t u = 0; u < window.taps.y; ++u) {
      const T* inner = window.inner + u * window.dilation * window.row_step;
      const S* weights = kernel.values + u * kernel.u;
      for (const int64_t* column = window.columns; column < end; ++column, weights += kernel_step) {
        unroll<0, kRows - 1>([&](auto r) INLINE {
          unroll<0, kPixels - 1>([&](auto p) INLINE {
            const Vector<T> weight = broadcast<T>(weights + r * kernel.row + p * kernel_pixel);
            const T* at = inner + r * window.stride * window.row_step + *column + p * pixel_step;
            unroll<0, V - 1>([&](auto c) INLINE { sum[r][p][c] += weight * load<T>(at + c * kLanes<T>); });
          });
        });
      }
    }
  } else {
    for_each_row<Stride>(window.taps.y, [&](auto first, auto last, int64_t q) INLINE {
      const T* inner = window.inner + q * window.row_step;
      const S* weights = kernel.values + q * kernel.u;
      const int64_t weight_row = kernel.row - Stride * kernel.u;
      for (const int64_t* column = window.columns; column < end; ++column, weights += kernel_step) {
        unroll<0, kPixels - 1>([&](auto p) INLINE {
          const T* at = inner + *column + p * pixel_step;
          Vector<T> value[V];
          unroll<0, V - 1>([&](auto c) INLINE { value[c] = load_once<T>(at + c * kLanes<T>); });
          unroll<first, last>([&](auto r) INLINE {
            const Vector<T> weight = broadcast<T>(weights + r * weight_row + p * kernel_pixel);
            unroll<0, V - 1>([&](auto c) INLINE { sum[r][p][c] += weight * value[c]; });
          });
        });
      }
    });
  }
  unroll<0, kRows - 1>([&](auto r) INLINE {
    unroll<0, kPixels - 1>([&](auto p) INLINE {
      unroll<0, V - 1>([&](auto c) INLINE { store<T>(sums + ((r * kPixels + p) * V + c) * kLanes<T>, sum[r][p][c]); });
    });
  });
}

// Writes the kernel values of the taps v, ..., v + V - 1 of all rows of taps; `outer` is outer[c][r][lane].
template <class T, int Stride, int V>
INLINE inline void inner_product_columns(const Window<T>& window, const T* outer, int64_t channels,
                                         const Kernel<T>& kernel, int64_t v) {
  int64_t columns[V];
  unroll<0, V - 1>([&](auto i) INLINE { columns[i] = window.columns[v + i]; });
  if constexpr (Stride == 0) {
    for (int64_t u = 0; u < window.taps.y; ++u) {
      for (int r = 0; r < kRows; ++r) {
        Vector<T> sum[V] = {};
        const T* inner = window.inner + (r * window.stride + u * window.dilation) * window.row_step;
        for (int64_t c = 0; c < channels; ++c, inner += window.channel_step) {
          const Vector<T> grad = load_once<T>(outer + (c * kRows + r) * kLanes<T>);
          unroll<0, V - 1>([&](auto i) INLINE { sum[i] += grad * load<T>(inner + columns[i]); });
        }
        T* to = kernel.values + u * kernel.u + v * kernel.v + r * kernel.row;
        unroll<0, V - 1>([&](auto i) INLINE { store<T>(to + i * kernel.v, sum[i]); });
      }
    }
  } else {
    for_each_row<Stride>(window.taps.y, [&](auto first, auto last, int64_t q) INLINE {
      Vector<T> sum[kRows][V] = {};
      const T* inner = window.inner + q * window.row_step;
      const T* grads = outer;
      for (int64_t c = 0; c < channels; ++c, inner += window.channel_step, grads += kRows * kLanes<T>) {
        Vector<T> grad[kRows];
        unroll<first, last>([&](auto r) INLINE { grad[r] = load_once<T>(grads + r * kLanes<T>); });
        unroll<0, V - 1>([&](auto i) INLINE {
          const Vector<T> value = load_once<T>(inner + columns[i]);
          unroll<first, last>([&](auto r) INLINE { sum[r][i] += grad[r] * value; });
        });
      }
      unroll<first, last>([&](auto r) INLINE {
        T* to = kernel.values + (q - Stride * r) * kernel.u + v * kernel.v + r * kernel.row;
        unroll<0, V - 1>([&](auto i) INLINE { store<T>(to + i * kernel.v, sum[r][i]); });
      });
    });
  }
}

template <class T, int Stride>
void inner_product(const Window<T>& window, const T* outer, int64_t channels, const Kernel<T>& kernel) {
  // The last columns overlap those before: storing a tap twice is cheaper than a narrower tile.
  const int64_t width = window.taps.x;
  const int64_t fours = (width + 3) / 4 * 4, threes = (width + 2) / 3 * 3;
  if (width < 3) {
    for (int64_t v = 0; v < width; ++v) inner_product_columns<T, Stride, 1>(window, outer, channels, kernel, v);
  } else if (width > 3 && fours <= threes) {
    for (int64_t v = 0; v < width; v += 4)
      inner_product_columns<T, Stride, 4>(window, outer, channels, kernel, std::min(v, width - 4));
  } else {
    for (int64_t v = 0; v < width; v += 3)
      inner_product_columns<T, Stride, 3>(window, outer, channels, kernel, std::min(v, width - 3));
  }
}

// Writes the kernel values [tap][r][lane] of the taps tap, ..., tap + N - 1 from features [reduced][r][lane].
template <class T, int N>
void generate_taps(const T* features, const T* weight, const T* bias, int64_t reduced, T* values) {
  Vector<T> sum[N][kRows];
  unroll<0, N - 1>([&](auto t) INLINE {
    const Vector<T> start = broadcast<T>(bias + t);
    unroll<0, kRows - 1>([&](auto r) INLINE { sum[t][r] = start; });
  });
  for (int64_t i = 0; i < reduced; ++i, features += kRows * kLanes<T>) {
    Vector<T> feature[kRows];
    unroll<0, kRows - 1>([&](auto r) INLINE { feature[r] = load_once<T>(features + r * kLanes<T>); });
    unroll<0, N - 1>([&](auto t) INLINE {
      const Vector<T> w = broadcast<T>(weight + t * reduced + i);
      unroll<0, kRows - 1>([&](auto r) INLINE { sum[t][r] += w * feature[r]; });
    });
  }
  unroll<0, N - 1>([&](auto t) INLINE {
    unroll<0, kRows - 1>([&](auto r) INLINE { store<T>(values + (t * kRows + r) * kLanes<T>, sum[t][r]); });
  });
}

template <int N, class To, class From>
INLINE inline void copy_lanes(To* to, const From* from) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, N * sizeof(To));
  } else {
    for (int lane = 0; lane < N; ++lane) to[lane] = static_cast<To>(from[lane]);
  }
}

// Copies a run in vectors, the last of which overlaps the one before: runs are short, and a loop over the rest costs
// more.
template <class To, class From>
INLINE inline void copy_run(To* to, const From* from, int64_t size) {
  constexpr int N = std::min(kLanes<To>, kLanes<From>);
  if (size >= N) {
    for (int64_t i = 0; i + N <= size; i += N) copy_lanes<N>(to + i, from + i);
    copy_lanes<N>(to + size - N, from + size - N);
  } else if (size >= N / 2) {
    copy_lanes<N / 2>(to, from);
    copy_lanes<N / 2>(to + size - N / 2, from + size - N / 2);
  } else {
    for (int64_t i = 0; i < size; ++i) copy_lanes<1>(to + i, from + i);
  }
}

// Writes to[i] = from[i * step] for first <= i < last, and zero for the other i < size and up to a vector behind them.
template <class T, class S>
INLINE inline void pack_row(T* to, int64_t size, const S* from, int64_t step, int64_t first, int64_t last) {
  for (int64_t i = 0; i < first; i += kLanes<T>) store<T>(to + i, Vector<T>{});
  if (step == 1) {
    copy_run(to + first, from + first, last - first);
  } else if (step == 2) {
    for (int64_t i = first; i < last; ++i) to[i] = static_cast<T>(from[i * 2]);
  } else {
    for (int64_t i = first; i < last; ++i) to[i] = static_cast<T>(from[i * step]);
  }
  for (int64_t i = last; i < size; i += kLanes<T>) store<T>(to + i, Vector<T>{});
}

template <class T, int... Lanes>
INLINE inline void deinterleave(Vector<T> a, Vector<T> b, Vector<T>& even, Vector<T>& odd,
                                std::integer_sequence<int, Lanes...>) {
#if defined(__clang__)
  even = __builtin_shufflevector(a, b, (2 * Lanes)...);
  odd = __builtin_shufflevector(a, b, (2 * Lanes + 1)...);
#else
  using Mask = decltype(a == b);
  even = __builtin_shuffle(a, b, Mask{(2 * Lanes)...});
  odd = __builtin_shuffle(a, b, Mask{(2 * Lanes + 1)...});
#endif
}

// Writes even[i] = from[2 * i] and odd[i] = from[2 * i + 1] for i < size.
template <class T, class S>
INLINE inline void pack_pairs(T* even, T* odd, const S* from, int64_t size) {
  constexpr int N = kLanes<T>;
  if (size < N) {
    for (int64_t i = 0; i < size; ++i) {
      even[i] = static_cast<T>(from[2 * i]);
      odd[i] = static_cast<T>(from[2 * i + 1]);
    }
    return;
  }
  for (int64_t i = 0; i < size; i += N) {
    const int64_t at = std::min(i, size - N);
    Vector<T> evens, odds;
    deinterleave<T>(load<T>(from + 2 * at), load<T>(from + 2 * at + N), evens, odds,
                    std::make_integer_sequence<int, N>{});
    store<T>(even + at, evens);
    store<T>(odd + at, odds);
  }
}

template <class T, class S>
INLINE inline void unpack_row(S* to, int64_t step, const T* from, int64_t size) {
  if (step == 1) {
    copy_run(to, from, size);
  } else {
    for (int64_t i = 0; i < size; ++i) to[i * step] = static_cast<S>(from[i]);
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// A problem, how its work is divided, and what its work items have in common.
template <class S>
struct Plan {
  using T = Accumulator<S>;
  static constexpr int kLane = kLanes<T>;

  Problem<S> problem;
  int64_t band, bands;                               // Rows of outputs of a work item; work items of a group
  int64_t phase_step, row_step, rows, channel_step;  // The buffer: channels x rows x phases of the stride x columns
  std::vector<int64_t> columns;
  std::vector<std::pair<int64_t, int64_t>> runs;  // What each phase finds inside the inner image: [first, last)
  int64_t span;                                   // Rows of the inner image under one row of outputs
  int sharing;                                    // The stride for which rows of a tile share the inner rows, or 0
  bool kernel_far;                                // Whether tiles fetch kernel values ahead of time

  bool channels_last;
  int64_t pixel_step = 0;

  Plan(const Problem<S>& p, bool product, int threads) : problem(p) {
    channels_last =
        !product && !p.generation.reduced && p.inner_strides.c == 1 && p.inner_strides.x != 1 && p.channels >= kLane;
    // A phase of the gradient can be without taps.
    const Pair reach{std::max<int64_t>(p.taps.y - 1, 0) * p.dilation.y,
                     std::max<int64_t>(p.taps.x - 1, 0) * p.dilation.x};
    for (int64_t v = 0; v < p.taps.x; ++v) columns.push_back(v * p.dilation.x);
    phase_step = std::max<int64_t>(p.outer_size.x, kLane) + reach.x / p.stride.x;
    for (auto& column : columns) column = column % p.stride.x * phase_step + column / p.stride.x;
    for (int64_t x = p.offset.x; x < p.offset.x + p.stride.x; ++x) {
      const int64_t first = std::clamp<int64_t>(ceil_div(-x, p.stride.x), 0, phase_step);
      runs.emplace_back(first, std::clamp<int64_t>(ceil_div(p.inner_size.x - x, p.stride.x), first, phase_step));
    }
    span = reach.y + 1;
    if (channels_last) {
      pixel_step = ceil_div(p.channels, kLane) * kLane;
      for (int64_t v = 0; v < p.taps.x; ++v) columns[v] = v * p.dilation.x * pixel_step;
    }
    const int64_t line = 64 / sizeof(T);
    row_step = ceil_div(p.stride.x * phase_step, line) * line;
    if (channels_last)
      row_step = (p.stride.x * (std::max<int64_t>(p.outer_size.x, kPixels) - 1) + reach.x + 1) * pixel_step;
    const int64_t fit =
        (kBufferBytes / sizeof(T) / (channels_last ? row_step : std::max<int64_t>(p.channels, 1) * row_step) - span) /
            p.stride.y +
        1;
    const int64_t wanted = ceil_div(4 * threads, p.batch * p.groups);
    band = std::min(fit, ceil_div(p.outer_size.y, threads > 1 ? wanted : 1));
    band = std::max<int64_t>(ceil_div(band, kRows), 1) * kRows;
    bands = ceil_div(p.outer_size.y, band);
    rows = (std::max<int64_t>(std::min(band, p.outer_size.y), kRows) - 1) * p.stride.y + span;
    // An odd number of cache lines spreads over their sets.
    channel_step = channels_last ? 0 : (rows * row_step / line | 1) * line + line * 2;
    sharing = p.dilation.y == 1 && p.stride.y <= 2 && p.taps.y >= (kRows - 1) * p.stride.y ? p.stride.y : 0;
    kernel_far = (p.kernel_end - p.kernel_begin) * static_cast<int64_t>(sizeof(S)) > kFarBytes;
  }

  int64_t items() const { return problem.batch * problem.groups * bands; }
  int64_t buffer_size() const {
    const int64_t taps = problem.taps.y * problem.taps.x, reduced = problem.generation.reduced;
    if (channels_last) return rows * row_step + taps * kRows * kPixels + kRows * kPixels * 2 * kLane;
    return problem.channels * (channel_step + kRows * kLane) + (taps + kChannels) * kRows * kLane +
           (taps + kRows * kLane) * reduced + taps;
  }

  // Packs the buffer's rows [begin, end); the first one is the inner row y0.
  void pack_inner(T* buffer, const S* inner, int64_t y0, int64_t begin, int64_t end) const {
    const auto& p = problem;
    const auto& is = p.inner_strides;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = y0 + row;
      const bool inside = 0 <= y && y < p.inner_size.y;
      if (inside && p.stride.x == 2 && is.x == 1) {
        pack_row_pairs(buffer + row * row_step, inner + y * is.y);
        continue;
      }
      for (int64_t phase = 0; phase < p.stride.x; ++phase) {
        const auto [first, last] = inside ? runs[phase] : std::pair<int64_t, int64_t>{0, 0};
        const S* from = inner + y * is.y + (p.offset.x + phase) * is.x;
        T* to = buffer + row * row_step + phase * phase_step;
        for (int64_t c = 0; c < p.channels; ++c)
          pack_row(to + c * channel_step, phase_step, from + c * is.c, p.stride.x * is.x, first, last);
      }
    }
  }

  // Packs a row of the inner image with stride 2, all channels.
  void pack_row_pairs(T* to, const S* from) const {
    const auto& p = problem;
    // The first pixel's phase, and the run's position in both
    const int64_t even = -p.offset.x & 1, odd = 1 - even;
    const auto [even_first, even_last] = runs[even];
    const auto [odd_first, odd_last] = runs[odd];
    const int64_t pairs = std::min(even_last - even_first, odd_last - odd_first);
    for (int64_t c = 0; c < p.channels; ++c, to += channel_step, from += p.inner_strides.c) {
      for (int64_t i = 0; i < row_step; i += kLane) store<T>(to + i, Vector<T>{});
      pack_pairs(to + even * phase_step + even_first, to + odd * phase_step + odd_first, from, pairs);
      for (int64_t i = pairs; i < even_last - even_first; ++i)
        to[even * phase_step + even_first + i] = static_cast<T>(from[2 * i]);
      for (int64_t i = pairs; i < odd_last - odd_first; ++i)
        to[odd * phase_step + odd_first + i] = static_cast<T>(from[2 * i + 1]);
    }
  }

  // Whether the tile's kernel values lie in memory as the tile reads them.
  bool in_place(int64_t y, int64_t x, int64_t kernel_offset, bool product) const {
    const auto& p = problem;
    const auto& ks = p.kernel_strides;
    if (!std::is_same_v<S, T> || ks.x != 1) return false;
    if (p.kernel_inside) {
      return y + p.offset.y >= 0 && y + p.offset.y + kRows - 1 + (p.taps.y - 1) * p.dilation.y < p.inner_size.y &&
             x + p.offset.x >= 0 && x + p.offset.x + kLane - 1 + (p.taps.x - 1) * p.dilation.x < p.inner_size.x;
    }
    if (product) return y + kRows <= p.outer_size.y && x + kLane <= p.outer_size.x;
    // What a tile reads beyond the outputs does no harm as long as it is there to be read.
    return kernel_offset + (p.taps.y - 1) * ks.u + (p.taps.x - 1) * ks.v + (y + kRows - 1) * ks.y + x + kLane <=
           p.kernel_end;
  }

  // Copies the tile's kernel values to packed[u][v][r][lane], zeros where there are none.
  void pack_kernel(T* packed, const S* kernel, int64_t kernel_offset, int64_t y0, int64_t x0) const {
    const auto& p = problem;
    const auto& ks = p.kernel_strides;
    const int64_t base = y0 * ks.y + x0 * ks.x;
    const int64_t ends[] = {(p.taps.y - 1) * ks.u, (p.taps.x - 1) * ks.v, (kRows - 1) * ks.y};
    int64_t least = base, most = base;
    for (int64_t end : ends) (end < 0 ? least : most) += end;
    const bool there =
        ks.x == 1 && p.kernel_begin - kernel_offset <= least && most + kLane <= p.kernel_end - kernel_offset;
    Vector<T> lanes;
    for (int i = 0; i < kLane; ++i) lanes[i] = i;
    for (int64_t v = 0; v < p.taps.x; ++v) {
      const int64_t inner_x = x0 + v * p.dilation.x + p.offset.x;
      const int64_t first = p.kernel_inside ? std::clamp<int64_t>(-inner_x, 0, kLane) : 0;
      const int64_t last = p.kernel_inside ? std::clamp<int64_t>(p.inner_size.x - inner_x, first, kLane)
                                           : std::min<int64_t>(p.outer_size.x - x0, kLane);
      const auto inside = (lanes >= static_cast<T>(first)) & (lanes < static_cast<T>(last));
      for (int64_t u = 0; u < p.taps.y; ++u) {
        T* to = packed + (u * p.taps.x + v) * kRows * kLane;
        const int64_t inner_y = y0 + u * p.dilation.y + p.offset.y;
        const int64_t top = p.kernel_inside ? std::clamp<int64_t>(-inner_y, 0, kRows) : 0;
        const int64_t bottom = p.kernel_inside ? std::clamp<int64_t>(p.inner_size.y - inner_y, top, kRows)
                                               : std::min<int64_t>(p.outer_size.y - y0, kRows);
        const S* from = kernel + base + u * ks.u + v * ks.v;
        for (int64_t r = 0; r < kRows; ++r, from += ks.y, to += kLane) {
          Vector<T> value = {};
          if (top <= r && r < bottom) {
            if (there) {
              value = inside ? load<T>(from) : value;
            } else {
              for (int64_t i = first; i < last; ++i) value[i] = static_cast<T>(from[i * ks.x]);
            }
          }
          store<T>(to, value);
        }
      }
    }
  }

  // Generates the tile's kernel values as packed[u][v][r][lane].
  void generate_kernel(T* packed, T* features, const T* weight, const T* bias, int64_t n, int64_t y0, int64_t x0,
                       int64_t height, int64_t width) const {
    const auto& gen = problem.generation;
    const S* from = gen.features + n * gen.strides.n + y0 * gen.strides.y + x0 * gen.strides.x;
    for (int64_t i = 0; i < gen.reduced; ++i, from += gen.strides.c) {
      for (int64_t r = 0; r < kRows; ++r) {
        T* to = features + (i * kRows + r) * kLane;
        const S* row = from + r * gen.strides.y;
        if (gen.strides.x == 1 && width == kLane && r < height) {
          store<T>(to, load<T>(row));
        } else {
          pack_row(to, kLane, row, gen.strides.x, 0, r < height ? width : 0);
        }
      }
    }
    constexpr int kTaps = kChannels == 4 ? 6 : 2;  // 24 sums and 4 features, or 8 and 4, fit into the registers
    const int64_t taps = problem.taps.y * problem.taps.x;
    int64_t tap = 0;
    for (; tap + kTaps <= taps; tap += kTaps)
      generate_taps<T, kTaps>(features, weight + tap * gen.reduced, bias + tap, gen.reduced,
                              packed + tap * kRows * kLane);
    for (; tap < taps; ++tap)
      generate_taps<T, 1>(features, weight + tap * gen.reduced, bias + tap, gen.reduced, packed + tap * kRows * kLane);
  }

  // With channels last: the rows [begin, end) of the buffer, a pixel after the other.
  void pack_pixels(T* buffer, const S* inner, int64_t y0, int64_t begin, int64_t end) const {
    const auto& p = problem;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t y = y0 + row;
      const bool inside = 0 <= y && y < p.inner_size.y;
      T* to = buffer + row * row_step;
      for (int64_t x = p.offset.x; to < buffer + (row + 1) * row_step; ++x, to += pixel_step) {
        const bool there = inside && 0 <= x && x < p.inner_size.x;
        pack_row(to, pixel_step, inner + y * p.inner_strides.y + x * p.inner_strides.x, 1, 0, there ? p.channels : 0);
      }
    }
  }

  // Copies the tile's kernel values to packed[u][v][r][pixel], zeros where there are none.
  void pack_kernel_last(S* packed, const S* kernel, int64_t y0, int64_t x0) const {
    const auto& p = problem;
    const auto& ks = p.kernel_strides;
    for (int64_t u = 0; u < p.taps.y; ++u) {
      for (int64_t v = 0; v < p.taps.x; ++v) {
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t y = y0 + r, inner_y = y + u * p.dilation.y + p.offset.y;
          const bool inside = y < p.outer_size.y && (!p.kernel_inside || (0 <= inner_y && inner_y < p.inner_size.y));
          for (int64_t x = x0; x < x0 + kPixels; ++x, ++packed) {
            const int64_t inner_x = x + v * p.dilation.x + p.offset.x;
            const bool there =
                inside && x < p.outer_size.x && (!p.kernel_inside || (0 <= inner_x && inner_x < p.inner_size.x));
            *packed = there ? kernel[u * ks.u + v * ks.v + y * ks.y + x * ks.x] : S(0);
          }
        }
      }
    }
  }

  void run_channels_last(int64_t n, int64_t g, int64_t y0, int64_t y1, T* buffer) const {
    const auto& p = problem;
    const auto& ks = p.kernel_strides;
    const auto& os = p.outer_strides;
    S* outer = p.outer + n * os.n + g * p.channels * os.c;
    const S* source = p.inner + n * p.inner_strides.n + g * p.channels * p.inner_strides.c;
    const S* kernel = p.kernel + n * ks.n + g * ks.g;
    T* sums = buffer + rows * row_step;
    S* packed = reinterpret_cast<S*>(sums + kRows * kPixels * 2 * kLane);
    Window<T> window{buffer, p.stride.x * pixel_step, row_step, columns.data(), p.stride.y, p.dilation.y, p.taps};
    int64_t packed_rows = 0;
    for (int64_t ty = y0; ty < y1; ty += kRows) {
      const int64_t y = std::max(y0, std::min(ty, y1 - kRows));
      const int64_t height = std::min<int64_t>(y1 - y, kRows);
      const int64_t next_rows = (y - y0 + kRows - 1) * p.stride.y + span;
      pack_pixels(buffer, source, y0 * p.stride.y + p.offset.y, packed_rows, next_rows);
      packed_rows = next_rows;
      for (int64_t tx = 0; tx < p.outer_size.x; tx += kPixels) {
        const int64_t x = std::max<int64_t>(0, std::min(tx, p.outer_size.x - kPixels));
        const int64_t width = std::min<int64_t>(p.outer_size.x - x, kPixels);
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t i = 0; i < kPixels; ++i) {
            const S* next = kernel + (y + r) * ks.y + (x + i + 2 * kPixels) * ks.x;
            for (int64_t u = 0; u < p.taps.y; ++u) __builtin_prefetch(next + u * ks.u);
          }
        }
        for (int64_t row = packed_rows; row < packed_rows + kRows * p.stride.y; ++row) {
          for (int64_t i = 0; i < kPixels * p.stride.x; ++i)
            __builtin_prefetch(source + (y0 * p.stride.y + p.offset.y + row) * p.inner_strides.y +
                                   (x * p.stride.x + i) * p.inner_strides.x,
                               0, 2);
        }
        Kernel<const S> values{kernel + y * ks.y + x * ks.x, ks.u, ks.v, ks.y};
        int64_t kernel_pixel = ks.x;
        const bool inside =
            !p.kernel_inside || (y + p.offset.y >= 0 && x + p.offset.x >= 0 &&
                                 y + p.offset.y + kRows - 1 + (p.taps.y - 1) * p.dilation.y < p.inner_size.y &&
                                 x + p.offset.x + kPixels - 1 + (p.taps.x - 1) * p.dilation.x < p.inner_size.x);
        if (!inside || height < kRows || width < kPixels) {
          pack_kernel_last(packed, kernel, y, x);
          values = {packed, p.taps.x * kRows * kPixels, kRows * kPixels, kPixels};
          kernel_pixel = 1;
        }
        for (int64_t c = 0; c < p.channels;) {
          const int vectors = c + kLane < p.channels ? 2 : 1;
          window.inner = buffer + ((y - y0) * p.stride.y) * row_step + x * p.stride.x * pixel_step + c;
          if (vectors == 2) {
            (sharing == 1   ? weighted_sum_last<T, S, 1, 2>
             : sharing == 2 ? weighted_sum_last<T, S, 2, 2>
                            : weighted_sum_last<T, S, 0, 2>)(window, values, kernel_pixel, sums);
          } else {
            (sharing == 1   ? weighted_sum_last<T, S, 1, 1>
             : sharing == 2 ? weighted_sum_last<T, S, 2, 1>
                            : weighted_sum_last<T, S, 0, 1>)(window, values, kernel_pixel, sums);
          }
          for (int64_t r = 0; r < height; ++r) {
            for (int64_t i = 0; i < width; ++i)
              unpack_row(outer + c * os.c + (y + r) * os.y + (x + i) * os.x, os.c,
                         sums + (r * kPixels + i) * vectors * kLane,
                         std::min<int64_t>(p.channels - c, vectors * kLane));
          }
          c += vectors * kLane;
        }
      }
    }
  }

  void run(int64_t item, bool product, T* buffer) const {
    const auto& p = problem;
    const int64_t y0 = item % bands * band, g = item / bands % p.groups, n = item / bands / p.groups;
    const int64_t y1 = std::min(y0 + band, p.outer_size.y);
    if (channels_last) return run_channels_last(n, g, y0, y1, buffer);
    S* outer = p.outer + n * p.outer_strides.n + g * p.channels * p.outer_strides.c;
    const int64_t kernel_offset = n * p.kernel_strides.n + g * p.kernel_strides.g;
    S* kernel = p.kernel + kernel_offset;
    T* packed_outer = buffer + p.channels * channel_step;
    T* packed_kernel = packed_outer + p.channels * kRows * kLane;
    T* sums = packed_kernel + p.taps.y * p.taps.x * kRows * kLane;
    const auto& is = p.inner_strides;
    const auto& gen = p.generation;
    const int64_t taps = p.taps.y * p.taps.x;
    T* weight = sums + kChannels * kRows * kLane;
    T* bias = weight + taps * gen.reduced;
    T* features = bias + taps;
    if (gen.reduced) {
      copy_run(weight, gen.weight + g * taps * gen.reduced, taps * gen.reduced);
      if (gen.bias)
        copy_run(bias, gen.bias + g * taps, taps);
      else
        std::fill_n(bias, taps, T(0));
    }
    const S* source = p.inner + n * is.n + g * p.channels * is.c;
    const int64_t source_y = y0 * p.stride.y + p.offset.y;
    int64_t packed_rows = 0;
    Window<T> window{buffer, channel_step, row_step, columns.data(), p.stride.y, p.dilation.y, p.taps};
    for (int64_t ty = y0; ty < y1; ty += kRows) {
      // The last tiles move back to overlap those before: most sizes need no partial tile.
      const int64_t y = std::max(y0, std::min(ty, y1 - kRows));
      const int64_t height = std::min<int64_t>(y1 - y, kRows);
      const int64_t next_rows = (y - y0 + kRows - 1) * p.stride.y + span;
      pack_inner(buffer, source, source_y, packed_rows, next_rows);
      packed_rows = next_rows;
      for (int64_t tx = 0; tx < p.outer_size.x; tx += kLane) {
        const int64_t x = std::max<int64_t>(0, std::min(tx, p.outer_size.x - kLane));
        const int64_t width = std::min<int64_t>(p.outer_size.x - x, kLane);
        // The inner rows of the next tiles below come from memory while this one computes.
        if (tx * static_cast<int64_t>(sizeof(S)) % 64 == 0 && is.x == 1) {
          for (int64_t row = packed_rows; row < packed_rows + kRows * p.stride.y; ++row) {
            const S* next = source + (source_y + row) * is.y + x * p.stride.x;
            for (int64_t c = 0; c < p.channels; ++c) __builtin_prefetch(next + c * is.c, 0, 2);
          }
        }
        const T* inner = buffer + (y - y0) * p.stride.y * row_step + x;
        Kernel<T> values{packed_kernel, p.taps.x * kRows * kLane, kRows * kLane, kLane};
        const bool direct = !gen.reduced && in_place(y, x, kernel_offset, product);
        if constexpr (std::is_same_v<S, T>) {
          if (direct)
            values = {kernel + y * p.kernel_strides.y + x, p.kernel_strides.u, p.kernel_strides.v, p.kernel_strides.y};
        }
        if (product) {
          inner_product_tile(window, inner, outer, y, x, height, width, packed_outer, values);
          if (!direct) unpack_kernel(kernel, packed_kernel, y, x, height, width);
        } else {
          if (gen.reduced)
            generate_kernel(packed_kernel, features, weight, bias, n, y, x, height, width);
          else if (!direct)
            pack_kernel(packed_kernel, kernel, kernel_offset, y, x);
          weighted_sum_tile(window, inner, {values.values, values.u, values.v, values.row}, outer, y, x, height, width,
                            sums, direct && kernel_far ? 64 / static_cast<int64_t>(sizeof(T)) : 0);
        }
      }
    }
  }

  void weighted_sum_tile(Window<T> window, const T* inner, Kernel<const T> kernel, S* outer, int64_t y, int64_t x,
                         int64_t height, int64_t width, T* buffer, int64_t ahead) const {
    const auto& p = problem;
    const auto& os = p.outer_strides;
    S* to = outer + y * os.y + x * os.x;
    const bool whole = std::is_same_v<S, T> && os.x == 1 && height == kRows && width == kLane;
    const Sums<T> sums = whole ? Sums<T>{reinterpret_cast<T*>(to), os.c, os.y} : Sums<T>{buffer, kRows * kLane, kLane};
    for (int64_t c = 0; c < p.channels;) {
      const int64_t count = c + kChannels <= p.channels ? kChannels : 1;
      window.inner = inner + c * channel_step;
      kernel.ahead = ahead + c / kChannels % kRows * kernel.row;
      const Sums<T> at{sums.values + (whole ? c * os.c : 0), sums.channel_step, sums.row_step};
      if (count == kChannels) {
        (sharing == 1   ? ahead ? weighted_sum<T, 1, kChannels, true> : weighted_sum<T, 1, kChannels>
         : sharing == 2 ? ahead ? weighted_sum<T, 2, kChannels, true> : weighted_sum<T, 2, kChannels>
                        : weighted_sum<T, 0, kChannels>)(window, kernel, at);
      } else {
        (sharing == 1   ? weighted_sum<T, 1, 1>
         : sharing == 2 ? weighted_sum<T, 2, 1>
                        : weighted_sum<T, 0, 1>)(window, kernel, at);
      }
      if (!whole) {
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t r = 0; r < height; ++r)
            unpack_row(to + (c + i) * os.c + r * os.y, os.x, buffer + (i * kRows + r) * kLane, width);
        }
      }
      c += count;
    }
  }

  void inner_product_tile(Window<T> window, const T* inner, const S* outer, int64_t y, int64_t x, int64_t height,
                          int64_t width, T* packed_outer, const Kernel<T>& kernel) const {
    const auto& p = problem;
    const auto& os = p.outer_strides;
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t r = 0; r < kRows; ++r) {
        T* to = packed_outer + (c * kRows + r) * kLane;
        const S* from = outer + c * os.c + (y + r) * os.y + x * os.x;
        if (os.x == 1 && width == kLane && r < height) {
          store<T>(to, load<T>(from));
        } else {
          pack_row(to, kLane, from, os.x, 0, r < height ? width : 0);
        }
      }
    }
    window.inner = inner;
    (sharing == 1   ? inner_product<T, 1>
     : sharing == 2 ? inner_product<T, 2>
                    : inner_product<T, 0>)(window, packed_outer, p.channels, kernel);
  }

  void unpack_kernel(S* kernel, const T* packed, int64_t y, int64_t x, int64_t height, int64_t width) const {
    const auto& p = problem;
    const auto& ks = p.kernel_strides;
    for (int64_t u = 0; u < p.taps.y; ++u) {
      for (int64_t v = 0; v < p.taps.x; ++v, packed += kRows * kLane) {
        for (int64_t r = 0; r < height; ++r)
          unpack_row(kernel + u * ks.u + v * ks.v + (y + r) * ks.y + x * ks.x, ks.x, packed + r * kLane, width);
      }
    }
  }
};

template <class S>
void run(const std::vector<Problem<S>>& problems, bool product, int threads) {
  int64_t work = 0;
  for (const auto& p : problems)
    work += p.batch * p.groups * p.channels * p.outer_size.y * p.outer_size.x * p.taps.y * p.taps.x;
  threads = static_cast<int>(std::clamp<int64_t>(work / kGrain, 1, threads));
  std::vector<Plan<S>> plans;
  int64_t items = 0, size = 0;
  for (const auto& p : problems) {
    plans.emplace_back(p, product, threads);
    items = std::max(items, plans.back().items());
    size = std::max(size, plans.back().buffer_size());
  }
  const size_t bytes = size * sizeof(Accumulator<S>);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    // Kept from call to call: fresh memory costs page faults.
    static thread_local std::vector<char> memory;
    if (memory.size() < bytes + 64) memory.resize(bytes + 64);
    auto buffer = reinterpret_cast<Accumulator<S>*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < items; ++item) {
      // All phases of a part of the image one after the other, while what they share is in the cache
      for (const auto& plan : plans) {
        if (item < plan.items()) plan.run(item, product, buffer);
      }
    }
  }
}

struct Arguments {
  int64_t operation, dtype, threads;  // operation: 0 writes output, 1 input, 2 kernel
  void *output, *input, *kernel;
  ImageStrides output_strides, input_strides;
  KernelStrides kernel_strides;
  int64_t batch, channels;
  Pair input_size;
  int64_t kernel_batch, groups;
  Pair taps, output_size;
  Pair stride, padding, dilation;
  const void *features, *weight, *bias;
  int64_t reduced;
  ImageStrides features_strides;
};

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
    // In reverse order, so that the outputs' coordinates ascend
    offset = (phase + padding - first * dilation_) / stride - (count - 1) * dilation;
  }
};

// Lets a large result, whose pages are fresh, come in huge ones: faults for small ones take longer than the sums.
void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), aligned = (begin + kHuge - 1) / kHuge * kHuge;
  if (bytes >= kMappedBytes) madvise(reinterpret_cast<void*>(aligned), begin + bytes - aligned, MADV_HUGEPAGE);
#endif
}

template <class S>
void dispatch(const Arguments& a) {
  S *output = static_cast<S*>(a.output), *input = static_cast<S*>(a.input), *kernel = static_cast<S*>(a.kernel);
  const auto& ks = a.kernel_strides;
  const int64_t kernel_size = (a.batch - 1) * ks.n + (a.groups - 1) * ks.g + (a.taps.y - 1) * ks.u +
                              (a.taps.x - 1) * ks.v + (a.output_size.y - 1) * ks.y + (a.output_size.x - 1) * ks.x + 1;
  Problem<S> p{a.batch,
               a.groups,
               a.channels / a.groups,
               a.taps,
               a.output_size,
               a.input_size,
               a.stride,
               a.dilation,
               {-a.padding.y, -a.padding.x},
               output,
               input,
               kernel,
               a.output_strides,
               a.input_strides,
               ks,
               0,
               kernel_size,
               false};
  if (a.reduced)
    p.generation = {static_cast<const S*>(a.features), static_cast<const S*>(a.weight), static_cast<const S*>(a.bias),
                    a.reduced, a.features_strides};
  const int64_t pixels = a.operation == 1 ? a.input_size.y * a.input_size.x : a.output_size.y * a.output_size.x;
  const int64_t channels = a.operation == 2 ? a.groups * a.taps.y * a.taps.x : a.channels;
  prefer_huge_pages(a.operation == 0   ? a.output
                    : a.operation == 1 ? a.input
                                       : a.kernel,
                    a.batch * channels * pixels * static_cast<int64_t>(sizeof(S)));
  if (a.operation != 1) return run<S>({p}, a.operation == 2, a.threads);
  std::vector<Problem<S>> phases;
  p.kernel_inside = true;
  p.stride = {1, 1};
  p.inner = output;
  p.inner_size = a.output_size;
  p.inner_strides = a.output_strides;
  for (int64_t y = 0; y < std::min(a.stride.y, a.input_size.y); ++y) {
    const PhaseTaps u(y, a.taps.y, a.stride.y, a.padding.y, a.dilation.y);
    for (int64_t x = 0; x < std::min(a.stride.x, a.input_size.x); ++x) {
      const PhaseTaps v(x, a.taps.x, a.stride.x, a.padding.x, a.dilation.x);
      const auto& is = a.input_strides;
      p.outer = input + y * is.y + x * is.x;
      p.outer_size = {(a.input_size.y - y + a.stride.y - 1) / a.stride.y,
                      (a.input_size.x - x + a.stride.x - 1) / a.stride.x};
      p.outer_strides = {is.n, is.c, is.y * a.stride.y, is.x * a.stride.x};
      p.taps = u.count && v.count ? Pair{u.count, v.count} : Pair{0, 0};
      p.dilation = {u.dilation, v.dilation};
      p.offset = {u.offset, v.offset};
      // The kernel values of a tap lie at the output pixel that the tap finds, which moves on with the taps.
      const int64_t shift = (u.first + (u.count - 1) * u.step) * ks.u + u.offset * ks.y +
                            (v.first + (v.count - 1) * v.step) * ks.v + v.offset * ks.x;
      p.kernel = kernel + shift;
      p.kernel_begin = -shift;
      p.kernel_end = kernel_size - shift;
      p.kernel_strides = {ks.n, ks.g, u.dilation * ks.y - u.step * ks.u, v.dilation * ks.x - v.step * ks.v, ks.y, ks.x};
      phases.push_back(p);
    }
  }
  run<S>(phases, false, a.threads);
}

}  // namespace

extern "C" void mmrednet_involution2d(const Arguments* arguments) {
  switch (arguments->dtype) {
    case 0:
      return dispatch<c10::Half>(*arguments);
    case 1:
      return dispatch<c10::BFloat16>(*arguments);
    case 2:
      return dispatch<float>(*arguments);
    case 3:
      return dispatch<double>(*arguments);
  }
}
