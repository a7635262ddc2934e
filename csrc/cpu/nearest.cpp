// Nearest: blocks of products become distances, and those the nearest and the farthest of every image.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels.hpp"

namespace dgfast::cpu {

// Columns that one thread takes at a time: their bounds and maxima stay in its L1 cache over all rows of the block.
static constexpr int64_t strip = 128;

static void empty(Lists lists, int64_t rows) {
  std::fill_n(lists.distances, rows * lists.k, std::numeric_limits<float>::infinity());
  std::fill_n(lists.indices, rows * lists.k, std::numeric_limits<int32_t>::max());
}

void nearest_start(Lists lists, int64_t rows) {
  empty(lists, rows);
  std::fill_n(lists.farthest, rows, 0.0f);
}

static ListRows list_rows(Lists lists, int64_t image) {
  const int64_t at = image - lists.first;
  return {lists.distances + at * lists.k, lists.indices + at * lists.k, lists.farthest + at, lists.k};
}

// The product from which the distance to itself comes out as exactly 0.
static void set_self(Block block, int64_t image, float* row, const float* norms) {
  const int64_t at = image - block.column;
  if (at >= 0 && at < block.columns) row[at] = norms[image];
}

void nearest_block(Block block, const float* norms, Lists lists, bool symmetric, InstructionSet set) {
  const Kernels& kernel = kernels(set);
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t image = block.row + r;
    float* row = block.values + r * block.stride;
    set_self(block, image, row, norms);
    const int64_t begin = symmetric ? std::max<int64_t>(0, image - block.column) : 0;
    if (begin >= block.columns) continue;
    const int64_t other = block.column + begin;
    kernel.distances_and_select(row + begin, block.columns - begin, static_cast<int32_t>(other), norms[image],
                                norms + other, list_rows(lists, image));
  }
  if (!symmetric) return;
#pragma omp parallel
  {
    std::vector<float> bounds(strip);
#pragma omp for schedule(dynamic, 1)
    for (int64_t begin = 0; begin < block.columns; begin += strip) {
      const int64_t columns = std::min(strip, block.columns - begin), other = block.column + begin;
      kernel.select_columns(block.values + begin, block.stride, block.rows, columns, block.row + 1 - other,
                            static_cast<int32_t>(block.row), list_rows(lists, other), bounds.data());
    }
  }
}

void distances_block(Block block, const float* norms, InstructionSet set) {
  const Kernels& kernel = kernels(set);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < block.rows; ++r) {
    float* row = block.values + r * block.stride;
    set_self(block, block.row + r, row, norms);
    kernel.distances(row, block.columns, norms[block.row + r], norms + block.column);
  }
}

void smallest(const float* values, int64_t rows, int64_t columns, Lists lists, InstructionSet set) {
  const Kernels& kernel = kernels(set);
  empty(lists, rows);
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t r = 0; r < rows; ++r)
    kernel.smallest(values + r * columns, columns,
                    {lists.distances + r * lists.k, lists.indices + r * lists.k, nullptr, lists.k});
}

}  // namespace dgfast::cpu
