// The text of the CUDA runtime's errors.
#include <cuda_runtime.h>

#include "../rerank.hpp"

namespace dgfast {

const char* cuda_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace dgfast
