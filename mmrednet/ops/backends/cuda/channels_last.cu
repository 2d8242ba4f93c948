// The part that pixels.cu and bands.cu share. The channels of a pixel can be read by whole vectors, and the taps of a
// pixel are a run. Both are copied to shared memory as they are: pixels with the channels of a unit, pixels with taps.

constexpr int ALIGNED = ~(VECTOR - 1);  // masks the elements of a vector

// Returns a / b for numbers below 2^20, with half as many instructions as the division of any integers.
INLINE Index divide(Index a, Index b) { return __fdividef(a + .5f, b); }

// Elements from row to row and from pixel to pixel.
struct Step {
  Index row, pixel;
};

// Calls use(item, b, c, from, to) for the items [0, count) of each pixel of a tile. b is the column and c the row of
// the pixel; from and to are its places in two tensors. Neighbouring threads take neighbouring items. A thread takes
// the same item of the same column in one row after the other, so that it only adds to two places.
template <class Use>
INLINE void for_each_pixel(Index count, Index width, Index height, const Step& source, const Step& target, Use use) {
  const Index items = count * width, lanes = min(items, (Index)blockDim.x), step = divide(blockDim.x, lanes);
  const Index first = divide(threadIdx.x, lanes);
  if (first >= step) return;
  for (Index lane = threadIdx.x - first * lanes; lane < items; lane += lanes) {
    const Index b = divide(lane, count), item = lane - b * count;
    Index from = first * source.row + b * source.pixel, to = first * target.row + b * target.pixel;
#pragma unroll 2
    for (Index c = first; c < height; c += step) {
      use(item, b, c, from, to);
      from += step * source.row;
      to += step * target.row;
    }
  }
}

// Starts to copy the pixels of a unit from (y0, x0) on, each with its channels; outside the image they are zero.
INLINE void stage_pixels(T* to, const Launch& launch, Index width, Index height, Index pitch, const Image& image,
                         const Unit& unit, Index y0, Index x0) {
  const T* const first = image.data + unit.n * image.n + unit.channel + y0 * image.h + x0 * image.w;
  for_each_pixel(launch.chunk / VECTOR, width, height, {image.h, image.w}, {pitch, launch.channel_pitch},
                 [&](Index part, Index b, Index c, Index from, Index at) {
                   const bool wanted = is_inside(image, y0 + c, x0 + b) && part * VECTOR < unit.channels;
                   start_copy<16>(to + at + part * VECTOR, first + from + part * VECTOR, wanted ? 16 : 0);
                 });
}

// Pixels of y.
struct Region {
  Index top, left, height, width;
};

INLINE Region find_region(const Launch& launch, const Place& block) {
  const Index left = block.strip * STRIP;
  return {block.row, left, min(launch.rows, launch.out_h - block.row), min(launch.strips * STRIP, launch.out_w - left)};
}

// Calls use(item, c, run, slot) for the items [0, count) of the taps of each pixel of a region, in each unit of a
// block. c is the row of the pixel, and its taps start at element `run` of k. The vector of k that holds the first tap
// is staged at `slot`, and the next vectors follow. `plane` is the number of elements from unit to unit.
template <class Use>
INLINE void for_each_run(const Launch& launch, const Place& block, const Region& region, Index plane, Index count,
                         Use use) {
  for_each_unit(launch, block, [&](Index number, const Unit& unit) {
    const Index first = find_kernel(launch, unit, region.top, region.left);
    for_each_pixel(count, region.width, region.height, {launch.ki, launch.kj}, {launch.kernel_pitch, RUN_PITCH},
                   [&](Index item, Index b, Index c, Index from, Index to) {
                     use(item, c, first + from, number * plane + to + (Count)b / STRIP * VECTOR);
                   });
  });
}

// Writes the staged taps of a block. Vectors that belong to one pixel are written whole, the taps before and after them
// one by one.
INLINE void write_runs(T* k, const T* kernels, const Launch& launch, const Place& block) {
  const Region region = find_region(launch, block);
  const Index plane = launch.rows * launch.kernel_pitch;
  const auto before = [](Index run) { return min(-run & VECTOR - 1, Index(RUN)); };
  if constexpr (RUN >= VECTOR)
    for_each_run(launch, block, region, plane, RUN / VECTOR, [&](Index item, Index, Index run, Index slot) {
      const Index at = before(run) + item * VECTOR;
      const T* const from = kernels + slot + (run & VECTOR - 1) + at;
      if (at + VECTOR <= RUN) *(Vector<VECTOR>*)(k + run + at) = *(const Vector<VECTOR>*)from;
    });
  for_each_run(launch, block, region, plane, min(RUN, RUN % VECTOR + VECTOR),
               [&](Index item, Index, Index run, Index slot) {
                 const Index first = before(run), vectors = RUN - first & ALIGNED;
                 const Index at = item < first ? item : item + vectors;
                 if (at < RUN) k[run + at] = kernels[slot + (run & VECTOR - 1) + at];  // [write of an element]
               });
}

// Starts to copy a vector of k, or zeros if it is not wanted.
INLINE void stage_vector(T* to, const T* k, Index at, Index extent, bool wanted) {
  start_copy<16>(to, k + at, wanted ? min(Index(VECTOR), extent - at) * sizeof(T) : 0);  // [copy of taps]
}
