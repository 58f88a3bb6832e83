// Normalisations and GELU with their gradients, and a transpose: custom operators of MindSpore's CPU backend, in float32.
//
// Composed of MindSpore's own operators, a normalisation is eight of them, its gradient fourteen, and each passes through
// the memory; here inputs come from the memory once, then from the cache. The gradients keep nothing but the inputs.
//
// `gm/runtime/onednn.py` compiles this file, `gm/ops/fused.py` calls the functions at its end. Sums over the threads'
// shares are added in order, so that a result does not differ from run to run.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

#include "operators.h"

namespace {

// Values below which a single thread is faster than several that have to be woken.
constexpr int64_t kManyValues = int64_t{1} << 15;

using Values = std::unique_ptr<float[]>;

Values values(int64_t count) { return Values(new float[std::max<int64_t>(1, count)]); }

// Tokens of a sequence that are normalised together: their values lie side by side, eight lines of the cache.
constexpr int64_t kTokens = 128;

// Mean and reciprocal standard deviation of each of a block of tokens, whose `channels` are `width` values apart. The sum
// of the differences from the mean, which rounding leaves, corrects it: a large mean costs little precision.
struct TokenMoments {
  float mean[kTokens], inverse[kTokens];

  void compute(const float *x, int64_t channels, int64_t width, float epsilon) {
    float rest[kTokens] = {}, square[kTokens] = {};
    std::fill(mean, mean + kTokens, 0.0f);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t j = 0; j < width; ++j) mean[j] += x[c * width + j];
    }
    for (int64_t j = 0; j < width; ++j) mean[j] /= channels;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t j = 0; j < width; ++j) {
        const float centered = x[c * width + j] - mean[j];
        rest[j] += centered;
        square[j] += centered * centered;
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      rest[j] /= channels;
      mean[j] += rest[j];
      inverse[j] = 1.0f / std::sqrt(square[j] / channels - rest[j] * rest[j] + epsilon);
    }
  }
};

// y [channels, width] = `width` neighbouring columns of x, whose rows are `stride` apart: in the cache a power of two
// between the rows does no harm.
void gather(const float *x, int64_t channels, int64_t stride, int64_t width, float *y) {
  for (int64_t c = 0; c < channels; ++c) std::copy(x + c * stride, x + c * stride + width, y + c * width);
}

// Runs `block(first token, number of tokens)` for all `tokens`, shared among the threads.
template <typename Block>
void for_blocks(int64_t tokens, const Block &block) {
  const int64_t blocks = (tokens + kTokens - 1) / kTokens;
#pragma omp for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) block(b * kTokens, std::min(kTokens, tokens - b * kTokens));
}

void layer_norm(const float *x, const float *gamma, const float *beta, float epsilon, int64_t channels, int64_t tokens,
                float *y) {
#pragma omp parallel if (channels * tokens > kManyValues)
  {
    const Values block = values(channels * kTokens);
    TokenMoments moments;
    for_blocks(tokens, [&](int64_t first, int64_t width) {
      gather(x + first, channels, tokens, width, block.get());
      moments.compute(block.get(), channels, width, epsilon);
      for (int64_t c = 0; c < channels; ++c) {
        const float *from = block.get() + c * width;
        float *to = y + c * tokens + first;
        for (int64_t j = 0; j < width; ++j) {
          to[j] = (from[j] - moments.mean[j]) * moments.inverse[j] * gamma[c] + beta[c];
        }
      }
    });
  }
}

// With g = γ dout and the normalised n: dx = (g - mean(g) - n mean(g n)) / s, dγ = Σ dout n, dβ = Σ dout.
void layer_norm_backward(const float *x, const float *gamma, float epsilon, const float *dout, int64_t channels,
                         int64_t tokens, float *dx, float *dgamma, float *dbeta) {
  const int threads = channels * tokens > kManyValues ? omp_get_max_threads() : 1;
  const Values shares = values(2 * channels * threads);  // of dγ and dβ
  std::fill(shares.get(), shares.get() + 2 * channels * threads, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    const Values normalised = values(channels * kTokens), gradient = values(channels * kTokens);
    float *own_gamma = shares.get() + 2 * channels * omp_get_thread_num(), *own_beta = own_gamma + channels;
    TokenMoments moments;
    for_blocks(tokens, [&](int64_t first, int64_t width) {
      float sum[kTokens] = {}, product[kTokens] = {};
      gather(x + first, channels, tokens, width, normalised.get());
      moments.compute(normalised.get(), channels, width, epsilon);
      for (int64_t c = 0; c < channels; ++c) {
        const float *from = dout + c * tokens + first;
        float *n = normalised.get() + c * width, *g = gradient.get() + c * width;
        float for_gamma = 0.0f, for_beta = 0.0f;
#pragma omp simd reduction(+ : for_gamma, for_beta)
        for (int64_t j = 0; j < width; ++j) {
          n[j] = (n[j] - moments.mean[j]) * moments.inverse[j];
          g[j] = from[j] * gamma[c];
          sum[j] += g[j];
          product[j] += g[j] * n[j];
          for_gamma += from[j] * n[j];
          for_beta += from[j];
        }
        own_gamma[c] += for_gamma;
        own_beta[c] += for_beta;
      }
      for (int64_t j = 0; j < width; ++j) {
        sum[j] /= channels;
        product[j] /= channels;
      }
      for (int64_t c = 0; c < channels; ++c) {
        const float *n = normalised.get() + c * width, *g = gradient.get() + c * width;
        float *to = dx + c * tokens + first;
        for (int64_t j = 0; j < width; ++j) to[j] = moments.inverse[j] * (g[j] - sum[j] - n[j] * product[j]);
      }
    });
  }
  std::copy(shares.get(), shares.get() + channels, dgamma);
  std::copy(shares.get() + channels, shares.get() + 2 * channels, dbeta);
  for (int thread = 1; thread < threads; ++thread) {
    const float *own = shares.get() + 2 * channels * thread;
    for (int64_t c = 0; c < channels; ++c) dgamma[c] += own[c];
    for (int64_t c = 0; c < channels; ++c) dbeta[c] += own[channels + c];
  }
}

// The sizes of a group normalisation of n images: `groups` of `channels`, whose `pixels` lie side by side.
struct Groups {
  int64_t n, groups, channels, pixels;

  Groups(const int64_t *shape, int64_t groups)
      : n(shape[0]), groups(groups), channels(shape[1] / groups), pixels(shape[2] * shape[3]) {}

  int64_t size() const { return channels * pixels; }
  bool is_large() const { return n * groups * size() > kManyValues; }
};

// Sum of `term(j)` over j < count: in lanes of single precision, their sums in double precision.
template <typename Term>
double sum_of(int64_t count, const Term &term) {
  constexpr int64_t kRun = 4096;
  double total = 0.0;
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t end = std::min(count, first + kRun);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < end; ++j) sum += term(j);
    total += sum;
  }
  return total;
}

// Mean and reciprocal standard deviation of a group, corrected as those of tokens.
struct GroupMoments {
  float mean, inverse;

  GroupMoments(const float *x, int64_t size, float epsilon)
      : mean(static_cast<float>(sum_of(size, [&](int64_t j) { return x[j]; }) / size)) {
    const double rest = sum_of(size, [&](int64_t j) { return x[j] - mean; }) / size;
    const double square = sum_of(size, [&](int64_t j) { return (x[j] - mean) * (x[j] - mean); }) / size;
    mean += static_cast<float>(rest);
    inverse = 1.0f / std::sqrt(static_cast<float>(square - rest * rest) + epsilon);
  }
};

// With `silu`, the result y is y σ(y).
template <bool silu>
void group_norm(const Groups &s, const float *x, const float *gamma, const float *beta, float epsilon, float *y) {
#pragma omp parallel for schedule(static) if (s.is_large())
  for (int64_t i = 0; i < s.n * s.groups; ++i) {
    const float *from = x + i * s.size();
    const GroupMoments moments(from, s.size(), epsilon);
    for (int64_t k = 0; k < s.channels; ++k) {
      const int64_t c = i % s.groups * s.channels + k;
      const float scale = moments.inverse * gamma[c], shift = beta[c];
      const float *line = from + k * s.pixels;
      float *to = y + i * s.size() + k * s.pixels;
      for (int64_t j = 0; j < s.pixels; ++j) {
        const float normalised = (line[j] - moments.mean) * scale + shift;
        to[j] = silu ? normalised * sigmoid(normalised) : normalised;
      }
    }
  }
}

template <bool silu>
void group_norm_backward(const Groups &s, const float *x, const float *gamma, const float *beta, float epsilon,
                         const float *dout, float *dx, float *dgamma, float *dbeta) {
  const int64_t all_channels = s.groups * s.channels;
  const Values shares = values(2 * s.n * all_channels);  // dγ and dβ of each image
#pragma omp parallel for schedule(static) if (s.is_large())
  for (int64_t i = 0; i < s.n * s.groups; ++i) {
    const float *from = x + i * s.size();
    const GroupMoments moments(from, s.size(), epsilon);
    const float mean = moments.mean, inverse = moments.inverse;
    double sum = 0.0, product = 0.0;
    for (int64_t k = 0; k < s.channels; ++k) {
      const int64_t c = i % s.groups * s.channels + k;
      const float *line = from + k * s.pixels, *gradient = dout + i * s.size() + k * s.pixels;
      float *to = dx + i * s.size() + k * s.pixels;  // for now the gradient of the normalised values, before γ
      for (int64_t j = 0; j < s.pixels; ++j) {
        if (silu) {
          const float y = (line[j] - mean) * inverse * gamma[c] + beta[c], gate = sigmoid(y);
          to[j] = gradient[j] * gate * (1.0f + y * (1.0f - gate));
        } else {
          to[j] = gradient[j];
        }
      }
      const double for_beta = sum_of(s.pixels, [&](int64_t j) { return to[j]; });
      const double for_gamma = sum_of(s.pixels, [&](int64_t j) { return to[j] * ((line[j] - mean) * inverse); });
      float *own = shares.get() + 2 * (i / s.groups * all_channels + c);
      own[0] = static_cast<float>(for_gamma);
      own[1] = static_cast<float>(for_beta);
      sum += for_beta * gamma[c];
      product += for_gamma * gamma[c];
    }
    const float average = static_cast<float>(sum / s.size());
    const float projection = static_cast<float>(product / s.size()) * inverse;
    for (int64_t k = 0; k < s.channels; ++k) {
      const float scale = gamma[i % s.groups * s.channels + k];
      const float *line = from + k * s.pixels;
      float *to = dx + i * s.size() + k * s.pixels;
      for (int64_t j = 0; j < s.pixels; ++j) {
        to[j] = inverse * (to[j] * scale - average - (line[j] - mean) * projection);
      }
    }
  }
  std::fill(dgamma, dgamma + all_channels, 0.0f);
  std::fill(dbeta, dbeta + all_channels, 0.0f);
  for (int64_t image = 0; image < s.n; ++image) {
    for (int64_t c = 0; c < all_channels; ++c) {
      const float *own = shares.get() + 2 * (image * all_channels + c);
      dgamma[c] += own[0];
      dbeta[c] += own[1];
    }
  }
}

// Φ(x) = σ(x P(x²)) of gm/ops/gelu.py, with the coefficients of P and those of Q(x²), the derivative of x P(x²). They
// are copies, which no result of a loop can overwrite: the compiler computes many values at once.
struct Normal {
  float p[7], q[7];

  explicit Normal(const float *coefficients) {
    std::copy(coefficients, coefficients + 7, p);
    std::copy(coefficients + 7, coefficients + 14, q);
  }

  static float polynomial(const float *coefficients, float x) {
    float value = coefficients[6];
    for (int k = 5; k >= 0; --k) value = value * x + coefficients[k];
    return value;
  }
  static float square(float x) { return x * x > 36.0f ? 36.0f : x * x; }

  float cdf(float x) const { return sigmoid(x * polynomial(p, square(x))); }
  // The derivative of x Φ(x), given Φ(x).
  float gelu_derivative(float x, float phi) const { return phi + x * phi * (1.0f - phi) * polynomial(q, square(x)); }
};

}  // namespace

// x [C, …], gamma, beta [C], epsilon [1] → x normalised over C
OPERATOR(layer_norm) {
  return guard("layer norm", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    const int64_t channels = shapes[0][0], tokens = size_of(shapes[0], ndims[0]) / channels;
    layer_norm(array(0), array(1), array(2), *array(3), channels, tokens, array(4));
  });
}

// x, gamma, beta, epsilon, gradient of the result → gradients of x, gamma and beta
OPERATOR(layer_norm_backward) {
  return guard("layer norm", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    const int64_t channels = shapes[0][0], tokens = size_of(shapes[0], ndims[0]) / channels;
    layer_norm_backward(array(0), array(1), *array(3), array(4), channels, tokens, array(5), array(6), array(7));
  });
}

// x [N, C, H, W], gamma, beta [C], options [2] (groups and epsilon) → x normalised over the pixels of each group
template <bool silu>
int normalise_groups(void **p, int64_t **shapes) {
  return guard("group norm", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    const Groups groups(shapes[0], static_cast<int64_t>(array(3)[0]));
    group_norm<silu>(groups, array(0), array(1), array(2), array(3)[1], array(4));
  });
}

// x, gamma, beta, options, gradient of the result → gradients of x, gamma and beta
template <bool silu>
int normalise_groups_backward(void **p, int64_t **shapes) {
  return guard("group norm", [&] {
    const auto array = [&](int i) { return static_cast<float *>(p[i]); };
    const Groups groups(shapes[0], static_cast<int64_t>(array(3)[0]));
    group_norm_backward<silu>(groups, array(0), array(1), array(2), array(3)[1], array(4), array(5), array(6),
                              array(7));
  });
}

OPERATOR(group_norm) { return normalise_groups<false>(p, shapes); }
OPERATOR(group_norm_backward) { return normalise_groups_backward<false>(p, shapes); }
OPERATOR(group_norm_silu) { return normalise_groups<true>(p, shapes); }
OPERATOR(group_norm_silu_backward) { return normalise_groups_backward<true>(p, shapes); }

// x, coefficients [2, 7] → x Φ(x)
OPERATOR(gelu) {
  return guard("GELU", [&] {
    const auto *x = static_cast<const float *>(p[0]), *coefficients = static_cast<const float *>(p[1]);
    auto *y = static_cast<float *>(p[2]);
    const Normal normal(coefficients);
    const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kManyValues)
    for (int64_t j = 0; j < size; ++j) y[j] = x[j] * normal.cdf(x[j]);
  });
}

// x, coefficients, gradient of the result → gradient of x
OPERATOR(gelu_backward) {
  return guard("GELU", [&] {
    const auto *x = static_cast<const float *>(p[0]), *coefficients = static_cast<const float *>(p[1]);
    const auto *dout = static_cast<const float *>(p[2]);
    auto *dx = static_cast<float *>(p[3]);
    const Normal normal(coefficients);
    const int64_t size = size_of(shapes[0], ndims[0]);
#pragma omp parallel for simd schedule(static) if (size > kManyValues)
    for (int64_t j = 0; j < size; ++j) dx[j] = dout[j] * normal.gelu_derivative(x[j], normal.cdf(x[j]));
  });
}

// x [2 C, …], coefficients → its first half times GELU of its second half
OPERATOR(geglu) {
  return guard("GEGLU", [&] {
    const auto *x = static_cast<const float *>(p[0]), *coefficients = static_cast<const float *>(p[1]);
    auto *y = static_cast<float *>(p[2]);
    const Normal normal(coefficients);
    const int64_t size = size_of(shapes[0], ndims[0]) / 2;
    const float *gate = x + size;
#pragma omp parallel for simd schedule(static) if (size > kManyValues)
    for (int64_t j = 0; j < size; ++j) y[j] = x[j] * (gate[j] * normal.cdf(gate[j]));
  });
}

// x, coefficients, gradient of the result → gradient of x
OPERATOR(geglu_backward) {
  return guard("GEGLU", [&] {
    const auto *x = static_cast<const float *>(p[0]), *coefficients = static_cast<const float *>(p[1]);
    const auto *dout = static_cast<const float *>(p[2]);
    auto *dx = static_cast<float *>(p[3]);
    const Normal normal(coefficients);
    const int64_t size = size_of(shapes[0], ndims[0]) / 2;
    const float *gate = x + size;
#pragma omp parallel for simd schedule(static) if (size > kManyValues)
    for (int64_t j = 0; j < size; ++j) {
      const float phi = normal.cdf(gate[j]);
      dx[j] = dout[j] * (gate[j] * phi);
      dx[size + j] = dout[j] * x[j] * normal.gelu_derivative(gate[j], phi);
    }
  });
}

// x [A, B, L] → x [B, A, L]
OPERATOR(swap_leading_axes) {
  return guard("transpose", [&] {
    const auto *x = static_cast<const float *>(p[0]);
    auto *y = static_cast<float *>(p[1]);
    const int64_t a = shapes[0][0], b = shapes[0][1], length = shapes[0][2];
#pragma omp parallel for collapse(2) schedule(static) if (a * b * length > kManyValues)
    for (int64_t j = 0; j < b; ++j) {
      for (int64_t i = 0; i < a; ++i) {
        std::copy(x + (i * b + j) * length, x + (i * b + j + 1) * length, y + (j * a + i) * length);
      }
    }
  });
}
