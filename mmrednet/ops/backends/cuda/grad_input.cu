extern "C" __global__ void __launch_bounds__(THREADS, kernels::BLOCKS[1])
    grad_input(T* __restrict__ x, const T* __restrict__ k, const T* __restrict__ y, const Launch launch) {
  kernels::grad_input(x, k, y, launch);
}
