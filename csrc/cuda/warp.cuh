// What the steps share: the launch, a warp that works alone on one image, sorting and ranking within a warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dgfast::cuda {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = ~0u;

// What one block may use of shared memory, so that it runs on every GPU the code is built for: consumer cards have 99
// KiB.
constexpr int64_t most_shared_bytes = 96 << 10;
constexpr int64_t plain_shared_bytes = 48 << 10;  // more must be asked for, and leaves room for few blocks

// All shared memory is dynamic: its size depends on k1.
extern __shared__ uint4 dynamic_shared[];

// An error for the caller. The runtime keeps the last error until it is asked for it; here it is asked, so that a later
// call does not report this error as its own.
inline cudaError_t reported(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return code;
}

// Enqueues the kernel. Returns the launch's own error; nothing is waited for.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
                   Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX || shared_bytes > most_shared_bytes) return cudaErrorInvalidValue;
  if (shared_bytes > plain_shared_bytes) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (allowed != cudaSuccess) return reported(allowed);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return reported(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Warps that work alone, each with its own part of shared memory, in blocks of at most four.
struct Warps {
  int64_t count;
  int64_t shared_bytes;  // of each, a multiple of 16
};
constexpr int most_warps = 4;

template <class... Parameters, class... Arguments>
cudaError_t launch_warps(void (*kernel)(Warps, Parameters...), Warps warps, void* stream, Arguments... arguments) {
  warps.shared_bytes = (warps.shared_bytes + 15) / 16 * 16;
  int in_block = most_warps;
  while (in_block > 1 && in_block * warps.shared_bytes > plain_shared_bytes) in_block /= 2;
  return launch(kernel, (warps.count + in_block - 1) / in_block, in_block * warp_size, in_block * warps.shared_bytes,
                stream, warps, arguments...);
}

// The calling warp's number among `Warps::count` (or above: then it has nothing to do), and its shared memory.
__device__ inline int64_t warp_number() {
  return int64_t(blockIdx.x) * (blockDim.x / warp_size) + threadIdx.x / warp_size;
}
__device__ inline int lane_number() { return static_cast<int>(threadIdx.x % warp_size); }
__device__ inline void* warp_shared(const Warps& warps) {
  return reinterpret_cast<unsigned char*>(dynamic_shared) + int64_t(threadIdx.x / warp_size) * warps.shared_bytes;
}

// Of the lanes set in a ballot, how many come before mine.
__device__ inline int place_among(unsigned ballot, int lane) { return __popc(ballot & ((1u << lane) - 1)); }

__host__ __device__ inline int64_t next_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// The warp sorts values[0, size) ascending; size is a power of two. Bitonic: the steps depend on the size alone.
template <class T>
__device__ void sort(T* values, int size, int lane) {
#pragma unroll 1  // unrolled loops of barriers cost registers and gain nothing
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int step = run / 2; step > 0; step /= 2) {
      __syncwarp();
#pragma unroll 1
      for (int i = lane; i < size / 2; i += warp_size) {
        const int low = 2 * i - (i & (step - 1));
        const int high = low + step;
        const T a = values[low], b = values[high];
        if ((a > b) == ((low & run) == 0)) {
          values[low] = b;
          values[high] = a;
        }
      }
    }
  }
  __syncwarp();
}

// How many of the ascending values[0, size) are below x.
template <class Size, class T>
__device__ Size count_below(const T* values, Size size, T x) {
  Size low = 0;
#pragma unroll 1
  while (size > 0) {
    const Size half = size / 2;
    if (values[low + half] < x) {
      low += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  return low;
}

}  // namespace dgfast::cuda
