// The part of the CUDA runtime and language that csrc/cuda/ uses, on the CPU: found in place of the toolkit's header of
// the same name, it lets g++ compile those sources unchanged, so that tests run every kernel where there is no GPU.
//
// Each thread of a block is a fiber; blocks run one after another. __syncthreads and the warp collectives suspend a
// fiber until all the others have come to the same one, and end the process with a message where the real machine would
// hang or leave the result undefined: some threads gone or at another collective, a mask that is not the whole warp.
// The order in which lanes, warps and blocks run is the test's choice (cuda_on_cpu_schedule), so a missing barrier
// shows as a different result. Shared memory is dynamic only, filled with garbage for each block, and out of bounds
// behind its end (AddressSanitizer builds).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Only `extern __shared__ uint4 name[]` of the sources' namespace is supported; cuda_on_cpu.cpp defines it.
#define __shared__

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CudaOnCpuStream*;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

enum class Collective { block_barrier, block_vote, warp_barrier, shuffle, ballot };

// Suspends the calling thread until its warp (or block) has arrived; returns the 32 values that the lanes brought,
// after a block_vote whether any thread's was not 0.
const uint64_t* meet(Collective kind, unsigned mask, uint64_t value);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(void*), void* arguments);

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t out = 0;
  std::memcpy(&out, &value, sizeof(T));
  return out;
}
template <class T>
T from_bits(uint64_t value) {
  T out;
  std::memcpy(&out, &value, sizeof(T));
  return out;
}
inline int lane() { return threadIdx.x % 32; }

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::meet(cuda_on_cpu::Collective::block_barrier, ~0u, 0); }
inline bool __syncthreads_or(bool predicate) {
  return cuda_on_cpu::meet(cuda_on_cpu::Collective::block_vote, ~0u, predicate)[0] != 0;
}
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::meet(cuda_on_cpu::Collective::warp_barrier, mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  const uint64_t* all = cuda_on_cpu::meet(cuda_on_cpu::Collective::shuffle, mask, cuda_on_cpu::bits(value));
  return cuda_on_cpu::from_bits<T>(all[source % 32]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
  return __shfl_sync(mask, value, cuda_on_cpu::lane() ^ flip);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* all = cuda_on_cpu::meet(cuda_on_cpu::Collective::ballot, mask, predicate);
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= unsigned(all[i]) << i;
  return out;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::from_bits<unsigned>(cuda_on_cpu::bits(x)); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::from_bits<float>(x); }
template <class T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place = old + value;
  return old;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

cudaError_t cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t code);
cudaError_t cuda_on_cpu_allow_shared(const void* kernel, cudaFuncAttribute which, int bytes);

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute which, int value) {
  return cuda_on_cpu_allow_shared(reinterpret_cast<const void*>(kernel), which, value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  auto thread = [&] { kernel(Parameters(arguments)...); };
  const auto call = [](void* made) { (*static_cast<decltype(thread)*>(made))(); };
  return cuda_on_cpu::launch(*config, reinterpret_cast<const void*>(kernel), call, &thread);
}

// The order in which lanes, warps and blocks run from here on: 0 ascending, 1 descending, any other value shuffles them
// with that seed. It must not change a result.
extern "C" void cuda_on_cpu_schedule(int schedule);
