// Kernels for any layout. They are fastest if the rows of images can be read by vectors. A block stages a tile of up to
// CHUNK channels. A thread computes a strip in all these channels: it loads every value of k once, and uses a value of
// x for all taps of the strip that need it.
namespace kernels {
constexpr int BLOCKS[] = {4 - MANY_REGISTERS, 3 - MANY_REGISTERS, MANY_REGISTERS ? 2 : 3};

template <int N>
struct Size {
  static constexpr int VALUE = N;
};

// Calls use(Size<V>()), where V is the number of neighbours to read or write at a time: at most `vector` and MOST.
template <int MOST, class Use>
INLINE void by_vectors(Index vector, Use use) {
  if (vector >= MOST)
    use(Size<MOST>());
  else if (vector == 2)
    use(Size<(MOST < 2 ? MOST : 2)>());
  else
    use(Size<1>());
}

// Reads the N values from p + SKIP on. It reads all vectors of V elements that hold one of them; p is aligned.
template <int V, int SKIP, int N>
INLINE void read_row(Acc (&row)[N], const T* p) {
#pragma unroll
  for (int first = SKIP / V * V; first < SKIP + N; first += V) {
    const Packed<V> vector = Packed<V>::read(p + first);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (first + i >= SKIP && first + i < SKIP + N) row[first + i - SKIP] = vector.get(i);
  }
}

// Reads `wanted` strips, `pitch` elements apart, of `count` > 0 pixels, `step` elements apart, `vector` pixels at a
// time. The remaining strips are zero. Pixels of a strip outside the image repeat the last ones; their results are not
// written.
template <int N>
INLINE void read_strips(Acc (&strips)[N][STRIP], const T* p, Index pitch, Index wanted, Index step, Index count,
                        Index vector) {
  Packed<STRIP> packed[N] = {};
  by_vectors<STRIP>(vector, [&](auto size) {
    constexpr int V = decltype(size)::VALUE;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < STRIP; i += V) {
        const Index at = V == STRIP ? 0 : min(Index(i), count - V);  // [read of a strip]
        Packed<V> part = {};
        if (n < wanted) part = Packed<V>::read(p + n * pitch + at * step);
        packed[n].put(i, part);
      }
  });
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int i = 0; i < STRIP; ++i) strips[n][i] = packed[n].get(i);
}

INLINE void write_strip(T* p, const Acc (&strip)[STRIP], Index step, Index count, Index vector) {
  by_vectors<STRIP>(vector, [&](auto size) {
    constexpr int V = decltype(size)::VALUE;
#pragma unroll
    for (int first = 0; first < STRIP; first += V) {
      Vector<V> part;
#pragma unroll
      for (int i = 0; i < V; ++i) part.at[i] = Element::store(strip[first + i]);
      if (first < count) *(Vector<V>*)(p + first * step) = part;  // [write of a strip]
    }
  });
}

// Writes the channels of the pixels [first, count) of a strip; p points at pixel 0.
template <int CHANNELS, int PIXELS>
INLINE void write_channels(T* p, const Acc (&strips)[CHANNELS][PIXELS], Index channels, Index first, Index count,
                           Index c, Index w, Index vector) {
  if constexpr (PIXELS == STRIP) {
    if (first == 0) {
#pragma unroll
      for (int channel = 0; channel < CHANNELS; ++channel)
        if (channel < channels) write_strip(p + channel * c, strips[channel], w, count, vector);
      return;
    }
  }
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel)
#pragma unroll
    for (int s = 0; s < PIXELS; ++s)
      if (channel < channels && s >= first && s < count) p[channel * c + s * w] = Element::store(strips[channel][s]);
}

// The size of a tile, and its elements from row to row and from channel to channel.
struct Tile {
  Index height, width, pitch, channel_pitch;
};

// Fills the tile of one unit with the pixels from (y0, x0) on, V neighbours at a time. These are all inside the image,
// or all outside, where the tile is zero.
//
// The lines of a tile are the rows of all its channels. A thread copies the same columns of one line after the other,
// so that it only adds to two pointers. Single values of 2 bytes go through registers, as CUDA cannot copy them.
template <int V>
INLINE void stage_rows(T* to, const Tile& tile, const Image& image, const Unit& unit, Index y0, Index x0) {
  constexpr int BATCH = 8;  // values that a thread loads before it waits for the first
  const Index columns = (tile.width + V - 1) / V, lines = unit.channels * tile.height;
  const Index lanes = min(columns, (Index)blockDim.x), step = blockDim.x / lanes;
  const Index step_c = step / tile.height, step_y = step % tile.height, first = threadIdx.x / lanes;
  for (Index column = threadIdx.x % lanes; first < step && column < columns; column += lanes) {
    const Index x = x0 + column * V;
    Index y = y0 + first % tile.height;
    const T* from =
        image.data + unit.n * image.n + (unit.channel + first / tile.height) * image.c + y * image.h + x * image.w;
    for (Index line = first; line < lines;) {
      T value[BATCH];
#pragma unroll
      for (int t = 0; t < BATCH; ++t) {
        T* const place = to + (line + t * step) * tile.pitch + column * V;
        const bool live = line + t * step < lines, inside = live && is_inside(image, y, x);
        if constexpr (V >= PAIR) {
          if (live) start_copy<V * sizeof(T)>(place, from, inside ? V * sizeof(T) : 0);  // [write to shared memory]
        } else {
          value[t] = T();
          if (inside) value[t] = *from;
        }
        from += step_c * image.c + step_y * image.h;
        y += step_y;
        if (y >= y0 + tile.height) y -= tile.height, from += image.c - tile.height * image.h;
      }
      if constexpr (V < PAIR) {
#pragma unroll
        for (int t = 0; t < BATCH; ++t)
          if (line + t * step < lines) to[(line + t * step) * tile.pitch + column] = value[t];
      }
      line += BATCH * step;
    }
  }
}

INLINE void stage(T* to, const Tile& tile, const Image& image, const Unit& unit, Index y0, Index x0, Index vector) {
  by_vectors<STRIP>(vector, [&](auto size) { stage_rows<decltype(size)::VALUE>(to, tile, image, unit, y0, x0); });
}

// Calls use(v, s, value) for each tap v0 + v of a row of the window and each pixel s of a strip, with the value of x
// there. `at` points at the value for the first tap and pixel.
template <class Use>
INLINE void visit_taps(const T* at, int v0, Use use) {
  Acc row[USED];
  if (READ_ONCE) read_row<STRIP, SHIFT>(row, at);
#pragma unroll
  for (int v = 0; v < TAPS; ++v) {
    if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
      use(v, s, READ_ONCE ? row[s * SW + v * DW] : Element::load(at[SHIFT + s * SW + v * DW]));
  }
}

INLINE void forward(const T* x, const T* k, T* y, const Launch& launch) {
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Place thread = find_thread(launch);
  const T* my_tile =
      (T*)shared_memory + thread.plane * launch.plane_pitch + thread.row * SH * tile.pitch + thread.strip * STRIP * SW;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    __syncthreads();  // [sum, tile is read]
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage((T*)shared_memory + plane * launch.plane_pitch, tile, image, unit, block.row * SH - launch.pad_h,
            block.strip * STRIP * SW - launch.pad_w - SHIFT, launch.vector_x);
    });
    wait_for_copies();  // [sum, copies]
    __syncthreads();    // [sum, tile is staged]

    const Index i = block.row + thread.row, j = (block.strip + thread.strip) * STRIP, count = launch.out_w - j;
    if (thread.row >= launch.rows || block.plane + thread.plane >= launch.units || i >= launch.out_h || count <= 0)
      continue;
    const Unit unit = find_unit(launch, block.plane + thread.plane);
    const Index top = i * SH - launch.pad_h, left = j * SW - launch.pad_w;
    const T* const taps = k + find_kernel(launch, unit, i, j);
    const Index out = unit.n * launch.yn + unit.channel * launch.yc + i * launch.yh + j * launch.yw;
#pragma unroll 1
    for (bool clear = false;; clear = true) {
      Acc sum[CHUNK][STRIP] = {};
      for (int u = 0; u < KH; ++u) {
        for (int v0 = 0; v0 < KW; v0 += TAPS) {
          Acc weight[TAPS][STRIP];
          read_strips(weight, taps + u * launch.ku + v0 * launch.kv, launch.kv, KW % TAPS == 0 ? TAPS : KW - v0,
                      launch.kj, count, launch.vector_k);
          if (clear) clear_outside(weight, image, top + u * DH, left + v0 * DW);
#pragma unroll
          for (int c = 0; c < CHUNK; ++c) {
            if (c >= unit.channels) break;
            visit_taps(my_tile + c * tile.channel_pitch + u * DH * tile.pitch + v0 * DW, v0,
                       [&](int v, int s, Acc pixel) { sum[c][s] += weight[v][s] * pixel; });
          }
        }
      }
      // A value of k outside the image that is not finite makes every channel NaN, so that one channel is enough.
      if (clear || !has_nan(sum[0], count)) {
        write_channels(y + out, sum, unit.channels, 0, count, launch.yc, launch.yw, launch.vector_y);
        break;
      }
    }
  }
}

// Reads the values of k by which a strip of x is multiplied, for `wanted` of TAPS taps. A tap joins each pixel of x to
// one pixel of y; `j` is the pixel of y for tap 0 and the first pixel of x. The pixels of y of one tap are neighbours
// but may start within a vector, so that all vectors that hold one of them are read. Outside the image the values are
// zero.
INLINE void read_taps(Acc (&weight)[TAPS][GRAD_STRIP], const T* row, const Launch& launch, Index wanted, Index j) {
  constexpr int MET = GRAD_STRIP / SW;
  Packed<2 * MET> packed[TAPS] = {};
  by_vectors<MET>(TAPS == KW ? launch.vector_k : 1, [&](auto size) {
    constexpr int V = decltype(size)::VALUE;
#pragma unroll
    for (int v = 0; v < TAPS; ++v) {
      const int first = GRAD_PHASE - v * DW / SW, skipped = (first % MET + MET) % MET;
#pragma unroll
      for (int part = skipped / V * V; part < skipped + MET; part += V) {
        const Index at = j - GRAD_PHASE + first - skipped + part;
        Packed<V> met = {};
        if (v < wanted && is_below(at, launch.out_w)) met = Packed<V>::read(row + v * launch.kv + at * launch.kj);
        packed[v].put(part, met);
      }
    }
  });
#pragma unroll
  for (int v = 0; v < TAPS; ++v)
#pragma unroll
    for (int s = 0; s < GRAD_STRIP; ++s)
      if ((s - v * DW) % SW == 0)
        weight[v][s] = packed[v].get(((GRAD_PHASE - v * DW / SW) % MET + MET) % MET + (s - v * DW) / SW + v * DW / SW);
}

// The coordinates of x here include the padding: (a + p, b + p). So tap v joins pixel b of x to pixel (b - v d) / s of
// y. As strips start at multiples of s, the pairs of taps and pixels of a strip that belong together are fixed at
// compile time.
INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) {
  constexpr int BACK = (KW - 1) * DW / SW;
  const Image image = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Index origin = launch.pad_w / SW * SW;  // where the first strip starts
  const Place thread = find_thread(launch);
  const T* my_tile = (T*)shared_memory + thread.plane * launch.plane_pitch + thread.strip * (GRAD_STRIP / SW);

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index row0 = block.row + launch.pad_h;
    // The first row and column of y in the tile. The row rounds towards minus infinity.
    const Index above = row0 - (KH - 1) * DH, y0 = above >= 0 ? above / SH : -((-above + SH - 1) / SH);
    const Index x0 = (origin + block.strip * GRAD_STRIP) / SW - BACK - GRAD_SHIFT;
    __syncthreads();  // [grad_input, tile is read]
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage((T*)shared_memory + plane * launch.plane_pitch, tile, image, unit, y0, x0, launch.vector_y);
    });
    wait_for_copies();  // [grad_input, copies]
    __syncthreads();    // [grad_input, tile is staged]

    const Index a = row0 + thread.row, b = origin + (block.strip + thread.strip) * GRAD_STRIP;
    if (thread.row >= launch.rows || block.plane + thread.plane >= launch.units || a >= launch.in_h + launch.pad_h ||
        b >= launch.in_w + launch.pad_w)
      continue;
    const Unit unit = find_unit(launch, block.plane + thread.plane);
    const Index kernel = find_kernel(launch, unit, 0, 0);
    Acc sum[GRAD_CHUNK][GRAD_STRIP] = {};

    int u = 0;  // the first row of taps that joins the row of pixels to a row of y
    while (u < ROW_STEP && (a - u * DH) % SH != 0) ++u;
    if (u == ROW_STEP) u = KH;
    for (; u < KH; u += ROW_STEP) {
      const Index i = (a - u * DH) / SH;
      if (a < u * DH || i >= launch.out_h) continue;
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        const Index j = b / SW - v0 / SW * DW;
        Acc weight[TAPS][GRAD_STRIP];
        read_taps(weight, k + kernel + u * launch.ku + v0 * launch.kv + i * launch.ki, launch,
                  KW % TAPS == 0 ? TAPS : KW - v0, j);
#pragma unroll
        for (int c = 0; c < GRAD_CHUNK; ++c) {
          if (c >= unit.channels) break;
          const T* at = my_tile + c * tile.channel_pitch + (i - y0) * tile.pitch;
          Acc value[GRAD_USED];
          if (GRAD_READ_ONCE) read_row<GRAD_STRIP / SW, GRAD_SHIFT>(value, at);
#pragma unroll
          for (int v = 0; v < TAPS; ++v) {
            if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
            for (int s = 0; s < GRAD_STRIP; ++s) {
              if ((s - v * DW) % SW != 0) continue;
              const int offset = (s - v * DW) / SW;
              const Acc pixel =
                  GRAD_READ_ONCE ? value[offset + REACH] : Element::load(at[GRAD_SHIFT + BACK - v0 / SW * DW + offset]);
              sum[c][s] += weight[v][s] * pixel;
            }
          }
        }
      }
    }
    // The first strip may start left of the image, but only where the stride is not 1.
    const Index left = b - launch.pad_w;
    T* out = x + unit.n * launch.xn + unit.channel * launch.xc + (a - launch.pad_h) * launch.xh + left * launch.xw;
    write_channels(out, sum, unit.channels, SW == 1 ? 0 : -left, launch.in_w - left, launch.xc, launch.xw,
                   launch.vector_x);
  }
}

INLINE void grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Place thread = find_thread(launch);
  const T* my_tile =
      (T*)shared_memory + thread.plane * launch.plane_pitch + thread.row * SH * tile.pitch + thread.strip * STRIP * SW;
  const bool whole = launch.chunk >= launch.group_channels;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index i = block.row + thread.row, j = (block.strip + thread.strip) * STRIP, count = launch.out_w - j;
    const bool active =
        thread.row < launch.rows && block.plane + thread.plane < launch.units && i < launch.out_h && count > 0;
    const Unit mine = find_unit(launch, active ? block.plane + thread.plane : 0);
    const Index top = i * SH - launch.pad_h, left = j * SW - launch.pad_w;
    Acc grad[CHUNK][STRIP];

    for (int u = 0; u < KH; ++u) {
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        Acc sum[TAPS][STRIP] = {};
        for (Index first = 0; first < launch.group_channels; first += launch.chunk) {
          const Unit unit = {mine.n, mine.group, mine.channel + first,
                             min(launch.chunk, launch.group_channels - first)};
          // A group that fits in one chunk is staged once for all taps.
          if (!whole || (u == 0 && v0 == 0)) {
            __syncthreads();  // [grad_kernel, tile is read]
            for_each_unit(launch, block, [&](Index plane, const Unit& group) {
              stage((T*)shared_memory + plane * launch.plane_pitch, tile, image,
                    Unit{group.n, group.group, group.channel + first, unit.channels}, block.row * SH - launch.pad_h,
                    block.strip * STRIP * SW - launch.pad_w - SHIFT, launch.vector_x);
            });

            if (active) {
              const T* source = y + unit.n * launch.yn + unit.channel * launch.yc + i * launch.yh + j * launch.yw;
              read_strips(grad, source, launch.yc, unit.channels, launch.yw, count, launch.vector_y);
            }
            wait_for_copies();  // [grad_kernel, copies]
            __syncthreads();    // [grad_kernel, tile is staged]
          }
          if (!active) continue;
#pragma unroll
          for (int c = 0; c < CHUNK; ++c) {
            if (c >= unit.channels) break;
            visit_taps(my_tile + c * tile.channel_pitch + u * DH * tile.pitch + v0 * DW, v0,
                       [&](int v, int s, Acc pixel) { sum[v][s] += grad[c][s] * pixel; });
          }
        }
        if (!active) continue;
        // A tap outside the image is NaN if its y is not finite. Such taps are the first or the last of a row.
        if (has_nan(sum[0], count) || has_nan(sum[TAPS - 1], count) || has_nan(sum[(KW - 1) % TAPS], count))
          clear_outside(sum, image, top + u * DH, left + v0 * DW);
#pragma unroll
        for (int v = 0; v < TAPS; ++v) {
          if (KW % TAPS != 0 && v0 + v >= KW) break;
          T* out = k + find_kernel(launch, mine, i, j) + u * launch.ku + (v0 + v) * launch.kv;
          write_strip(out, sum[v], launch.kj, count, launch.vector_k);
        }
      }
    }
  }
}
}  // namespace kernels
