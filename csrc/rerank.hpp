// The interface of the re-ranking extension. Below it there is no Python; bindings.cpp is the only file above it.
#pragma once

namespace dgfast {

// Instruction sets the CPU path has code for, slowest first.
enum class InstructionSet { scalar, avx2, avx512 };

// The fastest instruction set that this processor runs, found once.
InstructionSet instruction_set();

const char* name(InstructionSet set);

// Threads an OpenMP parallel region may use; 1 in a build without OpenMP.
int max_threads();

// A CUDA runtime call's outcome: code 0 is success.
struct CudaDevices {
  int count;
  int code;
};

// The CUDA devices in sight; count 0 with the runtime's code where there is no driver. CUDA builds only.
CudaDevices cuda_devices();

// The CUDA runtime's text for a code. CUDA builds only.
const char* cuda_error_text(int code);

}  // namespace dgfast
