// Vectors, in the vector extensions of GCC and Clang, and unrolled loops.

#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define INLINE __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))  // The function is not inlined, so that it can use all registers

// One source file includes these headers. The anonymous namespace lets the compiler inline functions with one caller.
namespace {

#if defined(__AVX__)
constexpr int kVectorBytes = 32;  // Wider vectors are not faster: loads that cross cache lines limit them
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
template <class T, int N = kLanes<T>>
using Vector = typename VectorOf<T, N>::type;

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Copies N values and converts them. bfloat16 is converted by its bits, as compilers convert it one value at a time.
template <int N, class To, class From>
INLINE inline void copy_lanes(To* to, const From* from) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, N * sizeof(To));
  } else if constexpr (std::is_same_v<From, c10::BFloat16> && N > 1) {
    Vector<uint16_t, N> half;
    std::memcpy(&half, from, sizeof half);
    const Vector<uint32_t, N> bits = __builtin_convertvector(half, Vector<uint32_t, N>) << 16;
    std::memcpy(to, &bits, sizeof bits);
  } else if constexpr (std::is_same_v<To, c10::BFloat16> && N > 1) {
    Vector<float, N> value;
    Vector<uint32_t, N> bits;
    std::memcpy(&value, from, sizeof value);
    std::memcpy(&bits, from, sizeof bits);
    const Vector<uint32_t, N> nan = {}, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Vector<uint16_t, N> half =
        __builtin_convertvector(value == value ? rounded : nan + 0x7fc0, Vector<uint16_t, N>);
    std::memcpy(to, &half, sizeof half);
  } else {
    for (int lane = 0; lane < N; ++lane) to[lane] = static_cast<To>(from[lane]);
  }
}

template <class T, class S>
INLINE inline Vector<T> load(const S* from) {
  Vector<T> value;
  copy_lanes<kLanes<T>>(reinterpret_cast<T*>(&value), from);
  return value;
}

template <class T, class S>
INLINE inline void store(S* to, Vector<T> value) {
  copy_lanes<kLanes<T>>(to, reinterpret_cast<const T*>(&value));
}

template <class T, class S>
INLINE inline Vector<T> load(const S* from, int64_t step) {
  Vector<T> value;
  for (int lane = 0; lane < kLanes<T>; ++lane) value[lane] = static_cast<T>(from[lane * step]);
  return value;
}

// Loads a value and keeps it in a register. Otherwise GCC repeats the load for each use.
template <class T>
INLINE inline Vector<T> load_once(const T* from) {
  Vector<T> value = load<T>(from);
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

template <class T, class S>
INLINE inline Vector<T> broadcast(const S* from) {
  // Compilers drop the subtraction, since x - 0 is x for every x. An addition would change -0.
  Vector<T> value = static_cast<T>(*from) - Vector<T>{};
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

template <int Value>
using Int = std::integral_constant<int, Value>;

template <int First, int... Offsets, class F>
INLINE inline void unroll(std::integer_sequence<int, Offsets...>, F&& function) {
  (function(Int<First + Offsets>{}), ...);
}

// Calls function(Int<i>) for i = First, ..., Last. Arrays that are indexed with these constants stay in registers.
template <int First, int Last, class F>
INLINE inline void unroll(F&& function) {
  unroll<First>(std::make_integer_sequence<int, Last - First + 1>{}, function);
}

// Copies a run in vectors. The last vector overlaps the previous one: runs are short, and a loop over the remaining
// values would take longer.
template <class To, class From>
INLINE inline void copy_run(To* to, const From* from, int64_t size) {
  constexpr int N = std::min(kLanes<To>, kLanes<From>);
  if (size >= N) {
    int64_t i = 0;
    for (; i + N <= size; i += N) copy_lanes<N>(to + i, from + i);
    if (i < size) copy_lanes<N>(to + size - N, from + size - N);
  } else if (size >= N / 2) {
    copy_lanes<N / 2>(to, from);
    copy_lanes<N / 2>(to + size - N / 2, from + size - N / 2);
  } else {
    for (int64_t i = 0; i < size; ++i) copy_lanes<1>(to + i, from + i);
  }
}

template <class T, int... Lanes>
INLINE inline void deinterleave(Vector<T> a, Vector<T> b, Vector<T>& even, Vector<T>& odd,
                                std::integer_sequence<int, Lanes...>) {
#if defined(__clang__)
  even = __builtin_shufflevector(a, b, (2 * Lanes)...);
  odd = __builtin_shufflevector(a, b, (2 * Lanes + 1)...);
#else
  using Mask = decltype(a == b);
  even = __builtin_shuffle(a, b, Mask{(2 * Lanes)...});
  odd = __builtin_shuffle(a, b, Mask{(2 * Lanes + 1)...});
#endif
}

}  // namespace
