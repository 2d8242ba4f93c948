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
// A tap outside the image contributes nothing. The tile is zero there, so that only an infinity or NaN of k (or of y in
// grad_kernel) gets through, as NaN: where sums are NaN, what lies outside is cleared and nobody else pays for it.
//
// Macros, all of them from plan.py, which computes them; switches are 0 or 1:
//   ELEMENT (Float16, BFloat16, Plain<float> or Plain<double>); INDEX (an integer type that counts all elements)
//   KH, KW; SH, SW (stride); DH, DW (dilation); ROW_STEP (rows of the window that reach the same row of x are this far
//     apart); TAPS (of a row of the window that are held in registers at a time)
//   CHANNELS_LAST (x and y lie in memory as N, H, W, C); PIXEL_MAJOR (k lies as N, Ho, Wo, G, Kh, Kw: the taps of a
//     pixel are one run)
//   STRIP, GRAD_STRIP (pixels of a thread: of y, and of x in grad_input); CHUNK, GRAD_CHUNK (channels, likewise);
//     THREADS (of a block at most); VECTOR (elements that are read at a time where the layout allows)
//   SHIFT, GRAD_SHIFT (columns of a tile before the first that is read: with them it starts where a vector of memory
//     does)
//   GRAD_PHASE (pixels of y between the start of a vector and the one that the first tap and pixel of a strip meet)
//   RUN_PITCH, STRIP_PITCH (elements from pixel to pixel and strip to strip where runs of taps are staged, by PAIR)
//   NARROW (pixels of a row of x and y, where they are so few that threads take whole rows, else 0)
//   ARGUMENTS (the fields of Launch)
//
// Comments in brackets name the lines in which tests plant faults.

#define INLINE __device__ __forceinline__

// Bits of 16 that CUDA has no built-in type for.
struct Bits {
  unsigned short bits;
};

#ifdef __CUDACC__  // elsewhere the host brings these two
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
  static INLINE float load(Bits value) { return half_to_float(value.bits); }
  static INLINE float unpack(unsigned word, int i) { return half_to_float(word >> 16 * i); }
  static INLINE Bits store(float value) { return {float_to_half(value)}; }
};

struct BFloat16 : Half {
  static INLINE float load(Bits value) { return __uint_as_float((unsigned)value.bits << 16); }
  static INLINE float unpack(unsigned word, int i) { return __uint_as_float(i ? word & 0xffff0000 : word << 16); }
  static INLINE Bits store(float value) { return {float_to_bfloat16(value)}; }
};

typedef ELEMENT Element;
typedef Element::Stored T;
typedef Element::Sum Acc;
typedef Element::Word Word;
typedef INDEX Index;

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
constexpr int PART = CHUNK / 4;  // channels of a thread, where rows are narrow

// Blocks of a multiprocessor that the registers must suffice for. Where shared memory allows fewer, fewer: nothing
// spills. LARGE: what a thread holds beside its sums is more than a 7x7 window's.
constexpr int HELD = TAPS * STRIP + (ROW ? SPAN : 0);
constexpr bool LARGE = HELD * sizeof(Acc) > 42 * sizeof(float) || TAPS != KW || sizeof(Index) > 4;
constexpr int FORWARD_BLOCKS = 4 - PIXEL_MAJOR - LARGE;
constexpr int GRAD_INPUT_BLOCKS = 3 - LARGE;
constexpr int GRAD_KERNEL_BLOCKS = PIXEL_MAJOR || CHANNELS_LAST || LARGE ? 2 : 3;

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

// Reads `channels` channels of a strip of `count` pixels; `c` and `w` are the strides of channels and pixels.
INLINE void read_channels(Acc (&strips)[CHUNK][STRIP], const T* p, Index channels, Index count, Index c, Index w,
                          Index vector) {
  if (!CHANNELS_LAST || vector < VECTOR) return read_strips(strips, p, c, channels, w, count, vector);
  Packed<VECTOR> packed[CHUNK / VECTOR][STRIP] = {};
#pragma unroll
  for (int v = 0; v < CHUNK / VECTOR; ++v)
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
      if (v * VECTOR < channels && s < count) packed[v][s] = Packed<VECTOR>::read(p + v * VECTOR + s * w);
#pragma unroll
  for (int channel = 0; channel < CHUNK; ++channel)
#pragma unroll
    for (int s = 0; s < STRIP; ++s) strips[channel][s] = packed[channel / VECTOR][s].get(channel % VECTOR);
}

// Writes the channels of the pixels [first, count) of a strip, of which p is the pixel 0.
template <int CHANNELS, int PIXELS>
INLINE void write_channels(T* p, const Acc (&strips)[CHANNELS][PIXELS], Index channels, Index first, Index count,
                           Index c, Index w, Index vector) {
  if constexpr (CHANNELS_LAST && CHANNELS % VECTOR == 0) {
    if (vector >= VECTOR) {
#pragma unroll
      for (int channel = 0; channel < CHANNELS; channel += VECTOR)
#pragma unroll
        for (int s = 0; s < PIXELS; ++s) {
          Vector<VECTOR> vector;
#pragma unroll
          for (int i = 0; i < VECTOR; ++i) vector.at[i] = Element::store(strips[channel + i][s]);
          if (channel < channels && s >= first && s < count) *(Vector<VECTOR>*)(p + channel + s * w) = vector;
        }
      return;
    }
  }
  if constexpr (!CHANNELS_LAST && PIXELS == STRIP) {
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
INLINE bool is_below(Index at, Index end) { return (unsigned INDEX)at < (unsigned INDEX)end; }

INLINE bool is_inside(const Image& image, Index y, Index x) {
  return is_below(y, image.height) && is_below(x, image.width);  // [read while staging]
}

// The channels [channel, channel + channels) of one image that a thread, or a part of a tile, works on.
struct Unit {
  Index n, group, channel, channels;
};

// Units number the chunks of all groups of all images; those of grad_kernel are whole groups.
INLINE Unit find_unit(const Launch& launch, Index unit) {
  const Index first = unit % launch.chunks * launch.chunk, group = unit / launch.chunks % launch.groups;
  return {unit / launch.chunks / launch.groups, group, group * launch.group_channels + first,
          min(launch.chunk, launch.group_channels - first)};
}

// A block's first strip, row and unit, and a thread's place among its strips, rows and units.
struct Place {
  Index strip, row, plane;
};

INLINE Place find_block(const Launch& launch, Index block) {
  return {block % launch.tiles_x * launch.strips, block / launch.tiles_x % launch.tiles_y * launch.rows,
          block / launch.tiles_x / launch.tiles_y * launch.planes};
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

// Counts (a, b, c) up by blockDim.x, digit by digit, instead of dividing for every element.
struct Counter {
  Index size_a, size_b;
  Index step_a = blockDim.x % size_a, step_b = blockDim.x / size_a % size_b, step_c = blockDim.x / size_a / size_b;
  Index a = threadIdx.x % size_a, b = threadIdx.x / size_a % size_b, c = threadIdx.x / size_a / size_b;

  INLINE void next() {
    a += step_a;
    b += step_b;
    c += step_c;
    if (a >= size_a) a -= size_a, ++b;
    if (b >= size_b) b -= size_b, ++c;
  }
};

// The size of a part of an image in shared memory, and the elements from row to row and from channel to channel.
struct Tile {
  Index height, width, pitch, channel_pitch;
};

// The next two fill the tile of one unit with the pixels from (y0, x0) on, V neighbours in memory at a time, which are
// all inside the image or all outside, where the tile is zero.
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

// Neighbouring threads take neighbouring channels, which the tile has apart.
template <int V>
INLINE void stage_channels(T* to, const Tile& tile, const Image& image, const Unit& unit, Index y0, Index x0) {
  const T* source = image.data + unit.n * image.n + unit.channel * image.c;
  Counter at = {unit.channels / V, tile.width};
  constexpr int BATCH = V == 1 ? 8 : 4;  // loads in flight, before the first is stored
  while (at.c < tile.height) {
    Vector<V> value[BATCH];
    Index place[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {
      const bool live = at.c < tile.height;
      value[t] = Vector<V>();
      if (live && is_inside(image, y0 + at.c, x0 + at.b))
        value[t] = *(const Vector<V>*)(source + at.a * V * image.c + (y0 + at.c) * image.h + (x0 + at.b) * image.w);
      place[t] = live ? at.a * V * tile.channel_pitch + at.c * tile.pitch + at.b : -1;
      at.next();
    }
#pragma unroll
    for (int t = 0; t < BATCH; ++t)
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (place[t] >= 0) to[place[t] + i * tile.channel_pitch] = value[t].at[i];
  }
}

INLINE void stage(T* to, const Tile& tile, const Image& image, const Unit& unit, Index y0, Index x0, Index vector) {
  by_vectors<VECTOR>(vector, [&](auto size) {
    constexpr int V = decltype(size)::VALUE;
    if constexpr (CHANNELS_LAST)
      stage_channels<V>(to, tile, image, unit, y0, x0);
    else
      stage_rows<V>(to, tile, image, unit, y0, x0);
  });
}

// A block's `height` rows of `width` pixels of k, and the distances of rows and of pixels in memory.
struct Runs {
  Index height, width, row_step, pixel_step;
};

INLINE Runs find_runs(const Launch& launch, const Place& block) {
  return {min(launch.rows, launch.out_h - block.row), min(launch.strips * STRIP, launch.out_w - block.strip * STRIP),
          launch.ki, launch.kj};
}

// Where the kernel of a pixel of y begins.
INLINE Index find_kernel(const Launch& launch, const Unit& unit, Index i, Index j) {
  return unit.n * launch.kn + unit.group * launch.kg + i * launch.ki + j * launch.kj;
}

// Where a thread's strip begins among staged runs.
INLINE Index find_strip(const Launch& launch, const Place& thread) {
  return ((thread.plane * launch.rows + thread.row) * launch.strips + thread.strip) * STRIP_PITCH;
}

// Calls use(item, b, c) for the items [0, count) of each of a block's pixels, of which b is the column and c the row.
// Neighbouring threads take neighbouring items. A thread keeps its item and goes from pixel to pixel.
template <class Use>
INLINE void for_each_pixel(Index count, const Runs& runs, Use use) {
  const Index lanes = min(count, (Index)blockDim.x), step = blockDim.x / lanes, first = threadIdx.x / lanes;
  for (Index item = threadIdx.x % lanes; first < step && item < count; item += lanes) {
    Index b = first % runs.width, c = first / runs.width;
    while (c < runs.height) {
      use(item, b, c);
      for (b += step; b >= runs.width; b -= runs.width) ++c;
    }
  }
}

// Where a pixel's taps begin among staged runs.
INLINE Index find_pixel(Index b, Index c, Index strips) {
  return (c * strips + b / STRIP) * STRIP_PITCH + b % STRIP * RUN_PITCH;
}

// Starts to copy all taps of a block's pixels, from the element `first` on, to shared memory; k has `extent` elements.
// Those of 2 bytes are copied two at a time, from the pair that holds the first: they keep their place within the pair.
INLINE void stage_runs(T* to, const T* k, Index extent, Index first, const Runs& runs, Index strips) {
  for_each_pixel(RUN_PITCH / PAIR, runs, [&](Index word, Index b, Index c) {
    const Index at = ((first + c * runs.row_step + b * runs.pixel_step) / PAIR + word) * PAIR;
    const Index there = min(Index(PAIR), extent - at);  // [read of a pair]
    if (there > 0) start_copy<PAIR * sizeof(T)>(to + find_pixel(b, c, strips) + word * PAIR, k + at, there * sizeof(T));
  });
}

// Writes all taps of a block's pixels from shared memory to `run`, which is where the first pixel's lie.
INLINE void write_runs(T* run, const T* from, const Runs& runs, Index strips) {
  for_each_pixel(RUN, runs, [&](Index tap, Index b, Index c) {
    run[c * runs.row_step + b * runs.pixel_step + tap] = from[find_pixel(b, c, strips) + tap];
  });
}

// Copies one row of taps to shared memory, for the rows of y that meet `runs.height` rows of x, the first of them at
// `row0` in units of x's rows, and for the columns from x0 on. `taps` are those of the image's first pixel; outside it
// they are zero.
INLINE void stage_taps(T* to, const T* taps, Index row0, Index x0, const Runs& runs, Index out_h, Index out_w) {
  constexpr int BATCH = 8;  // loads in flight
  Counter at = {KW, runs.width};
  while (at.c < runs.height) {
    T value[BATCH];
    Index place[BATCH];
#pragma unroll
    for (int t = 0; t < BATCH; ++t) {
      const Index row = row0 + at.c, i = row / SH, j = x0 + at.b;
      const bool inside = row >= 0 && row % SH == 0 && i < out_h && j >= 0 && j < out_w;
      place[t] = at.c < runs.height ? (at.c * runs.width + at.b) * KW + at.a : -1;
      value[t] =
          at.c < runs.height && inside ? taps[i * runs.row_step + j * runs.pixel_step + at.a] : Element::store(Acc(0));
      at.next();
    }
#pragma unroll
    for (int t = 0; t < BATCH; ++t)
      if (place[t] >= 0) to[place[t]] = value[t];
  }
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
INLINE bool has_nan(const Acc (&strip)[STRIP], Index count) {
  bool found = false;
#pragma unroll
  for (int s = 0; s < STRIP; ++s) found |= s < count && strip[s] != strip[s];
  return found;
}

// The next two give weighted_sum TAPS taps of the kernels of a strip: stage() prepares what the block shares, find()
// the thread, read() reads. This one finds them in memory.
struct StoredWeights {
  const Launch& launch;
  const T* k;
  Index first, count;

  INLINE void stage(const Place&) const {}
  INLINE void find(const Place&, const Unit& unit, Index i, Index j) {
    first = find_kernel(launch, unit, i, j);
    count = launch.out_w - j;
  }
  INLINE void read(Acc (&weight)[TAPS][STRIP], int u, int v0) const {
    read_strips(weight, k + first + u * launch.ku + v0 * launch.kv, launch.kv, KW % TAPS == 0 ? TAPS : KW - v0,
                launch.kj, count, launch.vector_k);
  }
};

// Where the taps of a pixel are one run: threads that read neighbouring pixels' runs would not read neighbouring
// memory, so that the block copies them to shared memory first.
struct PixelMajorWeights {
  const Launch& launch;
  const T* k;
  const T* runs;  // the thread's
  Index first;

  INLINE T* shared() const { return (T*)shared_memory + launch.kernel_at; }
  INLINE void stage(const Place& block) const {
    for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
      stage_runs(shared() + plane * launch.rows * launch.strips * STRIP_PITCH, k, launch.kernel_extent,
                 find_kernel(launch, unit, block.row, block.strip * STRIP), find_runs(launch, block), launch.strips);
    });
  }
  INLINE void find(const Place& thread, const Unit& unit, Index i, Index j) {
    runs = shared() + find_strip(launch, thread);
    first = find_kernel(launch, unit, i, j);
  }
  INLINE void read(Acc (&weight)[TAPS][STRIP], int u, int v0) const {
#pragma unroll
    for (int v = 0; v < TAPS; ++v)
      if (KW % TAPS == 0 || v0 + v < KW)
#pragma unroll
        for (int s = 0; s < STRIP; ++s)
          weight[v][s] = Element::load(runs[s * RUN_PITCH + (first + s * launch.kj & PAIR - 1) + u * KW + v0 + v]);
  }
};

// forward.
template <class Weights>
INLINE void weighted_sum(const T* x, T* y, const Launch& launch, Weights weights) {
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
    weights.stage(block);
    wait_for_copies();  // [sum, copies]
    __syncthreads();    // [sum, tile is staged]

    const Index i = block.row + thread.row, j = (block.strip + thread.strip) * STRIP, count = launch.out_w - j;
    if (thread.row >= launch.rows || block.plane + thread.plane >= launch.units || i >= launch.out_h || count <= 0)
      continue;
    const Unit unit = find_unit(launch, block.plane + thread.plane);
    const Index top = i * SH - launch.pad_h, left = j * SW - launch.pad_w;
    weights.find(thread, unit, i, j);
    const Index out = unit.n * launch.yn + unit.channel * launch.yc + i * launch.yh + j * launch.yw;
#pragma unroll 1
    for (bool clear = false;; clear = true) {
      Acc sum[CHUNK][STRIP] = {};
      for (int u = 0; u < KH; ++u) {
        for (int v0 = 0; v0 < KW; v0 += TAPS) {
          Acc weight[TAPS][STRIP];
          weights.read(weight, u, v0);
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

#if NARROW
// A run of elements of a tensor that lie one after the other. In memory it starts anywhere; its copy in shared memory
// starts where a vector does, with what else the first one holds.
struct Run {
  static constexpr int V = 16 / sizeof(T);
  Index first, end, start = first / V * V;

  // Starts to copy it from a tensor of `extent` elements.
  INLINE void stage(T* to, const T* tensor, Index extent) const {
#pragma unroll 4
    for (Index at = start + threadIdx.x * V; at < end; at += blockDim.x * V)
      start_copy<16>(to + (at - start), tensor + at, min(Index(V), extent - at) * sizeof(T));  // [copy of a run]
  }

  INLINE void write(T* tensor, const T* from) const {
#pragma unroll 2
    for (Index at = start + threadIdx.x * V; at < end; at += blockDim.x * V) {
      const Vector<V> vector = *(const Vector<V>*)(from + (at - start));
      if (at >= first && at + V <= end) {
        *(Vector<V>*)(tensor + at) = vector;
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
          if (at + i >= first && at + i < end) tensor[at + i] = vector.at[i];  // [write of a run]
      }
    }
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
INLINE void narrow_sum(const T* read, const T* k, T* written, const Launch& launch) {
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
INLINE void narrow_grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
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
#endif

extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
    forward(const T* __restrict__ x, const T* __restrict__ k, T* __restrict__ y, const Launch launch) {
#if NARROW
  return narrow_sum<false>(x, k, y, launch);
#endif
  if constexpr (PIXEL_MAJOR)
    weighted_sum(x, y, launch, PixelMajorWeights{launch, k});
  else
    weighted_sum(x, y, launch, StoredWeights{launch, k});
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
extern "C" __global__ void __launch_bounds__(THREADS, GRAD_INPUT_BLOCKS)
    grad_input(T* __restrict__ x, const T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
#if NARROW
  return narrow_sum<true>(y, k, x, launch);
#endif
  constexpr int BACK = (KW - 1) * DW / SW;
  const Image image = {y, launch.yn, launch.yc, launch.yh, launch.yw, launch.out_h, launch.out_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Index taps_pitch = launch.rows * tile.width * KW;
  const Index origin = launch.pad_w / SW * SW;  // of the first strip
  const Place thread = find_thread(launch);
  const T* my_tile = (T*)shared_memory + thread.plane * launch.plane_pitch + thread.strip * (GRAD_STRIP / SW);
  T* kernels = (T*)shared_memory + launch.kernel_at;

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
    const bool active = thread.row < launch.rows && block.plane + thread.plane < launch.units &&
                        a < launch.in_h + launch.pad_h && b < launch.in_w + launch.pad_w;
    const Unit unit = find_unit(launch, active ? block.plane + thread.plane : 0);
    const Index kernel = find_kernel(launch, unit, 0, 0);
    Acc sum[GRAD_CHUNK][GRAD_STRIP] = {};

    // A block that stages rows of taps goes through all of them together, else each thread through those that meet its
    // row of pixels.
    int u = 0;
    if (!PIXEL_MAJOR) {
      while (u < ROW_STEP && (a - u * DH) % SH != 0) ++u;
      if (!active || u == ROW_STEP) u = KH;
    }
    for (; u < KH; u += PIXEL_MAJOR ? 1 : ROW_STEP) {
      if constexpr (PIXEL_MAJOR) {
        __syncthreads();  // [grad_input, row of taps is read]
        for_each_unit(launch, block, [&](Index plane, const Unit& other) {
          stage_taps(kernels + plane * taps_pitch, k + find_kernel(launch, other, 0, 0) + u * KW, row0 - u * DH, x0,
                     Runs{launch.rows, tile.width, launch.ki, launch.kj}, launch.out_h, launch.out_w);
        });
        __syncthreads();  // [grad_input, row of taps is staged]
        if (!active || (a - u * DH) % SH != 0) continue;
      }
      const Index i = (a - u * DH) / SH;
      if (a < u * DH || i >= launch.out_h) continue;
      for (int v0 = 0; v0 < KW; v0 += TAPS) {
        const Index j = b / SW - v0 / SW * DW;
        Acc weight[TAPS][GRAD_STRIP];
        if constexpr (PIXEL_MAJOR) {
#pragma unroll
          for (int v = 0; v < TAPS; ++v)
#pragma unroll
            for (int s = 0; s < GRAD_STRIP; ++s)
              if ((s - v * DW) % SW == 0 && (KW % TAPS == 0 || v0 + v < KW))
                weight[v][s] = Element::load(kernels[thread.plane * taps_pitch + v0 + v +
                                                     (thread.row * tile.width + j + (s - v * DW) / SW - x0) * KW]);
        } else {
          read_taps(weight, k + kernel + u * launch.ku + v0 * launch.kv + i * launch.ki, launch,
                    KW % TAPS == 0 ? TAPS : KW - v0, j);
        }
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
    if (!active) continue;
    // The first strip may start left of the image, but only where the stride is not 1.
    const Index left = b - launch.pad_w;
    T* out = x + unit.n * launch.xn + unit.channel * launch.xc + (a - launch.pad_h) * launch.xh + left * launch.xw;
    write_channels(out, sum, unit.channels, SW == 1 ? 0 : -left, launch.in_w - left, launch.xc, launch.xw,
                   launch.vector_x);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, GRAD_KERNEL_BLOCKS)
    grad_kernel(const T* __restrict__ x, T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
#if NARROW
  return narrow_grad_kernel(x, k, y, launch);
#endif
  const Image image = {x, launch.xn, launch.xc, launch.xh, launch.xw, launch.in_h, launch.in_w};
  const Tile tile = {launch.tile_h, launch.tile_w, launch.pitch, launch.channel_pitch};
  const Place thread = find_thread(launch);
  const T* my_tile =
      (T*)shared_memory + thread.plane * launch.plane_pitch + thread.row * SH * tile.pitch + thread.strip * STRIP * SW;
  T *kernels = (T*)shared_memory + launch.kernel_at, *my_kernels = kernels + find_strip(launch, thread);
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
              read_channels(grad, source, unit.channels, count, launch.yc, launch.yw, launch.vector_y);
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
          if constexpr (PIXEL_MAJOR) {
#pragma unroll
            for (int s = 0; s < STRIP; ++s) my_kernels[s * RUN_PITCH + u * KW + v0 + v] = Element::store(sum[v][s]);
          } else {
            T* out = k + find_kernel(launch, mine, i, j) + u * launch.ku + (v0 + v) * launch.kv;
            write_strip(out, sum[v], launch.kj, count, launch.vector_k);
          }
        }
      }
    }
    if constexpr (PIXEL_MAJOR) {
      __syncthreads();  // [grad_kernel, runs are written]
      for_each_unit(launch, block, [&](Index plane, const Unit& unit) {
        write_runs(k + find_kernel(launch, unit, block.row, block.strip * STRIP),
                   kernels + plane * launch.rows * launch.strips * STRIP_PITCH, find_runs(launch, block),
                   launch.strips);
      });
    }
  }
}
