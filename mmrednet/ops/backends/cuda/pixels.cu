// Kernels for channels-last images. A thread computes VECTOR channels of a strip, in grad_kernel one row of the window.
// Several threads use the same staged taps of a strip, so that a multiprocessor has room for many threads.
namespace kernels {
constexpr int BLOCKS[] = {2, 2, 2};
constexpr Index STRIP_PITCH = STRIP * RUN_PITCH + VECTOR;  // from strip to strip of staged taps

// A thread's part of a strip, and the strip's place. Neighbouring threads have the same strip and read the same
// address, or the same column and read rows that lie in different banks.
struct Thread {
  Index part;
  Place place;
};

INLINE Thread find_thread(const Launch& launch, Index parts) {
  const Index strips = divide(threadIdx.x, parts), columns = divide(strips, launch.rows);
  const Index plane = divide(columns, launch.strips);
  return {Index(threadIdx.x) - strips * parts,
          {columns - plane * launch.strips, strips - columns * launch.rows, plane}};
}

// Reads VECTOR channels of a pixel from shared memory.
INLINE void read_vector(Acc (&pixel)[VECTOR], const T* from) {
  const Packed<VECTOR> packed = Packed<VECTOR>::read(from);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) pixel[i] = packed.get(i);
}

// Calls use(v, s, pixel) for each tap v of a row of the window and each pixel s of a strip, with VECTOR channels of x
// there. `at` points at the pixel for the first of both.
template <class Use>
INLINE void visit_pixels(const T* at, Index pitch, Use use) {
#pragma unroll
  for (int i = 0; i < USED; ++i) {
    Acc pixel[VECTOR];
    read_vector(pixel, at + i * pitch);
#pragma unroll
    for (int v = 0; v < KW; ++v)
#pragma unroll
      for (int s = 0; s < STRIP; ++s)
        if (s * SW + v * DW == i) use(v, s, pixel);
  }
}

INLINE void write_pixel(T* to, const Acc (&pixel)[VECTOR]) {
  Vector<VECTOR> vector;
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) vector.at[i] = Element::store(pixel[i]);
  *(Vector<VECTOR>*)to = vector;
}

INLINE void forward(const T* x, const T* k, T* y, const Launch& launch) {
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Thread mine = find_thread(launch, launch.chunk / VECTOR);
  const Place& thread = mine.place;
  const Index part = mine.part * VECTOR;
  T *const tiles = (T*)shared_memory, *const kernels = tiles + launch.kernel_at;
  const T* const my_tile = tiles + thread.plane * launch.plane_pitch + thread.row * SH * launch.pitch +
                           thread.strip * STRIP * SW * launch.channel_pitch + part;
  const T* const my_kernels =
      kernels + (thread.plane * launch.rows + thread.row) * launch.kernel_pitch + thread.strip * STRIP_PITCH;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    __syncthreads();  // [pixels, tile is read]
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage_pixels(tiles + plane * launch.plane_pitch, launch, launch.tile_w, launch.tile_h, launch.pitch, image, unit,
                   block.row * SH - launch.pad_h, block.strip * STRIP * SW - launch.pad_w);
    });
    for_each_run(launch, block, find_region(launch, block), launch.rows * launch.kernel_pitch, RUN_PITCH / VECTOR,
                 [&](Index item, Index, Index run, Index slot) {
                   const Index at = (run & ALIGNED) + item * VECTOR;
                   if (at < run + RUN) stage_vector(kernels + slot + item * VECTOR, k, at, launch.kernel_extent, true);
                 });
    wait_for_copies();  // [pixels, copies]
    __syncthreads();    // [pixels, tile is staged]

    const Index i = block.row + thread.row, j = (block.strip + thread.strip) * STRIP, count = launch.out_w - j;
    if (block.plane + thread.plane >= launch.units || i >= launch.out_h || count <= 0) continue;
    const Unit unit = find_unit(launch, block.plane + thread.plane);
    if (thread.plane >= launch.planes || part >= unit.channels) continue;
    const Index run = find_kernel(launch, unit, i, j);
    const T* taps[STRIP];
#pragma unroll
    for (int s = 0; s < STRIP; ++s) taps[s] = my_kernels + s * RUN_PITCH + (run + s * launch.kj & VECTOR - 1);
#pragma unroll 1
    for (bool clear = false;; clear = true) {
      Acc sum[STRIP][VECTOR] = {};
#pragma unroll 1
      for (int u = 0; u < KH; ++u) {
        Acc weight[KW][STRIP];
#pragma unroll
        for (int v = 0; v < KW; ++v)
#pragma unroll
          for (int s = 0; s < STRIP; ++s) weight[v][s] = Element::load(taps[s][u * KW + v]);
        if (clear) clear_outside(weight, image, i * SH - launch.pad_h + u * DH, j * SW - launch.pad_w);
        visit_pixels(my_tile + u * DH * launch.pitch, launch.channel_pitch,
                     [&](int v, int s, const Acc(&pixel)[VECTOR]) {
#pragma unroll
                       for (int c = 0; c < VECTOR; ++c) sum[s][c] += weight[v][s] * pixel[c];
                     });
      }
      // A value of k outside the image that is not finite makes every channel NaN, so that one channel is enough.
      Acc firsts[STRIP];
#pragma unroll
      for (int s = 0; s < STRIP; ++s) firsts[s] = sum[s][0];
      if (!clear && has_nan(firsts, count)) continue;
      T* const out = y + unit.n * launch.yn + unit.channel + part + i * launch.yh + j * launch.yw;
#pragma unroll
      for (int s = 0; s < STRIP; ++s)
        if (s < count) write_pixel(out + s * launch.yw, sum[s]);  // [write of a pixel]
      break;
    }
  }
}

// The rows of the window are used one after the other: while one is used, the next one is copied, for all pixels of y
// that the pixels of the block need. A slot holds the row of one pixel of y.
INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) {
  constexpr int BACK = (KW - 1) * DW / SW;
  const Image image = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Thread mine = find_thread(launch, launch.chunk / VECTOR);
  const Place& thread = mine.place;
  const Index part = mine.part * VECTOR;
  const Index row_pitch = launch.kernel_pitch, plane_pitch = launch.rows * row_pitch;
  T *const tiles = (T*)shared_memory, *const kernels = tiles + launch.kernel_at;
  const Index first = thread.strip * (GRAD_STRIP / SW);  // column of the tile
  const T* const my_tile = tiles + thread.plane * launch.plane_pitch + first * launch.channel_pitch + part;
  const T* const my_kernels = kernels + thread.plane * plane_pitch + thread.row * row_pitch + first * ROW_PITCH;
  const Index origin = launch.pad_w / SW * SW;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index row0 = block.row + launch.pad_h, above = row0 - (KH - 1) * DH;
    const Index y0 = above >= 0 ? above / SH : -((-above + SH - 1) / SH);
    const Index x0 = (origin + block.strip * GRAD_STRIP) / SW - BACK;
    const auto stage_row = [&](int u) {
      T* const to = kernels + u % 2 * launch.planes * plane_pitch;
      for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
        const Index taps = find_kernel(launch, unit, 0, x0) + u * KW;
        for_each_pixel(ROW_PITCH / VECTOR, launch.tile_w, launch.rows, {0, launch.kj}, {row_pitch, ROW_PITCH},
                       [&](Index item, Index b, Index c, Index from, Index slot) {
                         const Index met = row0 + c - u * DH, i = met / SH, run = taps + i * launch.ki + from;
                         const Index at = (run & ALIGNED) + item * VECTOR;
                         const bool wanted = met % SH == 0 && is_inside(image, i, x0 + b);
                         if (at < run + KW)
                           stage_vector(to + plane * plane_pitch + slot + item * VECTOR, k, at, launch.kernel_extent,
                                        wanted);
                       });
      });
    };
    __syncthreads();  // [pixels grad_input, tile is read]
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage_pixels(tiles + plane * launch.plane_pitch, launch, launch.tile_w, launch.tile_h, launch.pitch, image, unit,
                   y0, x0);
    });
    stage_row(0);

    const Index a = row0 + thread.row, b = origin + (block.strip + thread.strip) * GRAD_STRIP;
    const bool there = thread.plane < launch.planes && block.plane + thread.plane < launch.units;
    const Unit unit = find_unit(launch, there ? block.plane + thread.plane : 0);
    const bool active =
        there && part < unit.channels && a < launch.in_h + launch.pad_h && b < launch.in_w + launch.pad_w;
    Acc sum[GRAD_STRIP][VECTOR] = {};
#pragma unroll 1
    for (int u = 0; u < KH; ++u) {
      wait_for_copies();  // [pixels grad_input, copies]
      __syncthreads();    // [pixels grad_input, row of taps is staged]
      if (u + 1 < KH) stage_row(u + 1);
      const Index i = (a - u * DH) / SH;
      if (!active || a < u * DH || (a - u * DH) % SH != 0 || i >= launch.out_h) continue;
      const T* const taps = my_kernels + u % 2 * launch.planes * plane_pitch;
      const Index run = find_kernel(launch, unit, i, x0 + first) + u * KW;
#pragma unroll
      for (int at = 0; at < GRAD_USED; ++at) {
        Acc pixel[VECTOR];
        read_vector(pixel, my_tile + (i - y0) * launch.pitch + at * launch.channel_pitch);
        const T* const mine = taps + at * ROW_PITCH + (run + at * launch.kj & VECTOR - 1);
#pragma unroll
        for (int v = 0; v < KW; ++v)
#pragma unroll
          for (int s = 0; s < GRAD_STRIP; ++s)
            if ((s - v * DW) % SW == 0 && (s - v * DW) / SW + BACK == at) {
              const Acc weight = Element::load(mine[v]);
#pragma unroll
              for (int c = 0; c < VECTOR; ++c) sum[s][c] += weight * pixel[c];
            }
      }
    }
    if (!active) continue;
    // The first strip may start left of the image, but only where the stride is not 1.
    const Index left = b - launch.pad_w;
    T* const out = x + unit.n * launch.xn + unit.channel + part + (a - launch.pad_h) * launch.xh + left * launch.xw;
#pragma unroll
    for (int s = 0; s < GRAD_STRIP; ++s)
      if (is_below(left + s, launch.in_w)) write_pixel(out + s * launch.xw, sum[s]);
  }
}

INLINE void grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Image grad = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Thread mine = find_thread(launch, KH);
  const Place& thread = mine.place;
  const Index u = mine.part, width = launch.strips * STRIP;
  const Index grad_pitch = width * launch.channel_pitch, grad_plane = launch.rows * grad_pitch;
  T *const xs = (T*)shared_memory, *const ys = xs + launch.kernel_at, *const kernels = ys + launch.planes * grad_plane;
  const T* const my_x = xs + thread.plane * launch.plane_pitch + (thread.row * SH + u * DH) * launch.pitch +
                        thread.strip * STRIP * SW * launch.channel_pitch;
  const T* const my_y =
      ys + thread.plane * grad_plane + thread.row * grad_pitch + thread.strip * STRIP * launch.channel_pitch;
  T* const my_kernels =
      kernels + (thread.plane * launch.rows + thread.row) * launch.kernel_pitch + thread.strip * STRIP_PITCH + u * KW;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index i = block.row + thread.row, j = (block.strip + thread.strip) * STRIP, count = launch.out_w - j;
    const bool active =
        thread.plane < launch.planes && block.plane + thread.plane < launch.units && i < launch.out_h && count > 0;
    Acc sum[KW][STRIP] = {};
    for (Index first = 0; first < launch.group_channels; first += launch.chunk) {
      const Index channels = min(launch.chunk, launch.group_channels - first);
      __syncthreads();  // [pixels grad_kernel, tile is read]
      for_each_unit(launch, block, [&](Index plane, const Unit& group) {
        const Unit unit = {group.n, group.group, group.channel + first, channels};
        stage_pixels(xs + plane * launch.plane_pitch, launch, launch.tile_w, launch.tile_h, launch.pitch, image, unit,
                     block.row * SH - launch.pad_h, block.strip * STRIP * SW - launch.pad_w);
        stage_pixels(ys + plane * grad_plane, launch, width, launch.rows, grad_pitch, grad, unit, block.row,
                     block.strip * STRIP);
      });
      wait_for_copies();  // [pixels grad_kernel, copies]
      __syncthreads();    // [pixels grad_kernel, tile is staged]
      if (!active) continue;
#pragma unroll 1
      for (Index part = 0; part < channels; part += VECTOR) {
        Acc output[STRIP][VECTOR];
#pragma unroll
        for (int s = 0; s < STRIP; ++s) read_vector(output[s], my_y + s * launch.channel_pitch + part);
        visit_pixels(my_x + part, launch.channel_pitch, [&](int v, int s, const Acc(&pixel)[VECTOR]) {
#pragma unroll
          for (int c = 0; c < VECTOR; ++c) sum[v][s] += output[s][c] * pixel[c];
        });
      }
    }
    if (active) {
      // A tap outside the image is NaN if its y is not finite.
      if (has_nan(sum[0], count) || has_nan(sum[KW - 1], count))
        clear_outside(sum, image, i * SH - launch.pad_h + u * DH, j * SW - launch.pad_w);
      const Index run = find_kernel(launch, find_unit(launch, block.plane + thread.plane), i, j);
#pragma unroll
      for (int s = 0; s < STRIP; ++s)
#pragma unroll
        for (int v = 0; v < KW; ++v)
          my_kernels[s * RUN_PITCH + (run + s * launch.kj & VECTOR - 1) + v] = Element::store(sum[v][s]);
    }
    __syncthreads();  // [pixels grad_kernel, runs are written]
    write_runs(k, kernels, launch, block);
  }
}
}  // namespace kernels
