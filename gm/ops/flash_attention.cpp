// Attention and its gradient over oneDNN 3, as custom operators of MindSpore's CPU backend.
//
// Inputs and results are float32. The products take factors in float32 or rounded to bfloat16, and sum in float32;
// softmax is float32.
//
// Scores of a block of queries exist only in the cache of the core that computes them; the backward pass computes them
// again from the logarithm of each query's sum, as in Dao et al., "FlashAttention" (2022). Composed of MindSpore's own
// operators, the scores go through the memory ten times, and stay there from the forward to the backward pass.
//
// `gm/runtime/onednn.py` compiles this file, `gm/ops/flash_attention.py` calls the functions at its end. Heads are
// matrices of channels by tokens: query, output [d, L], key, value [d, S].

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "dnnl.hpp"
#include "operators.h"

namespace {

using dnnl::memory;

// Scores of a block of queries: 2 MiB, about what a core's second cache holds.
constexpr int64_t kBlockScores = int64_t{1} << 19;
constexpr int64_t kMaxQueries = 128;

const dnnl::engine &engine() {
  static const auto *instance = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // not destroyed: threads may still run
  return *instance;
}

struct Bfloat16 {
  uint16_t bits;
};

// x as a factor of a product: itself, or rounded to the nearest, ties to even.
template <typename T>
T rounded(float x);

template <>
inline float rounded<float>(float x) {
  return x;
}

template <>
inline Bfloat16 rounded<Bfloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <typename T>
constexpr memory::data_type kType = std::is_same_v<T, float> ? memory::data_type::f32 : memory::data_type::bf16;

// Memory without initial values.
template <typename T>
struct Array {
  explicit Array(int64_t size) : data(new T[std::max<int64_t>(1, size)]) {}
  operator T *() const { return data.get(); }
  std::unique_ptr<T[]> data;
};

using Values = Array<float>;

// While it lives, oneDNN plans for one thread.
struct OneThread {
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads); }
  const int threads = omp_get_max_threads();
};

// z [m, n] = x [m, k] times y [k, n], all of them by rows, or with `add` z + x y; computed by one thread.
template <typename T>
class Product {
 public:
  Product(int64_t m, int64_t k, int64_t n, bool add = false)
      : x_(describe(m, k, kType<T>)), y_(describe(k, n, kType<T>)), z_(describe(m, n, kType<float>)) {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (add) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const OneThread planned;
    const auto desc = dnnl::matmul::primitive_desc(engine(), x_, y_, z_, attributes);
    run_ = dnnl::matmul(desc);
    scratchpad_ = desc.scratchpad_desc();
  }

  int64_t scratchpad() const { return scratchpad_.get_size() / sizeof(float) + 1; }

  void run(dnnl::stream &stream, const T *x, const T *y, float *z, float *scratchpad) const {
    run_.execute(stream, {{DNNL_ARG_SRC, memory(x_, engine(), const_cast<T *>(x))},
                          {DNNL_ARG_WEIGHTS, memory(y_, engine(), const_cast<T *>(y))},
                          {DNNL_ARG_DST, memory(z_, engine(), z)},
                          {DNNL_ARG_SCRATCHPAD, memory(scratchpad_, engine(), scratchpad)}});
  }

 private:
  static memory::desc describe(int64_t rows, int64_t columns, memory::data_type type) {
    return memory::desc({rows, columns}, type, memory::format_tag::ab);
  }

  memory::desc x_, y_, z_, scratchpad_;
  dnnl::matmul run_;
};

// The sizes of an attention and the parts in which threads compute it: `parts` of the blocks of each of `heads` heads.
struct Sizes {
  int64_t heads, d, queries, keys, block, blocks, parts;

  Sizes(const int64_t *query, const int64_t *key)
      : heads(query[0] * query[1]), d(query[2]), queries(query[3]), keys(key[3]) {
    block = std::min(queries, std::clamp<int64_t>(kBlockScores / keys, 16, kMaxQueries));
    blocks = (queries + block - 1) / block;
    parts = std::min<int64_t>(blocks, (omp_get_max_threads() + heads - 1) / heads);
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(d)); }
  int64_t first(int64_t part) const { return blocks * part / parts; }
  int64_t tail() const { return queries - (blocks - 1) * block; }  // queries of the last block
  int64_t count(int64_t i) const { return i + 1 < blocks ? block : tail(); }
};

// The largest of n values; NaN may be passed over. In lanes, since a maximum of floats alone the compiler leaves as it is.
float maximum(const float *x, int64_t n) {
  constexpr int kLanes = 64;
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, x[0]);
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = x[j + lane] > lanes[lane] ? x[j + lane] : lanes[lane];
  }
  float largest = *std::max_element(lanes, lanes + kLanes);
  for (; j < n; ++j) largest = std::max(largest, x[j]);
  return largest;
}

// y [columns, rows] = the transpose of x [rows, columns] times `scale`; rows of x are `stride` apart.
template <typename T>
void transpose(const float *x, int64_t rows, int64_t columns, int64_t stride, float scale, T *y) {
  constexpr int64_t kTile = 16;
  for (int64_t begin = 0; begin < columns; begin += kTile) {
    const int64_t end = std::min(columns, begin + kTile);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; ++c) y[c * rows + r] = rounded<T>(x[r * stride + c] * scale);
    }
  }
}

// y [rows, columns] = x times `scale`; rows of x are `stride` apart.
template <typename T>
void copy(const float *x, int64_t rows, int64_t columns, int64_t stride, float scale, T *y) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) y[r * columns + c] = rounded<T>(x[r * stride + c] * scale);
  }
}

// A matrix as a factor of products: float32 as it is, for bfloat16 a rounded copy in `memory`, which is empty otherwise.
const float *factor(const float *x, int64_t, const Array<float> &) { return x; }

const Bfloat16 *factor(const float *x, int64_t size, const Array<Bfloat16> &memory) {
  for (int64_t j = 0; j < size; ++j) memory[j] = rounded<Bfloat16>(x[j]);
  return memory;
}

// The number of values of the memory of a `factor`.
template <typename T>
int64_t factor_size(int64_t size) {
  return std::is_same_v<T, float> ? 0 : size;
}

// The products of a block of `count` queries in the forward pass.
template <typename T>
struct Forward {
  Product<T> scores, values;
  Forward(const Sizes &s, int64_t count) : scores(count, s.d, s.keys), values(count, s.keys, s.d) {}
  int64_t scratchpad() const { return std::max(scores.scratchpad(), values.scratchpad()); }
};

template <typename T>
void attend(const Sizes &s, const float *query, const float *key, const float *value, float *out, float *log_sum) {
  const Forward<T> whole(s, s.block), last(s, s.tail());
#pragma omp parallel
  {
    dnnl::stream stream(engine());
    const Values scratchpad(std::max(whole.scratchpad(), last.scratchpad())), scores(s.block * s.keys);
    const Values o(s.block * s.d), factors(s.block);
    const Array<T> q(s.block * s.d), v(s.keys * s.d);
    const Array<T> rounded_keys(factor_size<T>(s.d * s.keys)), rounded_scores(factor_size<T>(s.block * s.keys));
#pragma omp for collapse(2) schedule(static)
    for (int64_t head = 0; head < s.heads; ++head) {
      for (int64_t part = 0; part < s.parts; ++part) {
        const T *k = factor(key + head * s.d * s.keys, s.d * s.keys, rounded_keys);
        transpose<T>(value + head * s.d * s.keys, s.d, s.keys, s.keys, 1.0f, v);
        for (int64_t i = s.first(part); i < s.first(part + 1); ++i) {
          const int64_t at = i * s.block, count = s.count(i);
          const Forward<T> &products = count == s.block ? whole : last;
          transpose<T>(query + head * s.d * s.queries + at, s.d, count, s.queries, s.scale(), q);
          products.scores.run(stream, q, k, scores, scratchpad);
          for (int64_t r = 0; r < count; ++r) {
            float *row = scores + r * s.keys;
            const float largest = maximum(row, s.keys);
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < s.keys; ++j) {
              row[j] = exponential(row[j] - largest);
              sum += row[j];
            }
            factors[r] = 1.0f / sum;
            log_sum[head * s.queries + at + r] = largest + std::log(sum);
          }
          products.values.run(stream, factor(scores, count * s.keys, rounded_scores), v, o, scratchpad);
          float *to = out + head * s.d * s.queries + at;
          for (int64_t c = 0; c < s.d; ++c) {
            for (int64_t r = 0; r < count; ++r) to[c * s.queries + r] = o[r * s.d + c] * factors[r];
          }
        }
      }
    }
  }
}

// The products of a block of `count` queries in the backward pass: with keys or values, of the gradient of the scores
// with the keys, and those that add to the gradients of keys and values.
template <typename T>
struct Backward {
  Product<T> scores, to_query, to_keys;
  Backward(const Sizes &s, int64_t count)
      : scores(count, s.d, s.keys), to_query(count, s.keys, s.d), to_keys(s.d, count, s.keys, true) {}
  int64_t scratchpad() const {
    return std::max({scores.scratchpad(), to_query.scratchpad(), to_keys.scratchpad()});
  }
};

struct Gradients {
  float *query, *key, *value;
};

template <typename T>
void attend_backward(const Sizes &s, const float *query, const float *key, const float *value, const float *out,
                     const float *log_sum, const float *dout, Gradients gradients) {
  const Backward<T> whole(s, s.block), last(s, s.tail());
  const int64_t size = s.d * s.keys;  // of the keys of a head
  // Gradients of keys and values of each part but the first, which are added in order: a sum over threads as they come
  // would differ from run to run.
  const Values others((s.parts - 1) * s.heads * 2 * size);
  const auto other = [&](int64_t head, int64_t part) { return others + ((part - 1) * s.heads + head) * 2 * size; };
#pragma omp parallel
  {
    dnnl::stream stream(engine());
    const Values scratchpad(std::max(whole.scratchpad(), last.scratchpad()));
    const Values p(s.block * s.keys), dp(s.block * s.keys), dq(s.block * s.d), dq_columns(s.block * s.d);
    const Array<T> q(s.block * s.d), q_columns(s.block * s.d), go(s.block * s.d), go_columns(s.block * s.d), keys(size);
    const Array<T> rounded_keys(factor_size<T>(size)), rounded_values(factor_size<T>(size));
    const Array<T> rounded_p(factor_size<T>(s.block * s.keys)), rounded_dp(factor_size<T>(s.block * s.keys));
#pragma omp for collapse(2) schedule(static)
    for (int64_t head = 0; head < s.heads; ++head) {
      for (int64_t part = 0; part < s.parts; ++part) {
        const T *k = factor(key + head * size, size, rounded_keys);
        const T *v = factor(value + head * size, size, rounded_values);
        float *dk = part ? other(head, part) : gradients.key + head * size;
        float *dv = part ? other(head, part) + size : gradients.value + head * size;
        std::fill(dk, dk + size, 0.0f);
        std::fill(dv, dv + size, 0.0f);
        transpose<T>(key + head * size, s.d, s.keys, s.keys, s.scale(), keys);
        for (int64_t i = s.first(part); i < s.first(part + 1); ++i) {
          const int64_t at = i * s.block, count = s.count(i), offset = head * s.d * s.queries + at;
          const Backward<T> &products = count == s.block ? whole : last;
          transpose<T>(query + offset, s.d, count, s.queries, s.scale(), q);
          transpose<T>(dout + offset, s.d, count, s.queries, 1.0f, go);
          copy<T>(query + offset, s.d, count, s.queries, s.scale(), q_columns);
          copy<T>(dout + offset, s.d, count, s.queries, 1.0f, go_columns);
          products.scores.run(stream, q, k, p, scratchpad);
          products.scores.run(stream, go, v, dp, scratchpad);
          for (int64_t r = 0; r < count; ++r) {
            float inner = 0.0f;  // of output and its gradient, which is Σ p dp
            for (int64_t c = 0; c < s.d; ++c) inner += dout[offset + c * s.queries + r] * out[offset + c * s.queries + r];
            const float log = log_sum[head * s.queries + at + r];
            float *row = p + r * s.keys, *drow = dp + r * s.keys;
#pragma omp simd
            for (int64_t j = 0; j < s.keys; ++j) {
              row[j] = exponential(row[j] - log);
              drow[j] = row[j] * (drow[j] - inner);
            }
          }
          const T *score_gradients = factor(dp, count * s.keys, rounded_dp);
          products.to_query.run(stream, score_gradients, keys, dq, scratchpad);
          transpose<float>(dq, count, s.d, s.d, 1.0f, dq_columns);
          for (int64_t c = 0; c < s.d; ++c) {
            std::copy(dq_columns + c * count, dq_columns + (c + 1) * count, gradients.query + offset + c * s.queries);
          }
          products.to_keys.run(stream, q_columns, score_gradients, dk, scratchpad);
          products.to_keys.run(stream, go_columns, factor(p, count * s.keys, rounded_p), dv, scratchpad);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t head = 0; head < s.heads; ++head) {
      for (int64_t part = 1; part < s.parts; ++part) {
        const float *from = other(head, part);
        for (int64_t j = 0; j < size; ++j) gradients.key[head * size + j] += from[j];
        for (int64_t j = 0; j < size; ++j) gradients.value[head * size + j] += from[size + j];
      }
    }
  }
}

}  // namespace

// query [N, heads, d, L], key, value [N, heads, d, S] → output [N, heads, d, L], log of each query's sum [N, heads, 1, L]
template <typename T>
int forward(void **p, int64_t **shapes) {
  return guard("attention", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    attend<T>(Sizes(shapes[0], shapes[1]), array(0), array(1), array(2), array(3), array(4));
  });
}

// query, key, value, output, log of the sums, gradient of the output → gradients of query, key and value
template <typename T>
int backward(void **p, int64_t **shapes) {
  return guard("attention", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    attend_backward<T>(Sizes(shapes[0], shapes[1]), array(0), array(1), array(2), array(3), array(4), array(5),
                       {array(6), array(7), array(8)});
  });
}

OPERATOR(flash_attention) { return forward<float>(p, shapes); }
OPERATOR(flash_attention_backward) { return backward<float>(p, shapes); }
OPERATOR(flash_attention_bfloat16) { return forward<Bfloat16>(p, shapes); }
OPERATOR(flash_attention_bfloat16_backward) { return backward<Bfloat16>(p, shapes); }
