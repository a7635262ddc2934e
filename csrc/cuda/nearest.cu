// nearest: a block of inner products becomes squared distances in place and enters the lists of its rows and, where the
// matrix is symmetric, of its columns. Both directions keep what beats the list's last entry in a small buffer (few do,
// once a list has filled) and merge the sorted buffer into the list. A list is the k smallest keys (d2, id) of what it
// was shown, so neither the order of the blocks nor that of the threads shows in it.
#include "../rerank.hpp"
#include "warp.cuh"

namespace dgfast::cuda {
namespace {

constexpr int longest = 4096;      // list: it is merged in shared memory
constexpr int row_step = 8;        // values of a row that a lane holds at a time: loads in flight
constexpr int row_buffer = 512;    // keys
constexpr int column_step = 8;     // rows after which the buffers are checked for room
constexpr int column_buffer = 16;  // keys of one column that one warp holds back
constexpr int column_pitch = warp_size + 1;
constexpr int most_column_warps = 8;

// Distances are not negative, so their bits are in their order; the id decides between equals.
using Key = uint64_t;
constexpr Key empty = Key(0x7f800000) << 32 | INT32_MAX;  // (infinity, INT32_MAX)
constexpr Key beyond = ~Key(0);                           // fills a buffer up for sorting

__device__ Key key_of(float distance, int32_t id) {
  return Key(__float_as_uint(distance)) << 32 | static_cast<uint32_t>(id);
}
__device__ float distance_of(Key key) { return __uint_as_float(static_cast<unsigned>(key >> 32)); }
__device__ int32_t id_of(Key key) { return static_cast<int32_t>(key & 0xffffffffu); }

__device__ float squared_distance(float product, float norm, float other_norm, bool self) {
  const float sum = norm + other_norm;
  const float distance = sum - 2 * product;
  return self || distance <= zero_below * sum ? 0.0f : distance;
}

// The warp gives place(rank, key) the first k of the ascending list[0, k) and fresh[0, count) together.
template <class Place>
__device__ void merge(const Key* list, int k, const Key* fresh, int count, int lane, Place place) {
  for (int i = lane; i < k; i += warp_size) {
    const int rank = i + count_below(fresh, count, list[i]);
    if (rank < k) place(rank, list[i]);
  }
  for (int i = lane; i < count; i += warp_size) {
    const int rank = i + count_below(list, k, fresh[i] + 1);
    if (rank < k) place(rank, fresh[i]);
  }
}

__device__ void sort_buffer(Key* buffer, int count, int lane) {
  const int size = static_cast<int>(next_power_of_two(count));
  for (int i = count + lane; i < size; i += warp_size) buffer[i] = beyond;
  sort(buffer, size, lane);
}

__global__ void __launch_bounds__(most_warps* warp_size) start_lists(Warps warps, Lists lists) {
  const int64_t row = warp_number();
  if (row >= warps.count) return;
  for (int64_t i = lane_number(); i < lists.k; i += warp_size) {
    lists.distances[row * lists.k + i] = distance_of(empty);
    lists.indices[row * lists.k + i] = id_of(empty);
  }
  if (lane_number() == 0) lists.farthest[row] = 0;
}

// One warp per row. Its shared memory holds two lists and the buffer.
__global__ void __launch_bounds__(most_warps* warp_size)
    enter_rows(Warps warps, Block block, const float* __restrict__ norms, Lists lists, bool symmetric) {
  const int64_t r = warp_number();
  if (r >= warps.count) return;
  const int lane = lane_number(), k = static_cast<int>(lists.k);
  Key* list = static_cast<Key*>(warp_shared(warps));
  Key* spare = list + k;
  Key* buffer = spare + k;
  const int64_t row = block.row + r, place = row - lists.first;
  float* distances = lists.distances + place * k;
  int32_t* indices = lists.indices + place * k;
  for (int i = lane; i < k; i += warp_size) list[i] = key_of(distances[i], indices[i]);
  __syncwarp();

  Key threshold = list[k - 1];
  int held = 0;
  const auto empty_buffer = [&] {
    sort_buffer(buffer, held, lane);
    merge(list, k, buffer, held, lane, [&](int rank, Key key) { spare[rank] = key; });
    __syncwarp();
    Key* old = list;
    list = spare;
    spare = old;
    threshold = list[k - 1];
    held = 0;
  };

  float* values = block.values + r * block.stride;
  const float norm = norms[row];
  float farthest = 0;
  const int64_t first = symmetric ? max(row - block.column, int64_t(0)) : 0;
  for (int64_t from = first; from < block.columns; from += row_step * warp_size) {
    float d[row_step];
#pragma unroll
    for (int u = 0; u < row_step; ++u) {
      const int64_t c = from + u * warp_size + lane;
      if (c < block.columns) d[u] = squared_distance(values[c], norm, norms[block.column + c], block.column + c == row);
    }
#pragma unroll
    for (int u = 0; u < row_step; ++u) {
      const int64_t c = from + u * warp_size + lane;
      const bool valid = c < block.columns;
      Key key = beyond;
      if (valid) {
        values[c] = d[u];
        farthest = fmaxf(farthest, d[u]);
        key = key_of(d[u], static_cast<int32_t>(block.column + c));
      }
      const bool nearer = key < threshold;
      const unsigned ballot = __ballot_sync(all_lanes, nearer);
      if (nearer) buffer[held + place_among(ballot, lane)] = key;
      held += __popc(ballot);
    }
    if (held > row_buffer - row_step * warp_size) empty_buffer();
  }
  if (held > 0) empty_buffer();

  for (int i = lane; i < k; i += warp_size) {
    distances[i] = distance_of(list[i]);
    indices[i] = id_of(list[i]);
  }
  for (int flip = warp_size / 2; flip > 0; flip /= 2)
    farthest = fmaxf(farthest, __shfl_xor_sync(all_lanes, farthest, flip));
  if (lane == 0) lists.farthest[place] = fmaxf(lists.farthest[place], farthest);
}

// The shared memory of enter_columns.
struct ColumnSpace {
  int64_t k, warps;
  __host__ __device__ int64_t keys_of_warp() const { return warps * column_buffer + k; }
  __host__ __device__ int64_t bytes() const {
    const int64_t keys = warps * column_buffer * column_pitch + warps * keys_of_warp() + warp_size;
    return keys * int64_t(sizeof(Key)) + 2 * warps * warp_size * int64_t(sizeof(int));
  }
};

// One thread block per 32 columns of a symmetric block, whose squared distances above the diagonal are read. A lane
// takes a column and a warp some of the rows, so that a warp loads whole cache lines. All buffers are emptied when one
// is nearly full.
__global__ void __launch_bounds__(most_column_warps* warp_size) enter_columns(Block block, Lists lists) {
  const int warps = static_cast<int>(blockDim.x / warp_size), warp = static_cast<int>(threadIdx.x / warp_size),
            lane = lane_number();
  const int k = static_cast<int>(lists.k);
  const ColumnSpace space{k, warps};
  Key* buffers =
      reinterpret_cast<Key*>(dynamic_shared);  // [warps, column_buffer, column_pitch]: a lane's column by column_pitch
  Key* fresh =
      buffers + warps * column_buffer * column_pitch + warp * space.keys_of_warp();  // one column's, of all warps
  Key* list = fresh + warps * column_buffer;
  Key* thresholds = buffers + warps * column_buffer * column_pitch + warps * space.keys_of_warp();  // [32]
  int* counts = reinterpret_cast<int*>(thresholds + warp_size);                                     // [warps, 32]
  float* maxima = reinterpret_cast<float*>(counts + warps * warp_size);                             // [warps, 32]

  const int64_t first = int64_t(blockIdx.x) * warp_size, c = first + lane;
  const auto rows_above = [&](int64_t column) {
    return min(max(block.column + column - block.row, int64_t(0)), block.rows);
  };
  const int64_t most_rows = rows_above(min(first + warp_size, block.columns) - 1);
  if (most_rows == 0) return;
  const int64_t rows = c < block.columns ? rows_above(c) : 0;

  Key threshold = 0;
  if (c < block.columns) {
    const int64_t last = (block.column + c + 1) * k - 1;
    threshold = key_of(lists.distances[last], lists.indices[last]);
  }
  if (warp == 0) thresholds[lane] = threshold;
  int held = 0;
  const auto empty_buffers = [&] {
    counts[warp * warp_size + lane] = held;
    held = 0;
    __syncthreads();
    for (int other = warp; other < warp_size; other += warps) {
      int count = 0;
      for (int w = 0; w < warps; ++w) {
        const int part = counts[w * warp_size + other];
        if (lane < part) fresh[count + lane] = buffers[(w * column_buffer + lane) * column_pitch + other];
        count += part;
      }
      if (count == 0) continue;
      const int64_t place = (block.column + first + other) * k;
      for (int i = lane; i < k; i += warp_size) list[i] = key_of(lists.distances[place + i], lists.indices[place + i]);
      __syncwarp();
      sort_buffer(fresh, count, lane);
      merge(list, k, fresh, count, lane, [&](int rank, Key key) {
        lists.distances[place + rank] = distance_of(key);
        lists.indices[place + rank] = id_of(key);
        if (rank == k - 1) thresholds[other] = key;
      });
      __syncwarp();
    }
    __syncthreads();
    threshold = thresholds[lane];
  };

  float farthest = 0;
  for (int64_t from = 0; from < most_rows; from += warps * column_step) {
    const int64_t r = from + warp * column_step;
    float d[column_step];
#pragma unroll
    for (int u = 0; u < column_step; ++u) {
      if (r + u < rows) d[u] = block.values[(r + u) * block.stride + c];
    }
#pragma unroll
    for (int u = 0; u < column_step; ++u) {
      if (r + u < rows) {
        farthest = fmaxf(farthest, d[u]);
        const Key key = key_of(d[u], static_cast<int32_t>(block.row + r + u));
        if (key < threshold) buffers[(warp * column_buffer + held++) * column_pitch + lane] = key;
      }
    }
    if (__syncthreads_or(held > column_buffer - column_step)) empty_buffers();
  }
  empty_buffers();

  maxima[warp * warp_size + lane] = farthest;
  __syncthreads();
  if (warp == 0 && rows > 0) {
    for (int w = 1; w < warps; ++w) farthest = fmaxf(farthest, maxima[w * warp_size + lane]);
    float* place = lists.farthest + block.column + c;
    *place = fmaxf(*place, farthest);
  }
}

// One warp per piece of a row.
constexpr int64_t piece = 4096;
__global__ void __launch_bounds__(most_warps* warp_size)
    turn_into_distances(Warps warps, Block block, const float* __restrict__ norms, int64_t pieces) {
  const int64_t number = warp_number();
  if (number >= warps.count) return;
  const int64_t r = number / pieces, from = number % pieces * piece, row = block.row + r;
  float* values = block.values + r * block.stride;
  const float norm = norms[row];
  const int64_t end = min(from + piece, block.columns);
#pragma unroll 4
  for (int64_t c = from + lane_number(); c < end; c += warp_size) {
    values[c] = squared_distance(values[c], norm, norms[block.column + c], block.column + c == row);
  }
}

}  // namespace

int64_t longest_list() { return longest; }

int nearest_start(Lists lists, int64_t rows, void* stream) {
  return launch_warps(start_lists, Warps{rows, 0}, stream, lists);
}

int nearest_block(Block block, const float* norms, Lists lists, bool symmetric, void* stream) {
  if (block.rows == 0 || block.columns == 0) return cudaSuccess;
  if (lists.k > longest) return cudaErrorInvalidValue;
  const int64_t row_bytes = (2 * lists.k + row_buffer) * int64_t(sizeof(Key));
  const cudaError_t rows =
      launch_warps(enter_rows, Warps{block.rows, row_bytes}, stream, block, norms, lists, symmetric);
  if (rows != cudaSuccess || !symmetric) return rows;
  ColumnSpace space{lists.k, most_column_warps};
  while (space.warps > 1 && space.bytes() > plain_shared_bytes) space.warps /= 2;
  return launch(enter_columns, (block.columns + warp_size - 1) / warp_size, static_cast<int>(space.warps) * warp_size,
                space.bytes(), stream, block, lists);
}

int distances_block(Block block, const float* norms, void* stream) {
  const int64_t pieces = (block.columns + piece - 1) / piece;
  return launch_warps(turn_into_distances, Warps{block.rows * pieces, 0}, stream, block, norms, pieces);
}

}  // namespace dgfast::cuda
