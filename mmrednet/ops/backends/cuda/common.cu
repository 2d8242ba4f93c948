// Involution and its two gradients. A module is compiled for one dtype, window, stride, dilation and family of layouts,
// which are macros. All sizes are arguments, so that images of any size use the same module. NVRTC needs no header.
//
//   forward      y[n,c,i,j]      = sum_uv k[n,g(c),u,v,i,j] x[n,c,i s - p + u d, j s - p + v d]
//   grad_input   x[n,c,a,b]      = sum_uv k[n,g(c),u,v,i,j] y[n,c,i,j]    where i s - p + u d = a and j s - p + v d = b
//   grad_kernel  k[n,g,u,v,i,j]  = sum_c  y[n,c,i,j] x[n,c,i s - p + u d, j s - p + v d]
//
// x is the input or its gradient, y the output or its gradient, and k the kernel or its gradient. A block copies
// ("stages") what it reads to shared memory, and a thread keeps its sums in registers. No sum is split between threads,
// so that nothing is added atomically and the same input gives the same bits.
//
// This file is the first part of every module. tiled.cu computes any layout, narrow.cu contiguous images of few
// columns, pixels.cu channels-last images, and bands.cu channels-last images on tensor cores; the last two share
// channels_last.cu. plan.py chooses one of them. The last part of a module has its functions.
//
// Words: a strip is a row of neighbouring pixels that one thread computes. A tile is the part of an image that a block
// stages: the pixels of its strips and rows and the window around them. A chunk is the channels of a group that a
// thread computes at once. A unit is a chunk of one group of one image. A plane is the place of a unit in its block,
// counted from 0. A run is a row of elements that are neighbours in memory. A band is the diagonal of a matrix that
// holds taps.
//
// A tap outside the image contributes nothing. The tile is zero there, so that only an infinity or NaN of k (in
// grad_kernel: of y) could have an effect, which would be a NaN. So a thread whose sums have a NaN clears the values
// that belong to taps outside; all other threads skip this.
//
// Macros, which specialisation.py defines; a switch is 0 or 1:
//   ELEMENT (Float16, BFloat16, Plain<float> or Plain<double>); INDEX (an integer type that counts all elements)
//   KH, KW (window); SH, SW (stride); DH, DW (dilation)
//   ROW_STEP (distance of the rows of the window that read the same row of x)
//   TAPS (taps of a row of the window that are held in registers at a time)
//   CHANNELS_LAST (switch: x and y lie in memory as N, H, W, C, and k as N, Ho, Wo, G, Kh, Kw, by whole vectors)
//   STRIP, GRAD_STRIP (pixels of a strip: of y, and in grad_input of x)
//   CHUNK, GRAD_CHUNK (channels of a chunk, at most; the second in grad_input); THREADS (threads of a block, at most)
//   SHIFT, GRAD_SHIFT (columns before the first that is read, so that a tile starts with a vector of memory)
//   GRAD_PHASE (the place within a vector of the pixel of y that the first tap and pixel of a strip of x use)
//   PAIR (elements of a word, at least one)
//   RUN_PITCH, ROW_PITCH (elements in shared memory from pixel to pixel, if all taps or one row of taps are staged)
//   NARROW (pixels of a row of x and y if threads take whole rows, else 0)
//   WARP_ROWS (rows that a warp computes on tensor cores, else 0)
//   ARGUMENTS (the fields of Launch)
//
// Tests plant faults in the lines with a comment in brackets.

#define INLINE __device__ __forceinline__

// A number of 16 bits, for which CUDA has no built-in type.
struct Bits {
  unsigned short bits;
};

#ifdef __CUDACC__  // the tests have these two in C++
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

// The types of values in memory (Stored), of sums (Sum), and of values that wait in registers (Word). Two values of 2
// bytes share a register: it takes fewer instructions to unpack them later than to move half a register.
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
typedef unsigned INDEX Count;  // of numbers that are never negative, whose division takes fewer instructions

// The arguments of a launch. specialisation.py names the fields.
struct Launch {
  Index ARGUMENTS;
};

extern __shared__ __align__(16) unsigned char shared_memory[];

// The number of pixels of x that a strip and a row of taps use. If READ_ONCE, a thread reads them into registers once,
// otherwise again for each tap.
constexpr int MOST_USED = 32;
constexpr int USED = (STRIP - 1) * SW + (TAPS - 1) * DW + 1;
constexpr bool READ_ONCE = TAPS == KW && USED <= MOST_USED;
// The same for grad_input, where a strip uses pixels of y. The first lies REACH before the one under the first tap.
constexpr int REACH = (TAPS - 1) * DW / SW;
constexpr int GRAD_USED = (GRAD_STRIP - 1) / SW + REACH + 1;
constexpr bool GRAD_READ_ONCE = TAPS == KW && GRAD_USED <= MOST_USED;
constexpr int RUN = KH * KW;
constexpr int VECTOR = 16 / sizeof(T);  // elements of 16 bytes, the most that are read or written at a time
constexpr bool WIDE = sizeof(Index) > 4;

// Each family has BLOCKS for forward, grad_input and grad_kernel: the blocks of a multiprocessor for which the compiler
// must leave enough registers. The numbers are so small that no register spills to memory. MANY_REGISTERS: beside its
// sums, a thread holds more values than for a window of 7x7 pixels.
constexpr int HELD = TAPS * STRIP + (READ_ONCE ? USED : 0);
constexpr bool MANY_REGISTERS = HELD * sizeof(Acc) > 42 * sizeof(float) || TAPS != KW || WIDE;

template <int N, class E = T>
struct alignas(N * sizeof(E)) Vector {
  E at[N];
};

// N neighbouring values that were read and not yet unpacked. Unpacking waits for memory, and the instructions behind it
// wait, too. So a thread that needs several Packed reads all of them before it unpacks the first.
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

  // Puts V values at the places i to i + V - 1, which are zero.
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

#if defined(__CUDACC__) || defined(BLOCKING_COPIES)  // the tests have it in C++, or test the form for GPUs before sm_80
// Starts to copy `bytes` bytes of SIZE to shared memory, and zeros after them. From sm_80 on the copy needs no
// register, and a thread goes on until it waits for all copies that it started.
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

// The channels [channel, channel + channels) of one image, which all belong to one group.
struct Unit {
  Index n, group, channel, channels;
};

// Returns the unit of a number: units count the chunks of all groups of all images. In grad_kernel, a unit is a group.
INLINE Unit find_unit(const Launch& launch, Count unit) {
  const Count chunks = WARP_ROWS ? 1 : launch.chunks;  // tensor cores take whole groups
  const Index first = unit % chunks * launch.chunk, group = unit / chunks % launch.groups;
  return {Index(unit / chunks / launch.groups), group, group * launch.group_channels + first,
          min(launch.chunk, launch.group_channels - first)};
}

// The first strip, row and unit of a block, or the strip, row and unit of a thread, counted from the first of its
// block.
struct Place {
  Index strip, row, plane;
};

// Neighbouring blocks read the same memory, so that it is in the L2 cache: neighbouring tiles of an image, or in
// channels-last images the groups of the same pixels.
INLINE Place find_block(const Launch& launch, Count block) {
  const Count units = CHANNELS_LAST && launch.planes == 1 ? launch.groups * launch.chunks : 1, tile = block / units;
  return {Index(tile % launch.tiles_x * launch.strips), Index(tile / launch.tiles_x % launch.tiles_y * launch.rows),
          Index((tile / launch.tiles_x / launch.tiles_y * units + block % units) * launch.planes)};
}

// Neighbouring threads take a row of one unit, then the same row of the next unit. banks.py chooses the distance of the
// units in shared memory so that these threads use different banks.
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

// Returns where the taps of a pixel of y begin in k.
INLINE Index find_kernel(const Launch& launch, const Unit& unit, Index i, Index j) {
  return unit.n * launch.kn + unit.group * launch.kg + i * launch.ki + j * launch.kj;
}

// Clears the values that belong to taps outside the image. (y, x) is the place of the first tap of the first pixel.
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
