// Involution and its two gradients. One module per specialisation: dtype, window, stride, dilation and layouts are
// macros; every size is an argument, so that images of any size run the same module. No header is included: NVRTC needs
// none.
//
//   forward      y[n,c,i,j]      = sum_uv k[n,g(c),u,v,i,j] x[n,c,i s - p + u d, j s - p + v d]
//   grad_input   x[n,c,a,b]      = sum_uv k[n,g(c),u,v,i,j] y[n,c,i,j]    where i s - p + u d = a and j s - p + v d = b
//   grad_kernel  k[n,g,u,v,i,j]  = sum_c  y[n,c,i,j] x[n,c,i s - p + u d, j s - p + v d]
//
// x is the tensor on the input's side, y the one on the output's side, whichever of the three is written. A block
// stages what it reads in shared memory, and a thread keeps its sums in registers. No sum is split between threads:
// there is nothing to add atomically, and the same input gives the same bits.
//
// This part is common to all kernels. tiled.cu serves any layout, narrow.cu contiguous images of few columns,
// pixels.cu channels-last ones and bands.cu these on tensor cores, the last two by channels_last.cu. plan.py chooses
// one, and the functions that a module has end it.
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
//   WARP_ROWS (rows of a warp, where tensor cores do the work, else 0)
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
  const Count chunks = WARP_ROWS ? 1 : launch.chunks;  // tensor cores take whole groups
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

// Where the kernel of a pixel of y begins.
INLINE Index find_kernel(const Launch& launch, const Unit& unit, Index i, Index j) {
  return unit.n * launch.kn + unit.group * launch.kg + i * launch.ki + j * launch.kj;
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
