// Jaccard: inverted lists of the gallery, and each query's distances through them.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../rerank.hpp"

namespace dgfast::cpu {

void invert_count(SparseRows weights, int64_t row, int64_t rows, int64_t n, int64_t* counts) {
  std::fill_n(counts, n, int64_t{0});
  for (int64_t entry = weights.offsets[row]; entry < weights.offsets[row + rows]; ++entry)
    ++counts[weights.columns[entry]];
}

void invert_fill(SparseRows weights, int64_t row, int64_t rows, int64_t n, const int64_t* offsets, int32_t* rows_of,
                 float* values) {
  std::vector<int64_t> next(offsets, offsets + n);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t entry = weights.offsets[row + r]; entry < weights.offsets[row + r + 1]; ++entry) {
      const int64_t at = next[weights.columns[entry]]++;
      rows_of[at] = static_cast<int32_t>(r);
      values[at] = weights.values[entry];
    }
  }
}

void jaccard(SparseRows weights, SparseRows inverted, const float* farthest, int64_t row, int64_t rows, int64_t gallery,
             float lambda, bool squared, float* block) {
#pragma omp parallel
  {
    std::vector<float> shared(gallery, 0.0f);
    float* common = shared.data();
#pragma omp for schedule(dynamic, 4)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t q = row + r;
      for (int64_t entry = weights.offsets[q]; entry < weights.offsets[q + 1]; ++entry) {
        const int64_t column = weights.columns[entry];
        const float weight = weights.values[entry];
        for (int64_t at = inverted.offsets[column]; at < inverted.offsets[column + 1]; ++at)
          common[inverted.columns[at]] += std::min(weight, inverted.values[at]);
      }
      const float scale = farthest[q] > 0 ? farthest[q] : 1.0f;  // all distances are 0 where the farthest is
      float* out = block + r * gallery;
      for (int64_t g = 0; g < gallery; ++g) {
        const float m = std::min(common[g], 1.0f), share = out[g] / scale;
        common[g] = 0.0f;
        out[g] = (1.0f - lambda) * (1.0f - m / (2.0f - m)) + lambda * (squared ? share * share : share);
      }
    }
  }
}

}  // namespace dgfast::cpu
