// What the operators for MindSpore's CPU backend share: their signature, errors, and exponentials.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>

// An operator of MindSpore's `Custom` with `func_type="aot"`: inputs, then outputs, in `p`; their sizes in `shapes`.
#define OPERATOR(name)                                                                                       \
  extern "C" int name([[maybe_unused]] int count, void **p, [[maybe_unused]] int *ndims, int64_t **shapes, \
                      const char **, void *, void *)

namespace {

// exp(x) for x up to 88, 0 below -87; NaN stays NaN. The polynomial is that of Cephes' expf (Moshier); written so that
// the compiler computes many at once.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float rounding = 12582912.0f;  // 1.5 · 2²³: the sum with it has no fraction, and n in its lowest bits
  const float shifted = x * 1.44269504f + rounding;
  const float n = shifted - rounding;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) << 23) + 0x3f800000;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return (p * r * r + r + 1.0f) * power;
}

// 1 / (1 + exp(-x)); NaN stays NaN.
inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(x < -88.0f ? 88.0f : -x)); }

inline int64_t size_of(const int64_t *shape, int ndim) {
  int64_t size = 1;
  for (int i = 0; i < ndim; ++i) size *= shape[i];
  return size;
}

// Runs an operator; a failure becomes MindSpore's error, and its reason a line.
template <typename Operator>
int guard(const char *name, Operator run) {
  try {
    run();
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s operator: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace
