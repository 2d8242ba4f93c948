// Runs a launch of a CUDA kernel on the CPU: run CASE RESULT. CASE has nine 64-bit integers (function, grid, block,
// shared bytes, order, number of the tensor that is written, number of the active fault, byte that shared memory holds
// at first, bytes of struct Launch), the struct, and the size in bytes and the bytes of each of x, k and y. RESULT gets
// the tensor that is written.
#include "cuda_shim.h"
//
#include CUDA_SOURCE

#include <cstdint>
#include <memory>

constexpr int TENSORS = 3;

int main(int, char** argv) {
  FILE *file = fopen(argv[1], "rb"), *result = fopen(argv[2], "wb");
  int64_t head[9];
  Launch launch;
  if (fread(head, sizeof head, 1, file) != 1 || head[8] != sizeof launch) abort();
  if (fread(&launch, sizeof launch, 1, file) != 1) abort();
  emulation::fault = head[6];
  int64_t bytes[TENSORS];
  std::unique_ptr<char[]> tensors[TENSORS];  // each is allocated by itself, with its exact size
  T* t[TENSORS];
  for (int i = 0; i < TENSORS; ++i) {
    if (fread(bytes + i, 8, 1, file) != 1) abort();
    tensors[i].reset(new char[bytes[i]]);
    if (fread(tensors[i].get(), 1, bytes[i], file) != size_t(bytes[i])) abort();
    t[i] = reinterpret_cast<T*>(tensors[i].get());
  }
  emulation::launch(head[1], head[2], head[3], head[4], head[7], [&] {
    if (head[0] == 0) forward(t[0], t[1], t[2], launch);
    if (head[0] == 1) grad_input(t[0], t[1], t[2], launch);
    if (head[0] == 2) grad_kernel(t[0], t[1], t[2], launch);
  });
  fwrite(tensors[head[5]].get(), 1, bytes[head[5]], result);
  fclose(result);
}
