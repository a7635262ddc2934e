// expand: expanded sets and the weights over them, as sparse rows that are ascending by column.
#include "../rerank.hpp"
#include "warp.cuh"

namespace dgfast::cuda {
namespace {

// Members of an expanded set, duplicates included, that are kept in shared memory; larger sets are built in the
// workspace, which takes so many bytes unless least_warps need more.
constexpr int64_t most_shared_members = 4096;
constexpr int64_t workspace_bytes = 256 << 20;
constexpr int64_t least_warps = 16, most_workspace_warps = 1024;

// Room for an expanded set, a power of two: R(i, near); of each R(c, half) that was accepted less than a third, as the
// rest is in R(i, near); and the R(c, half) that is being tried.
int64_t capacity_of(Reach reach) {
  return next_power_of_two(reach.near + reach.near * ((reach.half - 1) / 3) + reach.half);
}

// Warps that build sets in the workspace.
int64_t workspace_warps(int64_t capacity, int64_t rows) {
  int64_t warps = workspace_bytes / (capacity * int64_t(sizeof(int32_t)));
  warps = warps < least_warps ? least_warps : warps > most_workspace_warps ? most_workspace_warps : warps;
  return rows < warps ? rows : warps;
}

// Goes through R(i, m), up to 32 members at a time: each lane of the warp calls take(valid, member).
template <class Take>
__device__ void for_reciprocal(const Neighbours& lists, const int32_t* back, int64_t near, int64_t i, int64_t m,
                               int lane, Take take) {
#pragma unroll 1
  for (int64_t from = 0; from < m; from += warp_size) {
    const int64_t a = from + lane;
    const bool valid = a < m && back[i * near + a] < m;
    take(valid, valid ? lists.indices[i * lists.k + a] : 0);
  }
}

__device__ void sort_members(int32_t* members, int count, int lane) {
  const int size = static_cast<int>(next_power_of_two(count));
  for (int i = count + lane; i < size; i += warp_size) members[i] = INT32_MAX;
  sort(members, size, lane);
}

// One warp per image; where sets are built in `memory` [warps, capacity], each warp takes every warps.count-th image.
// Without offsets the size of the set is written to counts, with offsets the set itself, ascending, to columns.
__global__ void __launch_bounds__(most_warps* warp_size)
    expand_sets(Warps warps, Neighbours lists, const int32_t* __restrict__ back, Reach reach, int64_t row, int64_t rows,
                int32_t* memory, int64_t capacity, const int64_t* __restrict__ offsets, int64_t* counts,
                int32_t* columns) {
  if (warp_number() >= warps.count) return;
  const int lane = lane_number();
  int32_t* members = memory ? memory + warp_number() * capacity : static_cast<int32_t*>(warp_shared(warps));
  for (int64_t r = warp_number(); r < rows; r += warps.count) {
    int count = 0;
    const auto append = [&](bool chosen, int32_t member) {
      const unsigned ballot = __ballot_sync(all_lanes, chosen);
      if (chosen) members[count + place_among(ballot, lane)] = member;
      count += __popc(ballot);
    };
    __syncwarp();
    for_reciprocal(lists, back, reach.near, row + r, reach.near, lane, append);
    sort_members(members, count, lane);
    const int reciprocal = count;  // members[0, reciprocal) stay as they are, ascending, while others are appended
    const auto is_reciprocal = [&](int32_t member) {
      const int place = count_below(members, reciprocal, member);
      return place < reciprocal && members[place] == member;
    };
    for (int candidate = 0; candidate < reciprocal; ++candidate) {
      const int32_t c = members[candidate];
      // What is new is appended, and removed again if the two sets share too little.
      const int before = count;
      int size = 0;
      for_reciprocal(lists, back, reach.near, c, reach.half, lane, [&](bool valid, int32_t member) {
        size += __popc(__ballot_sync(all_lanes, valid));
        append(valid && !is_reciprocal(member), member);
      });
      const int common = size - (count - before);
      if (3 * common <= 2 * size) count = before;
      __syncwarp();
    }
    if (count > reciprocal) sort_members(members, count, lane);

    int distinct = 0;
    for (int from = 0; from < count; from += warp_size) {
      const int p = from + lane;
      const bool is_first = p < count && (p == 0 || members[p] != members[p - 1]);
      const unsigned ballot = __ballot_sync(all_lanes, is_first);
      if (offsets && is_first) columns[offsets[r] + distinct + place_among(ballot, lane)] = members[p];
      distinct += __popc(ballot);
    }
    if (!offsets && lane == 0) counts[r] = distinct;
  }
}

// The weights: one warp per row of the sets.
__global__ void __launch_bounds__(most_warps* warp_size)
    weigh(Warps warps, Neighbours lists, const float* __restrict__ features, int64_t dims, bool squared, int64_t row,
          const int64_t* __restrict__ offsets, const int32_t* __restrict__ columns, float* values) {
  const int64_t r = warp_number();
  if (r >= warps.count) return;
  const int lane = lane_number();
  const int64_t i = row + r, begin = offsets[r], end = offsets[r + 1];
  const float farthest = lists.farthest[i];
  float sum = 0;
  for (int64_t from = begin; from < end; from += warp_size) {
    const int64_t p = from + lane;
    const int64_t j = p < end ? columns[p] : i;
    float distance = -1;  // not known
    for (int64_t a = 0; a < lists.k; ++a) {
      if (lists.indices[i * lists.k + a] == j) distance = lists.distances[i * lists.k + a];
    }
    for (int64_t a = 0; a < lists.k && distance < 0; ++a) {
      if (lists.indices[j * lists.k + a] == i) distance = lists.distances[j * lists.k + a];
    }
    unsigned unknown = __ballot_sync(all_lanes, p < end && distance < 0);
    while (unknown) {
      const int owner = __ffs(static_cast<int>(unknown)) - 1;
      unknown &= unknown - 1;
      const float* mine = features + i * dims;
      const float* other = features + __shfl_sync(all_lanes, j, owner) * dims;
      float partial = 0;
#pragma unroll 8
      for (int64_t t = lane; t < dims; t += warp_size) {
        const float difference = mine[t] - other[t];
        partial += difference * difference;
      }
      for (int flip = warp_size / 2; flip > 0; flip /= 2) partial += __shfl_xor_sync(all_lanes, partial, flip);
      if (lane == owner) distance = partial;
    }
    if (p < end) {
      const float scaled = farthest > 0 ? distance / farthest : 0.0f;
      const float weight = expf(squared ? -scaled * scaled : -scaled);
      values[p] = weight;
      sum += weight;
    }
  }
  for (int flip = warp_size / 2; flip > 0; flip /= 2) sum += __shfl_xor_sync(all_lanes, sum, flip);
  for (int64_t p = begin + lane; p < end; p += warp_size) values[p] /= sum;  // each lane its own
}

cudaError_t expand(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows,
                   const int64_t* offsets, int64_t* counts, int32_t* columns, void* workspace, void* stream) {
  const int64_t capacity = capacity_of(reach);
  const bool in_shared = capacity <= most_shared_members;
  const Warps warps =
      in_shared ? Warps{rows, capacity * int64_t(sizeof(int32_t))} : Warps{workspace_warps(capacity, rows), 0};
  return launch_warps(expand_sets, warps, stream, lists, back, reach, row, rows,
                      in_shared ? nullptr : static_cast<int32_t*>(workspace), capacity, offsets, counts, columns);
}

}  // namespace

int64_t expand_workspace(Reach reach, int64_t rows) {
  const int64_t capacity = capacity_of(reach);
  return capacity <= most_shared_members ? 0 : workspace_warps(capacity, rows) * capacity * int64_t(sizeof(int32_t));
}

int expand_count(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows, int64_t* counts,
                 void* workspace, void* stream) {
  return expand(lists, back, reach, row, rows, nullptr, counts, nullptr, workspace, stream);
}

int expand_fill(Neighbours lists, const int32_t* back, Reach reach, const float* features, int64_t dims, bool squared,
                int64_t row, int64_t rows, const int64_t* offsets, int32_t* columns, float* values, void* workspace,
                void* stream) {
  const cudaError_t sets = expand(lists, back, reach, row, rows, offsets, nullptr, columns, workspace, stream);
  if (sets != cudaSuccess) return sets;
  return launch_warps(weigh, Warps{rows, 0}, stream, lists, features, dims, squared, row, offsets, columns, values);
}

}  // namespace dgfast::cuda
