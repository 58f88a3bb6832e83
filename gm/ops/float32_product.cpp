// Products of weights with tokens in float32 over oneDNN 3, as custom operators of MindSpore's CPU backend.
//
// For some tens of tokens they are faster than the products of MindSpore's oneDNN 2.2 (benchmarks/operators.py), and
// one operator does what a product, a bias and the reshapes around them do. Weights stay in the layout of the checkpoint.
//
// `gm/runtime/onednn.py` compiles this file, `gm/ops/float32_product.py` calls the functions at its end.

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "dnnl.hpp"
#include "operators.h"

namespace {

using dnnl::memory;

struct Product {
  memory::desc weight, x, y, scratchpad;
  dnnl::matmul run;
};

// One operator runs at a time, on all cores; MindSpore may launch them from several threads.
struct State {
  std::mutex mutex;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<std::array<int64_t, 4>, Product> products;
  std::vector<char> scratchpad;
};

State &state() {
  static State *instance = new State;  // not destroyed: threads may still run when the process ends
  return *instance;
}

// The product of a weight [m, k] with x [k, n], or, `transposed`, of the transpose of a weight [k, m].
Product &find(bool transposed, int64_t m, int64_t k, int64_t n) {
  State &s = state();
  const std::array<int64_t, 4> key{transposed, m, k, n};
  const auto found = s.products.find(key);
  if (found != s.products.end()) return found->second;
  const auto matrix = [](int64_t rows, int64_t columns, const memory::dims &strides) {
    return memory::desc({rows, columns}, memory::data_type::f32, strides);
  };
  Product p;
  p.weight = matrix(m, k, transposed ? memory::dims{1, m} : memory::dims{k, 1});
  p.x = matrix(k, n, {n, 1});
  p.y = matrix(m, n, {n, 1});
  dnnl::primitive_attr attributes;
  // Not the library's own scratchpad: it belongs to the thread that creates the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc desc(s.engine, p.weight, p.x, p.y, attributes);
  p.scratchpad = desc.scratchpad_desc();
  p.run = dnnl::matmul(desc);
  return s.products.emplace(key, p).first->second;
}

void multiply(Product &p, void *weight, void *x, void *y) {
  State &s = state();
  s.scratchpad.resize(std::max(s.scratchpad.size(), p.scratchpad.get_size()));
  p.run.execute(s.stream, {{DNNL_ARG_SRC, memory(p.weight, s.engine, weight)},
                           {DNNL_ARG_WEIGHTS, memory(p.x, s.engine, x)},
                           {DNNL_ARG_DST, memory(p.y, s.engine, y)},
                           {DNNL_ARG_SCRATCHPAD, memory(p.scratchpad, s.engine, s.scratchpad.data())}});
  s.stream.wait();
}

}  // namespace

// x [K, …], weight [M, K, …], bias [M] (or absent) → [M, …]
OPERATOR(project_float32) {
  return guard("product", [&] {
    const int64_t m = shapes[1][0], k = shapes[0][0], n = size_of(shapes[0], ndims[0]) / k;
    auto *y = static_cast<float *>(p[count - 1]);
    std::lock_guard<std::mutex> lock(state().mutex);
    multiply(find(false, m, k, n), p[1], p[0], y);
    if (count < 4) return;
    const auto *bias = static_cast<const float *>(p[2]);
#pragma omp parallel for schedule(static) if (m * n > (int64_t{1} << 15))
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) y[i * n + j] += bias[i];
    }
  });
}

// Gradient of `project_float32`: dout [M, …], weight [M, K, …] → [K, …]
OPERATOR(project_float32_backward) {
  return guard("product", [&] {
    const int64_t m = shapes[0][0], n = size_of(shapes[0], ndims[0]) / m, k = size_of(shapes[1], ndims[1]) / m;
    std::lock_guard<std::mutex> lock(state().mutex);
    multiply(find(true, k, m, n), p[1], p[0], p[2]);
  });
}
