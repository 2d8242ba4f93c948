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
// That is for any layout (`tiled`), best where rows lie in memory by vectors. Narrow images (`narrow`) and
// channels-last ones (`pixels`, and `bands` on tensor cores) have kernels of their own, further down.
//
// A tap outside the image contributes nothing. The tile is zero there, so that only an infinity or NaN of k (or of y in
// grad_kernel) gets through, as NaN: where sums are NaN, what lies outside is cleared and nobody else pays for it.
//
// Macros, all of them from plan.py, which computes them; switches are 0 or 1:
//   ELEMENT (Float16, BFloat16, Plain<float> or Plain<double>); INDEX (an integer type that counts all elements)
//   KH, KW; SH, SW (stride); DH, DW (dilation); ROW_STEP (rows of the window that reach the same row of x are this far
//     apart); TAPS (of a row of the window that are held in registers at a time)
//   CHANNELS_LAST (x and y lie in memory as N, H, W, C, and k as N, Ho, Wo, G, Kh, Kw, by whole vectors)
//   STRIP, GRAD_STRIP (pixels of a thread: of y, and of x in grad_input); CHUNK, GRAD_CHUNK (channels, likewise);
//     THREADS (of a block at most)
//   SHIFT, GRAD_SHIFT (columns of a tile before the first that is read: with them it starts where a vector of memory
//     does)
//   GRAD_PHASE (pixels of y between the start of a vector and the one that the first tap and pixel of a strip meet)
//   PAIR (elements of a word, at least one)
//   RUN_PITCH, ROW_PITCH (elements in shared memory from pixel to pixel, where all of its taps are staged or a row of
//     them)
//   NARROW (pixels of a row of x and y, where they are so few that threads take whole rows, else 0)
//   BANDS (rows of a warp, where tensor cores do the work, else 0)
//   ARGUMENTS (the fields of Launch)
//
// Comments in brackets name the lines in which tests plant faults.

#define INLINE __device__ __forceinline__

// Bits of 16 that CUDA has no built-in type for.
struct Bits {
  unsigned short bits;
};

#ifdef __CUDACC__  // elsewhere the host brings these
INLINE float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
INLINE unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Adds the product of operands of 16 x 16 and 16 x 8 values, on the tensor cores of a warp.
INLINE void multiply_float16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
INLINE void multiply_bfloat16(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads an operand of 16 x 16 values, of 2 bytes, in four parts, by their columns: lane l points at column l % 8 of
// part l / 8.
INLINE void load_transposed(unsigned (&parts)[4], const void* column) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"((unsigned)__cvta_generic_to_shared(column))
               : "memory");
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
INLINE unsigned short float_to_bfloat16(float value) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#else
INLINE unsigned short float_to_bfloat16(float value) {
  const unsigned bits = __float_as_uint(value);
  if (value != value) return bits >> 16 | 64;       // NaN stays NaN
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
}
#endif

// What memory holds, what sums are made in, and the registers in which values wait until they are used: two of 2 bytes
// share one, as it takes more instructions to move the half of a register than to unpack it.
template <class F>
struct Plain {
  typedef F Stored, Sum, Word;
  static INLINE F load(F value) { return value; }
  static INLINE F unpack(F word, int) { return word; }
  static INLINE F pack(F value) { return value; }
  static INLINE F store(F value) { return value; }
};

struct Half {
  typedef Bits Stored;
  typedef float Sum;
  typedef unsigned Word;
  static INLINE unsigned pack(Bits value) { return value.bits; }
};

struct Float16 : Half {
  static INLINE void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    multiply_float16(sum, a, b);
  }
  static INLINE float load(Bits value) { return half_to_float(value.bits); }
  static INLINE float unpack(unsigned word, int i) { return half_to_float(word >> 16 * i); }
  static INLINE Bits store(float value) { return {float_to_half(value)}; }
};

struct BFloat16 : Half {
  static INLINE void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    multiply_bfloat16(sum, a, b);
  }
  static INLINE float load(Bits value) { return __uint_as_float((unsigned)value.bits << 16); }
  static INLINE float unpack(unsigned word, int i) { return __uint_as_float(i ? word & 0xffff0000 : word << 16); }
  static INLINE Bits store(float value) { return {float_to_bfloat16(value)}; }
};

typedef ELEMENT Element;
typedef Element::Stored T;
typedef Element::Sum Acc;
typedef Element::Word Word;
typedef INDEX Index;
typedef unsigned INDEX Count;  // where nothing is negative: it takes fewer instructions to divide

// What the host passes: plan.py names the fields.
struct Launch {
  Index ARGUMENTS;
};

extern __shared__ __align__(16) unsigned char shared_memory[];

// Input values under a strip and a row of taps; they are read into registers once where that is cheaper than per tap.
constexpr int LONGEST_SPAN = 32;
constexpr int SPAN = (STRIP - 1) * SW + (TAPS - 1) * DW + 1;
constexpr bool ROW = TAPS == KW && SPAN <= LONGEST_SPAN;
// The same for the gradient of the input, whose strip covers GRAD_STRIP / SW pixels of y; REACH is how far back taps
// go.
constexpr int REACH = (TAPS - 1) * DW / SW;
constexpr int GRAD_SPAN = (GRAD_STRIP - 1) / SW + REACH + 1;
constexpr bool GRAD_ROW = TAPS == KW && GRAD_SPAN <= LONGEST_SPAN;
constexpr int RUN = KH * KW;
constexpr int VECTOR = 16 / sizeof(T);  // elements that memory is read and written by where it allows
constexpr int PART = CHUNK / 4;         // channels of a thread, where rows are narrow

constexpr bool WIDE = sizeof(Index) > 4;

// A kernel's BLOCKS are those of a multiprocessor that the registers must suffice for, of forward, grad_input and
// grad_kernel; where shared memory allows fewer, fewer: nothing spills. LARGE: what a thread holds beside its sums is
// more than a 7x7 window's.
constexpr int HELD = TAPS * STRIP + (ROW ? SPAN : 0);
constexpr bool LARGE = HELD * sizeof(Acc) > 42 * sizeof(float) || TAPS != KW || WIDE;

template <int N, class E = T>
struct alignas(N * sizeof(E)) Vector {
  E at[N];
};

// N neighbours that wait to be used. Whoever reads several loads all of them before it unpacks the first: unpacking
// waits for memory, and so does all that comes after it in the program.
template <int N>
struct alignas(N < PAIR ? sizeof(Word) : N * sizeof(T)) Packed {
  Word words[(N + PAIR - 1) / PAIR];

  static INLINE Packed read(const T* p) {
    if constexpr (N < PAIR)
      return {Element::pack(*p)};
    else
      return *(const Packed*)p;
  }
  INLINE Acc get(int i) const { return Element::unpack(words[i / PAIR], i % PAIR); }

  // Puts neighbours where there are zeros.
  template <int V>
  INLINE void put(int i, const Packed<V>& part) {
    if constexpr (V < PAIR) {
      words[i / PAIR] |= part.words[0] << 16 * (i % PAIR);
    } else {
#pragma unroll
      for (int w = 0; w < V / PAIR; ++w) words[i / PAIR + w] = part.words[w];
    }
  }
};

template <int N>
struct Size {
  static constexpr int VALUE = N;
};

// Calls use(Size<V>()) with the neighbours, `vector` at most and MOST at most, that are read or written at a time.
template <int MOST, class Use>
INLINE void by_vectors(Index vector, Use use) {
  if (vector >= MOST)
    use(Size<MOST>());
  else if (vector == 2)
    use(Size<(MOST < 2 ? MOST : 2)>());
  else
    use(Size<1>());
}

// Reads the N values from p + SKIP on, by the vectors of V that hold them: p is aligned.
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

#ifdef __CUDACC__
// Starts to copy `bytes` bytes of SIZE to shared memory, and zeros after them: it takes no register and nobody waits,
// until a thread waits for all that it started.
template <int SIZE>
INLINE void start_copy(void* to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
               "n"(SIZE), "r"(bytes)
               : "memory");
#else
  Vector<SIZE / 4, unsigned> value = {};
  if (bytes == SIZE) {
    value = *(const Vector<SIZE / 4, unsigned>*)from;
  } else {
    for (int i = 0; i < bytes / int(sizeof(T)); ++i) ((T*)&value)[i] = ((const T*)from)[i];
  }
  *(Vector<SIZE / 4, unsigned>*)to = value;
#endif
}
INLINE void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
#endif

// Reads `wanted` strips, `pitch` apart, of `count` > 0 pixels, `step` apart, `vector` at a time. The others are zero;
// what a strip has beyond the border repeats the last pixels, as nobody writes what becomes of it.
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

// Writes the channels of the pixels [first, count) of a strip, of which p is the pixel 0.
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

// A (N, C, H, W) tensor and its strides.
struct Image {
  const T* data;
  Index n, c, h, w, height, width;
};

// Whether 0 <= at < end: negative numbers are the largest of those without a sign.
INLINE bool is_below(Index at, Index end) { return (Count)at < (Count)end; }

INLINE bool is_inside(const Image& image, Index y, Index x) {
  return is_below(y, image.height) && is_below(x, image.width);  // [read while staging]
}

// The channels [channel, channel + channels) of one image that a thread, or a part of a tile, works on.
struct Unit {
  Index n, group, channel, channels;
};

// Units number the chunks of all groups of all images; those of grad_kernel are whole groups.
INLINE Unit find_unit(const Launch& launch, Count unit) {
  const Count chunks = BANDS ? 1 : launch.chunks;
  const Index first = unit % chunks * launch.chunk, group = unit / chunks % launch.groups;
  return {Index(unit / chunks / launch.groups), group, group * launch.group_channels + first,
          min(launch.chunk, launch.group_channels - first)};
}

// A block's first strip, row and unit, and a thread's place among its strips, rows and units.
struct Place {
  Index strip, row, plane;
};

// Neighbouring blocks are neighbours in memory, so that L2 has what they share: tiles, or channels-last the groups.
INLINE Place find_block(const Launch& launch, Count block) {
  const Count units = CHANNELS_LAST && launch.planes == 1 ? launch.groups * launch.chunks : 1, tile = block / units;
  return {Index(tile % launch.tiles_x * launch.strips), Index(tile / launch.tiles_x % launch.tiles_y * launch.rows),
          Index((tile / launch.tiles_x / launch.tiles_y * units + block % units) * launch.planes)};
}

// Neighbouring threads take a row of each unit in turn: units can lie in shared memory so that these meet in no bank.
INLINE Place find_thread(const Launch& launch) {
  return {threadIdx.x % launch.strips, threadIdx.x / launch.strips / launch.planes,
          threadIdx.x / launch.strips % launch.planes};
}

// Calls use(plane, unit) for each unit of a block.
template <class Use>
INLINE void for_each_unit(const Launch& launch, const Place& block, Use use) {
  for (Index plane = 0; plane < launch.planes && block.plane + plane < launch.units; ++plane)
    use(plane, find_unit(launch, block.plane + plane));
}

// The size of a part of an image in shared memory, and the elements from row to row and from channel to channel.
struct Tile {
  Index height, width, pitch, channel_pitch;
};

// Fills the tile of one unit with the pixels from (y0, x0) on, V neighbours in memory at a time, which are all inside
// the image or all outside, where the tile is zero.
//
// A thread keeps its columns and goes down the lines, which are the rows of all channels: from line to line it adds to
// two pointers, and what it asks for goes to shared memory by itself, but for single values of 2 bytes.
template <int V>
INLINE void stage_rows(T* to, const Tile& tile, const Image& image, const Unit& unit, Index y0, Index x0) {
  constexpr int BATCH = 8;  // loads in flight of those
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

// Where the kernel of a pixel of y begins.
INLINE Index find_kernel(const Launch& launch, const Unit& unit, Index i, Index j) {
  return unit.n * launch.kn + unit.group * launch.kg + i * launch.ki + j * launch.kj;
}

// Calls use(v, s, value) with the value of x under each tap v0 + v of a row of the window and pixel s of a strip; `at`
// is where the tile has the first of both.
template <class Use>
INLINE void visit_taps(const T* at, int v0, Use use) {
  Acc row[SPAN];
  if (ROW) read_row<STRIP, SHIFT>(row, at);
#pragma unroll
  for (int v = 0; v < TAPS; ++v) {
    if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
    for (int s = 0; s < STRIP; ++s) use(v, s, ROW ? row[s * SW + v * DW] : Element::load(at[SHIFT + s * SW + v * DW]));
  }
}

// Clears what belongs to taps outside the image: (y, x) is where the first tap of the first pixel lies.
INLINE void clear_outside(Acc (&taps)[TAPS][STRIP], const Image& image, Index y, Index x) {
#pragma unroll
  for (int v = 0; v < TAPS; ++v)
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
      if (!is_inside(image, y, x + s * SW + v * DW)) taps[v][s] = 0;
}

// Whether one of the first `count` values is NaN.
template <int N>
INLINE bool has_nan(const Acc (&strip)[N], Index count) {
  bool found = false;
#pragma unroll
  for (int s = 0; s < N; ++s) found |= s < count && strip[s] != strip[s];
  return found;
}

namespace tiled {
constexpr int BLOCKS[] = {4 - LARGE, 3 - LARGE, LARGE ? 2 : 3};

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
      // A weight outside that is not finite shows in every channel.
      if (clear || !has_nan(sum[0], count)) {
        write_channels(y + out, sum, unit.channels, 0, count, launch.yc, launch.yw, launch.vector_y);
        break;
      }
    }
  }
}

// Reads the values of TAPS taps that meet a strip of x, `wanted` of them, from a row of k of which `j` is the pixel
// that tap 0 meets. What meets the strip under a tap are neighbours, but not from a whole vector on: all vectors that
// have some of them are read. Outside the image they are zero.
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

// Works in padded coordinates (a + p, b + p): there a pixel b of x meets the output pixel (b - v d) / s, and as strips
// start at multiples of s, which taps meet which pixels of the strip is known when compiling.
INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) {
  constexpr int BACK = (KW - 1) * DW / SW;
  const Image image = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Index origin = launch.pad_w / SW * SW;  // of the first strip
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

    int u = 0;  // the first row of taps that meets the row of pixels
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
          Acc value[GRAD_SPAN];
          if (GRAD_ROW) read_row<GRAD_STRIP / SW, GRAD_SHIFT>(value, at);
#pragma unroll
          for (int v = 0; v < TAPS; ++v) {
            if (KW % TAPS != 0 && v0 + v >= KW) break;
#pragma unroll
            for (int s = 0; s < GRAD_STRIP; ++s) {
              if ((s - v * DW) % SW != 0) continue;
              const int offset = (s - v * DW) / SW;
              const Acc pixel =
                  GRAD_ROW ? value[offset + REACH] : Element::load(at[GRAD_SHIFT + BACK - v0 / SW * DW + offset]);
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
          // A group that fits in one chunk stays where it is for all taps.
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
        // Of the taps outside the image, which are the first or the last ones of a row, those are NaN whose y is not
        // finite.
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

}  // namespace tiled

#if NARROW
namespace narrow {
constexpr int BLOCKS[] = {4 - LARGE, 3 - LARGE, LARGE ? 2 : 3};

// Writes those elements of a vector that belong to the run [first, end) of a tensor.
INLINE void write_vector(T* tensor, Index at, Index first, Index end, const T* from) {
  const Vector<VECTOR> vector = *(const Vector<VECTOR>*)from;
  if (at >= first && at + VECTOR <= end) {
    *(Vector<VECTOR>*)(tensor + at) = vector;
  } else {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
      if (at + i >= first && at + i < end) tensor[at + i] = vector.at[i];  // [write of a run]
  }
}

// A run of elements of a tensor that lie one after the other. In memory it starts anywhere; its copy in shared memory
// starts where a vector does, with what else the first one holds.
struct Run {
  Index first, end, start = first / VECTOR * VECTOR;

  // Starts to copy it from a tensor of `extent` elements.
  INLINE void stage(T* to, const T* tensor, Index extent) const {
#pragma unroll 4
    for (Index at = start + threadIdx.x * VECTOR; at < end; at += blockDim.x * VECTOR)
      start_copy<16>(to + (at - start), tensor + at, min(Index(VECTOR), extent - at) * sizeof(T));  // [copy of a run]
  }

  INLINE void write(T* tensor, const T* from) const {
#pragma unroll 2
    for (Index at = start + threadIdx.x * VECTOR; at < end; at += blockDim.x * VECTOR)
      write_vector(tensor, at, first, end, from + (at - start));
  }
};

// Narrow images, with stride 1 and as many pixels of y as of x. Their rows start anywhere, are too short for vectors,
// and a tile of them would be halo for the most part. But all that a unit, which is a whole group here, has of x, k and
// y is one run of memory each, and so is that of neighbouring units: a block copies these runs as they are, and what it
// writes leaves as a run too. Which taps reach over the ends of a row is known when compiling, and they are left out,
// as are rows above and below the image: there is no halo, and nothing outside to clear.
struct Group {
  const Launch& launch;
  Place thread;
  Index first, end = min(first + launch.planes, launch.units);  // groups of a block
  Index area = launch.channel_pitch, image = launch.group_channels * area;
  Run images = {first * image, end * image}, kernels = {first * RUN * area, end * RUN * area};
  bool active = thread.row < launch.rows && thread.plane < end - first;

  // Where the thread's group begins in the copies of the runs.
  INLINE Index find_image() const { return images.first - images.start + thread.plane * image; }
  INLINE Index find_kernel() const { return kernels.first - kernels.start + thread.plane * RUN * area; }
};

INLINE void load_row(Acc (&row)[NARROW], const T* from) {
#pragma unroll
  for (int i = 0; i < NARROW; ++i) row[i] = Element::load(from[i]);
}

// Calls use(s, i) for the pixels s of a row of y whose tap v meets a pixel i of a row of x.
template <class Use>
INLINE void visit_met(int v, Use use) {
#pragma unroll
  for (int s = 0; s < NARROW; ++s) {
    const int i = s + v * DW - (KW - 1) * DW / 2;
    if (i >= 0 && i < NARROW) use(s, i);
  }
}

// forward, and grad_input where GRADIENT: there, x and y change places. A thread owns a row of PART channels of what is
// written, which takes the place of what was read in shared memory.
template <bool GRADIENT>
INLINE void sum(const T* read, const T* k, T* written, const Launch& launch) {
  T *const images = (T*)shared_memory, *const kernels = images + launch.kernel_at;
  const Place thread = find_thread(launch);  // a strip is a part of the channels
  const Index channels = min(Index(PART), launch.group_channels - thread.strip * PART);

  for (Index block = blockIdx.x; block < launch.blocks; block += gridDim.x) {
    const Group group = {launch, thread, block * launch.planes};
    T* const mine = images + group.find_image() + thread.strip * PART * group.area;
    __syncthreads();  // copies keep no order with what their own thread has read
    group.images.stage(images, read, launch.units * group.image);
    group.kernels.stage(kernels, k, launch.kernel_extent);
    wait_for_copies();  // [narrow, copies]
    __syncthreads();    // [narrow, runs are staged]

    Acc sum[PART][NARROW] = {};
#pragma unroll 1
    for (int u = 0; u < KH; ++u) {
      const Index reach = u * DH - launch.pad_h, row = thread.row + (GRADIENT ? -reach : reach);
      if (!group.active || !is_below(row, launch.in_h)) continue;
      const T* const taps =
          kernels + group.find_kernel() + u * KW * group.area + (GRADIENT ? row : thread.row) * NARROW;
      Acc pixels[PART][NARROW];
#pragma unroll
      for (int c = 0; c < PART; ++c)
        load_row(pixels[c], mine + min(Index(c), channels - 1) * group.area + row * NARROW);
#pragma unroll
      for (int v = 0; v < KW; ++v) {
        Acc weight[NARROW];
        load_row(weight, taps + v * group.area);
#pragma unroll
        for (int c = 0; c < PART; ++c)
          visit_met(v, [&](int s, int i) { sum[c][GRADIENT ? i : s] += weight[s] * pixels[c][GRADIENT ? s : i]; });
      }
    }
    __syncthreads();  // [narrow, rows are read]
#pragma unroll
    for (int c = 0; c < PART; ++c)
#pragma unroll
      for (int i = 0; i < NARROW; ++i)
        if (group.active && c < channels) mine[c * group.area + thread.row * NARROW + i] = Element::store(sum[c][i]);
    __syncthreads();  // [narrow, rows are written]
    group.images.write(written, images);
  }
}

// A thread owns one row of the window at all pixels of a row of y.
INLINE void forward(const T* x, const T* k, T* y, const Launch& launch) { sum<false>(x, k, y, launch); }
INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) { sum<true>(y, k, x, launch); }

INLINE void grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
  T *const xs = (T*)shared_memory, *const ys = xs + launch.kernel_at, *const kernels = ys + launch.kernel_at;
  const Place thread = find_thread(launch);  // a strip is a row of the window
  const Index row = thread.row - launch.pad_h + thread.strip * DH;

  for (Index block = blockIdx.x; block < launch.blocks; block += gridDim.x) {
    const Group group = {launch, thread, block * launch.planes};
    group.images.stage(xs, x, launch.units * group.image);
    group.images.stage(ys, y, launch.units * group.image);
    wait_for_copies();  // [narrow grad_kernel, copies]
    __syncthreads();    // [narrow grad_kernel, runs are staged]

    if (group.active) {
      Acc sum[KW][NARROW] = {};
      const Index channels = is_below(row, launch.in_h) ? launch.group_channels : 0, at = group.find_image();
#pragma unroll 2
      for (Index c = 0; c < channels; ++c) {
        Acc pixels[NARROW], grad[NARROW];
        load_row(pixels, xs + at + c * group.area + row * NARROW);
        load_row(grad, ys + at + c * group.area + thread.row * NARROW);
#pragma unroll
        for (int v = 0; v < KW; ++v) visit_met(v, [&](int s, int i) { sum[v][s] += grad[s] * pixels[i]; });
      }
      T* const taps = kernels + group.find_kernel() + thread.strip * KW * group.area + thread.row * NARROW;
#pragma unroll
      for (int v = 0; v < KW; ++v)
#pragma unroll
        for (int s = 0; s < NARROW; ++s) taps[v * group.area + s] = Element::store(sum[v][s]);
    }
    __syncthreads();  // [narrow grad_kernel, runs are written]
    group.kernels.write(k, kernels);
  }
}
}  // namespace narrow

#elif CHANNELS_LAST
namespace pixels {
// Channels-last images by whole vectors, and kernels of which a pixel's taps are a run. Both go to shared memory as
// they are, pixels with the channels of a unit and pixels with their taps. A thread owns VECTOR channels of a strip, or
// in grad_kernel one row of the window: some threads share a strip's taps, so that many find room in a multiprocessor.
constexpr int BLOCKS[] = {2, 2, 2};
constexpr int ALIGNED = ~(VECTOR - 1);  // masks the elements of a vector

// a / b of less than 2^20: half as many instructions as for any number.
INLINE Index divide(Index a, Index b) { return __fdividef(a + .5f, b); }

// A thread's part of a strip, and its place. Neighbours have the same strip, then the same column: they read the same,
// or rows that meet in no bank.
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

// Elements from row to row and from pixel to pixel.
struct Step {
  Index row, pixel;
};

// Calls use(item, b, c, from, to) for the items [0, count) of each pixel of a tile: b is the column and c the row, and
// the others are where the pixel lies in two places. Neighbouring threads take neighbouring items. A thread keeps its
// item of a column and goes down the rows, which takes two additions each.
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

constexpr Index STRIP_PITCH = STRIP * RUN_PITCH + VECTOR;  // of staged taps

// Pixels of y.
struct Region {
  Index top, left, height, width;
};

INLINE Region find_region(const Launch& launch, const Place& block) {
  const Index left = block.strip * STRIP;
  return {block.row, left, min(launch.rows, launch.out_h - block.row), min(launch.strips * STRIP, launch.out_w - left)};
}

// Calls use(item, c, run, slot) for the items [0, count) of the taps of each pixel of a region, in each unit of a
// block: c is the row, and the taps start at `run` in memory. In shared memory they lie from `slot` on as they do from
// the vector on that holds the first; `plane` elements are from unit to unit.
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

// Writes the staged taps of a block: the vectors that are all theirs, and the elements before and after these.
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

// Starts to copy a vector of k, or zeros where it is not wanted.
INLINE void stage_vector(T* to, const T* k, Index at, Index extent, bool wanted) {
  start_copy<16>(to, k + at, wanted ? min(Index(VECTOR), extent - at) * sizeof(T) : 0);  // [copy of taps]
}

// The pixel of x or y that a vector of shared memory holds.
INLINE void read_vector(Acc (&pixel)[VECTOR], const T* from) {
  const Packed<VECTOR> packed = Packed<VECTOR>::read(from);
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) pixel[i] = packed.get(i);
}

// Calls use(v, s, pixel) with the VECTOR channels of x under each tap v of a row of the window and pixel s of a strip;
// `at` is where the tile has the first of both.
template <class Use>
INLINE void visit_pixels(const T* at, Index pitch, Use use) {
#pragma unroll
  for (int i = 0; i < SPAN; ++i) {
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
      // A weight outside that is not finite shows in every channel.
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

// Of each row of taps that meets the block's pixels, all that do are copied while the row before is used. A slot holds
// the row of one pixel of y.
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
      for (int at = 0; at < GRAD_SPAN; ++at) {
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
      // Of the taps outside the image, those are NaN whose y is not finite.
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
}  // namespace pixels

#if BANDS
namespace bands {
using namespace pixels;

// The same tensors, of 2 bytes, on tensor cores: stride and dilation are 1, and a group has 16 channels at most. Pixels
// and taps are staged as above. A warp owns DOWN rows of a strip of 8 pixels. In a row of the window, a strip of y
// reaches 16 pixels of x, and which tap joins the pixels q of x and p of y is a matrix, zero but for a band:
//
//   forward      y[c,p] += sum_q x[c,q] band[q,p]    band[q,p] is the tap q - p of p where there is one
//   grad_input   x[c,q] += sum_p y[c,p] band[q,p]    a strip of x meets 16 pixels of y
//   grad_kernel  band[q,p] = sum_c x[q,c] y[c,p]
//
// Of such an operand a thread holds two words of two values; windows are so narrow that one of them is zero. A zero of
// the band times what is not finite is NaN, and so may be a tap outside the image: such results are made anew.
constexpr int BLOCKS[] = {WIDE ? 5 : 7, 6, WIDE || KH > 7 ? 4 : 5};
constexpr int SIDE = 8;  // rows and columns of the parts of an operand
constexpr int DOWN = BANDS;
static_assert(KW < SIDE && STRIP == SIDE, "a band has more than a word of each thread");

// A thread's row in each part of an operand, and the first of its two columns.
struct Lane {
  int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
};

// The first row of a warp, in its unit of the block.
INLINE Place find_warp(const Launch& launch) {
  const Index warp = threadIdx.x / 32, line = divide(warp, launch.strips), lines = launch.rows / DOWN;
  const Index plane = divide(line, lines);
  return {warp - line * launch.strips, (line - plane * lines) * DOWN, plane};
}

// Where the taps of a pixel of a block are staged, in its row.
INLINE Index find_slot(Index b) { return b * RUN_PITCH + (Count)b / STRIP * VECTOR; }

// One value of y, or of x where GRADIENT, by the formula.
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

// forward, and grad_input where GRADIENT: there, x and y change places.
template <bool GRADIENT>
INLINE void sum(const Image& read, const T* k, T* written, const Image& result, const Launch& launch) {
  // From a pixel of the result to the first that is read, and to the first whose taps are.
  const Index above = GRADIENT ? launch.pad_h - (KH - 1) : -launch.pad_h, taps_above = GRADIENT ? above : 0;
  const Index before = GRADIENT ? launch.pad_w - (KW - 1) : -launch.pad_w, taps_before = GRADIENT ? before : 0;
  const Index taps_h = launch.rows + (GRADIENT ? KH - 1 : 0), taps_w = launch.strips * STRIP + (GRADIENT ? KW - 1 : 0);
  const Index kernel_plane = taps_h * launch.kernel_pitch;
  const Lane lane;
  const Place warp = find_warp(launch);
  T *const tiles = (T*)shared_memory, *const kernels = tiles + launch.kernel_at;
  // Lane l points at the pixel l % 8 of part l / 8: of 8 channels of 8 pixels, then 8 more channels, then 8 more
  // pixels.
  const Index pixel = warp.strip * STRIP + threadIdx.x % 32 / 16 * SIDE + threadIdx.x % SIDE;
  const T* const my_tile = tiles + warp.plane * launch.plane_pitch + warp.row * launch.pitch +
                           pixel * launch.channel_pitch + threadIdx.x / SIDE % 2 * SIDE;

  for (Index number = blockIdx.x; number < launch.blocks; number += gridDim.x) {
    const Place block = find_block(launch, number);
    const Index top = block.row, left = block.strip * STRIP;
    Region region = {max(top + taps_above, Index(0)), max(left + taps_before, Index(0))};  // whose taps are staged
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
                   // The rows of taps that meet the block; in forward all of them do.
                   const Index first = GRADIENT ? KH - 1 - (region.top + c - top - above) : 0;
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
    // The thread's word of the band that is not zero: two taps of a pixel, or of two pixels one tap each.
    const int v = GRADIENT ? lane.row - lane.column + KW - 1 : lane.column - lane.row;
    const bool second = GRADIENT ? v > KW : v < -1;
    const T* taps[2];
    Index runs[2];
    unsigned word = 0x5410;  // which bytes of two values it takes: 2 is a zero
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

    float sum[DOWN][4] = {};
#pragma unroll
    for (int t = 0; t < DOWN + KH - 1; ++t) {
      if (GRADIENT && !is_below(i + above + t, read.height)) continue;
      unsigned values[4];
      load_transposed(values, my_tile + t * launch.pitch);
#pragma unroll
      for (int r = 0; r < DOWN; ++r) {
        const int u = GRADIENT ? KH - 1 + r - t : t - r, row = GRADIENT ? t : r;
        if (u < 0 || u >= KH) continue;
        unsigned weights[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          weights[e] = taps[e][row * launch.kernel_pitch + (runs[e] + row * launch.ki & VECTOR - 1) + u * KW].bits;
        const unsigned band[2] = {__byte_perm(weights[0], weights[1], words[0]),
                                  __byte_perm(weights[0], weights[1], words[1])};
        Element::multiply(sum[r], values, band);
      }
    }

    T* const out = written + unit.n * result.n + unit.channel + i * result.h + j * result.w;
    const auto visit = [&](int r, int e, auto use) {
      const Index c = lane.row + e / 2 * SIDE, p = lane.column + e % 2;
      if (c < unit.channels && i + r < result.height && j + p < result.width)  // [write of a value]
        use(c, p, out[c + r * result.h + p * result.w]);
    };
    unsigned broken = 0;  // a bit for each result that is NaN
#pragma unroll
    for (int r = 0; r < DOWN; ++r)
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
      // A thread has two pixels of each row, and of every row of their windows one tap.
      const auto find_column = [&](int e) { return lane.row - lane.column - e & SIDE - 1; };
      const auto find_taps = [&](int r, int e) {
        const Index p = warp.strip * STRIP + lane.column + e,
                    run = find_kernel(launch, unit, i + r, block.strip * STRIP + p);
        return kernels + (warp.plane * launch.rows + warp.row + r) * launch.kernel_pitch + find_slot(p) +
               (run & VECTOR - 1) + find_column(e);
      };
      T* taps[DOWN][2];
      unsigned outputs[DOWN][2];
#pragma unroll
      for (int r = 0; r < DOWN; ++r)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          taps[r][e] = find_taps(r, e);
          outputs[r][e] = read(my_y + r * grad_pitch + e * SIDE);
        }
      float check[2] = {};  // NaN where a tap is
#pragma unroll
      for (int t = 0; t < DOWN + KH - 1; ++t) {
        const T *const first = my_x + t * launch.pitch, *const last = first + SIDE * pitch;
        const unsigned values[4] = {read(first), read(last), read(first + SIDE), read(last + SIDE)};
#pragma unroll
        for (int r = 0; r < DOWN; ++r) {
          const int u = t - r;
          if (u < 0 || u >= KH) continue;
          float sum[4] = {};
          Element::multiply(sum, values, outputs[r]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = lane.row < lane.column + e ? sum[2 + e] : sum[e];
            if (find_column(e) < KW) taps[r][e][u * KW] = Element::store(value);
            check[e] += value;
          }
        }
      }
      // Of the taps outside the image, those are NaN whose y is not finite.
      if (has_nan(check, 2))
#pragma unroll 1
        for (int n = 0; n < DOWN * KH * 2; ++n) {
          const int e = n % 2, r = n / 2 % DOWN, u = n / 2 / DOWN, v = find_column(e);
          if (v < KW && !is_inside(image, i + r + u - launch.pad_h, j + lane.column + e + v - launch.pad_w))
            find_taps(r, e)[u * KW] = T();
        }
    }
    __syncthreads();  // [bands grad_kernel, runs are written]
    write_runs(k, kernels, launch, block);
  }
}
}  // namespace bands
#endif
#endif

#if NARROW
namespace kernels = narrow;
#elif BANDS
namespace kernels = bands;
#elif CHANNELS_LAST
namespace kernels = pixels;
#else
namespace kernels = tiled;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, kernels::BLOCKS[0])
    forward(const T* __restrict__ x, const T* __restrict__ k, T* __restrict__ y, const Launch launch) {
  kernels::forward(x, k, y, launch);
}

extern "C" __global__ void __launch_bounds__(THREADS, kernels::BLOCKS[1])
    grad_input(T* __restrict__ x, const T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
  kernels::grad_input(x, k, y, launch);
}

extern "C" __global__ void __launch_bounds__(THREADS, kernels::BLOCKS[2])
    grad_kernel(const T* __restrict__ x, T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
  kernels::grad_kernel(x, k, y, launch);
}
