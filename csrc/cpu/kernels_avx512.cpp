// The inner loops for processors with AVX-512: 16 floats at a time.
#include <immintrin.h>

#include "kernels.hpp"

namespace dgfast::cpu {
namespace {

struct Lanes {
  using Vector = __m512;
  static constexpr int64_t width = 16;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  static Vector set(float x) { return _mm512_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static uint32_t up_to(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static Vector zero_up_to(Vector x, Vector bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLE_UQ), x);
  }
};

}  // namespace
}  // namespace dgfast::cpu

#define DGFAST_KERNELS kernels_avx512
#include "kernels.inl"
