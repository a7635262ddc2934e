// reciprocal: where each image stands among the neighbours of its neighbours.
#include "../rerank.hpp"
#include "warp.cuh"

namespace dgfast::cuda {
namespace {

// One warp per image, one lane per neighbour: the rows of all lanes are loaded together, and each is read from the
// cache after its first line.
__global__ void __launch_bounds__(most_warps* warp_size)
    find_places(Warps warps, Neighbours lists, int64_t near, int32_t* __restrict__ back) {
  const int64_t i = warp_number();
  if (i >= warps.count) return;
  for (int64_t a = lane_number(); a < near; a += warp_size) {
    const int32_t* row = lists.indices + lists.indices[i * lists.k + a] * lists.k;
    int64_t b = 0;
    while (b < near && row[b] != i) ++b;
    back[i * near + a] = static_cast<int32_t>(b);
  }
}

}  // namespace

int reciprocal(Neighbours lists, int64_t near, int32_t* back, void* stream) {
  return launch_warps(find_places, Warps{lists.n, 0}, stream, lists, near, back);
}

}  // namespace dgfast::cuda
