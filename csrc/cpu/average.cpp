// Average: the k2 expansion, as a sum of sparse rows.
#include <algorithm>
#include <cstdint>

#include "../rerank.hpp"
#include "small_map.hpp"

namespace dgfast::cpu {
namespace {

// Room for the k2 rows that are longest together.
int64_t most_entries(SparseRows weights, int64_t n, int64_t k2) {
  int64_t longest = 0;
  for (int64_t i = 0; i < n; ++i) longest = std::max(longest, weights.offsets[i + 1] - weights.offsets[i]);
  return std::min(n, k2 * longest);
}

// Sums the rows of i's first k2 neighbours.
void add_rows(Neighbours lists, int64_t k2, SparseRows weights, int64_t i, SmallMap<float>& sums) {
  sums.clear();
  for (int64_t a = 0; a < k2; ++a) {
    const int64_t j = lists.indices[i * lists.k + a];
    for (int64_t entry = weights.offsets[j]; entry < weights.offsets[j + 1]; ++entry)
      sums.at(weights.columns[entry], 0.0f) += weights.values[entry];
  }
}

}  // namespace

void average_count(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, int64_t* counts) {
  const int64_t most = most_entries(weights, lists.n, k2);
#pragma omp parallel
  {
    SmallMap<float> sums(most);
#pragma omp for schedule(dynamic, 64)
    for (int64_t r = 0; r < rows; ++r) {
      add_rows(lists, k2, weights, row + r, sums);
      counts[r] = static_cast<int64_t>(sums.ids().size());
    }
  }
}

void average_fill(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, const int64_t* offsets,
                  int32_t* columns, float* values) {
  const int64_t most = most_entries(weights, lists.n, k2);
#pragma omp parallel
  {
    SmallMap<float> sums(most);
#pragma omp for schedule(dynamic, 64)
    for (int64_t r = 0; r < rows; ++r) {
      add_rows(lists, k2, weights, row + r, sums);
      for (int64_t entry = 0; entry < offsets[r + 1] - offsets[r]; ++entry) {
        columns[offsets[r] + entry] = sums.ids()[entry];
        values[offsets[r] + entry] = sums.value(entry) / static_cast<float>(k2);
      }
    }
  }
}

}  // namespace dgfast::cpu
