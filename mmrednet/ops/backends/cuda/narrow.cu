// Kernels for narrow contiguous images, with stride 1 and as many pixels of y as of x. Their rows are too short for
// vectors and start anywhere, and most pixels of a tile would lie outside the image. But a unit, which is a whole group
// here, is one run of memory in each of x, k and y, and the units of a block follow each other. So a block copies these
// runs as they are, and writes its result as a run. The taps that lie left or right of the image are fixed at compile
// time; they are left out, and so are rows above and below the image. Nothing has to be cleared.
namespace kernels {
constexpr int BLOCKS[] = {4 - MANY_REGISTERS, 3 - MANY_REGISTERS, MANY_REGISTERS ? 2 : 3};
constexpr int THREAD_CHANNELS = CHUNK / 4;

// Writes the elements of a vector that belong to the run [first, end) of a tensor.
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

// A run of elements of a tensor. It may start within a vector of memory; its copy in shared memory starts with that
// vector.
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

// The groups of a block, and the place of a thread among them.
struct Group {
  const Launch& launch;
  Place thread;
  Index first, end = min(first + launch.planes, launch.units);  // the groups [first, end) of all images
  Index area = launch.channel_pitch, image = launch.group_channels * area;
  Run images = {first * image, end * image}, kernels = {first * RUN * area, end * RUN * area};
  bool active = thread.row < launch.rows && thread.plane < end - first;

  // Return where the thread's group begins in the copies of the runs.
  INLINE Index find_image() const { return images.first - images.start + thread.plane * image; }
  INLINE Index find_kernel() const { return kernels.first - kernels.start + thread.plane * RUN * area; }
};

INLINE void load_row(Acc (&row)[NARROW], const T* from) {
#pragma unroll
  for (int i = 0; i < NARROW; ++i) row[i] = Element::load(from[i]);
}

// Calls use(s, i) for each pixel s of a row of y whose tap v lies on a pixel i of a row of x.
template <class Use>
INLINE void visit_pairs(int v, Use use) {
#pragma unroll
  for (int s = 0; s < NARROW; ++s) {
    const int i = s + v * DW - (KW - 1) * DW / 2;
    if (i >= 0 && i < NARROW) use(s, i);
  }
}

// forward, or with GRADIENT grad_input, where x and y change places. A thread computes a row of THREAD_CHANNELS
// channels. The result takes the place of the image in shared memory.
template <bool GRADIENT>
INLINE void sum(const T* read, const T* k, T* written, const Launch& launch) {
  T *const images = (T*)shared_memory, *const kernels = images + launch.kernel_at;
  const Place thread = find_thread(launch);  // here a strip stands for THREAD_CHANNELS channels
  const Index channels = min(Index(THREAD_CHANNELS), launch.group_channels - thread.strip * THREAD_CHANNELS);

  for (Index block = blockIdx.x; block < launch.blocks; block += gridDim.x) {
    const Group group = {launch, thread, block * launch.planes};
    T* const mine = images + group.find_image() + thread.strip * THREAD_CHANNELS * group.area;
    __syncthreads();  // a copy may overtake reads, even those of its own thread
    group.images.stage(images, read, launch.units * group.image);
    group.kernels.stage(kernels, k, launch.kernel_extent);
    wait_for_copies();  // [narrow, copies]
    __syncthreads();    // [narrow, runs are staged]

    Acc sum[THREAD_CHANNELS][NARROW] = {};
#pragma unroll 1
    for (int u = 0; u < KH; ++u) {
      const Index reach = u * DH - launch.pad_h, row = thread.row + (GRADIENT ? -reach : reach);
      if (!group.active || !is_below(row, launch.in_h)) continue;
      const T* const taps =
          kernels + group.find_kernel() + u * KW * group.area + (GRADIENT ? row : thread.row) * NARROW;
      Acc pixels[THREAD_CHANNELS][NARROW];
#pragma unroll
      for (int c = 0; c < THREAD_CHANNELS; ++c)
        load_row(pixels[c], mine + min(Index(c), channels - 1) * group.area + row * NARROW);
#pragma unroll
      for (int v = 0; v < KW; ++v) {
        Acc weight[NARROW];
        load_row(weight, taps + v * group.area);
#pragma unroll
        for (int c = 0; c < THREAD_CHANNELS; ++c)
          visit_pairs(v, [&](int s, int i) { sum[c][GRADIENT ? i : s] += weight[s] * pixels[c][GRADIENT ? s : i]; });
      }
    }
    __syncthreads();  // [narrow, rows are read]
#pragma unroll
    for (int c = 0; c < THREAD_CHANNELS; ++c)
#pragma unroll
      for (int i = 0; i < NARROW; ++i)
        if (group.active && c < channels) mine[c * group.area + thread.row * NARROW + i] = Element::store(sum[c][i]);
    __syncthreads();  // [narrow, rows are written]
    group.images.write(written, images);
  }
}

INLINE void forward(const T* x, const T* k, T* y, const Launch& launch) { sum<false>(x, k, y, launch); }
INLINE void grad_input(T* x, const T* k, const T* y, const Launch& launch) { sum<true>(y, k, x, launch); }

// A thread computes one row of the window for all pixels of a row of y.
INLINE void grad_kernel(const T* x, T* k, const T* y, const Launch& launch) {
  T *const xs = (T*)shared_memory, *const ys = xs + launch.kernel_at, *const kernels = ys + launch.kernel_at;
  const Place thread = find_thread(launch);  // here a strip stands for a row of the window
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
        for (int v = 0; v < KW; ++v) visit_pairs(v, [&](int s, int i) { sum[v][s] += grad[s] * pixels[i]; });
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
}  // namespace kernels
