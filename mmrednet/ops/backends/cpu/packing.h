// Copies operands to buffers that tiles read in vectors, and results back: rows and pixels of the inner image with
// zeros around them, and the kernel values of one tile.

#pragma once

#include "plan.h"

namespace {

// Writes to[i] = from[i * step] for first <= i < last and zero for all other i < size. It may write zeros up to one
// vector after the end. The step is 1 unless Strided.
template <bool Strided, class T, class S>
INLINE inline void pack_row(T* to, int64_t size, const S* from, int64_t step, int64_t first, int64_t last) {
  for (int64_t i = 0; i < first; i += kLanes<T>) store<T>(to + i, Vector<T>{});
  if constexpr (Strided) {
    int64_t i = first;
    for (; i + kLanes<T> <= last; i += kLanes<T>) store<T>(to + i, load<T>(from + i * step, step));
    for (; i < last; ++i) to[i] = static_cast<T>(from[i * step]);
  } else {
    copy_run(to + first, from + first, last - first);
  }
  for (int64_t i = last; i < size; i += kLanes<T>) store<T>(to + i, Vector<T>{});
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

// Writes to[i * step] = from[i] for i < size. It reads whole vectors.
template <class T, class S>
INLINE inline void unpack_row(S* to, int64_t step, const T* from, int64_t size) {
  constexpr int N = kLanes<T>;
  if (step == 1) return copy_run(to, from, size);
  for (; size > 0; size -= N, to += N * step, from += N) {
    S values[N];
    copy_lanes<N>(values, from);
    unroll<0, N - 1>([&](auto i) INLINE {
      if (i < size) to[i * step] = values[i];
    });
  }
}

// Packs a row of the inner image with stride 2, all channels.
template <class S, class T>
void pack_row_pairs(const Plan<S>& plan, T* to, const S* from) {
  const auto& p = plan.problem;
  // The first pixel's phase, and the run's position in both
  const int64_t even = -p.offset.x & 1, odd = 1 - even;
  const auto [even_first, even_last] = plan.runs[even];
  const auto [odd_first, odd_last] = plan.runs[odd];
  const int64_t pairs = std::min(even_last - even_first, odd_last - odd_first);
  T *evens = to + even * plan.phase_step + even_first, *odds = to + odd * plan.phase_step + odd_first;
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t i = 0; i < plan.row_step; i += kLanes<T>) store<T>(to + i, Vector<T>{});
    pack_pairs(evens, odds, from, pairs);
    for (int64_t i = pairs; i < even_last - even_first; ++i) evens[i] = static_cast<T>(from[2 * i]);
    for (int64_t i = pairs; i < odd_last - odd_first; ++i) odds[i] = static_cast<T>(from[2 * i + 1]);
    to += plan.channel_step, evens += plan.channel_step, odds += plan.channel_step, from += p.inner_strides.c;
  }
}

// Packs the rows [begin, end) of the buffer. Its first row is the inner row y0.
template <class S, class T>
void pack_inner(const Plan<S>& plan, T* buffer, const S* inner, int64_t y0, int64_t begin, int64_t end) {
  const auto& p = plan.problem;
  const ImageDims is = p.inner_strides;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y = y0 + row;
    const bool inside = 0 <= y && y < p.inner_size.y;
    if (inside && p.stride.x == 2 && is.x == 1) {
      pack_row_pairs(plan, buffer + row * plan.row_step, inner + y * is.y);
      continue;
    }
    for (int64_t phase = 0; phase < p.stride.x; ++phase) {
      const auto [first, last] = inside ? plan.runs[phase] : std::pair<int64_t, int64_t>{0, 0};
      const S* from = inner + y * is.y + (p.offset.x + phase) * is.x;
      T* to = buffer + row * plan.row_step + phase * plan.phase_step;
      const int64_t step = p.stride.x * is.x;
      const auto pack = [&](auto strided) INLINE {
        for (int64_t c = 0; c < p.channels; ++c)
          pack_row<strided>(to + c * plan.channel_step, plan.phase_step, from + c * is.c, step, first, last);
      };
      step == 1 ? pack(std::false_type{}) : pack(std::true_type{});
    }
  }
}

// For channels-last images: packs the rows [begin, end) of the buffer pixel by pixel.
template <class S, class T>
void pack_pixels(const Plan<S>& plan, T* buffer, const S* inner, int64_t y0, int64_t begin, int64_t end) {
  const auto& p = plan.problem;
  const ImageDims is = p.inner_strides;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y = y0 + row;
    const bool inside = 0 <= y && y < p.inner_size.y;
    T* to = buffer + row * plan.row_step;
    T* const stop = to + plan.row_step;
    for (int64_t x = p.offset.x; to < stop; ++x, to += plan.pixel_step) {
      const bool there = inside && 0 <= x && x < p.inner_size.x;
      pack_row<false>(to, plan.pixel_step, inner + y * is.y + x * is.x, 1, 0, there ? p.channels : 0);
    }
  }
}

// Copies a tile to packed[r][lane], with zeros after its outputs.
template <class T, class S>
INLINE inline void pack_tile(T* packed, const S* from, int64_t y_step, int64_t x_step, Tile tile) {
  constexpr int kLane = kLanes<T>;
  if (tile.height == kRows && tile.width == kLane) {
    unroll<0, kRows - 1>([&](auto r) INLINE {
      const S* row = from + r * y_step;
      store<T>(packed + r * kLane, x_step == 1 ? load<T>(row) : load<T>(row, x_step));
    });
  } else {
    for (int64_t r = 0; r < kRows; ++r, packed += kLane, from += y_step) {
      const int64_t last = r < tile.height ? tile.width : 0;
      x_step == 1 ? pack_row<false>(packed, kLane, from, 1, 0, last)
                  : pack_row<true>(packed, kLane, from, x_step, 0, last);
    }
  }
}

// Returns whether a tile can read, or write, its kernel values in memory without a copy.
template <class S>
bool in_place(const Plan<S>& plan, const S* kernel, Tile tile, Operation operation) {
  using T = Accumulator<S>;
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const KernelDims ks = p.kernel_strides;
  if (!std::is_same_v<S, T> || ks.x != 1) return false;
  if (p.kernel_inside) return plan.inside(tile, kLane);
  if (operation == Operation::kInnerProduct) return tile.height == kRows && tile.width == kLane;
  // A tile may read past its outputs as long as that memory belongs to the kernel.
  return kernel + (p.taps.y - 1) * ks.u + (p.taps.x - 1) * ks.v + (tile.y + kRows - 1) * ks.y + tile.x + kLane <=
         p.kernel_end;
}

// Copies the tile's kernel values to packed[u][v][r][lane], with zeros where there are none.
template <class S, class T>
void pack_kernel(const Plan<S>& plan, T* packed, const S* kernel, Tile tile) {
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const KernelDims ks = p.kernel_strides;
  kernel += tile.y * ks.y + tile.x * ks.x;
  int64_t least = 0, most = 0;
  for (int64_t end : {(p.taps.y - 1) * ks.u, (p.taps.x - 1) * ks.v, (kRows - 1) * ks.y})
    (end < 0 ? least : most) += end;
  const bool there = ks.x == 1 && p.kernel_begin <= kernel + least && kernel + most + kLane <= p.kernel_end;
  Vector<T> lanes;
  for (int i = 0; i < kLane; ++i) lanes[i] = i;
  for (int64_t v = 0; v < p.taps.x; ++v) {
    const int64_t inner_x = tile.x + v * p.dilation.x + p.offset.x;
    const int64_t first = p.kernel_inside ? std::clamp<int64_t>(-inner_x, 0, kLane) : 0;
    const int64_t last = p.kernel_inside ? std::clamp<int64_t>(p.inner_size.x - inner_x, first, kLane) : tile.width;
    const auto inside = (lanes >= static_cast<T>(first)) & (lanes < static_cast<T>(last));
    for (int64_t u = 0; u < p.taps.y; ++u) {
      T* to = packed + (u * p.taps.x + v) * kRows * kLane;
      const int64_t inner_y = tile.y + u * p.dilation.y + p.offset.y;
      const int64_t top = p.kernel_inside ? std::clamp<int64_t>(-inner_y, 0, kRows) : 0;
      const int64_t bottom = p.kernel_inside ? std::clamp<int64_t>(p.inner_size.y - inner_y, top, kRows) : tile.height;
      const S* from = kernel + u * ks.u + v * ks.v;
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

// Copies packed[u][v][r][lane] to the tile's kernel values.
template <class S, class T>
void unpack_kernel(const Plan<S>& plan, S* kernel, const T* packed, Tile tile) {
  const auto& p = plan.problem;
  const KernelDims ks = p.kernel_strides;
  for (int64_t u = 0; u < p.taps.y; ++u) {
    for (int64_t v = 0; v < p.taps.x; ++v, packed += kRows * kLanes<T>) {
      for (int64_t r = 0; r < tile.height; ++r)
        unpack_row(kernel + u * ks.u + v * ks.v + (tile.y + r) * ks.y + tile.x * ks.x, ks.x, packed + r * kLanes<T>,
                   tile.width);
    }
  }
}

// For channels-last images: copies the tile's kernel values to packed[u][v][r][pixel]. Where there are none it writes
// zeros, and on request also at taps outside the inner image.
template <class S>
void pack_kernel_last(const Plan<S>& plan, S* packed, const S* kernel, Tile tile, bool inside_only) {
  const auto& p = plan.problem;
  const KernelDims ks = p.kernel_strides;
  const S zero(0);
  for (int64_t u = 0; u < p.taps.y; ++u) {
    bool rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = r < tile.height && (!inside_only || plan.inside_y(tile.y + r, u));
    for (int64_t v = 0; v < p.taps.x; ++v, packed += kRows * kPixels) {
      const S* from = kernel + u * ks.u + v * ks.v + tile.y * ks.y + tile.x * ks.x;
      unroll<0, kPixels - 1>([&](auto i) INLINE {
        const bool column = i < tile.width && (!inside_only || plan.inside_x(tile.x + i, v));
        unroll<0, kRows - 1>([&](auto r) INLINE {
          packed[r * kPixels + i] = *(rows[r] && column ? from + r * ks.y + i * ks.x : &zero);
        });
      });
    }
  }
}

// Sets a tile's kernel values to zero at taps outside the inner image.
template <class S, class T>
void clear_outside(const Plan<S>& plan, const Kernel<T>& kernel, Tile tile) {
  const auto& p = plan.problem;
  for (int64_t u = 0; u < p.taps.y; ++u) {
    for (int64_t v = 0; v < p.taps.x; ++v) {
      for (int64_t r = 0; r < tile.height; ++r) {
        for (int64_t i = 0; i < tile.width; ++i) {
          if (!plan.inside_y(tile.y + r, u) || !plan.inside_x(tile.x + i, v))
            kernel.values[u * kernel.u + v * kernel.v + r * kernel.row + i] = 0;
        }
      }
    }
  }
}

}  // namespace
