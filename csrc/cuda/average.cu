// average: the k2 expansion, means of sparse rows. The rows that come in are ascending by column, as expand_fill writes
// them; those that go out have their columns by first occurrence among the neighbours' rows.
#include "../rerank.hpp"
#include "warp.cuh"

namespace dgfast::cuda {
namespace {

// The place of a column in an ascending row, or -1. Columns are looked up in the rows themselves, so no sums need room.
__device__ int64_t find(const SparseRows& weights, int64_t row, int32_t column) {
  const int64_t begin = weights.offsets[row], size = weights.offsets[row + 1] - begin;
  const int64_t place = count_below(weights.columns + begin, size, column);
  return place < size && weights.columns[begin + place] == column ? begin + place : -1;
}

// One warp per image, one lane per entry of its neighbours' rows. A column belongs to the first of these rows that
// holds it; its sum starts there and goes on neighbour by neighbour. Without offsets the number of columns is written
// to counts, with offsets the columns and their values.
__global__ void __launch_bounds__(most_warps* warp_size)
    average_rows(Warps warps, Neighbours lists, int64_t k2, SparseRows weights, int64_t row,
                 const int64_t* __restrict__ offsets, int64_t* counts, int32_t* columns, float* values) {
  const int64_t r = warp_number();
  if (r >= warps.count) return;
  const int lane = lane_number();
  const int32_t* nearest = lists.indices + (row + r) * lists.k;
  int64_t distinct = 0;
  for (int64_t a = 0; a < k2; ++a) {
    const int64_t begin = weights.offsets[nearest[a]], end = weights.offsets[nearest[a] + 1];
    for (int64_t from = begin; from < end; from += warp_size) {
      const int64_t p = from + lane;
      bool is_first = p < end;
      const int32_t column = is_first ? weights.columns[p] : 0;
      for (int64_t b = 0; b < a && is_first; ++b) is_first = find(weights, nearest[b], column) < 0;
      const unsigned ballot = __ballot_sync(all_lanes, is_first);
      if (offsets && is_first) {
        float sum = weights.values[p];
        for (int64_t b = a + 1; b < k2; ++b) {
          const int64_t same = find(weights, nearest[b], column);
          if (same >= 0) sum += weights.values[same];
        }
        const int64_t place = offsets[r] + distinct + place_among(ballot, lane);
        columns[place] = column;
        values[place] = sum / static_cast<float>(k2);
      }
      distinct += __popc(ballot);
    }
  }
  if (!offsets && lane == 0) counts[r] = distinct;
}

}  // namespace

int average_count(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, int64_t* counts,
                  void* stream) {
  return launch_warps(average_rows, Warps{rows, 0}, stream, lists, k2, weights, row, nullptr, counts, nullptr, nullptr);
}

int average_fill(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, const int64_t* offsets,
                 int32_t* columns, float* values, void* stream) {
  return launch_warps(average_rows, Warps{rows, 0}, stream, lists, k2, weights, row, offsets, nullptr, columns, values);
}

}  // namespace dgfast::cuda
