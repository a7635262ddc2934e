// Python face of the extension (nanobind, tensors by DLPack): the only file here that knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

#include "rerank.hpp"

namespace nb = nanobind;

namespace {

nb::dict build_info() {
  nb::dict info;
  info["cuda"] = bool(DGFAST_WITH_CUDA);
  info["cuda_architectures"] = std::string(DGFAST_CUDA_ARCHITECTURES);
  info["compiler"] = std::string(DGFAST_COMPILER);
  info["instruction_set"] = std::string(dgfast::name(dgfast::instruction_set()));
  info["max_threads"] = dgfast::max_threads();
  return info;
}

int cuda_device_count() {
#if DGFAST_WITH_CUDA
  return dgfast::cuda_devices().count;
#else
  return 0;
#endif
}

}  // namespace

NB_MODULE(_rerank, m) {
  m.doc() = "The compiled part of dgfast: what it was built for, and what the processor and the driver offer.";
  m.def("build_info", &build_info,
        "cuda (bool), cuda_architectures (CMake's notation, '' without CUDA), compiler, instruction_set picked at run "
        "time (scalar, avx2 or avx512), max_threads (of OpenMP).");
  m.def("cuda_device_count", &cuda_device_count,
        "CUDA devices in sight; 0 in a build without CUDA and where there is no driver.");
}
