// The part of CUDA that the kernels use, on the CPU. The threads of a block are fibers: one runs at a time, in an order
// that the caller chooses, until it reaches __syncthreads() or an operation of its whole warp. So a missing barrier
// gives a wrong result in every run. Each block starts with shared memory full of a byte that the caller chooses: if
// two bytes give different results, a value was read that nothing wrote. The address sanitizer reports every access
// outside the bytes of a tensor or of the shared memory that the launch has.
//
// The operations of tensor cores, copies to shared memory and the conversions of float16 are written again for the CPU
// here. BLOCKING_COPIES chooses the form of start_copy that GPUs before sm_80 run, where a copy is done when it
// returns.
#pragma once

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x;
};
inline dim3 blockIdx, threadIdx, blockDim, gridDim;
extern "C" {
inline constexpr size_t SHARED_LIMIT = 256 << 10;
alignas(1024) unsigned char shared_memory[SHARED_LIMIT];
}

template <typename A>
A min(A a, A b) {
  return b < a ? b : a;
}

template <typename A>
A max(A a, A b) {
  return a < b ? b : a;
}

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= (both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

inline float __fdividef(float a, float b) { return a / b; }

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value = exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(float(fraction), -24);
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  return bits >> 15 ? -value : value;
}

inline unsigned short float_to_half(float value) {
  const unsigned sign = std::signbit(value) << 15;
  const float size = std::fabs(value);
  if (std::isnan(size)) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent;
  std::frexp(size, &exponent);  // 0.5..1 times 2^exponent: the last of its 11 bits is worth 2^(exponent - 11)
  if (exponent < -13) exponent = -13;
  // The fraction may round up to 2048, which carries into the exponent as it should.
  return sign | (unsigned(std::nearbyint(std::ldexp(size, 11 - exponent))) + ((exponent + 13) << 10));
}

namespace emulation {

struct Copy {
  void* to;
  const void* from;
  size_t size, bytes;
};

struct Fiber {
  static constexpr size_t STACK = 256 << 10;
  std::vector<Copy> copies;  // started, not waited for
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};  // not initialised, which would take longer than a kernel
  void* fake_stack = nullptr;
  bool finished, in_warp;  // in_warp: it waits for the other threads of its warp
  unsigned words[6];       // that the other threads of its warp can read
};

inline std::vector<Fiber> fibers;  // one for each thread of a block
inline ucontext_t scheduler;
inline const void* scheduler_stack;
inline size_t scheduler_stack_size;
inline int64_t fault;  // the number of the planted fault that is active, or 0
inline void (*kernel)(void*);
inline void* captured;

inline void leave(Fiber& fiber) {
  __sanitizer_start_switch_fiber(fiber.finished ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_size);
  swapcontext(&fiber.context, &scheduler);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_size);
}

inline void body() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  kernel(captured);
  fibers[threadIdx.x].finished = true;
  leave(fibers[threadIdx.x]);
}

// Runs the thread up to its next barrier or its end.
inline void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  threadIdx.x = thread;
  void* fake_stack;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), Fiber::STACK);
  swapcontext(&scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// Runs the threads up to their next barrier or their end. A warp goes on when all its threads wait for each other.
inline void resume_all(std::vector<unsigned> turns) {
  while (!turns.empty()) {
    std::vector<unsigned> waiting;
    unsigned of_warp[32] = {};
    for (unsigned thread : turns) {
      resume(thread);
      if (!fibers[thread].in_warp) continue;
      fibers[thread].in_warp = false;
      waiting.push_back(thread);
      ++of_warp[thread / 32];
    }
    for (unsigned count : of_warp)
      if (count != 0 && count != 32) {
        fprintf(stderr, "%u threads of a warp wait for the others\n", count);
        abort();
      }
    turns = waiting;
  }
}

// Returns when all threads of the warp have called it.
inline void wait_for_warp() {
  Fiber& fiber = fibers[threadIdx.x];
  fiber.in_warp = true;
  leave(fiber);
}

// Gives words to the warp, and returns when those of all its threads can be read.
template <size_t N>
void show(const unsigned (&words)[N]) {
  std::copy(words, words + N, fibers[threadIdx.x].words);
  wait_for_warp();
}

inline Fiber& lane(unsigned number) { return fibers[threadIdx.x / 32 * 32 + number]; }

// The value in a row and column of a part, two of which each lane holds: the instruction set's document, "Matrix
// Fragments for mma.m16n8k16".
inline unsigned short element(unsigned row, unsigned column, unsigned word) {
  return lane(row * 4 + column / 2).words[word] >> 16 * (column % 2);
}

template <class Load>
void multiply(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2], Load load) {
  show({a[0], a[1], a[2], a[3], b[0], b[1]});
  const unsigned thread = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = thread / 4, column = thread % 4 * 2 + i % 2, lower = i / 2;
    for (unsigned k = 0; k < 16; ++k)  // b lies as if its rows were columns
      sum[i] += load(element(row, k % 8, k / 8 * 2 + lower)) * load(element(column, k % 8, 4 + k / 8));
  }
  wait_for_warp();
}

// Runs all blocks of a launch. Order 0 runs the threads of a block upwards, 1 downwards, and any other number shuffles
// them after every barrier. Each block starts with shared memory full of the byte `fill`.
template <typename Function>
void launch(unsigned grid, unsigned block, size_t shared, unsigned order, int fill, Function what) {
  kernel = [](void* function) { (*(Function*)function)(); };
  captured = &what;
  gridDim.x = grid;
  blockDim.x = block;
  fibers = std::vector<Fiber>(block);
  std::vector<unsigned> turns(block);
  for (unsigned turn = 0; turn < block; ++turn) turns[turn] = order == 1 ? block - 1 - turn : turn;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
    ASAN_UNPOISON_MEMORY_REGION(shared_memory, SHARED_LIMIT);
    memset(shared_memory, fill, SHARED_LIMIT);
    ASAN_POISON_MEMORY_REGION(shared_memory + shared, SHARED_LIMIT - shared);
    for (unsigned thread = 0; thread < block; ++thread) {
      Fiber& fiber = fibers[thread];
      fiber.finished = fiber.in_warp = false;
      fiber.copies.clear();
      getcontext(&fiber.context);
      fiber.context.uc_stack = {fiber.stack.get(), 0, Fiber::STACK};
      makecontext(&fiber.context, body, 0);
    }
    for (unsigned finished = 0; finished < block;) {
      for (unsigned turn = order > 1 ? block - 1 : 0; turn > 0; --turn) {
        order = order * 1664525 + 1013904223 | 2;  // a linear congruential generator that stays above 1
        std::swap(turns[turn], turns[(order >> 8) % (turn + 1)]);
      }
      finished = 0;
      resume_all(turns);
      for (unsigned thread : turns) finished += fibers[thread].finished;
      if (finished != 0 && finished != block) {
        fprintf(stderr, "%u of %u threads ended while the others wait at a barrier\n", finished, block);
        abort();
      }
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::leave(emulation::fibers[threadIdx.x]); }

#ifndef BLOCKING_COPIES
// A copy happens as late as it may: when the thread waits for it.
template <int SIZE>
void start_copy(void* to, const void* from, int bytes) {
  static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16);
  if ((size_t(to) | (bytes ? size_t(from) : 0)) % SIZE || bytes < 0 || bytes > SIZE) abort();
  emulation::fibers[threadIdx.x].copies.push_back({to, from, SIZE, bytes});
}

inline void wait_for_copies() {
  for (const emulation::Copy& copy : emulation::fibers[threadIdx.x].copies) {
    memset(copy.to, 0, copy.size);
    if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
  }
  emulation::fibers[threadIdx.x].copies.clear();
}
#endif

template <class Element>
void multiply(Element, float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  emulation::multiply(sum, a, b, [](unsigned short bits) { return Element::load({bits}); });
}

inline void load_transposed(unsigned (&parts)[4], const void* column) {
  if (size_t(column) % 16) abort();
  const auto* const words = static_cast<const unsigned*>(column);
  emulation::show({words[0], words[1], words[2], words[3]});
  const unsigned row = threadIdx.x % 32 / 4, first = threadIdx.x % 4 * 2;
  for (unsigned part = 0; part < 4; ++part) {
    const auto value = [&](unsigned lane) { return emulation::lane(lane).words[row / 2] >> 16 * (row % 2) & 0xffff; };
    parts[part] = value(part * 8 + first) | value(part * 8 + first + 1) << 16;
  }
  emulation::wait_for_warp();
}
