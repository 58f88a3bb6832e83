// Convolutions in float32 over oneDNN 3, as custom operators of MindSpore's CPU backend: stride 1, odd kernels, padding that
// keeps the size.
//
// MindSpore 2.8 has oneDNN 2.2, whose gradient of large images is a third slower; 2.9 and 2.10 have a later one and hand it
// layouts for which it has no fast kernel with AVX-512. Here oneDNN chooses the layouts, and images and weights are
// reordered into them.
//
// `gm/runtime/onednn.py` compiles this file, `gm/ops/float32_convolution.py` calls the functions at its end.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

#include "dnnl.hpp"
#include "operators.h"

namespace {

using dnnl::memory;
using Tag = memory::format_tag;

memory::desc describe(const int64_t *shape, Tag tag) {
  return memory::desc({shape[0], shape[1], shape[2], shape[3]}, memory::data_type::f32, tag);
}

// An array of a convolution: as MindSpore has it, and in the layout that oneDNN chose.
struct Array {
  memory::desc plain, chosen;
  dnnl::reorder reorder;  // from `plain` to `chosen` for a factor, the other way for the result
};

struct Convolution {
  Array x, weight, y;  // of the gradient: of the result, weight, of the image
  memory::desc bias, scratchpad;
  dnnl::primitive run;
};

// One operator runs at a time, on all cores; MindSpore may launch them from several threads.
struct State {
  std::mutex mutex;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<std::array<int64_t, 7>, Convolution> convolutions;
  memory x, weight, y, scratchpad;
};

State &state() {
  static State *instance = new State;  // not destroyed: threads may still run when the process ends
  return *instance;
}

void choose(Array &array, const memory::desc &chosen, bool is_result) {
  const auto &engine = state().engine;
  array.chosen = chosen;
  if (array.chosen == array.plain) return;
  const auto &from = is_result ? array.chosen : array.plain, &to = is_result ? array.plain : array.chosen;
  array.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to));
}

// The convolution of an image of `image`, or with `backward` its gradient.
Convolution plan(const int64_t *image, const int64_t *weight, bool backward) {
  const auto &engine = state().engine;
  const int64_t result[] = {image[0], weight[0], image[2], image[3]}, padding = weight[2] / 2;
  const memory::dims strides{1, 1}, pads{padding, padding};
  const auto any_image = describe(image, Tag::any), any_weight = describe(weight, Tag::any);
  const auto any_result = describe(result, Tag::any);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  Convolution c;
  c.bias = memory::desc({weight[0]}, memory::data_type::f32, Tag::a);
  c.weight.plain = describe(weight, Tag::oihw);
  c.x.plain = describe(backward ? result : image, Tag::nchw);
  c.y.plain = describe(backward ? image : result, Tag::nchw);
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(engine, dnnl::prop_kind::forward_inference, algorithm, any_image,
                                                          any_weight, c.bias, any_result, strides, pads, pads, attributes);
  if (backward) {
    const dnnl::convolution_backward_data::primitive_desc desc(engine, algorithm, any_image, any_weight, any_result, strides,
                                                               pads, pads, forward, attributes);
    choose(c.x, desc.diff_dst_desc(), false);
    choose(c.weight, desc.weights_desc(), false);
    choose(c.y, desc.diff_src_desc(), true);
    c.scratchpad = desc.scratchpad_desc();
    c.run = dnnl::convolution_backward_data(desc);
  } else {
    choose(c.x, forward.src_desc(), false);
    choose(c.weight, forward.weights_desc(), false);
    choose(c.y, forward.dst_desc(), true);
    c.scratchpad = forward.scratchpad_desc();
    c.run = dnnl::convolution_forward(forward);
  }
  return c;
}

Convolution &find(const int64_t *image, const int64_t *weight, bool backward) {
  auto &known = state().convolutions;
  const std::array<int64_t, 7> key{image[0], image[1], image[2], image[3], weight[0], weight[2], backward};
  const auto found = known.find(key);
  return found != known.end() ? found->second : known.emplace(key, plan(image, weight, backward)).first->second;
}

// Memory of `desc`, in a buffer that grows to the largest request and is kept.
memory in_buffer(memory &buffer, const memory::desc &desc) {
  auto &engine = state().engine;
  if (!buffer || buffer.get_desc().get_size() < desc.get_size()) {
    buffer = memory();  // freed before the larger one is there
    buffer = memory(memory::desc({static_cast<int64_t>(desc.get_size())}, memory::data_type::u8, Tag::a), engine);
  }
  return memory(desc, engine, buffer.get_data_handle());
}

memory reordered(const Array &array, void *data, memory &buffer) {
  State &s = state();
  memory plain(array.plain, s.engine, data);
  if (!array.reorder) return plain;
  memory chosen = in_buffer(buffer, array.chosen);
  array.reorder.execute(s.stream, plain, chosen);
  return chosen;
}

void run(const Convolution &c, void *x, void *weight, void *bias, void *y, bool backward) {
  State &s = state();
  memory result(c.y.plain, s.engine, y);
  memory chosen = c.y.reorder ? in_buffer(s.y, c.y.chosen) : result;
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_WEIGHTS, reordered(c.weight, weight, s.weight)},
      {DNNL_ARG_SCRATCHPAD, in_buffer(s.scratchpad, c.scratchpad)},
      {backward ? DNNL_ARG_DIFF_DST : DNNL_ARG_SRC, reordered(c.x, x, s.x)},
      {backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST, chosen},
  };
  if (!backward) arguments.emplace(DNNL_ARG_BIAS, memory(c.bias, s.engine, bias));
  c.run.execute(s.stream, arguments);
  if (c.y.reorder) c.y.reorder.execute(s.stream, chosen, result);
  s.stream.wait();
}

}  // namespace

// x [N, C, H, W], weight [M, C, k, k], bias [M] → [N, M, H, W]
OPERATOR(convolution_float32) {
  return guard("convolution", [&] {
    std::lock_guard<std::mutex> lock(state().mutex);
    run(find(shapes[0], shapes[1], false), p[0], p[1], p[2], p[3], false);
  });
}

// Its gradient: dout [N, M, H, W], weight [M, C, k, k] → [N, C, H, W]
OPERATOR(convolution_float32_backward) {
  return guard("convolution", [&] {
    std::lock_guard<std::mutex> lock(state().mutex);
    run(find(shapes[2], shapes[1], true), p[0], p[1], nullptr, p[2], true);
  });
}
