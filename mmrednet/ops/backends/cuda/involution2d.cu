// Involution and its two gradients. One module per specialisation: dtype, window, stride, dilation and layouts are
// macros; every size is an argument, so that images of any size run the same module. No header is included: NVRTC needs
// none.
//
//   forward      y[n,c,i,j]      = sum_uv k[n,g(c),u,v,i,j] x[n,c,i s - p + u d, j s - p + v d]
//   grad_input   x[n,c,a,b]      = sum_uv k[n,g(c),u,v,i,j] y[n,c,i,j]    where i s - p + u d = a and j s - p + v d = b
//   grad_kernel  k[n,g,u,v,i,j]  = sum_c  y[n,c,i,j] x[n,c,i s - p + u d, j s - p + v d]
//
// x is the tensor on the input's side, y the one on the output's side, whichever of the three is written. A block
// stages a tile of up to CHUNK channels with its halo in shared memory. A thread owns a strip of neighbouring pixels of
// all these channels in registers: every kernel value is loaded once, and an input value serves all taps of a strip. No
// sum is split between threads: there is nothing to add atomically, and the same input gives the same bits.
//
//   fused        y as forward, with k[n,g,u,v,i,j] = b[g,u,v] + sum_r w[g,u,v,r] f[n,r,i,j]
//
// is forward, but that a thread makes the kernel of its strip in registers, a row of taps at a time, from the features
// and weights that its block stages.
//
// Macros: FLOAT16 | BFLOAT16 | FLOAT32 | FLOAT64; KH, KW; SH, SW (stride); DH, DW (dilation); ROW_STEP (rows of the
// window that reach the same row of x are this far apart); TAPS (of a row of the window that are held in registers at a
// time); FUSED (the module holds fused, and none of the others); CHANNELS_LAST (x and y lie in memory as N, H, W, C);
// PIXEL_MAJOR (k lies as N, Ho, Wo, G, Kh, Kw: the taps of a pixel are one run); WIDE (64-bit indices); STAGED (0 or 1:
// whether a tile fits in shared memory); STRIP, GRAD_STRIP (pixels of a thread: of y, and of x in grad_input); CHUNK,
// GRAD_CHUNK (channels, likewise); THREADS (of a block at most).

#if defined(FLOAT64)
typedef double T;
typedef double Acc;
__device__ __forceinline__ Acc load(T value) { return value; }
__device__ __forceinline__ T store(Acc value) { return value; }
#elif defined(FLOAT32)
typedef float T;
typedef float Acc;
__device__ __forceinline__ Acc load(T value) { return value; }
__device__ __forceinline__ T store(Acc value) { return value; }
#else
struct T {
  unsigned short bits;
};
typedef float Acc;
__device__ __forceinline__ Acc load(Acc value) { return value; }
#if defined(FLOAT16)
#ifdef __CUDACC__  // elsewhere the host brings these two
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif
__device__ __forceinline__ Acc load(T value) { return half_to_float(value.bits); }
__device__ __forceinline__ T store(Acc value) { return T{float_to_half(value)}; }
#else
__device__ __forceinline__ Acc load(T value) { return __uint_as_float((unsigned)value.bits << 16); }
__device__ __forceinline__ T store(Acc value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return T{rounded};
#else
  const unsigned bits = __float_as_uint(value);
  if (value != value) return T{(unsigned short)(bits >> 16 | 64)};  // NaN stays NaN
  return T{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
#endif
}
#endif
#endif

#ifdef WIDE
typedef long long Index;
#else
typedef int Index;
#endif

// What the host passes, in this order, as Index.
#ifdef FUSED
#define KERNEL Index fn, Index fc, Index fh, Index fw, Index vector_f, Index reduced, Index weights_at
#else
#define KERNEL Index kn, Index kg, Index ku, Index kv, Index ki, Index kj, Index vector_k, Index kernel_extent
#endif
#define PROBLEM                                                                                                       \
  Index groups, Index group_channels, Index in_h, Index in_w, Index out_h, Index out_w, Index pad_h, Index pad_w,     \
      Index xn, Index xc, Index xh, Index xw, Index yn, Index yc, Index yh, Index yw, Index vector_x, Index vector_y, \
      KERNEL, Index chunk, Index strips, Index rows, Index planes, Index tiles_x, Index tiles_y, Index units,         \
      Index blocks, Index tile_h, Index tile_w, Index pitch, Index channel_pitch, Index kernel_at

// Input values under a strip and a row of taps; they are read into registers once where that is cheaper than per tap.
constexpr int SPAN = (STRIP - 1) * SW + (TAPS - 1) * DW + 1;
constexpr bool ROW = TAPS == KW && SPAN <= 32;
// The same for the gradient of the input, whose strip covers GRAD_STRIP / SW pixels of y; REACH is how far back taps
// go.
constexpr int REACH = (TAPS - 1) * DW / SW;
constexpr int GRAD_SPAN = (GRAD_STRIP - 1) / SW + REACH + 1;
constexpr bool GRAD_ROW = TAPS == KW && GRAD_SPAN <= 32;
// Elements that are read at a time where the layout allows: 16 bytes of channels, or a strip of pixels.
#ifdef CHANNELS_LAST
constexpr int VECTOR = 16 / sizeof(T);
#else
constexpr int VECTOR = STRIP;
#endif

// A kernel whose taps are one run goes through shared memory, where a thread's strip finds its runs RUN_PITCH apart;
// strips are an odd number of words apart, so that the threads of a warp meet in no bank. Runs of 2-byte elements are
// copied two elements at a time, from the pair that holds the first: they keep their place within the pair.
constexpr int RUN = KH * KW;
constexpr int PAIR = sizeof(T) == 2 ? 2 : 1;
constexpr int RUN_PITCH = PAIR == 1 ? RUN : RUN / 2 * 2 + 2;
constexpr int STRIP_PITCH = STRIP * RUN_PITCH + PAIR;

// Staged weights are read by vectors: every TAPS of a row begin with a whole one.
constexpr int WEIGHT_VECTOR = 16 / sizeof(Acc);
constexpr int TAPS_PITCH = (TAPS + WEIGHT_VECTOR - 1) / WEIGHT_VECTOR * WEIGHT_VECTOR;
constexpr int ROW_PITCH = (KW + TAPS - 1) / TAPS * TAPS_PITCH;
constexpr int WEIGHTS_PITCH = KH * ROW_PITCH;  // from channel to channel

// Blocks of a multiprocessor that the registers must suffice for. Where shared memory allows fewer, fewer: nothing
// spills.
#ifdef PIXEL_MAJOR
constexpr int FORWARD_BLOCKS = 3;
#else
constexpr int FORWARD_BLOCKS = 4;
#endif
#if defined(PIXEL_MAJOR) || defined(CHANNELS_LAST)
constexpr int GRAD_KERNEL_BLOCKS = 2;
#else
constexpr int GRAD_KERNEL_BLOCKS = 3;
#endif

template <int N, class E = T>
struct alignas(N * sizeof(E)) Vector {
  E at[N];
};

// Reads N values: by vectors where p is aligned (whatever lies between N and the next whole vector is read, not used).
template <int N, int WIDTH, class E>
__device__ __forceinline__ void read_row(Acc (&row)[N], const E *p) {
#pragma unroll
  for (int first = 0; first < N; first += WIDTH) {
    const Vector<WIDTH, E> vector = *(const Vector<WIDTH, E> *)(p + first);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (first + i < N) row[first + i] = load(vector.at[i]);
  }
}

// Reads a strip of `count` pixels (fewer than STRIP at the border, the rest are zero) that are `step` apart.
__device__ __forceinline__ void read_strip(Acc (&strip)[STRIP], const T *p, Index step, Index count, bool aligned) {
  if (aligned && count >= STRIP) {
    read_row<STRIP, STRIP>(strip, p);
  } else {
#pragma unroll
    for (int i = 0; i < STRIP; ++i) strip[i] = i < count ? load(p[i * step]) : Acc(0);
  }
}

__device__ __forceinline__ void write_strip(T *p, const Acc (&strip)[STRIP], Index step, Index count, bool aligned) {
  if (aligned && count >= STRIP) {
    Vector<STRIP> vector;
#pragma unroll
    for (int i = 0; i < STRIP; ++i) vector.at[i] = store(strip[i]);
    *(Vector<STRIP> *)p = vector;
  } else {
#pragma unroll
    for (int i = 0; i < STRIP; ++i)
      if (i < count) p[i * step] = store(strip[i]);
  }
}

// Reads `channels` channels of a strip of `count` pixels; `c` and `w` are the strides of channels and pixels.
__device__ __forceinline__ void read_channels(Acc (&strips)[CHUNK][STRIP], const T *p, Index channels, Index count,
                                              Index c, Index w, bool aligned) {
#pragma unroll
  for (int first = 0; first < CHUNK; first += VECTOR) {
#ifdef CHANNELS_LAST
    if (aligned && first < channels) {
#pragma unroll
      for (int s = 0; s < STRIP; ++s) {
        Vector<VECTOR> vector = {};
        if (s < count) vector = *(const Vector<VECTOR> *)(p + first + s * w);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) strips[first + i][s] = load(vector.at[i]);
      }
      continue;
    }
#endif
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
      if (first + i < channels) read_strip(strips[first + i], p + (first + i) * c, w, count, aligned);
  }
}

// Writes the channels of the pixels [first, count) of a strip, of which p is the pixel 0.
template <int CHANNELS, int PIXELS>
__device__ __forceinline__ void write_channels(T *p, const Acc (&strips)[CHANNELS][PIXELS], Index channels, Index first,
                                               Index count, Index c, Index w, bool aligned) {
#ifdef CHANNELS_LAST
  if constexpr (CHANNELS % VECTOR == 0) {
    if (aligned) {
#pragma unroll
      for (int channel = 0; channel < CHANNELS; channel += VECTOR)
#pragma unroll
        for (int s = 0; s < PIXELS; ++s) {
          Vector<VECTOR> vector;
#pragma unroll
          for (int i = 0; i < VECTOR; ++i) vector.at[i] = store(strips[channel + i][s]);
          if (channel < channels && s >= first && s < count) *(Vector<VECTOR> *)(p + channel + s * w) = vector;
        }
      return;
    }
  }
#else
  if constexpr (PIXELS == STRIP) {
    if (first == 0) {
#pragma unroll
      for (int channel = 0; channel < CHANNELS; ++channel)
        if (channel < channels) write_strip(p + channel * c, strips[channel], w, count, aligned);
      return;
    }
  }
#endif
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel)
#pragma unroll
    for (int s = 0; s < PIXELS; ++s)
      if (channel < channels && s >= first && s < count) p[channel * c + s * w] = store(strips[channel][s]);
}

// A (N, C, H, W) tensor and its strides.
struct Image {
  const T *data;
  Index n, c, h, w, height, width;
};

// The channels [channel, channel + channels) of one image that a thread, or a part of a tile, works on.
struct Unit {
  Index n, group, channel, channels;
};

// Units number the chunks of all groups of all images.
__device__ __forceinline__ Unit find_unit(Index unit, Index groups, Index group_channels, Index chunk) {
  const Index chunks = (group_channels + chunk - 1) / chunk;
  const Index first = unit % chunks * chunk, group = unit / chunks % groups;
  return {unit / chunks / groups, group, group * group_channels + first, min(chunk, group_channels - first)};
}

// Fills the tile of one unit with the pixels from (y0, x0) on, V neighbours in memory at a time; outside the image is
// zero.
template <int V>
__device__ __forceinline__ void stage_by(T *tile, const Image &image, const Unit &unit, Index y0, Index x0,
                                         Index tile_h, Index tile_w, Index pitch, Index channel_pitch) {
  const T *source = image.data + unit.n * image.n + unit.channel * image.c;
#ifdef CHANNELS_LAST
  const Index sizes[3] = {unit.channels / V, tile_w, tile_h};  // neighbouring threads take neighbouring channels
#else
  const Index shift = x0 & (V - 1);  // vectors start on their own boundary, which may lie left of the tile
  const Index sizes[3] = {(tile_w + shift + V - 1) / V, tile_h, unit.channels};  // neighbouring pixels of a row
#endif
  // Each thread counts up (a, b, c) by blockDim.x, digit by digit, instead of dividing for every element.
  const Index step_a = blockDim.x % sizes[0], step_b = blockDim.x / sizes[0] % sizes[1];
  const Index step_c = blockDim.x / sizes[0] / sizes[1];
  Index a = threadIdx.x % sizes[0], b = threadIdx.x / sizes[0] % sizes[1], c = threadIdx.x / sizes[0] / sizes[1];
  constexpr int BATCH = V == 1 ? 8 : 4;  // loads in flight, before the first is stored
  while (c < sizes[2]) {
    Vector<V> value[BATCH];
    Index to[BATCH], column[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {
#ifdef CHANNELS_LAST
      const Index channel = a * V, x = b, y = c;
#else
      const Index x = a * V - shift, y = b, channel = c;
#endif
      const bool live = c < sizes[2];
      const bool inside = y0 + y >= 0 && y0 + y < image.height && x0 + x >= 0 && x0 + x < image.width;
      value[t] = Vector<V>();
      if (live && inside)
        value[t] = *(const Vector<V> *)(source + channel * image.c + (y0 + y) * image.h + (x0 + x) * image.w);
      to[t] = channel * channel_pitch + y * pitch + x;
      column[t] = live ? x : tile_w;
      a += step_a;
      b += step_b;
      c += step_c;
      if (a >= sizes[0]) a -= sizes[0], ++b;
      if (b >= sizes[1]) b -= sizes[1], ++c;
    }
#pragma unroll
    for (int t = 0; t < BATCH; ++t)
#pragma unroll
      for (int i = 0; i < V; ++i)
#ifdef CHANNELS_LAST
        if (column[t] < tile_w) tile[to[t] + i * channel_pitch] = value[t].at[i];
#else
        if (column[t] + i >= 0 && column[t] + i < tile_w) tile[to[t] + i] = value[t].at[i];
#endif
  }
}

__device__ __forceinline__ void stage(T *tile, const Image &image, const Unit &unit, Index y0, Index x0, Index tile_h,
                                      Index tile_w, Index pitch, Index channel_pitch, bool aligned) {
  if (aligned)
    stage_by<VECTOR>(tile, image, unit, y0, x0, tile_h, tile_w, pitch, channel_pitch);
  else
    stage_by<1>(tile, image, unit, y0, x0, tile_h, tile_w, pitch, channel_pitch);
}

// A block's `height` rows of `width` pixels of k, and the distances of rows and of pixels in memory.
struct Runs {
  Index height, width, row_step, pixel_step;
};

// Copies all taps of a block's pixels, from the element `first` on, to shared memory; k has `extent` elements.
__device__ __forceinline__ void stage_runs(T *to, const T *k, Index extent, Index first, const Runs &runs,
                                           Index strips) {
  constexpr int WORDS = RUN_PITCH / PAIR, BATCH = 16;
  const Index step_a = blockDim.x % WORDS, step_b = blockDim.x / WORDS % (strips * STRIP);
  const Index step_c = blockDim.x / WORDS / (strips * STRIP);
  Index a = threadIdx.x % WORDS, b = threadIdx.x / WORDS % (strips * STRIP), c = threadIdx.x / WORDS / (strips * STRIP);
  while (c < runs.height) {
    Vector<PAIR> value[BATCH];
    Index place[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {
      const Index word = ((first + c * runs.row_step + b * runs.pixel_step) >> (PAIR - 1)) + a;
      const bool live = c < runs.height && b < runs.width;
      place[t] = live ? (c * strips + b / STRIP) * STRIP_PITCH + b % STRIP * RUN_PITCH + a * PAIR : -1;
      if (live && word * PAIR + PAIR <= extent)
        value[t] = *(const Vector<PAIR> *)(k + word * PAIR);
      else if (live && word * PAIR < extent)
        value[t].at[0] = k[word * PAIR];  // half of the last pair
      a += step_a;
      b += step_b;
      c += step_c;
      if (a >= WORDS) a -= WORDS, ++b;
      if (b >= strips * STRIP) b -= strips * STRIP, ++c;
    }
#pragma unroll
    for (int t = 0; t < BATCH; ++t)
      if (place[t] >= 0) *(Vector<PAIR> *)(to + place[t]) = value[t];
  }
}

// Writes all taps of a block's pixels from shared memory to `run`, which is where the first pixel's lie.
__device__ __forceinline__ void write_runs(T *run, const T *from, const Runs &runs, Index strips) {
  for (Index at = threadIdx.x; at < runs.height * runs.width * RUN; at += blockDim.x) {
    const Index tap = at % RUN, b = at / RUN % runs.width, c = at / RUN / runs.width;
    run[c * runs.row_step + b * runs.pixel_step + tap] =
        from[(c * strips + b / STRIP) * STRIP_PITCH + b % STRIP * RUN_PITCH + tap];
  }
}

// Copies one row of taps to shared memory, for the rows of y that meet `runs.height` rows of x, the first of them at
// `row0` in units of x's rows, and for the columns from x0 on. `taps` are those of the image's first pixel; outside it
// they are zero.
__device__ __forceinline__ void stage_taps(T *to, const T *taps, Index row0, Index x0, const Runs &runs, Index out_h,
                                           Index out_w) {
  constexpr int BATCH = 8;
  const Index step_a = blockDim.x % KW, step_b = blockDim.x / KW % runs.width, step_c = blockDim.x / KW / runs.width;
  Index a = threadIdx.x % KW, b = threadIdx.x / KW % runs.width, c = threadIdx.x / KW / runs.width;
  while (c < runs.height) {
    T value[BATCH];
    Index place[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {
      const Index row = row0 + c, i = row / SH, j = x0 + b;
      const bool inside = row >= 0 && row % SH == 0 && i < out_h && j >= 0 && j < out_w;
      place[t] = c < runs.height ? (c * runs.width + b) * KW + a : -1;
      value[t] = c < runs.height && inside ? taps[i * runs.row_step + j * runs.pixel_step + a] : store(Acc(0));
      a += step_a;
      b += step_b;
      c += step_c;
      if (a >= KW) a -= KW, ++b;
      if (b >= runs.width) b -= runs.width, ++c;
    }
#pragma unroll
    for (int t = 0; t < BATCH; ++t)
      if (place[t] >= 0) to[place[t]] = value[t];
  }
}

// One value of the image, as the tile would hold it: for windows that no tile can hold.
__device__ __forceinline__ Acc read_pixel(const Image &image, const Unit &unit, Index channel, Index y, Index x) {
  const bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
  return inside ? load(image.data[unit.n * image.n + (unit.channel + channel) * image.c + y * image.h + x * image.w])
                : Acc(0);
}

// Calls use(v, s, value) with the value of x under each tap v0 + v of the window's row u and pixel s of a strip, whose
// first tap and pixel lie at `at` in the tile and at (y, x) in the image.
template <class Use>
__device__ __forceinline__ void visit_taps(const T *at, Index pitch, const Image &image, const Unit &unit, int channel,
                                           Index y, Index x, int u, int v0, Use use) {
  at += u * DH * pitch + v0 * DW;
  Acc row[SPAN];
  if (STAGED && ROW) read_row<SPAN, STRIP>(row, at);
#pragma unroll
  for (int v = 0; v < TAPS; ++v) {
    if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
    for (int s = 0; s < STRIP; ++s) {
      const int offset = s * SW + v * DW;
      use(v, s, STAGED ? (ROW ? row[offset] : load(at[offset]))
                       : read_pixel(image, unit, channel, y + u * DH, x + v0 * DW + offset));
    }
  }
}

// Stages a group's weights for all `reduced` channels of the features.
__device__ __forceinline__ void stage_weights(Acc *to, const T *weights, Index reduced) {
#pragma unroll 4
  for (Index at = threadIdx.x; at < RUN * reduced; at += blockDim.x) {
    const Index channel = at % reduced, tap = at / reduced, u = tap / KW, v = tap % KW;
    to[channel * WEIGHTS_PITCH + u * ROW_PITCH + v / TAPS * TAPS_PITCH + v % TAPS] = load(weights[at]);
  }
}

// Adds what the features contribute to TAPS taps of a strip's kernel.
__device__ __forceinline__ void generate(Acc (&kernel)[TAPS][STRIP], const T *features, const Acc *weights,
                                         Index reduced, Index feature_pitch) {
  for (Index channel = 0; channel < reduced; ++channel) {
    Acc feature[STRIP], weight[TAPS];
    read_row<STRIP, STRIP>(feature, features + channel * feature_pitch);
    read_row<TAPS, WEIGHT_VECTOR>(weight, weights + channel * WEIGHTS_PITCH);
#pragma unroll
    for (int v = 0; v < TAPS; ++v)
#pragma unroll
      for (int s = 0; s < STRIP; ++s) kernel[v][s] += weight[v] * feature[s];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
#ifdef FUSED
    fused(const T *__restrict__ x, const T *__restrict__ features, const T *__restrict__ weights,
          const T *__restrict__ bias, T *__restrict__ y, PROBLEM) {
#else
    forward(const T *__restrict__ x, const T *__restrict__ k, T *__restrict__ y, PROBLEM) {
#endif
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Image image = {x, xn, xc, xh, xw, in_h, in_w};
  const Index my_strip = threadIdx.x % strips, my_row = threadIdx.x / strips % rows;
  const Index my_plane = threadIdx.x / strips / rows;
  T *tile = (T *)shared_memory + my_plane * chunk * channel_pitch + my_row * SH * pitch + my_strip * STRIP * SW;
#ifdef PIXEL_MAJOR
  T *kernels = (T *)shared_memory + kernel_at;
  T *my_kernels = kernels + ((my_plane * rows + my_row) * strips + my_strip) * STRIP_PITCH;
#endif
#ifdef FUSED
  const Image feature_image = {features, fn, fc, fh, fw, out_h, out_w};
  const Index width = strips * STRIP, feature_pitch = rows * width;
  T *staged_features = (T *)shared_memory + kernel_at;
  Acc *staged_weights = (Acc *)((T *)shared_memory + weights_at);
#endif

  for (Index block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Index strip0 = block % tiles_x * strips, row0 = block / tiles_x % tiles_y * rows;
    const Index unit0 = block / tiles_x / tiles_y * planes;
    if (STAGED) {
      __syncthreads();  // the threads may still read the tile before this one
      for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane)
        stage((T *)shared_memory + plane * chunk * channel_pitch, image,
              find_unit(unit0 + plane, groups, group_channels, chunk),
              row0 * SH - pad_h, strip0 * STRIP * SW - pad_w, tile_h, tile_w, pitch, channel_pitch, vector_x);
#ifdef PIXEL_MAJOR
      const Runs runs = {min(rows, out_h - row0), min(strips * STRIP, out_w - strip0 * STRIP), ki, kj};
      for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane) {
        const Unit unit = find_unit(unit0 + plane, groups, group_channels, chunk);
        const Index first = unit.n * kn + unit.group * kg + row0 * ki + strip0 * STRIP * kj;
        stage_runs(kernels + plane * rows * strips * STRIP_PITCH, k, kernel_extent, first, runs, strips);
      }
#endif
#ifdef FUSED
      for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane) {
        const Unit unit = find_unit(unit0 + plane, groups, group_channels, chunk);
        stage(staged_features + plane * reduced * feature_pitch, feature_image, Unit{unit.n, 0, 0, reduced}, row0,
              strip0 * STRIP, rows, width, width, feature_pitch, vector_f);
        stage_weights(staged_weights + plane * reduced * WEIGHTS_PITCH, weights + unit.group * RUN * reduced, reduced);
      }
#endif
      __syncthreads();
    }
    const Index i = row0 + my_row, j = (strip0 + my_strip) * STRIP;
    if (my_plane >= planes || unit0 + my_plane >= units || i >= out_h || j >= out_w) continue;
    const Unit unit = find_unit(unit0 + my_plane, groups, group_channels, chunk);
    const Index count = out_w - j;
#ifdef FUSED
    const T *my_features = staged_features + my_plane * reduced * feature_pitch + my_row * width + my_strip * STRIP;
    const Acc *my_weights = staged_weights + my_plane * reduced * WEIGHTS_PITCH;
#else
    const Index kernel = unit.n * kn + unit.group * kg + i * ki + j * kj;
#endif
    Acc sum[CHUNK][STRIP] = {};

    for (int u = 0; u < KH; ++u) {
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        Acc weight[TAPS][STRIP];
#ifdef FUSED
#pragma unroll
        for (int v = 0; v < TAPS; ++v) {
          const bool has_bias = bias && (KW % TAPS == 0 || v0 + v < KW);
          const Acc constant = has_bias ? load(bias[unit.group * RUN + u * KW + v0 + v]) : Acc(0);
#pragma unroll
          for (int s = 0; s < STRIP; ++s) weight[v][s] = constant;
        }
        generate(weight, my_features, my_weights + u * ROW_PITCH + v0 / TAPS * TAPS_PITCH, reduced, feature_pitch);
#else
#pragma unroll
        for (int v = 0; v < TAPS; ++v)
          if (KW % TAPS == 0 || v0 + v < KW)
#ifdef PIXEL_MAJOR
#pragma unroll
            for (int s = 0; s < STRIP; ++s)
              weight[v][s] = load(my_kernels[s * RUN_PITCH + (kernel + s * kj & PAIR - 1) + u * KW + v0 + v]);
#else
            read_strip(weight[v], k + kernel + u * ku + (v0 + v) * kv, kj, count, vector_k);
#endif
#endif
#pragma unroll
        for (int c = 0; c < CHUNK; ++c) {
          if (c >= unit.channels) break;
          visit_taps(tile + c * channel_pitch, pitch, image, unit, c, i * SH - pad_h, j * SW - pad_w, u, v0,
                     [&](int v, int s, Acc pixel) { sum[c][s] += weight[v][s] * pixel; });
        }
      }
    }
    T *out = y + unit.n * yn + unit.channel * yc + i * yh + j * yw;
    write_channels(out, sum, unit.channels, 0, count, yc, yw, vector_y);
  }
}

#ifndef FUSED
// Works in padded coordinates (a + p, b + p): there a pixel b of x meets the output pixel (b - v d) / s, and as strips
// start at multiples of s, which taps meet which pixels of the strip is known when compiling.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    grad_input(T *__restrict__ x, const T *__restrict__ k, const T *__restrict__ y, PROBLEM) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  constexpr int BACK = (KW - 1) * DW / SW;
  const Image image = {y, yn, yc, yh, yw, out_h, out_w};
  const Index my_strip = threadIdx.x % strips, my_row = threadIdx.x / strips % rows;
  const Index my_plane = threadIdx.x / strips / rows;
  const Index origin = pad_w / SW * SW;  // of the first strip
  T *tile = (T *)shared_memory + my_plane * chunk * channel_pitch + my_strip * (GRAD_STRIP / SW);
#ifdef PIXEL_MAJOR
  T *kernels = (T *)shared_memory + kernel_at;
#endif

  for (Index block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Index strip0 = block % tiles_x * strips, row0 = block / tiles_x % tiles_y * rows + pad_h;
    const Index unit0 = block / tiles_x / tiles_y * planes;
    // The first row and column of y in the tile. The row rounds towards minus infinity.
    const Index above = row0 - (KH - 1) * DH, y0 = above >= 0 ? above / SH : -((-above + SH - 1) / SH);
    const Index x0 = (origin + strip0 * GRAD_STRIP) / SW - BACK;
    if (STAGED) {
      __syncthreads();  // the threads may still read the tile before this one
      for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane)
        stage((T *)shared_memory + plane * chunk * channel_pitch, image,
              find_unit(unit0 + plane, groups, group_channels, chunk),
              y0, x0, tile_h, tile_w, pitch, channel_pitch, vector_y);
      __syncthreads();
    }
    const Index a = row0 + my_row, b = origin + (strip0 + my_strip) * GRAD_STRIP;
    const bool active = my_plane < planes && unit0 + my_plane < units && a < in_h + pad_h && b < in_w + pad_w;
    const Unit unit = find_unit(active ? unit0 + my_plane : 0, groups, group_channels, chunk);
    Acc sum[GRAD_CHUNK][GRAD_STRIP] = {};

#ifdef PIXEL_MAJOR
    for (int u = 0; u < KH; ++u) {
      __syncthreads();  // the threads may still read the row of taps before this one
      for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane) {
        const Unit other = find_unit(unit0 + plane, groups, group_channels, chunk);
        stage_taps(kernels + plane * rows * tile_w * KW, k + other.n * kn + other.group * kg + u * KW, row0 - u * DH,
                   x0, Runs{rows, tile_w, ki, kj}, out_h, out_w);
      }
      __syncthreads();
      if (!active || (a - u * DH) % SH != 0) continue;
      const Index i = (a - u * DH) / SH;
#else
    const T *kernel = k + unit.n * kn + unit.group * kg;
    int u = 0;
    while (u < ROW_STEP && (a - u * DH) % SH != 0) ++u;
    for (u = active && u < ROW_STEP ? u : KH; u < KH; u += ROW_STEP) {
      const Index i = (a - u * DH) / SH;
#endif
      if (a < u * DH || i >= out_h) continue;
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        const Index j = b / SW - v0 / SW * DW;
        Acc weight[TAPS][GRAD_STRIP];
#pragma unroll
        for (int v = 0; v < TAPS; ++v) {
          if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
          for (int s = 0; s < GRAD_STRIP; ++s) {
            if ((s - v * DW) % SW != 0) continue;
            const Index at = j + (s - v * DW) / SW;
#ifdef PIXEL_MAJOR
            weight[v][s] = load(kernels[((my_plane * rows + my_row) * tile_w + at - x0) * KW + v0 + v]);
#else
            weight[v][s] =
                at >= 0 && at < out_w ? load(kernel[u * ku + (v0 + v) * kv + i * ki + at * kj]) : Acc(0);
#endif
          }
        }
#pragma unroll
        for (int c = 0; c < GRAD_CHUNK; ++c) {
          if (c >= unit.channels) break;
          const T *at = tile + c * channel_pitch + (i - y0) * pitch;
          Acc value[GRAD_SPAN];
          if (STAGED && GRAD_ROW) read_row<GRAD_SPAN, GRAD_STRIP / SW>(value, at);
#pragma unroll
          for (int v = 0; v < TAPS; ++v) {
            if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
            for (int s = 0; s < GRAD_STRIP; ++s) {
              if ((s - v * DW) % SW != 0) continue;
              const int offset = (s - v * DW) / SW;
              const Acc pixel = STAGED ? (GRAD_ROW ? value[offset + REACH] : load(at[BACK - v0 / SW * DW + offset]))
                                       : read_pixel(image, unit, c, i, j + offset);
              sum[c][s] += weight[v][s] * pixel;
            }
          }
        }
      }
    }
    if (!active) continue;
    // The first strip may start left of the image, but only where the stride is not 1.
    const Index left = b - pad_w;
    T *out = x + unit.n * xn + unit.channel * xc + (a - pad_h) * xh + left * xw;
    write_channels(out, sum, unit.channels, SW == 1 ? 0 : -left, in_w - left, xc, xw, vector_x);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, GRAD_KERNEL_BLOCKS)
    grad_kernel(const T *__restrict__ x, T *__restrict__ k, const T *__restrict__ y, PROBLEM) {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  const Image image = {x, xn, xc, xh, xw, in_h, in_w};
  const Index my_strip = threadIdx.x % strips, my_row = threadIdx.x / strips % rows;
  const Index my_plane = threadIdx.x / strips / rows;
  T *tile = (T *)shared_memory + my_plane * chunk * channel_pitch + my_row * SH * pitch + my_strip * STRIP * SW;
#ifdef PIXEL_MAJOR
  T *kernels = (T *)shared_memory + kernel_at;
  T *my_kernels = kernels + ((my_plane * rows + my_row) * strips + my_strip) * STRIP_PITCH;
#endif
  const bool whole = chunk >= group_channels;

  for (Index block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Index strip0 = block % tiles_x * strips, row0 = block / tiles_x % tiles_y * rows;
    const Index unit0 = block / tiles_x / tiles_y * planes;
    const Index i = row0 + my_row, j = (strip0 + my_strip) * STRIP;
    const bool active = my_plane < planes && unit0 + my_plane < units && i < out_h && j < out_w;
    const Unit mine = find_unit(active ? unit0 + my_plane : 0, groups, group_channels, group_channels);
    const Index count = out_w - j;
    Acc grad[CHUNK][STRIP];

    for (int u = 0; u < KH; ++u) {
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        Acc sum[TAPS][STRIP] = {};
        for (Index first = 0; first < group_channels; first += chunk) {
          const Unit unit = {mine.n, mine.group, mine.channel + first, min(chunk, group_channels - first)};
          // A group that fits in one chunk stays where it is for all taps.
          if (!whole || (u == 0 && v0 == 0)) {
            if (STAGED) {
              __syncthreads();  // the threads may still read the tile before this one
              for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane) {
                Unit part = find_unit(unit0 + plane, groups, group_channels, group_channels);
                part.channel += first;
                part.channels = unit.channels;
                stage((T *)shared_memory + plane * chunk * channel_pitch, image, part, row0 * SH - pad_h,
                      strip0 * STRIP * SW - pad_w, tile_h, tile_w, pitch, channel_pitch, vector_x);
              }
            }
            if (active) {
              const T *source = y + unit.n * yn + unit.channel * yc + i * yh + j * yw;
              read_channels(grad, source, unit.channels, count, yc, yw, vector_y);
            }
            if (STAGED) __syncthreads();
          }
          if (!active) continue;
#pragma unroll
          for (int c = 0; c < CHUNK; ++c) {
            if (c >= unit.channels) break;
            visit_taps(tile + c * channel_pitch, pitch, image, unit, c, i * SH - pad_h, j * SW - pad_w, u, v0,
                       [&](int v, int s, Acc pixel) { sum[v][s] += grad[c][s] * pixel; });
          }
        }
        if (!active) continue;
#ifdef PIXEL_MAJOR
#pragma unroll
        for (int v = 0; v < TAPS; ++v)
#pragma unroll
          for (int s = 0; s < STRIP; ++s)
            if (KW % TAPS == 0 || v0 + v < KW) my_kernels[s * RUN_PITCH + u * KW + v0 + v] = store(sum[v][s]);
#else
        T *out = k + mine.n * kn + mine.group * kg + u * ku + v0 * kv + i * ki + j * kj;
#pragma unroll
        for (int v = 0; v < TAPS; ++v)
          if (KW % TAPS == 0 || v0 + v < KW) write_strip(out + v * kv, sum[v], kj, count, vector_k);
#endif
      }
    }
#ifdef PIXEL_MAJOR
    __syncthreads();
    const Runs runs = {min(rows, out_h - row0), min(strips * STRIP, out_w - strip0 * STRIP), ki, kj};
    for (Index plane = 0; plane < planes && unit0 + plane < units; ++plane) {
      const Unit unit = find_unit(unit0 + plane, groups, group_channels, group_channels);
      write_runs(k + unit.n * kn + unit.group * kg + row0 * ki + strip0 * STRIP * kj,
                 kernels + plane * rows * strips * STRIP_PITCH, runs, strips);
    }
#endif
  }
}
#endif
