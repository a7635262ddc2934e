// The inner loops that exist once per instruction set, behind one table. kernels.inl is their only source text.
#pragma once

#include <cstdint>

#include "../rerank.hpp"

namespace dgfast::cpu {

// The lists of consecutive images, ascending by (distance, id).
struct ListRows {
  float* distances;  // [images, k]
  int32_t* indices;  // [images, k]
  float* farthest;   // [images]
  int64_t k;
};

struct Kernels {
  // Products of one image with the images id, id + 1, ... become d2 in place.
  void (*distances)(float* values, int64_t count, float own_norm, const float* norms);

  // The same, and enters them into the one list given.
  void (*distances_and_select)(float* values, int64_t count, int32_t id, float own_norm, const float* norms,
                               ListRows list);

  // Enters d2 [rows, columns], of the images id, id + 1, ... with `columns` others, into the others' lists. Of row r
  // only the columns from skip + r on count (skip may be negative). bounds [columns]: scratch.
  void (*select_columns)(const float* values, int64_t stride, int64_t rows, int64_t columns, int64_t skip, int32_t id,
                         ListRows lists, float* bounds);

  // The k smallest of a row.
  void (*smallest)(const float* values, int64_t count, ListRows list);

  // Sum of squared differences; 64 partial sums, so that every instruction set adds in the same order.
  float (*squared_difference)(const float* a, const float* b, int64_t count);

  // How many of values are < bound, or <= bound. NaN is neither.
  int64_t (*count_below)(const float* values, int64_t count, float bound);
  int64_t (*count_up_to)(const float* values, int64_t count, float bound);
  int64_t (*count_below_double)(const double* values, int64_t count, double bound);
  int64_t (*count_up_to_double)(const double* values, int64_t count, double bound);
};

extern const Kernels kernels_scalar;
#ifdef DGFAST_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

inline const Kernels& kernels(InstructionSet set) {
#ifdef DGFAST_X86
  if (set == InstructionSet::avx512) return kernels_avx512;
  if (set == InstructionSet::avx2) return kernels_avx2;
#endif
  (void)set;
  return kernels_scalar;
}

}  // namespace dgfast::cpu
