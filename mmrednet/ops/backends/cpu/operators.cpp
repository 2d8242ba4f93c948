// Registers the operators for the CPU with torch's dispatcher. Python would take most of a small call's time.
//
// This file handles the common case only. The Python kernels handle a named backend, an empty tensor, a window far
// larger than the image, and arguments that do not fit: they have the table of backends and raise the errors.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <utility>

#include "involution2d.cpp"

namespace {

using at::Tensor;
using Sizes = at::IntArrayRef;
using Ints = std::vector<int64_t>;
using Name = std::optional<std::string>;

// Returns whether `tensor` has this number of dimensions and the device and type of `first`, which is on the CPU.
bool alike(const Tensor& first, const Tensor& tensor, int64_t dims) {
  return tensor.dim() == dims && tensor.numel() > 0 && tensor.layout() == at::kStrided &&
         tensor.device() == first.device() && tensor.scalar_type() == first.scalar_type();
}

ImageDims image_dims(Sizes a) { return {a[0], a[1], a[2], a[3]}; }
KernelDims kernel_dims(Sizes a) { return {a[0], a[1], a[2], a[3], a[4], a[5]}; }

// Sets the shapes and the geometry. Returns false where involution is not defined for them. The lists may have any
// length, since a schema does not check it.
bool set_shapes(Arguments& a, Sizes input, Sizes kernel, const Ints& stride, const Ints& padding,
                const Ints& dilation) {
  if (stride.size() != 2 || padding.size() != 2 || dilation.size() != 2) return false;
  a.threads = at::get_num_threads();
  a.input_shape = image_dims(input);
  a.kernel_shape = kernel_dims(kernel);
  a.stride = {stride[0], stride[1]};
  a.padding = {padding[0], padding[1]};
  a.dilation = {dilation[0], dilation[1]};
  return *std::min_element(input.begin(), input.end()) > 0 && *std::min_element(kernel.begin(), kernel.end()) > 0 &&
         std::min({a.stride.y, a.stride.x, a.dilation.y, a.dilation.x}) > 0 &&
         std::min(a.padding.y, a.padding.x) >= 0 && input[0] == kernel[0] && input[1] % kernel[1] == 0 &&
         kernel[4] == output_size(input[2], kernel[2], a.stride.y, a.padding.y, a.dilation.y) &&
         kernel[5] == output_size(input[3], kernel[3], a.stride.x, a.padding.x, a.dilation.x);
}

bool is_output(const Tensor& grad_output, const Arguments& a) {
  const auto& [n, c, h, w] = a.input_shape;
  return grad_output.sizes() == Sizes{n, c, a.kernel_shape.y, a.kernel_shape.x};
}

void set_memory(Arguments& a, const Tensor& output, const Tensor& input) {
  a.output = output.data_ptr();
  a.input = input.data_ptr();
  a.output_strides = image_dims(output.strides());
  a.input_strides = image_dims(input.strides());
}

void set_kernel(Arguments& a, const Tensor& kernel) {
  a.kernel = kernel.data_ptr();
  a.kernel_strides = kernel_dims(kernel.strides());
}

// Returns an uninitialised tensor in the type and memory format of `like`.
Tensor empty_output(const Tensor& like, Sizes shape) {
  // A tensor that is both counts as contiguous.
  const bool last = !like.is_contiguous() && like.is_contiguous(at::MemoryFormat::ChannelsLast);
  return at::empty(shape, like.options(), last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

// Calls a function with a zero of this type. Returns no tensor for a type without kernels.
template <class F>
Tensor with_type(at::ScalarType type, const F& compute) {
  switch (type) {
    case at::kFloat:
      return compute(float{});
    case at::kDouble:
      return compute(double{});
    case at::kHalf:
      return compute(c10::Half{});
    case at::kBFloat16:
      return compute(c10::BFloat16{});
    default:
      return {};
  }
}

// The operators, with the arguments of their schemas. They return no tensor where the Python kernel has to compute.

Tensor forward(Tensor input, Tensor kernel, Ints stride, Ints padding, Ints dilation, Name backend) {
  Arguments a{};
  if (backend || !alike(input, input, 4) || !alike(input, kernel, 6) ||
      !set_shapes(a, input.sizes(), kernel.sizes(), stride, padding, dilation))
    return {};
  return with_type(input.scalar_type(), [&](auto zero) {
    const Tensor output = empty_output(input, {input.size(0), input.size(1), kernel.size(4), kernel.size(5)});
    set_memory(a, output, input);
    set_kernel(a, kernel);
    return involution2d<decltype(zero)>(a, OpenMP{a.threads}) ? output : Tensor();
  });
}

Tensor input_gradient(Tensor grad_output, Tensor kernel, Ints size, Ints stride, Ints padding, Ints dilation,
                      Name backend) {
  Arguments a{};
  if (backend || size.size() != 2 || !alike(grad_output, grad_output, 4) || !alike(grad_output, kernel, 6)) return {};
  const int64_t shape[] = {grad_output.size(0), grad_output.size(1), size[0], size[1]};
  if (!set_shapes(a, shape, kernel.sizes(), stride, padding, dilation) || !is_output(grad_output, a)) return {};
  return with_type(grad_output.scalar_type(), [&](auto zero) {
    const Tensor output = empty_output(grad_output, shape);
    set_memory(a, grad_output, output);
    set_kernel(a, kernel);
    return grad_input<decltype(zero)>(a, OpenMP{a.threads}) ? output : Tensor();
  });
}

Tensor kernel_gradient(Tensor grad_output, Tensor input, int64_t groups, Ints size, Ints stride, Ints padding,
                       Ints dilation, Name backend) {
  Arguments a{};
  if (backend || size.size() != 2 || !alike(grad_output, grad_output, 4) || !alike(grad_output, input, 4)) return {};
  const int64_t height = grad_output.size(2), width = grad_output.size(3);
  const int64_t shape[] = {input.size(0), groups, size[0], size[1], height, width};
  if (!set_shapes(a, input.sizes(), shape, stride, padding, dilation) || !is_output(grad_output, a)) return {};
  return with_type(input.scalar_type(), [&](auto zero) {
    // As a 1x1 convolution would write it
    const Tensor output = empty_output(grad_output, {shape[0], groups * size[0] * size[1], height, width});
    const Tensor kernel = output.unflatten(1, {groups, size[0], size[1]});
    set_memory(a, grad_output, input);
    set_kernel(a, kernel);
    return grad_kernel<decltype(zero)>(a, OpenMP{a.threads}) ? kernel : Tensor();
  });
}

Tensor fused(Tensor input, Tensor features, Tensor weight, std::optional<Tensor> bias, Ints size, Ints stride,
             Ints padding, Ints dilation, Name backend) {
  Arguments a{};
  if (backend || size.size() != 2 || !alike(input, input, 4) || !alike(input, features, 4) || !alike(input, weight, 4))
    return {};
  const int64_t channels = weight.size(0), reduced = weight.size(1), taps = size[0] * size[1];
  const int64_t height = features.size(2), width = features.size(3);
  if (taps < 1 || channels % taps != 0 || reduced != features.size(1) || weight.numel() != channels * reduced ||
      (bias && (!alike(input, *bias, 1) || bias->size(0) != channels)))
    return {};
  const int64_t shape[] = {features.size(0), channels / taps, size[0], size[1], height, width};
  if (!set_shapes(a, input.sizes(), shape, stride, padding, dilation)) return {};
  return with_type(input.scalar_type(), [&](auto zero) {
    const Tensor output = empty_output(input, {input.size(0), input.size(1), height, width});
    const Tensor filters = weight.contiguous(), offsets = bias ? bias->contiguous() : Tensor();
    set_memory(a, output, input);
    a.features = features.data_ptr();
    a.weight = filters.data_ptr();
    a.bias = bias ? offsets.data_ptr() : nullptr;
    a.reduced = reduced;
    a.features_strides = image_dims(features.strides());
    return involution2d<decltype(zero)>(a, OpenMP{a.threads}) ? output : Tensor();
  });
}

template <class... Types, size_t... I>
Tensor unpack(Tensor (*compute)(Types...), at::ArrayRef<c10::IValue> given, std::index_sequence<I...>) {
  return compute(given[I].to<Types>()...);
}

template <class... Types>
constexpr size_t count(Tensor (*)(Types...)) {
  return sizeof...(Types);
}

template <auto compute>
void call(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  constexpr size_t size = count(compute);
  Tensor result = unpack(compute, torch::jit::last(*stack, size), std::make_index_sequence<size>());
  // With an empty key set, torch calls the kernel for all devices, which is the one in Python.
  if (!result.defined()) return op.redispatchBoxed(c10::DispatchKeySet(), stack);
  torch::jit::drop(*stack, size);
  stack->emplace_back(std::move(result));
}

}  // namespace

// After this call the dispatcher uses the operators above.
extern "C" void register_cpu_kernels() {
  static const torch::Library kept = [] {
    torch::Library library(torch::Library::IMPL, "mmrednet", c10::DispatchKey::CPU, __FILE__, __LINE__);
    library.impl("involution2d", torch::CppFunction::makeFromBoxedFunction<&call<&forward>>());
    library.impl("involution2d_grad_input", torch::CppFunction::makeFromBoxedFunction<&call<&input_gradient>>());
    library.impl("involution2d_grad_kernel", torch::CppFunction::makeFromBoxedFunction<&call<&kernel_gradient>>());
    library.impl("fused_involution2d", torch::CppFunction::makeFromBoxedFunction<&call<&fused>>());
    return library;
  }();
}
