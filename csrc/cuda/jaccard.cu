// invert: the gallery's weights by column; jaccard: each query against the gallery along these lists, and the final
// distance.
#include "../rerank.hpp"
#include "warp.cuh"

namespace dgfast::cuda {
namespace {

constexpr int64_t most_parts = 64;    // of the rows to invert, each filled in by one warp
constexpr int64_t rows_of_part = 64;  // at least
constexpr int64_t most_sums = 1024;   // queries at work at a time
constexpr int64_t least_sums = 64;
constexpr int64_t sums_bytes = 256 << 20;  // for them, unless least_sums need more
constexpr int threads = 256;

int64_t parts_of(int64_t rows) {
  const int64_t parts = (rows + rows_of_part - 1) / rows_of_part;
  return parts < most_parts ? parts : most_parts;
}

// One warp per row.
__global__ void __launch_bounds__(most_warps* warp_size)
    count_columns(Warps warps, SparseRows weights, int64_t row, unsigned long long* counts) {
  const int64_t r = row + warp_number();
  if (r >= row + warps.count) return;
  for (int64_t p = weights.offsets[r] + lane_number(); p < weights.offsets[r + 1]; p += warp_size) {
    atomicAdd(counts + weights.columns[p], 1ull);
  }
}

// The lists must be ascending by row, whichever warp is faster. So the rows are cut into `warps.count` parts of
// consecutive rows, and places [parts, n] says for each part where in the column's list its first row goes.
__global__ void __launch_bounds__(most_warps* warp_size)
    count_parts(Warps warps, SparseRows weights, int64_t row, int64_t rows, int64_t n, int* places) {
  const int64_t part = warp_number();
  if (part >= warps.count) return;
  const int64_t begin = weights.offsets[row + rows * part / warps.count],
                end = weights.offsets[row + rows * (part + 1) / warps.count];
  for (int64_t p = begin + lane_number(); p < end; p += warp_size) atomicAdd(places + part * n + weights.columns[p], 1);
}

__global__ void __launch_bounds__(threads) add_up_parts(int64_t parts, int64_t n, int* places) {
  const int64_t column = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= n) return;
  int before = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int count = places[part * n + column];
    places[part * n + column] = before;
    before += count;
  }
}

// One warp per part, row by row. Within a row the columns are distinct, so no two lanes write to the same place.
__global__ void __launch_bounds__(most_warps* warp_size)
    fill_parts(Warps warps, SparseRows weights, int64_t row, int64_t rows, int64_t n, int* places,
               const int64_t* __restrict__ offsets, int32_t* __restrict__ rows_of, float* __restrict__ values) {
  const int64_t part = warp_number();
  if (part >= warps.count) return;
  const int64_t end = rows * (part + 1) / warps.count;
  for (int64_t r = rows * part / warps.count; r < end; ++r) {
    for (int64_t p = weights.offsets[row + r] + lane_number(); p < weights.offsets[row + r + 1]; p += warp_size) {
      const int32_t column = weights.columns[p];
      const int64_t place = offsets[column] + places[part * n + column]++;
      rows_of[place] = static_cast<int32_t>(r);
      values[place] = weights.values[p];
    }
    __syncwarp();
  }
}

// One column's list and the query's weight for this column.
struct List {
  int64_t begin, end;
  float weight;
};

// One block per query, or for every gridDim.x-th query; sums [gridDim.x, gallery]. A column's list holds each gallery
// image once, so no two threads write to the same sum. The columns are taken one after another, so every sum is added
// in the order of the query's row.
__global__ void __launch_bounds__(threads)
    combine(SparseRows weights, SparseRows inverted, const float* __restrict__ farthest, int64_t row, int64_t rows,
            int64_t gallery, float lambda, bool squared, float* __restrict__ block, float* sums) {
  List* lists = reinterpret_cast<List*>(dynamic_shared);  // [threads]
  float* sum = sums + blockIdx.x * gallery;
  for (int64_t g = threadIdx.x; g < gallery; g += threads) sum[g] = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t begin = weights.offsets[row + r], end = weights.offsets[row + r + 1];
    for (int64_t from = begin; from < end; from += threads) {
      const int count = static_cast<int>(min(end - from, int64_t(threads)));
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < count) {
        const int64_t p = from + threadIdx.x;
        const int32_t column = weights.columns[p];
        lists[threadIdx.x] = {inverted.offsets[column], inverted.offsets[column + 1], weights.values[p]};
      }
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        const List list = lists[i];
        for (int64_t p = list.begin + threadIdx.x; p < list.end; p += threads) {
          sum[inverted.columns[p]] += fminf(list.weight, inverted.values[p]);
        }
        __syncthreads();
      }
    }
    __syncthreads();
    const float largest = farthest[row + r];
    float* out = block + r * gallery;
    for (int64_t g = threadIdx.x; g < gallery; g += threads) {
      const float common = fminf(sum[g], 1.0f);
      sum[g] = 0;
      const float scaled = largest > 0 ? out[g] / largest : 0.0f;
      out[g] = (1 - lambda) * (1 - common / (2 - common)) + lambda * (squared ? scaled * scaled : scaled);
    }
  }
}

int64_t sums_at_a_time(int64_t rows, int64_t gallery) {
  int64_t count = gallery > 0 ? sums_bytes / (gallery * int64_t(sizeof(float))) : most_sums;
  count = count < least_sums ? least_sums : count > most_sums ? most_sums : count;
  return rows < count ? rows : count;
}

}  // namespace

int invert_count(SparseRows weights, int64_t row, int64_t rows, int64_t n, int64_t* counts, void* stream) {
  const cudaError_t cleared =
      reported(cudaMemsetAsync(counts, 0, n * sizeof(int64_t), static_cast<cudaStream_t>(stream)));
  if (cleared != cudaSuccess) return cleared;
  return launch_warps(count_columns, Warps{rows, 0}, stream, weights, row,
                      reinterpret_cast<unsigned long long*>(counts));
}

int64_t invert_fill_workspace(int64_t n) { return parts_of(n) * n * int64_t(sizeof(int)); }

int invert_fill(SparseRows weights, int64_t row, int64_t rows, int64_t n, const int64_t* offsets, int32_t* rows_of,
                float* values, void* workspace, void* stream) {
  const int64_t parts = parts_of(rows);
  int* places = static_cast<int*>(workspace);
  cudaError_t code = reported(cudaMemsetAsync(places, 0, parts * n * sizeof(int), static_cast<cudaStream_t>(stream)));
  if (code == cudaSuccess) code = launch_warps(count_parts, Warps{parts, 0}, stream, weights, row, rows, n, places);
  if (code == cudaSuccess)
    code = launch(add_up_parts, (n + threads - 1) / threads, threads, 0, stream, parts, n, places);
  if (code == cudaSuccess)
    code = launch_warps(fill_parts, Warps{parts, 0}, stream, weights, row, rows, n, places, offsets, rows_of, values);
  return code;
}

int64_t jaccard_workspace(int64_t rows, int64_t gallery) {
  return sums_at_a_time(rows, gallery) * gallery * int64_t(sizeof(float));
}

int jaccard(SparseRows weights, SparseRows inverted, const float* farthest, int64_t row, int64_t rows, int64_t gallery,
            float lambda, bool squared, float* block, void* workspace, void* stream) {
  return launch(combine, sums_at_a_time(rows, gallery), threads, threads * int64_t(sizeof(List)), stream, weights,
                inverted, farthest, row, rows, gallery, lambda, squared, block, static_cast<float*>(workspace));
}

}  // namespace dgfast::cuda
