// The innermost loops, which take most of the time: the sums of one tile, in registers.

#pragma once

#include "vector.h"

namespace {

struct Pair {
  int64_t y, x;
};

#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int kChannels = 4;  // Channels of a tile: 16 sums, 4 weights and 2 values fit into 32 registers
#else
constexpr int kChannels = 2;
#endif
constexpr int kRows = 4;
constexpr int kPixels = kChannels / 2;  // Neighbouring pixels of a tile of channels-last images

// The addresses of a tile's inner image and kernel values.
template <class T>
struct Window {
  const T* inner;
  int64_t channel_step, row_step;
  const int64_t* columns;  // The column at which each tap of a row begins
  int64_t stride, dilation;
  Pair taps;
};
template <class T>
struct Kernel {
  T* values;
  int64_t u, v, row;
  int64_t ahead = 0;
};

// Calls visit(last, q) so that every row of a tile meets each tap once. For the rows r in [0, last] the inner row q is
// the tap u = q - Stride * r. For the rows below it is the inner row q + taps. So the number of sums in progress stays
// the same. It needs at least (kRows - 1) * Stride taps and a dilation of 1.
template <int Stride, class F>
INLINE inline void for_each_row(int64_t taps, F&& visit) {
  unroll<0, kRows - 2>([&](auto m) INLINE {
    for (int s = 0; s < Stride; ++s) visit(m, m * Stride + s);
  });
  for (int64_t q = (kRows - 1) * Stride; q < taps; ++q) visit(Int<kRows - 1>{}, q);
}

// The destination of a tile's sums: row r of channel c is written to values + c * channel_step + r * row_step.
template <class T>
struct Sums {
  T* values;
  int64_t channel_step, row_step;
};

// Returns whether kRows vectors are finite. (Zero times infinity is NaN.)
template <class T>
INLINE inline bool all_finite(const T* values, int64_t row_step) {
  Vector<T> total = {};
  unroll<0, kRows - 1>([&](auto r) INLINE { total += load<T>(values + r * row_step) * T(0); });
  const auto nan = total != total;
  int64_t words[kVectorBytes / sizeof(int64_t)], any = 0;
  std::memcpy(words, &nan, sizeof nan);
  for (int64_t word : words) any |= word;
  return any == 0;
}

// Writes the sums of C channels. Stride 0 means any stride and dilation: the rows share no inner rows. With Ahead it
// also prefetches the kernel values that are `kernel.ahead` after those of the first row.
template <class T, int Stride, int C, bool Ahead = false>
NOINLINE void weighted_sum(const Window<T>& window, const Kernel<const T>& kernel, const Sums<T>& sums) {
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
    for_each_row<Stride>(window.taps.y, [&](auto last, int64_t q) INLINE {
      const T *inner = window.inner + q * window.row_step, *inner_below = inner + window.taps.y * window.row_step;
      const T *weights = kernel.values + q * kernel.u, *weights_below = weights + window.taps.y * kernel.u;
      const int64_t weight_row = kernel.row - Stride * kernel.u;
      const T* ahead = weights + kernel.ahead;
      for (const int64_t* column = columns; column < end; ++column, weights += kernel_step) {
        if constexpr (Ahead) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += kernel_step;
        }
        Vector<T> weight[kRows];
        unroll<0, last>([&](auto r) INLINE { weight[r] = load_once<T>(weights + r * weight_row); });
        unroll<last + 1, kRows - 1>([&](auto r) INLINE { weight[r] = load_once<T>(weights_below + r * weight_row); });
        weights_below += kernel_step;
        unroll<0, C - 1>([&](auto c) INLINE {
          const Vector<T> value = load_once<T>(inner + *column + c * channel_step);
          unroll<0, last>([&](auto r) INLINE { sum[c][r] += weight[r] * value; });
          if constexpr (last + 1 < kRows) {
            const Vector<T> below = load_once<T>(inner_below + *column + c * channel_step);
            unroll<last + 1, kRows - 1>([&](auto r) INLINE { sum[c][r] += weight[r] * below; });
          }
        });
      }
    });
  }
  unroll<0, C - 1>([&](auto c) INLINE {
    unroll<0, kRows - 1>([&](auto r)
                             INLINE { store<T>(sums.values + c * sums.channel_step + r * sums.row_step, sum[c][r]); });
  });
}

// The same for channels-last images: writes sum[r][pixel][channel] for V vectors of channels. Here `channel_step` is
// the step from pixel to pixel, and kernel values are read one by one, with any strides.
template <class T, class S, int Stride, int V>
NOINLINE void weighted_sum_last(const Window<T>& window, const Kernel<const S>& kernel, int64_t kernel_pixel, T* sums) {
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
    const int64_t row_below = window.taps.y * window.row_step, weights_below = window.taps.y * kernel.u;
    for_each_row<Stride>(window.taps.y, [&](auto last, int64_t q) INLINE {
      const T* inner = window.inner + q * window.row_step;
      const S* weights = kernel.values + q * kernel.u;
      const int64_t weight_row = kernel.row - Stride * kernel.u;
      for (const int64_t* column = window.columns; column < end; ++column, weights += kernel_step) {
        unroll<0, kPixels - 1>([&](auto p) INLINE {
          const auto sum_rows = [&](auto from, auto to, const T* row, const S* taps) INLINE {
            Vector<T> value[V];
            unroll<0, V - 1>([&](auto c) INLINE { value[c] = load_once<T>(row + c * kLanes<T>); });
            unroll<from, to>([&](auto r) INLINE {
              const Vector<T> weight = broadcast<T>(taps + r * weight_row + p * kernel_pixel);
              unroll<0, V - 1>([&](auto c) INLINE { sum[r][p][c] += weight * value[c]; });
            });
          };
          const T* at = inner + *column + p * pixel_step;
          sum_rows(Int<0>{}, last, at, weights);
          if constexpr (last + 1 < kRows)
            sum_rows(Int<last + 1>{}, Int<kRows - 1>{}, at + row_below, weights + weights_below);
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

// Writes the kernel values of the taps v, ..., v + V - 1 in all rows of taps. `outer` is outer[c][r][lane].
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
    for_each_row<Stride>(window.taps.y, [&](auto last, int64_t q) INLINE {
      Vector<T> sum[kRows][V] = {};
      const T *inner = window.inner + q * window.row_step, *inner_below = inner + window.taps.y * window.row_step;
      const T* grads = outer;
      for (int64_t c = 0; c < channels; ++c, inner += window.channel_step, grads += kRows * kLanes<T>) {
        Vector<T> grad[kRows];
        unroll<0, kRows - 1>([&](auto r) INLINE { grad[r] = load_once<T>(grads + r * kLanes<T>); });
        unroll<0, V - 1>([&](auto i) INLINE {
          const Vector<T> value = load_once<T>(inner + columns[i]);
          unroll<0, last>([&](auto r) INLINE { sum[r][i] += grad[r] * value; });
          if constexpr (last + 1 < kRows) {
            const Vector<T> below = load_once<T>(inner_below + columns[i]);
            unroll<last + 1, kRows - 1>([&](auto r) INLINE { sum[r][i] += grad[r] * below; });
          }
        });
        inner_below += window.channel_step;
      }
      unroll<0, kRows - 1>([&](auto r) INLINE {
        const int64_t u = q - Stride * r + (r > last ? window.taps.y : 0);
        T* to = kernel.values + u * kernel.u + v * kernel.v + r * kernel.row;
        unroll<0, V - 1>([&](auto i) INLINE { store<T>(to + i * kernel.v, sum[r][i]); });
      });
    });
  }
}

template <class T, int Stride>
NOINLINE void inner_product(const Window<T>& window, const T* outer, int64_t channels, const Kernel<T>& kernel) {
  // The last columns overlap the previous ones: writing a tap twice is cheaper than a narrower tile.
  const int64_t width = window.taps.x;
  const auto run = [&](auto columns) INLINE {
    for (int64_t v = 0; v < width; v += columns)
      inner_product_columns<T, Stride, columns>(window, outer, channels, kernel, std::min(v, width - columns));
  };
  if (width == 3)
    run(Int<3>{});
  else if (width >= kChannels)
    run(Int<kChannels>{});
  else if (width >= 2)
    run(Int<2>{});
  else
    run(Int<1>{});
}

// Writes the kernel values [tap][r][lane] of the taps tap, ..., tap + N - 1 from features [reduced][r][lane].
template <class T, int N>
NOINLINE void generate_taps(const T* features, const T* weight, const T* bias, int64_t reduced, T* values) {
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

}  // namespace
