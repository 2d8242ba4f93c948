// A library for `SessionOptions.register_custom_ops_library` of ONNX Runtime. It adds the operator
// mmrednet::involution2d, with the inputs and attributes of torch's operator.

#define ORT_API_MANUAL_INIT
#if __has_include(<onnxruntime_cxx_api.h>)
#include <onnxruntime_cxx_api.h>
#elif __has_include(<onnxruntime/onnxruntime_cxx_api.h>)
#include <onnxruntime/onnxruntime_cxx_api.h>
#else
#error "ONNX Runtime's headers are missing: install libonnxruntime-dev, or name an include folder in CPATH"
#endif

#include <thread>

#include "involution2d.cpp"

namespace {

// Computes the work items on the session's threads.
struct SessionThreads {
  Ort::KernelContext context;
  int64_t threads = std::max(1u, std::thread::hardware_concurrency());

  template <class F>
  void operator()(int64_t items, int, const F& compute) const {
    const auto call = [](void* f, size_t index) { (*static_cast<const F*>(f))(static_cast<int64_t>(index)); };
    context.ParallelFor(call, items, 0, const_cast<F*>(&compute));
  }
};

void require(bool condition, const char* what) {
  if (!condition) ORT_CXX_API_THROW(std::string("mmrednet::involution2d: ") + what, ORT_INVALID_ARGUMENT);
}

// Returns the result of a function, or the error that it throws.
template <class F>
OrtStatus* caught(F&& function) {
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    return Ort::Status(error.what(), ORT_FAIL).release();
  }
}

template <class S>
struct Involution2d {
  Pair stride, padding, dilation;

  explicit Involution2d(const OrtKernelInfo* info)
      : stride(pair(info, "stride", 1)), padding(pair(info, "padding", 0)), dilation(pair(info, "dilation", 1)) {}

  static Pair pair(const OrtKernelInfo* info, const char* name, int64_t least) {
    const auto values = Ort::ConstKernelInfo(info).GetAttributes<int64_t>(name);
    require(values.size() == 2 && std::min(values[0], values[1]) >= least,
            "stride, padding and dilation must be pairs");
    return {values[0], values[1]};
  }

  OrtStatus* ComputeV2(OrtKernelContext* context) {
    return caught([&] { compute(Ort::KernelContext(context)); });
  }

  void compute(const Ort::KernelContext& context) {
    const Ort::ConstValue input = context.GetInput(0), kernel = context.GetInput(1);
    const auto x = input.GetTensorTypeAndShapeInfo().GetShape(), k = kernel.GetTensorTypeAndShapeInfo().GetShape();
    require(x.size() == 4 && k.size() == 6, "input must be (N, C, H, W) and kernel (N, G, Kh, Kw, Ho, Wo)");
    require(k[0] == x[0] && k[1] > 0 && x[1] % k[1] == 0, "kernel must have the input's N, and a G that divides C");
    require(k[4] == output_size(x[2], k[2], stride.y, padding.y, dilation.y) &&
                k[5] == output_size(x[3], k[3], stride.x, padding.x, dilation.x),
            "kernel must have the output's height and width");
    const int64_t pixels = k[4] * k[5], taps = k[2] * k[3];
    Ort::UnownedValue output = context.GetOutput(0, {x[0], x[1], k[4], k[5]});
    if (x[0] * x[1] * pixels == 0) return;
    Arguments a{};
    a.output = output.GetTensorMutableRawData();
    a.input = const_cast<void*>(input.GetTensorRawData());
    a.kernel = const_cast<void*>(kernel.GetTensorRawData());
    a.output_strides = {x[1] * pixels, pixels, k[5], 1};
    a.input_strides = {x[1] * x[2] * x[3], x[2] * x[3], x[3], 1};
    a.kernel_strides = {k[1] * taps * pixels, taps * pixels, k[3] * pixels, pixels, k[5], 1};
    a.input_shape = {x[0], x[1], x[2], x[3]};
    a.kernel_shape = {k[0], k[1], k[2], k[3], k[4], k[5]};
    a.stride = stride;
    a.padding = padding;
    a.dilation = dilation;
    require(involution2d<S>(a, SessionThreads{context}), "its window or stride is too large for the image");
  }
};

template <class S, ONNXTensorElementDataType type>
struct CustomOp : Ort::CustomOpBase<CustomOp<S, type>, Involution2d<S>, true> {
  OrtStatus* CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return caught([&] { *kernel = new Involution2d<S>(info); });
  }
  const char* GetName() const { return "involution2d"; }
  size_t GetInputTypeCount() const { return 2; }
  ONNXTensorElementDataType GetInputType(size_t) const { return type; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return type; }
};

}  // namespace

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api)
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "mmrednet: this ONNX Runtime is older than the headers were");
  Ort::InitApi(api);
  return caught([&] {
    static const CustomOp<float, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT> float32;
    static const CustomOp<c10::Half, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16> float16;
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("mmrednet");
      made.Add(&float32);
      made.Add(&float16);
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
  });
}
