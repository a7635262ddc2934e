// The inner loops for processors with AVX2: 8 floats at a time.
#include <immintrin.h>

#include "kernels.hpp"

namespace dgfast::cpu {
namespace {

struct Lanes {
  using Vector = __m256;
  static constexpr int64_t width = 8;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  static Vector set(float x) { return _mm256_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static uint32_t up_to(Vector a, Vector b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
  }
  static Vector zero_up_to(Vector x, Vector bound) { return _mm256_andnot_ps(_mm256_cmp_ps(x, bound, _CMP_LE_OQ), x); }
};

}  // namespace
}  // namespace dgfast::cpu

#define DGFAST_KERNELS kernels_avx2
#include "kernels.inl"
