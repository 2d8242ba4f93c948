// A problem, how its work is divided into work items, and how their memory is laid out.

#pragma once

#include <vector>

#include "tiles.h"

namespace {

constexpr int64_t kBufferBytes = 512 << 10;  // A work item's buffer, if rows are short: fits the second-level cache
constexpr int64_t kFarBytes = 8 << 20;       // A larger kernel is read from memory, not from a cache

// Sizes or strides in elements, of an image (N, C, H, W) or of a kernel (N, G, Kh, Kw, Ho, Wo).
struct ImageDims {
  int64_t n, c, y, x;
};
struct KernelDims {
  int64_t n, g, u, v, y, x;
};

enum class Operation { kWeightedSum, kInnerProduct };

// The 1x1 convolution that generates the kernel: features (N, R, Ho, Wo), weight (G Kh Kw, R) and bias (G Kh Kw).
template <class S>
struct Generation {
  const S *features, *weight, *bias;
  int64_t reduced;
  ImageDims strides;
};

template <class S>
struct Problem {
  int64_t batch, groups, channels;  // Channels of one group
  Pair taps, outer_size, inner_size, stride, dilation, offset;
  S *outer, *inner, *kernel;
  ImageDims outer_strides, inner_strides;
  KernelDims kernel_strides;
  const S *kernel_begin, *kernel_end;  // The memory around `kernel` that may be read
  bool kernel_inside = false;          // The kernel has values only inside the inner image: gradient of the input
  Generation<S> generation = {};       // Replaces the kernel if it has features
};

struct Tile {
  int64_t y, x, height, width;
};

// Returns the number of output pixels along one axis. It is 0 where no window fits.
inline int64_t output_size(int64_t size, int64_t taps, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (taps - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

template <class S>
struct Plan {
  using T = Accumulator<S>;

  Problem<S> problem;
  Pair reach;  // From the first tap to the last, in inner pixels
  bool channels_last;
  int64_t phase_step, row_step, rows, channel_step;  // The buffer: channels x rows x phases of the stride x columns
  int64_t pixel_step;                                // The buffer for channels-last images: rows x columns x channels
  std::vector<int64_t> columns;                      // The column of the buffer at which each tap of a row begins
  std::vector<std::pair<int64_t, int64_t>> runs;     // The columns of each phase inside the inner image: [first, last)
  int64_t band, bands;                               // Rows of outputs of a work item; work items of a group
  int64_t inner_rows;                                // Rows of the inner image under one row of outputs
  int sharing;                                       // The stride for which rows of a tile share the inner rows, or 0
  bool kernel_far;                                   // Whether tiles prefetch kernel values
  struct {
    int64_t outer, kernel, sums, features, weight, bias, end;
  } buffer;  // Offsets of a work item's other memory, after the inner rows

  Plan(const Problem<S>& p, Operation operation, int threads) : problem(p) {
    constexpr int kLane = kLanes<T>;
    constexpr int64_t kLine = 64 / sizeof(T);
    channels_last = operation == Operation::kWeightedSum && !p.generation.reduced && p.inner_strides.c == 1 &&
                    p.inner_strides.x != 1 && p.channels >= kLane;
    // A phase of the input's gradient may have no taps.
    reach = {std::max<int64_t>(p.taps.y - 1, 0) * p.dilation.y, std::max<int64_t>(p.taps.x - 1, 0) * p.dilation.x};
    inner_rows = reach.y + 1;
    phase_step = std::max<int64_t>(p.outer_size.x, kLane) + reach.x / p.stride.x;
    pixel_step = ceil_div(p.channels, kLane) * kLane;
    row_step = channels_last
                   ? (p.stride.x * (std::max<int64_t>(p.outer_size.x, kPixels) - 1) + reach.x + 1) * pixel_step
                   : ceil_div(p.stride.x * phase_step, kLine) * kLine;
    for (int64_t x = 0; x < p.taps.x * p.dilation.x; x += p.dilation.x)
      columns.push_back(channels_last ? x * pixel_step : x % p.stride.x * phase_step + x / p.stride.x);
    for (int64_t x = p.offset.x; x < p.offset.x + p.stride.x; ++x) {
      const int64_t first = std::clamp<int64_t>(ceil_div(-x, p.stride.x), 0, phase_step);
      runs.emplace_back(first, std::clamp<int64_t>(ceil_div(p.inner_size.x - x, p.stride.x), first, phase_step));
    }
    const int64_t row_size = channels_last ? row_step : std::max<int64_t>(p.channels, 1) * row_step;
    const int64_t fit = (kBufferBytes / static_cast<int64_t>(sizeof(T)) / row_size - inner_rows) / p.stride.y + 1;
    const int64_t wanted = ceil_div(4 * threads, p.batch * p.groups);
    band = std::min(fit, ceil_div(p.outer_size.y, threads > 1 ? wanted : 1));
    band = std::max<int64_t>(ceil_div(band, kRows), 1) * kRows;
    // The last rows belong to the band above if they are fewer than a tile. So the tiles, and with them the order of
    // every sum, are the same for any number of bands.
    bands = std::max<int64_t>(p.outer_size.y / band + (p.outer_size.y % band >= kRows), 1);
    rows = (std::max<int64_t>(std::min(band + kRows - 1, p.outer_size.y), kRows) - 1) * p.stride.y + inner_rows;
    // With an odd number of cache lines, rows are spread over all sets of the cache.
    channel_step = (rows * row_step / kLine | 1) * kLine + kLine * 2;
    sharing = p.dilation.y == 1 && p.stride.y <= 2 && p.taps.y >= (kRows - 1) * p.stride.y ? p.stride.y : 0;
    kernel_far = (p.kernel_end - p.kernel_begin) * static_cast<int64_t>(sizeof(S)) > kFarBytes;

    const int64_t taps = p.taps.y * p.taps.x, reduced = p.generation.reduced, cells = kRows * kLane;
    buffer.outer = channels_last ? rows * row_step : p.channels * channel_step;
    buffer.kernel = buffer.outer + (channels_last ? 0 : p.channels * cells);
    buffer.sums = buffer.kernel + taps * (channels_last ? kRows * kPixels : cells);
    buffer.weight = buffer.sums + (channels_last ? kRows * kPixels * 2 * kLane : kChannels * cells);
    buffer.bias = buffer.weight + taps * reduced;
    // At the end, with room for one vector: packing a row may write a vector after its end.
    buffer.features = buffer.bias + taps;
    buffer.end = buffer.features + reduced * cells + kLane;
  }

  int64_t items() const { return problem.batch * problem.groups * bands; }

  // Returns whether tap u of the outputs in row y, or tap v of those in column x, is in the inner image.
  bool inside_y(int64_t y, int64_t u) const {
    const int64_t inner = y * problem.stride.y + u * problem.dilation.y + problem.offset.y;
    return 0 <= inner && inner < problem.inner_size.y;
  }
  bool inside_x(int64_t x, int64_t v) const {
    const int64_t inner = x * problem.stride.x + v * problem.dilation.x + problem.offset.x;
    return 0 <= inner && inner < problem.inner_size.x;
  }

  // Returns whether all taps of the tile's kRows x `width` outputs are in the inner image.
  bool inside(const Tile& tile, int64_t width) const {
    return inside_y(tile.y, 0) && inside_y(tile.y + kRows - 1, problem.taps.y - 1) && inside_x(tile.x, 0) &&
           inside_x(tile.x + width - 1, problem.taps.x - 1);
  }
};

}  // namespace
