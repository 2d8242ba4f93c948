// Runs launches of involution2d.cu on the CPU: run CASES RESULTS. A case is a row of 64-bit integers (function, grid,
// block, shared bytes, order, number of arguments, arguments), then x, k and y, of fused x, features, weights, bias and
// y, each its size in bytes and its bytes; a size of 0 is a null pointer. What the function writes goes to RESULTS, case
// after case.
#include "cuda_shim.h"
//
#include CUDA_SOURCE

#include <cstdint>
#include <memory>

template <typename A>
A argument(const std::vector<int64_t> &arguments, size_t at) {
  if constexpr (std::is_pointer_v<A>)
    return reinterpret_cast<A>(arguments[at]);
  else
    return static_cast<A>(arguments[at]);
}

template <typename... A, size_t... I>
void call(void (*function)(A...), const std::vector<int64_t> &arguments, std::index_sequence<I...>) {
  if (arguments.size() != sizeof...(A)) abort();
  function(argument<A>(arguments, I)...);
}

template <typename... A>
void call(void (*function)(A...), const std::vector<int64_t> &arguments) {
  call(function, arguments, std::index_sequence_for<A...>());
}

#ifdef FUSED
constexpr int TENSORS = 5;
#else
constexpr int TENSORS = 3;
#endif

int main(int, char **argv) {
  FILE *cases = fopen(argv[1], "rb"), *results = fopen(argv[2], "wb");
  int64_t head[6];
  while (fread(head, sizeof head, 1, cases) == 1) {
    std::vector<int64_t> arguments(TENSORS + head[5]);
    if (fread(arguments.data() + TENSORS, 8, head[5], cases) != size_t(head[5])) abort();
    int64_t bytes[TENSORS];
    std::unique_ptr<char[]> tensors[TENSORS];  // each an allocation of its own and of its exact size
    for (int i = 0; i < TENSORS; ++i) {
      if (fread(bytes + i, 8, 1, cases) != 1) abort();
      tensors[i].reset(new char[bytes[i]]);
      if (fread(tensors[i].get(), 1, bytes[i], cases) != size_t(bytes[i])) abort();
      arguments[i] = bytes[i] ? reinterpret_cast<int64_t>(tensors[i].get()) : 0;
    }
    emulation::launch(head[1], head[2], head[3], head[4], [&] {
#ifdef FUSED
      call(fused, arguments);
#else
      if (head[0] == 0) call(forward, arguments);
      if (head[0] == 1) call(grad_input, arguments);
      if (head[0] == 2) call(grad_kernel, arguments);
#endif
    });
    const int written = head[0] == 1 ? 0 : head[0] == 2 ? 1 : TENSORS - 1;
    fwrite(tensors[written].get(), 1, bytes[written], results);
  }
  fclose(results);
}
