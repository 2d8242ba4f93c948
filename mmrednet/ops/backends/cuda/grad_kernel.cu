extern "C" __global__ void __launch_bounds__(THREADS, kernels::BLOCKS[2])
    grad_kernel(const T* __restrict__ x, T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
  kernels::grad_kernel(x, k, y, launch);
}
