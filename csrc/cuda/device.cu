// What the CUDA runtime sees: devices, and the text of its errors.
#include <cuda_runtime.h>

#include "../rerank.hpp"

namespace dgfast {

CudaDevices cuda_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  return {code == cudaSuccess ? count : 0, static_cast<int>(code)};
}

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace dgfast
