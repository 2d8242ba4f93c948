// Calls a function of a shared library with struct Arguments: call LIBRARY FUNCTION CASE RESULT. CASE is the struct's
// size and the struct, then memory that it points into: the address that it had, its size and its bytes. RESULT gets
// what the first memory holds after the call.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

int64_t read_number(FILE* file) {
  int64_t number;
  if (fread(&number, sizeof number, 1, file) != 1) exit(2);
  return number;
}

int main(int, char** argv) {
  void* const library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  const auto function = reinterpret_cast<void (*)(const int64_t*)>(dlsym(library, argv[2]));
  FILE *in = fopen(argv[3], "rb"), *out = fopen(argv[4], "wb");

  std::vector<int64_t> arguments(read_number(in) / sizeof(int64_t));
  for (int64_t& argument : arguments) argument = read_number(in);
  std::vector<std::pair<std::unique_ptr<char[]>, int64_t>> memory;
  const std::vector<int64_t> before = arguments;
  for (int next; (next = fgetc(in)) != EOF;) {
    ungetc(next, in);
    const int64_t address = read_number(in), size = read_number(in);
    memory.emplace_back(new char[size], size);
    if (fread(memory.back().first.get(), 1, size, in) != size_t(size)) return 2;
    for (size_t i = 0; i < before.size(); ++i)
      if (before[i] == address) arguments[i] = reinterpret_cast<int64_t>(memory.back().first.get());
  }
  function(arguments.data());
  fwrite(memory.front().first.get(), 1, memory.front().second, out);
  return fclose(out);
}
