// Computes one work item tile by tile: packs the operands of the next tiles, then computes them.

#pragma once

#include "packing.h"

namespace {

// The part of the images and of the kernel that a work item has: some rows of outputs of one group of channels.
template <class S>
struct Item {
  int64_t n, g, y0, y1, source_y;  // source_y: the inner row under the first tap of row y0
  S *outer, *inner, *kernel;

  Item(const Plan<S>& plan, int64_t index) {
    const auto& p = plan.problem;
    y0 = index % plan.bands * plan.band;
    y1 = index % plan.bands == plan.bands - 1 ? p.outer_size.y : y0 + plan.band;
    g = index / plan.bands % p.groups;
    n = index / plan.bands / p.groups;
    source_y = y0 * p.stride.y + p.offset.y;
    outer = p.outer + n * p.outer_strides.n + g * p.channels * p.outer_strides.c;
    inner = p.inner + n * p.inner_strides.n + g * p.channels * p.inner_strides.c;
    kernel = p.kernel + n * p.kernel_strides.n + g * p.kernel_strides.g;
  }
};

// For each row of tiles, calls pack(begin, end) for the rows of the buffer that it adds, then compute(tile, end).
template <int kColumns, class S, class Pack, class Compute>
INLINE inline void for_each_tile(const Plan<S>& plan, const Item<S>& item, Pack&& pack, Compute&& compute) {
  const auto& p = plan.problem;
  int64_t packed_rows = 0;
  for (int64_t ty = item.y0; ty < item.y1; ty += kRows) {
    // The last tile overlaps the previous one, so that most sizes need no partial tile.
    const int64_t y = std::max(item.y0, std::min(ty, item.y1 - kRows));
    const int64_t rows = (y - item.y0 + kRows - 1) * p.stride.y + plan.inner_rows;
    pack(packed_rows, rows);
    packed_rows = rows;
    for (int64_t tx = 0; tx < p.outer_size.x; tx += kColumns) {
      const int64_t x = std::max<int64_t>(0, std::min(tx, p.outer_size.x - kColumns));
      compute(Tile{y, x, std::min<int64_t>(item.y1 - y, kRows), std::min<int64_t>(p.outer_size.x - x, kColumns)}, rows);
    }
  }
}

// Calls function(Int<stride>) with the stride for which the rows of a tile share inner rows, or 0.
template <class F>
INLINE inline void with_sharing(int sharing, F&& function) {
  sharing == 1 ? function(Int<1>{}) : sharing == 2 ? function(Int<2>{}) : function(Int<0>{});
}

// Computes all channels of a tile. Returns false if a border tile has to be computed again without its taps outside the
// inner image: an infinity or NaN in the kernel there, times the zero outside, gives NaN. All channels of a group have
// the same kernel, so the first channel is checked.
template <class S, class T>
bool weighted_sum_tile(const Plan<S>& plan, Window<T> window, Kernel<const T> kernel, S* outer, Tile tile, T* buffer,
                       int64_t ahead, bool border) {
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const ImageDims os = p.outer_strides;
  const T* inner = window.inner;
  S* to = outer + tile.y * os.y + tile.x * os.x;
  const bool whole = std::is_same_v<S, T> && os.x == 1 && tile.height == kRows && tile.width == kLane;
  bool finite = true;
  for (int64_t c = 0; c < p.channels;) {
    const int64_t count = c + kChannels <= p.channels ? kChannels : 1;
    window.inner = inner + c * plan.channel_step;
    kernel.ahead = ahead + c / kChannels % kRows * kernel.row;
    const Sums<T> sums =
        whole ? Sums<T>{reinterpret_cast<T*>(to) + c * os.c, os.c, os.y} : Sums<T>{buffer, kRows * kLane, kLane};
    with_sharing(plan.sharing, [&](auto stride) INLINE {
      if (count == 1) {
        weighted_sum<T, stride, 1>(window, kernel, sums);
      } else if (ahead) {
        weighted_sum<T, stride, kChannels, stride != 0>(window, kernel, sums);
      } else {
        weighted_sum<T, stride, kChannels>(window, kernel, sums);
      }
    });
    if (border && c == 0) finite = all_finite(sums.values, sums.row_step);
    if (!whole) {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t r = 0; r < tile.height; ++r)
          unpack_row(to + (c + i) * os.c + r * os.y, os.x, buffer + (i * kRows + r) * kLane, tile.width);
      }
    }
    c += count;
  }
  return finite;
}

// The same for channels-last images.
template <class S, class T>
bool weighted_sum_tile_last(const Plan<S>& plan, Window<T> window, const Kernel<const S>& kernel, int64_t kernel_pixel,
                            S* outer, Tile tile, T* sums, bool border) {
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const ImageDims os = p.outer_strides;
  const T* inner = window.inner;
  S* to = outer + tile.y * os.y + tile.x * os.x;
  bool finite = true;
  for (int64_t c = 0; c < p.channels;) {
    const int64_t vectors = c + kLane < p.channels ? 2 : 1;
    window.inner = inner + c;
    with_sharing(plan.sharing, [&](auto stride) INLINE {
      vectors == 2 ? weighted_sum_last<T, S, stride, 2>(window, kernel, kernel_pixel, sums)
                   : weighted_sum_last<T, S, stride, 1>(window, kernel, kernel_pixel, sums);
    });
    for (int64_t i = 0; border && c == 0 && i < kPixels; ++i)
      finite &= all_finite(sums + i * vectors * kLane, kPixels * vectors * kLane);
    for (int64_t r = 0; r < tile.height; ++r) {
      for (int64_t i = 0; i < tile.width; ++i)
        unpack_row(to + c * os.c + r * os.y + i * os.x, os.c, sums + (r * kPixels + i) * vectors * kLane,
                   std::min<int64_t>(p.channels - c, vectors * kLane));
    }
    c += vectors * kLane;
  }
  return finite;
}

// Computes the kernel values of a tile. At taps outside the inner image they are zero, whatever values `outer` has.
template <class S, class T>
void inner_product_tile(const Plan<S>& plan, const Window<T>& window, const Kernel<T>& kernel, const S* outer,
                        Tile tile, T* packed) {
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const ImageDims os = p.outer_strides;
  outer += tile.y * os.y + tile.x * os.x;
  for (int64_t c = 0; c < p.channels; ++c) pack_tile(packed + c * kRows * kLane, outer + c * os.c, os.y, os.x, tile);
  with_sharing(plan.sharing, [&](auto stride) INLINE { inner_product<T, stride>(window, packed, p.channels, kernel); });
  // An infinity or NaN in `outer` affects all taps of its pixel, so the first tap is checked.
  if (!plan.inside(tile, kLane) && !all_finite(kernel.values, kernel.row)) clear_outside(plan, kernel, tile);
}

// Generates the tile's kernel values as packed[u][v][r][lane].
template <class S, class T>
void generate_kernel(const Plan<S>& plan, T* buffer, int64_t n, Tile tile) {
  constexpr int kLane = kLanes<T>;
  constexpr int kTaps = kChannels == 4 ? 6 : 2;  // 24 sums and 4 features, or 8 and 4, fit into the registers
  const auto& gen = plan.problem.generation;
  T *packed = buffer + plan.buffer.kernel, *features = buffer + plan.buffer.features;
  const T *weight = buffer + plan.buffer.weight, *bias = buffer + plan.buffer.bias;
  const S* from = gen.features + n * gen.strides.n + tile.y * gen.strides.y + tile.x * gen.strides.x;
  for (int64_t i = 0; i < gen.reduced; ++i)
    pack_tile(features + i * kRows * kLane, from + i * gen.strides.c, gen.strides.y, gen.strides.x, tile);
  const int64_t taps = plan.problem.taps.y * plan.problem.taps.x;
  int64_t tap = 0;
  for (; tap + kTaps <= taps; tap += kTaps)
    generate_taps<T, kTaps>(features, weight + tap * gen.reduced, bias + tap, gen.reduced,
                            packed + tap * kRows * kLane);
  for (; tap < taps; ++tap)
    generate_taps<T, 1>(features, weight + tap * gen.reduced, bias + tap, gen.reduced, packed + tap * kRows * kLane);
}

template <class S, class T>
void run_planar(const Plan<S>& plan, const Item<S>& item, Operation operation, T* buffer) {
  constexpr int kLane = kLanes<T>;
  const auto& p = plan.problem;
  const ImageDims is = p.inner_strides;
  const KernelDims ks = p.kernel_strides;
  const auto& gen = p.generation;
  if (gen.reduced) {
    const int64_t taps = p.taps.y * p.taps.x;
    copy_run(buffer + plan.buffer.weight, gen.weight + item.g * taps * gen.reduced, taps * gen.reduced);
    if (gen.bias)
      copy_run(buffer + plan.buffer.bias, gen.bias + item.g * taps, taps);
    else
      std::fill_n(buffer + plan.buffer.bias, taps, T(0));
  }
  Window<T> window{buffer, plan.channel_step, plan.row_step, plan.columns.data(), p.stride.y, p.dilation.y, p.taps};
  const Kernel<T> packed{buffer + plan.buffer.kernel, p.taps.x * kRows * kLane, kRows * kLane, kLane};
  const auto pack = [&](int64_t begin, int64_t end) {
    pack_inner(plan, buffer, item.inner, item.source_y, begin, end);
  };
  const auto compute = [&](Tile tile, int64_t rows) {
    // Prefetches the inner rows of the tiles below.
    if (tile.x * static_cast<int64_t>(sizeof(S)) % 64 == 0 && is.x == 1) {
      for (int64_t row = rows; row < rows + kRows * p.stride.y; ++row) {
        const S* next = item.inner + (item.source_y + row) * is.y + tile.x * p.stride.x;
        for (int64_t c = 0; c < p.channels; ++c) __builtin_prefetch(next + c * is.c, 0, 2);
      }
    }
    window.inner = buffer + (tile.y - item.y0) * p.stride.y * plan.row_step + tile.x;
    const bool direct = !gen.reduced && in_place(plan, item.kernel, tile, operation);
    Kernel<T> kernel = packed;
    if constexpr (std::is_same_v<S, T>) {
      if (direct) kernel = {item.kernel + tile.y * ks.y + tile.x, ks.u, ks.v, ks.y};
    }
    if (operation == Operation::kInnerProduct) {
      inner_product_tile(plan, window, kernel, item.outer, tile, buffer + plan.buffer.outer);
      if (!direct) unpack_kernel(plan, item.kernel, packed.values, tile);
      return;
    }
    if (gen.reduced)
      generate_kernel(plan, buffer, item.n, tile);
    else if (!direct)
      pack_kernel(plan, packed.values, item.kernel, tile);
    const bool border = !p.kernel_inside && !plan.inside(tile, kLane);
    const auto sum = [&](const Kernel<T>& from, int64_t ahead) {
      return weighted_sum_tile<S, T>(plan, window, {from.values, from.u, from.v, from.row}, item.outer, tile,
                                     buffer + plan.buffer.sums, ahead, border);
    };
    if (sum(kernel, direct && plan.kernel_far ? 64 / static_cast<int64_t>(sizeof(T)) : 0)) return;
    if (direct) pack_kernel(plan, packed.values, item.kernel, tile);
    clear_outside(plan, packed, tile);
    sum(packed, 0);
  };
  for_each_tile<kLane>(plan, item, pack, compute);
}

template <class S, class T>
void run_channels_last(const Plan<S>& plan, const Item<S>& item, T* buffer) {
  const auto& p = plan.problem;
  const ImageDims is = p.inner_strides;
  const KernelDims ks = p.kernel_strides;
  T* sums = buffer + plan.buffer.sums;
  S* packed = reinterpret_cast<S*>(buffer + plan.buffer.kernel);
  Window<T> window{buffer, p.stride.x * plan.pixel_step, plan.row_step, plan.columns.data(), p.stride.y, p.dilation.y,
                   p.taps};
  const auto pack = [&](int64_t begin, int64_t end) {
    pack_pixels(plan, buffer, item.inner, item.source_y, begin, end);
  };
  const auto compute = [&](Tile tile, int64_t rows) {
    const S* kernel = item.kernel + tile.y * ks.y + tile.x * ks.x;
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kPixels; ++i) {
        const S* next = kernel + r * ks.y + (i + 2 * kPixels) * ks.x;
        for (int64_t u = 0; u < p.taps.y; ++u) __builtin_prefetch(next + u * ks.u);
      }
    }
    for (int64_t row = rows; row < rows + kRows * p.stride.y; ++row) {
      const S* next = item.inner + (item.source_y + row) * is.y + tile.x * p.stride.x * is.x;
      for (int64_t i = 0; i < kPixels * p.stride.x; ++i) __builtin_prefetch(next + i * is.x, 0, 2);
    }
    window.inner = buffer + (tile.y - item.y0) * p.stride.y * plan.row_step + tile.x * p.stride.x * plan.pixel_step;
    bool direct = p.kernel_inside ? plan.inside(tile, kPixels) : tile.height == kRows && tile.width == kPixels;
    for (bool inside_only = p.kernel_inside, done = false; !done; direct = false, inside_only = true) {
      Kernel<const S> values{kernel, ks.u, ks.v, ks.y};
      if (!direct) {
        pack_kernel_last(plan, packed, item.kernel, tile, inside_only);
        values = {packed, p.taps.x * kRows * kPixels, kRows * kPixels, kPixels};
      }
      const bool border = !inside_only && !plan.inside(tile, kPixels);
      done = weighted_sum_tile_last(plan, window, values, direct ? ks.x : 1, item.outer, tile, sums, border);
    }
  };
  for_each_tile<kPixels>(plan, item, pack, compute);
}

}  // namespace
