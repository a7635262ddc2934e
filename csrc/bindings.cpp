// The Python module dgfast._rerank: how it was built, work on several threads, and the submodules cpu and cuda.
#include "bindings.hpp"

#include <exception>
#include <string>

using namespace nanobind::literals;

namespace dgfast {
namespace {

nb::dict build_info() {
  nb::dict info;
  info["cuda"] = bool(DGFAST_WITH_CUDA);
  info["cuda_architectures"] = std::string(DGFAST_CUDA_ARCHITECTURES);
  info["compiler"] = std::string(DGFAST_COMPILER);
  info["instruction_set"] = std::string(name(instruction_set()));
  info["max_threads"] = max_threads();
  return info;
}

void on_threads(int64_t count, const nb::callable& work) {
  std::exception_ptr error;
  {
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
      nb::gil_scoped_acquire acquire;  // guards `error` too
      if (error) continue;             // what has not begun is left out
      try {
        work(i);
      } catch (...) {
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace
}  // namespace dgfast

namespace nb = nanobind;

NB_MODULE(_rerank, m) {
  m.doc() =
      "The compiled part of dgfast: the steps of re-ranking in the submodules cpu and, in CUDA builds, cuda. "
      "csrc/rerank.hpp says what each step does; dgfast.retrieval is its user.";
  m.def("build_info", &dgfast::build_info,
        "cuda (bool), cuda_architectures (CMake's notation, '' without CUDA), compiler, instruction_set that was "
        "chosen for this processor (scalar, avx2 or avx512), max_threads (of OpenMP).");
  m.def("on_threads", &dgfast::on_threads, "count"_a, "work"_a,
        "Call work(0) .. work(count - 1) on OpenMP's threads, in any order; an exception of one is raised here.");
  nb::module_ cpu = m.def_submodule("cpu", "The steps on the CPU.");
  dgfast::bind_cpu(cpu);
#if DGFAST_WITH_CUDA
  nb::module_ cuda = m.def_submodule("cuda", "The steps on a CUDA device; arrays by DLPack, the stream as an integer.");
  dgfast::bind_cuda(cuda);
#endif
}
