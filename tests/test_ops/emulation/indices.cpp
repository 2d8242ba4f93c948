// Shows the index arithmetic of the CPU kernels to Python, along one axis. `list_indices` takes a geometry (size, taps,
// stride, padding, dilation, channels, threads), the same for height and width, and writes to `out`: the number of
// outputs, the fields of Plan that place rows and columns in the buffer, the columns of the taps, the runs of the
// phases, and PhaseTaps for each phase of the input's gradient.
#include "involution2d.cpp"

extern "C" int64_t list_indices(const int64_t* geometry, int64_t* out) {
  const auto [size, taps, stride, padding, dilation, channels, threads] = *(const std::array<int64_t, 7>*)geometry;
  int64_t* const begin = out;
  *out++ = output_size(size, taps, stride, padding, dilation);
  Problem<float> p{};
  p.batch = p.groups = 1;
  p.channels = channels;
  p.taps = {taps, taps};
  p.outer_size = {begin[0], begin[0]};
  p.inner_size = {size, size};
  p.stride = {stride, stride};
  p.dilation = {dilation, dilation};
  p.offset = {-padding, -padding};
  if (begin[0] == 0 || !is_manageable(p)) return out - begin;
  const Plan<float> plan(p, Operation::kInnerProduct, static_cast<int>(threads));
  for (const int64_t value : {plan.phase_step, plan.row_step, plan.channel_step, plan.rows, plan.band, plan.bands,
                              plan.buffer.outer, int64_t(kRows), int64_t(kLanes<float>)})
    *out++ = value;
  for (const int64_t column : plan.columns) *out++ = column;
  for (const auto& [first, last] : plan.runs) *out++ = first, *out++ = last;
  for (int64_t phase = 0; phase < std::min(stride, size); ++phase) {
    const PhaseTaps found(phase, taps, stride, padding, dilation);
    for (const int64_t value : {found.count, found.first, found.step, found.dilation, found.offset}) *out++ = value;
  }
  return out - begin;
}
