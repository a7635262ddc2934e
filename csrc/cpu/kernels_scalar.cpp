// The inner loops for any processor.
#include "kernels.hpp"

namespace dgfast::cpu {
namespace {

struct Lanes {
  using Vector = float;
  static constexpr int64_t width = 1;
  static float load(const float* p) { return *p; }
  static void store(float* p, float x) { *p = x; }
  static float set(float x) { return x; }
  static float add(float a, float b) { return a + b; }
  static float subtract(float a, float b) { return a - b; }
  static float multiply(float a, float b) { return a * b; }
  static float larger(float a, float b) { return a > b ? a : b; }
  static uint32_t up_to(float a, float b) { return a <= b; }
  static float zero_up_to(float x, float bound) { return x <= bound ? 0.0f : x; }
};

}  // namespace
}  // namespace dgfast::cpu

#define DGFAST_KERNELS kernels_scalar
#include "kernels.inl"
