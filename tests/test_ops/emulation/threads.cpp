// The functions of involution2d.cpp on four std::threads instead of OpenMP's, for ThreadSanitizer. Their names end in
// `_threads`.
#include <atomic>
#include <thread>

#include "involution2d.cpp"

namespace {

struct Threads {
  int64_t threads = 4;

  template <class F>
  void operator()(int64_t items, int, const F& compute) const {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> team;
    for (int64_t i = 0; i < threads; ++i)
      team.emplace_back([&] {
        for (int64_t index; (index = next++) < items;) compute(index);
      });
    for (std::thread& thread : team) thread.join();
  }
};

}  // namespace

#undef ENTRY
#define ENTRY(operation, dtype, S)                                            \
  extern "C" bool operation##_##dtype##_threads(const Arguments* arguments) { \
    return operation<S>(*arguments, Threads{});                               \
  }
ENTRIES(float16, c10::Half)
ENTRIES(bfloat16, c10::BFloat16)
ENTRIES(float32, float)
ENTRIES(float64, double)
