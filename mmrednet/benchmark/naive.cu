// Straightforward kernels, with one thread for each element of the result, for comparison with the backend's kernels.
// All tensors are contiguous. ELEMENT is float or double.

typedef ELEMENT T;

#define SIZES                                                                                                    \
  long long total, int groups, int channels, int h, int w, int kh, int kw, int out_h, int out_w, int sh, int sw, \
      int ph, int pw, int dh, int dw
#define EACH_ELEMENT                                                                \
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < total; \
       at += gridDim.x * (long long)blockDim.x)

extern "C" __global__ void forward(const T* x, const T* k, T* y, SIZES) {
  EACH_ELEMENT {
    const int j = at % out_w, i = at / out_w % out_h, c = at / out_w / out_h % channels;
    const long long n = at / out_w / out_h / channels, g = n * groups + c / (channels / groups);
    T sum = 0;
    for (int u = 0; u < kh; ++u)
      for (int v = 0; v < kw; ++v) {
        const int a = i * sh - ph + u * dh, b = j * sw - pw + v * dw;
        if (a >= 0 && a < h && b >= 0 && b < w)
          sum += k[((g * kh + u) * kw + v) * out_h * out_w + i * out_w + j] * x[((n * channels + c) * h + a) * w + b];
      }
    y[at] = sum;
  }
}

extern "C" __global__ void grad_input(T* x, const T* k, const T* y, SIZES) {
  EACH_ELEMENT {
    const int b = at % w, a = at / w % h, c = at / w / h % channels;
    const long long n = at / w / h / channels, g = n * groups + c / (channels / groups);
    T sum = 0;
    for (int u = 0; u < kh; ++u)
      for (int v = 0; v < kw; ++v) {
        const int is = a + ph - u * dh, js = b + pw - v * dw, i = is / sh, j = js / sw;
        if (is >= 0 && is % sh == 0 && i < out_h && js >= 0 && js % sw == 0 && j < out_w)
          sum += k[((g * kh + u) * kw + v) * out_h * out_w + i * out_w + j] *
                 y[((n * channels + c) * out_h + i) * out_w + j];
      }
    x[at] = sum;
  }
}

extern "C" __global__ void grad_kernel(const T* x, T* k, const T* y, SIZES) {
  EACH_ELEMENT {
    const int j = at % out_w, i = at / out_w % out_h, v = at / out_w / out_h % kw, u = at / out_w / out_h / kw % kh;
    const int g = at / out_w / out_h / kw / kh % groups, size = channels / groups;
    const long long n = at / out_w / out_h / kw / kh / groups;
    const int a = i * sh - ph + u * dh, b = j * sw - pw + v * dw;
    T sum = 0;
    if (a >= 0 && a < h && b >= 0 && b < w)
      for (int c = g * size; c < (g + 1) * size; ++c)
        sum += y[((n * channels + c) * out_h + i) * out_w + j] * x[((n * channels + c) * h + a) * w + b];
    k[at] = sum;
  }
}
