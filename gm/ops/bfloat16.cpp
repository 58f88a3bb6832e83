// Products and convolutions in bfloat16 over oneDNN 3, as custom operators of MindSpore's CPU backend.
//
// `gm/runtime/onednn.py` compiles this file, `gm/ops/bfloat16.py` calls the functions at its end. Weights are bfloat16 in
// the layout of the checkpoint, which serves the forward and the backward pass without a second, packed copy: a product
// of weights with tokens reads them row by row, its gradient column by column. Activations and results are float32; the
// former are rounded to bfloat16 in their own layout (oneDNN's blocked one is slower to make than it saves), sums are
// float32.
//
// Signature of the functions: MindSpore's documentation of `ops.Custom`, func_type="aot". The last array is the output.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "dnnl.hpp"
#include "operators.h"

namespace {

using dnnl::memory;
using DataType = memory::data_type;

// Values of the columns of a convolution in memory at once.
constexpr int64_t kMaxColumns = int64_t{1} << 22;

// gm sets AVX2 for the oneDNN of MindSpore 2.9, which is another copy of the library in this process.
const bool kAllInstructions = [] {
  const char *isa = std::getenv("ONEDNN_MAX_CPU_ISA");
  return isa != nullptr && std::string(isa) == "AVX2" &&
         dnnl::set_max_cpu_isa(dnnl::cpu_isa::isa_default) == dnnl::status::success;
}();

// Memory that grows to the largest request, and is kept.
class Buffer {
 public:
  void *get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(4096, size_);
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  void *data_ = nullptr;
  size_t size_ = 0;
};

// A matrix in bfloat16 or float32; the strides are numbers of values.
struct Matrix {
  const void *data;
  bool is_bfloat16;
  int64_t row_stride, column_stride;
};

struct Product {
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul run;
  dnnl::reorder round_a, round_b;  // empty for a matrix in bfloat16
  memory::desc a, b, c;            // as the caller has them
};

using Key = std::array<int64_t, 10>;

// The state of the library. One operator runs at a time, on all cores; MindSpore may launch them from several threads.
struct State {
  std::mutex mutex;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Product> products;
  std::map<int64_t, dnnl::reorder> roundings;
  Buffer a, b, scratchpad, image, columns, result;
};

State &state() {
  static State *instance = new State;  // not destroyed: threads may still run when the process ends
  return *instance;
}

memory::desc describe(int64_t rows, int64_t columns, const Matrix &m) {
  const auto type = m.is_bfloat16 ? DataType::bf16 : DataType::f32;
  return memory::desc({rows, columns}, type, memory::dims{m.row_stride, m.column_stride});
}

memory::desc rounded(const memory::desc &d) {
  if (d.get_data_type() == DataType::bf16) return d;
  return memory::desc(d.get_dims(), DataType::bf16, d.get_strides());
}

Product &find_product(int64_t m, int64_t n, int64_t k, const Matrix &a, const Matrix &b, const Matrix &c) {
  const Key key{m,            n,            k,
                a.row_stride, a.column_stride, a.is_bfloat16,
                b.row_stride, b.column_stride, b.is_bfloat16,
                c.row_stride};
  State &s = state();
  auto found = s.products.find(key);
  if (found != s.products.end()) return found->second;
  Product p;
  p.a = describe(m, k, a);
  p.b = describe(k, n, b);
  p.c = describe(m, n, c);
  dnnl::primitive_attr attributes;
  // Not the library's own scratchpad: it belongs to the thread that creates the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  p.desc = dnnl::matmul::primitive_desc(s.engine, rounded(p.a), rounded(p.b), p.c, attributes);
  p.run = dnnl::matmul(p.desc);
  const auto rounding = [&](const memory::desc &from, const memory::desc &to) {
    return dnnl::reorder(dnnl::reorder::primitive_desc(s.engine, from, s.engine, to));
  };
  if (!a.is_bfloat16) p.round_a = rounding(p.a, p.desc.src_desc());
  if (!b.is_bfloat16) p.round_b = rounding(p.b, p.desc.weights_desc());
  return s.products.emplace(key, p).first->second;
}

// Returns the matrix in the layout of the product, rounded into `buffer` if it is float32.
memory round(const Matrix &m, const memory::desc &from, const memory::desc &to, dnnl::reorder &reorder,
             Buffer &buffer) {
  State &s = state();
  memory source(from, s.engine, const_cast<void *>(m.data));
  if (m.is_bfloat16) return source;
  memory target(to, s.engine, buffer.get(to.get_size()));
  reorder.execute(s.stream, source, target);
  return target;
}

// c [m, n] = a [m, k] times b [k, n].
void multiply(int64_t m, int64_t n, int64_t k, const Matrix &a, const Matrix &b, const Matrix &c) {
  State &s = state();
  Product &p = find_product(m, n, k, a, b, c);
  memory src = round(a, p.a, p.desc.src_desc(), p.round_a, s.a);
  memory weights = round(b, p.b, p.desc.weights_desc(), p.round_b, s.b);
  const memory::desc scratchpad = p.desc.scratchpad_desc();
  p.run.execute(s.stream, {{DNNL_ARG_SRC, src},
                           {DNNL_ARG_WEIGHTS, weights},
                           {DNNL_ARG_DST, memory(p.c, s.engine, const_cast<void *>(c.data))},
                           {DNNL_ARG_SCRATCHPAD,
                            memory(scratchpad, s.engine, s.scratchpad.get(std::max<size_t>(1, scratchpad.get_size())))}});
  s.stream.wait();
}

Matrix rows(const void *data, bool is_bfloat16, int64_t columns) { return {data, is_bfloat16, columns, 1}; }

// The transpose of a matrix that has `columns` columns in memory.
Matrix transposed(const void *data, bool is_bfloat16, int64_t columns) { return {data, is_bfloat16, 1, columns}; }

// Returns `size` values, rounded in their order.
uint16_t *round_values(const float *values, int64_t size, Buffer &buffer) {
  State &s = state();
  auto *out = static_cast<uint16_t *>(buffer.get(2 * size));
  const memory::desc from({size}, DataType::f32, memory::format_tag::a), to({size}, DataType::bf16, memory::format_tag::a);
  dnnl::reorder &reorder = s.roundings[size];
  if (!reorder) reorder = dnnl::reorder(dnnl::reorder::primitive_desc(s.engine, from, s.engine, to));
  memory source(from, s.engine, const_cast<float *>(values)), target(to, s.engine, out);
  reorder.execute(s.stream, source, target);
  s.stream.wait();
  return out;
}

// y [n, outputs, pixels] = x [outputs, n, pixels] plus bias [outputs]; x may be y for n = 1, bias may be absent.
void add_bias(const float *x, const float *bias, int64_t outputs, int64_t n, int64_t pixels, float *y) {
  if (bias == nullptr && x == y) return;
#pragma omp parallel for collapse(2)
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      const float *from = x + (o * n + i) * pixels;
      float *to = y + (i * outputs + o) * pixels;
      const float value = bias == nullptr ? 0.0f : bias[o];
      for (int64_t p = 0; p < pixels; ++p) to[p] = from[p] + value;
    }
  }
}

// The sizes of a convolution whose padding keeps H×W, or halves it, rounded up.
struct Convolution {
  int64_t n, inputs, height, width, outputs, kernel, out_height, out_width, stride_y, stride_x;

  int64_t taps() const { return kernel * kernel; }
  int64_t pixels() const { return out_height * out_width; }
  int64_t row(int64_t y, int64_t i) const { return y * stride_y + i - kernel / 2; }
  // The first and the last but one of the output's columns that the tap j reads inside the image.
  int64_t first(int64_t j) const { return std::max<int64_t>(0, (kernel / 2 - j + stride_x - 1) / stride_x); }
  int64_t stop(int64_t j) const {
    const int64_t last = width - 1 + kernel / 2 - j;
    return last < 0 ? 0 : std::min(out_width, last / stride_x + 1);
  }
};

Convolution convolution(const int64_t *x, const int64_t *weight, const int64_t *y) {
  // The stride follows from the sizes: with one row or column any stride gives the same.
  return {x[0], x[1], x[2], x[3], weight[0], weight[2], y[2], y[3], y[2] == x[2] ? 1 : 2, y[3] == x[3] ? 1 : 2};
}

// Writes what each tap reads, columns [inputs · taps, rows · out_width], for the output's rows `begin` to `end` of all
// images in turn.
void unfold(const Convolution &c, const uint16_t *x, int64_t begin, int64_t end, uint16_t *columns) {
  const int64_t length = (end - begin) * c.out_width;
#pragma omp parallel for
  for (int64_t channel = 0; channel < c.inputs; ++channel) {
    for (int64_t tap = 0; tap < c.taps(); ++tap) {
      const int64_t i = tap / c.kernel, j = tap % c.kernel, first = c.first(j), stop = std::max(first, c.stop(j));
      uint16_t *to = columns + (channel * c.taps() + tap) * length;
      for (int64_t r = begin; r < end; ++r, to += c.out_width) {
        const int64_t image = r / c.out_height, row = c.row(r % c.out_height, i);
        if (row < 0 || row >= c.height) {
          std::memset(to, 0, 2 * c.out_width);
          continue;
        }
        const uint16_t *from = x + ((image * c.inputs + channel) * c.height + row) * c.width + j - c.kernel / 2;
        std::fill(to, to + std::min(first, c.out_width), uint16_t{0});
        if (c.stride_x == 1) {
          std::memcpy(to + first, from + first, 2 * (stop - first));
        } else {
          for (int64_t p = first; p < stop; ++p) to[p] = from[p * c.stride_x];
        }
        std::fill(to + stop, to + c.out_width, uint16_t{0});
      }
    }
  }
}

// Adds columns [count · taps, n · pixels] to the pixels of `count` channels of dx that their taps read, from `channel` on.
void fold(const Convolution &c, const float *columns, int64_t channel, int64_t count, float *dx) {
#pragma omp parallel for collapse(2)
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t image = 0; image < c.n; ++image) {
      float *out = dx + (image * c.inputs + channel + k) * c.height * c.width;
      std::fill(out, out + c.height * c.width, 0.0f);
      for (int64_t tap = 0; tap < c.taps(); ++tap) {
        const int64_t i = tap / c.kernel, j = tap % c.kernel, first = c.first(j), stop = c.stop(j);
        const float *from = columns + ((k * c.taps() + tap) * c.n + image) * c.pixels();
        for (int64_t y = 0; y < c.out_height; ++y, from += c.out_width) {
          const int64_t row = c.row(y, i);
          if (row < 0 || row >= c.height) continue;
          float *to = out + row * c.width + j - c.kernel / 2;
          if (c.stride_x == 1) {
            for (int64_t p = first; p < stop; ++p) to[p] += from[p];
          } else {
            for (int64_t p = first; p < stop; ++p) to[p * c.stride_x] += from[p];
          }
        }
      }
    }
  }
}

void convolve(const Convolution &c, const float *x, const void *weight, const float *bias, float *y) {
  State &s = state();
  const int64_t k = c.inputs * c.taps(), all_rows = c.n * c.out_height, pixels = c.n * c.pixels();
  const int64_t step = std::clamp<int64_t>(kMaxColumns / (k * c.out_width), 1, all_rows);
  const uint16_t *image = round_values(x, c.n * c.inputs * c.height * c.width, s.image);
  auto *columns = static_cast<uint16_t *>(s.columns.get(2 * k * step * c.out_width));
  float *result = c.n == 1 ? y : static_cast<float *>(s.result.get(4 * c.outputs * pixels));
  for (int64_t begin = 0; begin < all_rows; begin += step) {
    const int64_t end = std::min(all_rows, begin + step), length = (end - begin) * c.out_width;
    unfold(c, image, begin, end, columns);
    multiply(c.outputs, length, k, rows(weight, true, k), rows(columns, true, length),
             rows(result + begin * c.out_width, false, pixels));
  }
  add_bias(result, bias, c.outputs, c.n, c.pixels(), y);
}

void convolve_backward(const Convolution &c, const float *dout, const void *weight, float *dx) {
  State &s = state();
  const int64_t k = c.inputs * c.taps(), pixels = c.n * c.pixels();
  const int64_t step = std::clamp<int64_t>(kMaxColumns / (2 * c.taps() * pixels), 1, c.inputs);
  const float *source = dout;
  if (c.n > 1) {  // [n, outputs, pixels] → [outputs, n, pixels]
    auto *copy = static_cast<float *>(s.result.get(4 * c.outputs * pixels));
    add_bias(dout, nullptr, c.n, c.outputs, c.pixels(), copy);
    source = copy;
  }
  const uint16_t *gradient = round_values(source, c.outputs * pixels, s.image);
  auto *columns = static_cast<float *>(s.columns.get(4 * step * c.taps() * pixels));
  for (int64_t channel = 0; channel < c.inputs; channel += step) {
    const int64_t count = std::min(step, c.inputs - channel), m = count * c.taps();
    const auto *taps = static_cast<const uint16_t *>(weight) + channel * c.taps();
    multiply(m, pixels, c.outputs, transposed(taps, true, k), rows(gradient, true, pixels),
             rows(columns, false, pixels));
    fold(c, columns, channel, count, dx);
  }
}

// Runs an operator, one at a time, since they share the memory of `state`.
template <typename Operator>
int alone(Operator run) {
  return guard("bfloat16", [&] {
    std::lock_guard<std::mutex> lock(state().mutex);
    run();
  });
}

}  // namespace

// Whether this processor multiplies bfloat16 by instructions of its own.
extern "C" int has_bfloat16() {
  const auto isa = static_cast<int>(dnnl::get_effective_cpu_isa());
  const auto needed = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & needed) == needed;
}

// x [K, …], weight [M, K, …], bias [M] (or absent) → [M, …]
OPERATOR(project) {
  return alone([&] {
    const int64_t m = shapes[1][0], k = shapes[0][0], n = size_of(shapes[0], ndims[0]) / k;
    auto *y = static_cast<float *>(p[count - 1]);
    multiply(m, n, k, rows(p[1], true, k), rows(p[0], false, n), rows(y, false, n));
    add_bias(y, count == 4 ? static_cast<const float *>(p[2]) : nullptr, m, 1, n, y);
  });
}

// Gradient of `project`: dout [M, …], weight [M, K, …] → [K, …]
OPERATOR(project_backward) {
  return alone([&] {
    const int64_t m = shapes[0][0], n = size_of(shapes[0], ndims[0]) / m, k = size_of(shapes[1], ndims[1]) / m;
    multiply(k, n, m, transposed(p[1], true, k), rows(p[0], false, n), rows(p[2], false, n));
  });
}

// x [N, K], weight [M, K] → [N, M]
OPERATOR(project_vectors) {
  return alone([&] {
    const int64_t m = shapes[1][0], k = shapes[1][1], n = shapes[0][0];
    multiply(n, m, k, rows(p[0], false, k), transposed(p[1], true, k), rows(p[2], false, m));
  });
}

// Gradient of `project_vectors`: dout [N, M], weight [M, K] → [N, K]
OPERATOR(project_vectors_backward) {
  return alone([&] {
    const int64_t m = shapes[1][0], k = shapes[1][1], n = shapes[0][0];
    multiply(n, k, m, rows(p[0], false, m), rows(p[1], true, k), rows(p[2], false, k));
  });
}


// x [N, C, H, W], weight [M, C, k, k], bias [M] → [N, M, H', W']; MindSpore takes one rule of the output's shape for a
// name, so that there is one for each stride, and for odd sizes.
#define CONVOLUTION(name)                                                                                    \
  OPERATOR(name) {                                                                                           \
    return alone([&] {                                                                                       \
      convolve(convolution(shapes[0], shapes[1], shapes[3]), static_cast<const float *>(p[0]), p[1],         \
               static_cast<const float *>(p[2]), static_cast<float *>(p[3]));                                \
    });                                                                                                      \
  }

// Its gradient: dout [N, M, H', W'], weight [M, C, k, k] → [N, C, H, W]
#define CONVOLUTION_BACKWARD(name)                                                                           \
  OPERATOR(name) {                                                                                           \
    return alone([&] {                                                                                       \
      convolve_backward(convolution(shapes[2], shapes[1], shapes[0]), static_cast<const float *>(p[0]), p[1], \
                        static_cast<float *>(p[2]));                                                         \
    });                                                                                                      \
  }

CONVOLUTION(convolution_1)
CONVOLUTION(convolution_2)
CONVOLUTION_BACKWARD(convolution_backward_1)
CONVOLUTION_BACKWARD(convolution_backward_2)
CONVOLUTION_BACKWARD(convolution_backward_2_odd_height)
CONVOLUTION_BACKWARD(convolution_backward_2_odd_width)
CONVOLUTION_BACKWARD(convolution_backward_2_odd)
