// Hit ranks: where the right images stand in a ranking, without sorting it where they are few.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.hpp"

namespace dgfast::cpu {
namespace {

// Up to so many hits, counting what stands before each is faster than sorting the row.
constexpr int64_t few = 128;

template <typename T>
void count_before(const Kernels& kernel, const std::vector<T>& row, const int32_t* hits, int64_t count,
                  int64_t* ranks) {
  const int64_t columns = static_cast<int64_t>(row.size());
  for (int64_t h = 0; h < count; ++h) {
    const int64_t at = hits[h];
    // Of equal values, those of lower columns stand before.
    if constexpr (std::is_same_v<T, float>)
      ranks[h] =
          kernel.count_up_to(row.data(), at, row[at]) + kernel.count_below(row.data() + at, columns - at, row[at]);
    else
      ranks[h] = kernel.count_up_to_double(row.data(), at, row[at]) +
                 kernel.count_below_double(row.data() + at, columns - at, row[at]);
  }
}

template <typename T>
void sort_all(const std::vector<T>& row, const int32_t* hits, int64_t count, int64_t* ranks,
              std::vector<int32_t>& order, std::vector<int32_t>& rank_of) {
  order.clear();
  for (int64_t j = 0; j < static_cast<int64_t>(row.size()); ++j)
    if (row[j] == row[j]) order.push_back(static_cast<int32_t>(j));
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return row[a] < row[b] || (row[a] == row[b] && a < b); });
  rank_of.resize(row.size());
  for (int64_t place = 0; place < static_cast<int64_t>(order.size()); ++place)
    rank_of[order[place]] = static_cast<int32_t>(place);
  for (int64_t h = 0; h < count; ++h) ranks[h] = rank_of[hits[h]];
}

}  // namespace

template <typename T>
int64_t hit_ranks(const T* values, int64_t rows, int64_t columns, RowLists hits, RowLists ignored, const int32_t* junk,
                  int64_t junk_count, int64_t* ranks, InstructionSet set) {
  const Kernels& kernel = kernels(set);
  int64_t bad = rows;
#pragma omp parallel
  {
    std::vector<T> row(columns);  // with NaN, which stands before and behind nothing, in place of what is ignored
    std::vector<int32_t> order, rank_of;
#pragma omp for schedule(dynamic, 8) reduction(min : bad)
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = values + r * columns;
      bool any_nan = false;
      for (int64_t j = 0; j < columns; ++j) {
        row[j] = from[j];
        any_nan |= from[j] != from[j];
      }
      if (any_nan) {
        bad = std::min(bad, r);
        continue;
      }
      constexpr T nan = std::numeric_limits<T>::quiet_NaN();
      for (int64_t j = 0; j < junk_count; ++j) row[junk[j]] = nan;
      for (int64_t entry = ignored.offsets[r]; entry < ignored.offsets[r + 1]; ++entry)
        row[ignored.columns[entry]] = nan;
      const int64_t first = hits.offsets[r], count = hits.offsets[r + 1] - first;
      if (count <= few)
        count_before(kernel, row, hits.columns + first, count, ranks + first);
      else
        sort_all(row, hits.columns + first, count, ranks + first, order, rank_of);
    }
  }
  return bad == rows ? -1 : bad;
}

template int64_t hit_ranks(const float*, int64_t, int64_t, RowLists, RowLists, const int32_t*, int64_t, int64_t*,
                           InstructionSet);
template int64_t hit_ranks(const double*, int64_t, int64_t, RowLists, RowLists, const int32_t*, int64_t, int64_t*,
                           InstructionSet);

}  // namespace dgfast::cpu
