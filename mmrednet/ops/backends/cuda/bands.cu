// Kernels on tensor cores for channels-last images of 16-bit types, with stride and dilation 1 and at most 16 channels
// a group. A warp computes WARP_ROWS rows of a strip of 8 pixels. For one row of the window, a strip of y reads 16
// pixels of x. The taps that join a pixel q of x to a pixel p of y form a matrix that is zero except for a band:
//
//   forward      y[c,p] += sum_q x[c,q] band[q,p]    band[q,p] is the tap q - p of pixel p if there is one
//   grad_input   x[c,q] += sum_p y[c,p] band[q,p]    a strip of x reads 16 pixels of y
//   grad_kernel  band[q,p] = sum_c x[q,c] y[c,p]
//
// A thread holds two words of such a matrix, with two values each. Windows are so narrow that one of the words is zero.
// A zero of the matrix times an infinity is NaN, and a tap outside the image may be NaN: such results are computed
// again.

#ifdef __CUDACC__  // the tests have these in C++
// Adds the product of matrices of 16 x 16 and 16 x 8 values, which are in the registers of a warp.
INLINE void multiply(Float16, float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
INLINE void multiply(BFloat16, float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads a matrix of 16 x 16 values in four parts, each by its columns: lane l points at column l % 8 of part l / 8.
INLINE void load_transposed(unsigned (&parts)[4], const T* column) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"((unsigned)__cvta_generic_to_shared(column))
               : "memory");
}
#endif

namespace kernels {
constexpr int BLOCKS[] = {WIDE ? 5 : 7, 6, WIDE || KH > 7 ? 4 : 5};
constexpr int SIDE = 8;  // rows and columns of the parts of a matrix
static_assert(KW < SIDE && STRIP == SIDE, "a thread would hold more than one word of a band");

// A thread's row in each part of a matrix, and the first of its two columns.
struct Lane {
  int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
};

// The strip, the first row and the unit of a warp, counted from the first of its block.
INLINE Place find_warp(const Launch& launch) {
  const Index warp = threadIdx.x / 32, line = divide(warp, launch.strips), lines = launch.rows / WARP_ROWS;
  const Index plane = divide(line, lines);
  return {warp - line * launch.strips, (line - plane * lines) * WARP_ROWS, plane};
}

// Returns where the taps of column b are staged, in their row.
INLINE Index find_slot(Index b) { return b * RUN_PITCH + (Count)b / STRIP * VECTOR; }

// Computes one value of y by the formula, or with GRADIENT one of x.
template <bool GRADIENT>
INLINE Acc evaluate(const Image& read, const T* k, const Launch& launch, const Unit& unit, Index c, Index i, Index j) {
  const T* const channel = read.data + unit.n * read.n + unit.channel + c;
  Acc sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < RUN; ++tap) {
    const Index down = tap / KW - launch.pad_h, right = tap % KW - launch.pad_w;
    const Index a = GRADIENT ? i - down : i + down, b = GRADIENT ? j - right : j + right;
    if (!is_inside(read, a, b)) continue;
    const Index taps = find_kernel(launch, unit, GRADIENT ? a : i, GRADIENT ? b : j);
    sum += Element::load(k[taps + tap]) * Element::load(channel[a * read.h + b * read.w]);
  }
  return sum;
}

// forward, or with GRADIENT grad_input, where x and y change places.
template <bool GRADIENT>
INLINE void sum(const Image& read, const T* k, T* written, const Image& result, const Launch& launch) {
  // The distance from a pixel of the result to the first pixel that is read, and to the first pixel whose taps are
  // read.
  const Index above = GRADIENT ? launch.pad_h - (KH - 1) : -launch.pad_h, taps_above = GRADIENT ? above : 0;
  const Index before = GRADIENT ? launch.pad_w - (KW - 1) : -launch.pad_w, taps_before = GRADIENT ? before : 0;
  const Index taps_h = launch.rows + (GRADIENT ? KH - 1 : 0), taps_w = launch.strips * STRIP + (GRADIENT ? KW - 1 : 0);
  const Index kernel_plane = taps_h * launch.kernel_pitch;
  const Lane lane;
  const Place warp = find_warp(launch);
  T *const tiles = (T*)shared_memory, *const kernels = tiles + launch.kernel_at;
  // Lanes 0 to 7 point at 8 pixels, lanes 8 to 15 at 8 more channels of these, lanes 16 to 31 at 8 more pixels.
  const Index pixel = warp.strip * STRIP + threadIdx.x % 32 / 16 * SIDE + threadIdx.x % SIDE;
  const T* const my_tile = tiles + warp.plane * launch.plane_pitch + warp.row * launch.pitch +
                           pixel * launch.channel_pitch + threadIdx.x / SIDE % 2 * SIDE;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index top = block.row, left = block.strip * STRIP;
    Region region = {max(top + taps_above, Index(0)),
                     max(left + taps_before, Index(0))};  // the pixels whose taps are staged
    region.height = min(top + taps_above + taps_h, launch.out_h) - region.top;
    region.width = min(left + taps_before + taps_w, launch.out_w) - region.left;
    __syncthreads();  // [bands, tile is read]
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage_pixels(tiles + plane * launch.plane_pitch, launch, launch.tile_w, launch.tile_h, launch.pitch, read, unit,
                   top + above, left + before);
    });
    for_each_run(launch, block, region, kernel_plane, RUN_PITCH / VECTOR,
                 [&](Index item, Index c, Index run, Index slot) {
                   const Index at = (run & ALIGNED) + item * VECTOR;
                   // In grad_input, only some rows of a pixel's taps reach the pixels of the block.
                   const Index first = GRADIENT ? top + launch.pad_h - region.top - c : 0;
                   const Index begin = run + max(first, Index(0)) * KW;
                   const Index end = run + (GRADIENT ? min(first + launch.rows, Index(KH)) : KH) * KW;
                   if (at + VECTOR > begin && at < end)
                     stage_vector(kernels + slot + item * VECTOR, k, at, launch.kernel_extent, true);
                 });
    wait_for_copies();  // [bands, copies]
    __syncthreads();    // [bands, tile is staged]

    const Index i = top + warp.row, j = left + warp.strip * STRIP;
    if (block.plane + warp.plane >= launch.units || i >= result.height || j >= result.width) continue;
    const Unit unit = find_unit(launch, block.plane + warp.plane);
    // The thread's word that is not zero holds two taps of one pixel, or in grad_input one tap of each of two pixels.
    const int v = GRADIENT ? lane.row - lane.column + KW - 1 : lane.column - lane.row;
    const bool second = GRADIENT ? v > KW : v < -1;
    const T* taps[2];
    Index runs[2];
    unsigned word = 0x5410;  // the bytes of two values that make the word, a digit each: 2 is a byte of zeros
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int tap = GRADIENT ? v - SIDE * second - e : v + SIDE * second + e;
      const Index b = j + taps_before + (GRADIENT ? lane.column + SIDE * second + e : lane.row);
      const bool met = is_below(tap, KW) && is_below(b, launch.out_w);
      if (!met) word = e ? word & 0xff | 0x2200 : word & 0xff00 | 0x22;
      runs[e] = find_kernel(launch, unit, i + taps_above, b);
      taps[e] = kernels + warp.plane * kernel_plane + (i + taps_above - region.top) * launch.kernel_pitch +
                (met ? find_slot(b - region.left) + tap : 0);
    }
    const unsigned words[2] = {second ? 0x2222 : word, second ? word : 0x2222};

    float sum[WARP_ROWS][4] = {};
#pragma unroll
    for (int t = 0; t < WARP_ROWS + KH - 1; ++t) {
      if (GRADIENT && !is_below(i + above + t, read.height)) continue;
      unsigned values[4];
      load_transposed(values, my_tile + t * launch.pitch);
#pragma unroll
      for (int r = 0; r < WARP_ROWS; ++r) {
        const int u = GRADIENT ? KH - 1 + r - t : t - r, row = GRADIENT ? t : r;
        if (u < 0 || u >= KH) continue;
        unsigned weights[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          weights[e] = taps[e][row * launch.kernel_pitch + (runs[e] + row * launch.ki & VECTOR - 1) + u * KW].bits;
        const unsigned band[2] = {__byte_perm(weights[0], weights[1], words[0]),
                                  __byte_perm(weights[0], weights[1], words[1])};
        multiply(Element(), sum[r], values, band);
      }
    }

    T* const out = written + unit.n * result.n + unit.channel + i * result.h + j * result.w;
    const auto visit = [&](int r, int e, auto use) {
      const Index c = lane.row + e / 2 * SIDE, p = lane.column + e % 2;
      if (c < unit.channels && i + r < result.height && j + p < result.width)  // [write of a value]
        use(c, p, out[c + r * result.h + p * result.w]);
    };
    unsigned broken = 0;  // one bit for each result: whether it is NaN
#pragma unroll
    for (int r = 0; r < WARP_ROWS; ++r)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        visit(r, e, [&](Index, Index, T& value) {
          value = Element::store(sum[r][e]);
          if (sum[r][e] != sum[r][e]) broken |= 1 << r * 4 + e;
        });
#pragma unroll 1
    for (int n = 0; broken >> n; ++n)
      if (broken >> n & 1)
        visit(n / 4, n % 4, [&](Index c, Index p, T& value) {
          value = Element::store(evaluate<GRADIENT>(read, k, launch, unit, c, i + n / 4, j + p));
        });
  }
}

INLINE void forward(const T* x, const T* k, T* y, const Launch& launch) {
  sum<false>({x, launch.xn, 1, launch.xh, launch.xw, launch.in_h, launch.in_w}, k, y,
             {y, launch.yn, 1, launch.yh, launch.yw, launch.out_h, launch.out_w}, launch);
}

INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) {
  sum<true>({y, launch.yn, 1, launch.yh, launch.yw, launch.out_h, launch.out_w}, k, x,
            {x, launch.xn, 1, launch.xh, launch.xw, launch.in_h, launch.in_w}, launch);
}

INLINE void grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Image grad = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Index pitch = launch.channel_pitch, width = launch.strips * STRIP, grad_pitch = width * pitch,
              grad_plane = launch.rows * grad_pitch;
  T *const xs = (T*)shared_memory, *const ys = xs + launch.kernel_at, *const kernels = ys + launch.planes * grad_plane;
  const Lane lane;
  const Place warp = find_warp(launch);
  const Index mine = (warp.strip * STRIP + lane.row) * pitch + lane.column;
  const T* const my_x = xs + warp.plane * launch.plane_pitch + warp.row * launch.pitch + mine;
  const T* const my_y = ys + warp.plane * grad_plane + warp.row * grad_pitch + mine;
  const auto read = [](const T* from) { return *(const unsigned*)from; };

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index top = block.row - launch.pad_h, left = block.strip * STRIP - launch.pad_w;
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage_pixels(xs + plane * launch.plane_pitch, launch, launch.tile_w, launch.tile_h, launch.pitch, image, unit,
                   top, left);
      stage_pixels(ys + plane * grad_plane, launch, width, launch.rows, grad_pitch, grad, unit, block.row,
                   block.strip * STRIP);
    });
    wait_for_copies();  // [bands grad_kernel, copies]
    __syncthreads();    // [bands grad_kernel, tile is staged]

    const Index i = block.row + warp.row, j = (block.strip + warp.strip) * STRIP;
    if (block.plane + warp.plane < launch.units && i < launch.out_h && j < launch.out_w) {
      const Unit unit = find_unit(launch, block.plane + warp.plane);
      // A thread has two pixels of each row, and one tap of every row of their windows.
      const auto find_column = [&](int e) { return lane.row - lane.column - e & SIDE - 1; };
      const auto find_taps = [&](int r, int e) {
        const Index p = warp.strip * STRIP + lane.column + e,
                    run = find_kernel(launch, unit, i + r, block.strip * STRIP + p);
        return kernels + (warp.plane * launch.rows + warp.row + r) * launch.kernel_pitch + find_slot(p) +
               (run & VECTOR - 1) + find_column(e);
      };
      T* taps[WARP_ROWS][2];
      unsigned outputs[WARP_ROWS][2];
#pragma unroll
      for (int r = 0; r < WARP_ROWS; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          taps[r][e] = find_taps(r, e);
          outputs[r][e] = read(my_y + r * grad_pitch + e * SIDE);
        }
      float check[2] = {};  // NaN if a tap is NaN
#pragma unroll
      for (int t = 0; t < WARP_ROWS + KH - 1; ++t) {
        const T *const first = my_x + t * launch.pitch, *const last = first + SIDE * pitch;
        const unsigned values[4] = {read(first), read(last), read(first + SIDE), read(last + SIDE)};
#pragma unroll
        for (int r = 0; r < WARP_ROWS; ++r) {
          const int u = t - r;
          if (u < 0 || u >= KH) continue;
          float sum[4] = {};
          multiply(Element(), sum, values, outputs[r]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = lane.row < lane.column + e ? sum[2 + e] : sum[e];
            if (find_column(e) < KW) taps[r][e][u * KW] = Element::store(value);
            check[e] += value;
          }
        }
      }
      // A tap outside the image is NaN if its y is not finite.
      if (has_nan(check, 2))
#pragma unroll 1
        for (int n = 0; n < WARP_ROWS * KH * 2; ++n) {
          const int e = n % 2, r = n / 2 % WARP_ROWS, u = n / 2 / WARP_ROWS, v = find_column(e);
          if (v < KW && !is_inside(image, i + r + u - launch.pad_h, j + lane.column + e + v - launch.pad_w))
            find_taps(r, e)[u * KW] = T();
        }
    }
    __syncthreads();  // [bands grad_kernel, runs are written]
    write_runs(k, kernels, launch, block);
  }
}
}  // namespace kernels
