// Python face of the extension (nanobind, tensors by DLPack): the only file here that knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include "rerank.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using dgfast::Block;
using dgfast::InstructionSet;
using dgfast::Lists;
using dgfast::Neighbours;
using dgfast::Reach;
using dgfast::SparseRows;

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

// Calls work(0) .. work(count - 1) on OpenMP's threads, in any order, and raises the first exception that one raised;
// the calls that had not begun by then are left out.
void on_threads(int64_t count, const nb::callable& work) {
  std::exception_ptr error;
  {
    nb::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
      nb::gil_scoped_acquire acquire;  // guards `error` too
      if (error) continue;
      try {
        work(i);
      } catch (...) {
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

// "" is the fastest this processor runs.
InstructionSet instruction_set(const std::string& name) {
  if (name.empty()) return dgfast::instruction_set();
  for (const auto set : {InstructionSet::scalar, InstructionSet::avx2, InstructionSet::avx512})
    if (name == dgfast::name(set) && set <= dgfast::instruction_set()) return set;
  throw nb::value_error(("instruction set '" + name + "' is not one that this processor runs").c_str());
}

void check(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

// Arrays on one device. Every argument is bound with noconvert(): a wrong dtype is an error and not a silent copy.
template <typename Device>
struct On {
  template <typename T, size_t dims>
  using Array = nb::ndarray<T, nb::ndim<dims>, nb::c_contig, Device>;
  using Matrix = Array<float, 2>;
  using Vector = Array<const float, 1>;
  using Offsets = Array<const int64_t, 1>;
  using Counts = Array<int64_t, 1>;
  using Columns = Array<const int32_t, 1>;

  static Block block(const Matrix& values, int64_t row, int64_t column, const Vector& norms) {
    const Block made{values.data(), int64_t(values.shape(1)), row, int64_t(values.shape(0)),
                     column,        int64_t(values.shape(1))};
    const int64_t n = norms.shape(0);
    check(row >= 0 && column >= 0 && row + made.rows <= n && column + made.columns <= n,
          "block: it reaches past the norms");
    check(n <= INT32_MAX, "block: image ids are 32 bits wide");
    return made;
  }

  static Lists lists(const Matrix& distances, const Array<int32_t, 2>& indices, const Array<float, 1>& farthest,
                     int64_t first) {
    check(distances.shape(0) == indices.shape(0) && distances.shape(1) == indices.shape(1) &&
              distances.shape(0) == farthest.shape(0) && distances.shape(1) > 0 && first >= 0,
          "lists: expected distances and indices [rows, k], farthest [rows]");
    return {distances.data(), indices.data(), farthest.data(), first, int64_t(distances.shape(1))};
  }

  static void check_served(const Block& block, const Lists& lists, int64_t rows, bool symmetric, int64_t n) {
    if (symmetric)
      return check(lists.first == 0 && rows == n, "nearest_block: a symmetric block needs the lists of all images");
    check(block.row >= lists.first && block.row + block.rows <= lists.first + rows,
          "nearest_block: no lists for the block's rows");
  }

  static Neighbours neighbours(const Array<const float, 2>& distances, const Array<const int32_t, 2>& indices,
                               const Vector& farthest) {
    check(distances.shape(0) == indices.shape(0) && distances.shape(1) == indices.shape(1) &&
              distances.shape(0) == farthest.shape(0),
          "neighbours: expected distances and indices [n, k], farthest [n]");
    return {distances.data(), indices.data(), farthest.data(), int64_t(indices.shape(0)), int64_t(indices.shape(1))};
  }

  static Reach reach(const Neighbours& lists, const Array<const int32_t, 2>& back, int64_t half) {
    check(int64_t(back.shape(0)) == lists.n && int64_t(back.shape(1)) <= lists.k && half >= 1 &&
              half <= int64_t(back.shape(1)),
          "expand: expected back [n, near], near <= k, 1 <= half <= near");
    return {int64_t(back.shape(1)), half};
  }

  static SparseRows sparse(const Offsets& offsets, const Columns& columns, const Vector& values) {
    check(offsets.shape(0) > 0 && columns.shape(0) == values.shape(0),
          "sparse rows: expected offsets [n + 1], columns and values alike");
    return {offsets.data(), columns.data(), values.data()};
  }
};

void check_rows(int64_t row, int64_t rows, int64_t n) {
  check(row >= 0 && rows >= 0 && row + rows <= n, "the rows reach past the images");
}

void bind_cpu(nb::module_& m) {
  using C = On<nb::device::cpu>;

  m.def(
      "nearest_start",
      [](C::Matrix distances, C::Array<int32_t, 2> indices, C::Array<float, 1> farthest) {
        const Lists lists = C::lists(distances, indices, farthest, 0);
        nb::gil_scoped_release release;
        dgfast::cpu::nearest_start(lists, distances.shape(0));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert());

  m.def(
      "nearest_block",
      [](C::Matrix values, int64_t row, int64_t column, C::Vector norms, C::Matrix distances,
         C::Array<int32_t, 2> indices, C::Array<float, 1> farthest, int64_t first, bool symmetric,
         const std::string& set) {
        const Block block = C::block(values, row, column, norms);
        const Lists lists = C::lists(distances, indices, farthest, first);
        C::check_served(block, lists, distances.shape(0), symmetric, norms.shape(0));
        const InstructionSet chosen = instruction_set(set);
        nb::gil_scoped_release release;
        dgfast::cpu::nearest_block(block, norms.data(), lists, symmetric, chosen);
      },
      "values"_a.noconvert(), "row"_a, "column"_a, "norms"_a.noconvert(), "distances"_a.noconvert(),
      "indices"_a.noconvert(), "farthest"_a.noconvert(), "first"_a, "symmetric"_a, "instruction_set"_a = "");

  m.def(
      "distances_block",
      [](C::Matrix values, int64_t row, int64_t column, C::Vector norms, const std::string& set) {
        const Block block = C::block(values, row, column, norms);
        const InstructionSet chosen = instruction_set(set);
        nb::gil_scoped_release release;
        dgfast::cpu::distances_block(block, norms.data(), chosen);
      },
      "values"_a.noconvert(), "row"_a, "column"_a, "norms"_a.noconvert(), "instruction_set"_a = "");

  m.def(
      "reciprocal",
      [](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
         C::Array<int32_t, 2> back) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        C::reach(lists, C::Array<const int32_t, 2>(back), 1);
        nb::gil_scoped_release release;
        dgfast::cpu::reciprocal(lists, back.shape(1), back.data());
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert());

  m.def(
      "expand_count",
      [](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
         C::Array<const int32_t, 2> back, int64_t half, int64_t row, C::Counts counts) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const Reach reach = C::reach(lists, back, half);
        check_rows(row, counts.shape(0), lists.n);
        nb::gil_scoped_release release;
        dgfast::cpu::expand_count(lists, back.data(), reach, row, counts.shape(0), counts.data());
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert(), "half"_a,
      "row"_a, "counts"_a.noconvert());

  m.def(
      "expand_fill",
      [](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
         C::Array<const int32_t, 2> back, int64_t half, C::Array<const float, 2> features, bool squared, int64_t row,
         C::Offsets offsets, C::Array<int32_t, 1> columns, C::Array<float, 1> values, const std::string& set) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const Reach reach = C::reach(lists, back, half);
        const int64_t rows = int64_t(offsets.shape(0)) - 1;
        check_rows(row, rows, lists.n);
        check(int64_t(features.shape(0)) == lists.n, "expand_fill: expected features [n, dims]");
        check(offsets.data()[rows] <= int64_t(columns.shape(0)) && columns.shape(0) == values.shape(0),
              "expand_fill: too little room");
        const InstructionSet chosen = instruction_set(set);
        nb::gil_scoped_release release;
        dgfast::cpu::expand_fill(lists, back.data(), reach, features.data(), features.shape(1), squared, row, rows,
                                 offsets.data(), columns.data(), values.data(), chosen);
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert(), "half"_a,
      "features"_a.noconvert(), "squared"_a, "row"_a, "offsets"_a.noconvert(), "columns"_a.noconvert(),
      "values"_a.noconvert(), "instruction_set"_a = "");

  m.def(
      "average_count",
      [](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest, int64_t k2,
         C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Counts counts) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const SparseRows weights = C::sparse(offsets, columns, values);
        check(int64_t(offsets.shape(0)) == lists.n + 1 && k2 >= 1 && k2 <= lists.k,
              "average: expected n rows and 1 <= k2 <= k");
        check_rows(row, counts.shape(0), lists.n);
        nb::gil_scoped_release release;
        dgfast::cpu::average_count(lists, k2, weights, row, counts.shape(0), counts.data());
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "k2"_a, "offsets"_a.noconvert(),
      "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "counts"_a.noconvert());

  m.def(
      "average_fill",
      [](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest, int64_t k2,
         C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Offsets new_offsets,
         C::Array<int32_t, 1> new_columns, C::Array<float, 1> new_values) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t rows = int64_t(new_offsets.shape(0)) - 1;
        check(int64_t(offsets.shape(0)) == lists.n + 1 && k2 >= 1 && k2 <= lists.k,
              "average: expected n rows and 1 <= k2 <= k");
        check_rows(row, rows, lists.n);
        check(new_offsets.data()[rows] <= int64_t(new_columns.shape(0)) && new_columns.shape(0) == new_values.shape(0),
              "average_fill: too little room");
        nb::gil_scoped_release release;
        dgfast::cpu::average_fill(lists, k2, weights, row, rows, new_offsets.data(), new_columns.data(),
                                  new_values.data());
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "k2"_a, "offsets"_a.noconvert(),
      "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "new_offsets"_a.noconvert(),
      "new_columns"_a.noconvert(), "new_values"_a.noconvert());

  m.def(
      "invert_count",
      [](C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Counts counts) {
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t n = counts.shape(0);
        check(int64_t(offsets.shape(0)) == n + 1 && row >= 0 && row <= n, "invert: expected n rows of n columns");
        nb::gil_scoped_release release;
        dgfast::cpu::invert_count(weights, row, n - row, n, counts.data());
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "counts"_a.noconvert());

  m.def(
      "invert_fill",
      [](C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Offsets list_offsets,
         C::Array<int32_t, 1> rows_of, C::Array<float, 1> list_values) {
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t n = int64_t(offsets.shape(0)) - 1;
        check(int64_t(list_offsets.shape(0)) == n + 1 && row >= 0 && row <= n, "invert: expected n rows of n columns");
        check(list_offsets.data()[n] == int64_t(rows_of.shape(0)) && rows_of.shape(0) == list_values.shape(0),
              "invert_fill: expected room for every entry");
        nb::gil_scoped_release release;
        dgfast::cpu::invert_fill(weights, row, n - row, n, list_offsets.data(), rows_of.data(), list_values.data());
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "list_offsets"_a.noconvert(),
      "rows_of"_a.noconvert(), "list_values"_a.noconvert());

  m.def(
      "jaccard",
      [](C::Offsets offsets, C::Columns columns, C::Vector values, C::Offsets list_offsets, C::Columns rows_of,
         C::Vector list_values, C::Vector farthest, int64_t row, float lambda, bool squared, C::Matrix block) {
        const SparseRows weights = C::sparse(offsets, columns, values),
                         lists = C::sparse(list_offsets, rows_of, list_values);
        check(offsets.shape(0) == farthest.shape(0) + 1 && list_offsets.shape(0) == offsets.shape(0),
              "jaccard: expected n rows and n lists");
        check_rows(row, block.shape(0), farthest.shape(0));
        nb::gil_scoped_release release;
        dgfast::cpu::jaccard(weights, lists, farthest.data(), row, block.shape(0), block.shape(1), lambda, squared,
                             block.data());
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "list_offsets"_a.noconvert(),
      "rows_of"_a.noconvert(), "list_values"_a.noconvert(), "farthest"_a.noconvert(), "row"_a, "lambda_"_a, "squared"_a,
      "block"_a.noconvert());

  m.def(
      "smallest",
      [](C::Array<const float, 2> values, C::Matrix distances, C::Array<int32_t, 2> indices, const std::string& set) {
        check(values.shape(0) == distances.shape(0) && distances.shape(0) == indices.shape(0) &&
                  distances.shape(1) == indices.shape(1) && distances.shape(1) > 0 &&
                  distances.shape(1) <= values.shape(1),
              "smallest: expected values [rows, columns], distances and indices [rows, k], 1 <= k <= columns");
        const InstructionSet chosen = instruction_set(set);
        const Lists lists{distances.data(), indices.data(), nullptr, 0, int64_t(distances.shape(1))};
        nb::gil_scoped_release release;
        dgfast::cpu::smallest(values.data(), values.shape(0), values.shape(1), lists, chosen);
      },
      "values"_a.noconvert(), "distances"_a.noconvert(), "indices"_a.noconvert(), "instruction_set"_a = "");

  const auto hit_ranks = [](auto values, C::Offsets hit_offsets, C::Columns hits, C::Offsets ignored_offsets,
                            C::Columns ignored, C::Columns junk, C::Counts ranks, const std::string& set) {
    const int64_t rows = values.shape(0), columns = values.shape(1);
    check(int64_t(hit_offsets.shape(0)) == rows + 1 && int64_t(ignored_offsets.shape(0)) == rows + 1 &&
              hit_offsets.data()[rows] == int64_t(hits.shape(0)) &&
              ignored_offsets.data()[rows] == int64_t(ignored.shape(0)) && hits.shape(0) == ranks.shape(0),
          "hit_ranks: the lists do not fit the rows");
    for (const auto& list : {hits, ignored, junk})
      check(std::all_of(list.data(), list.data() + list.shape(0), [&](int32_t c) { return c >= 0 && c < columns; }),
            "hit_ranks: a column is out of range");
    const InstructionSet chosen = instruction_set(set);
    nb::gil_scoped_release release;
    return dgfast::cpu::hit_ranks(values.data(), rows, columns, {hit_offsets.data(), hits.data()},
                                  {ignored_offsets.data(), ignored.data()}, junk.data(), int64_t(junk.shape(0)),
                                  ranks.data(), chosen);
  };
  const auto def_hit_ranks = [&]<typename T>(T) {
    m.def(
        "hit_ranks",
        [hit_ranks](C::Array<const T, 2> values, C::Offsets hit_offsets, C::Columns hits, C::Offsets ignored_offsets,
                    C::Columns ignored, C::Columns junk, C::Counts ranks, const std::string& set) {
          return hit_ranks(values, hit_offsets, hits, ignored_offsets, ignored, junk, ranks, set);
        },
        "values"_a.noconvert(), "hit_offsets"_a.noconvert(), "hits"_a.noconvert(), "ignored_offsets"_a.noconvert(),
        "ignored"_a.noconvert(), "junk"_a.noconvert(), "ranks"_a.noconvert(), "instruction_set"_a = "");
  };
  def_hit_ranks(float{});
  def_hit_ranks(double{});
}

#if DGFAST_WITH_CUDA
void check_cuda(int code) {
  if (code) throw std::runtime_error(std::string("CUDA: ") + dgfast::cuda_error_text(code));
}

void bind_cuda(nb::module_& m) {
  using C = On<nb::device::cuda>;
  using Workspace = C::Array<uint8_t, 1>;
  const auto as_stream = [](uintptr_t stream) { return reinterpret_cast<void*>(stream); };
  const auto room = [](const Workspace& workspace, int64_t needed) {
    check(int64_t(workspace.shape(0)) >= needed, "the workspace is too small");
    return static_cast<void*>(workspace.data());
  };

  m.def("longest_list", &dgfast::cuda::longest_list);

  m.def(
      "nearest_start",
      [=](C::Matrix distances, C::Array<int32_t, 2> indices, C::Array<float, 1> farthest, uintptr_t stream) {
        check_cuda(dgfast::cuda::nearest_start(C::lists(distances, indices, farthest, 0), distances.shape(0),
                                               as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "stream"_a);

  m.def(
      "nearest_block_workspace",
      [](int64_t rows, int64_t columns, int64_t k, bool symmetric) {
        return dgfast::cuda::nearest_block_workspace({nullptr, columns, 0, rows, 0, columns},
                                                     {nullptr, nullptr, nullptr, 0, k}, symmetric);
      },
      "rows"_a, "columns"_a, "k"_a, "symmetric"_a);
  m.def(
      "nearest_block",
      [=](C::Matrix values, int64_t row, int64_t column, C::Vector norms, C::Matrix distances,
          C::Array<int32_t, 2> indices, C::Array<float, 1> farthest, int64_t first, bool symmetric, Workspace workspace,
          uintptr_t stream) {
        const Block block = C::block(values, row, column, norms);
        const Lists lists = C::lists(distances, indices, farthest, first);
        C::check_served(block, lists, distances.shape(0), symmetric, norms.shape(0));
        void* space = room(workspace, dgfast::cuda::nearest_block_workspace(block, lists, symmetric));
        check_cuda(dgfast::cuda::nearest_block(block, norms.data(), lists, symmetric, space, as_stream(stream)));
      },
      "values"_a.noconvert(), "row"_a, "column"_a, "norms"_a.noconvert(), "distances"_a.noconvert(),
      "indices"_a.noconvert(), "farthest"_a.noconvert(), "first"_a, "symmetric"_a, "workspace"_a.noconvert(),
      "stream"_a);

  m.def(
      "distances_block",
      [=](C::Matrix values, int64_t row, int64_t column, C::Vector norms, uintptr_t stream) {
        check_cuda(
            dgfast::cuda::distances_block(C::block(values, row, column, norms), norms.data(), as_stream(stream)));
      },
      "values"_a.noconvert(), "row"_a, "column"_a, "norms"_a.noconvert(), "stream"_a);

  m.def(
      "reciprocal",
      [=](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
          C::Array<int32_t, 2> back, uintptr_t stream) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        C::reach(lists, C::Array<const int32_t, 2>(back), 1);
        check_cuda(dgfast::cuda::reciprocal(lists, back.shape(1), back.data(), as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert(), "stream"_a);

  m.def(
      "expand_workspace",
      [](int64_t n, int64_t k, int64_t near, int64_t half, int64_t rows) {
        return dgfast::cuda::expand_workspace({nullptr, nullptr, nullptr, n, k}, {near, half}, rows);
      },
      "n"_a, "k"_a, "near"_a, "half"_a, "rows"_a);
  m.def(
      "expand_count",
      [=](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
          C::Array<const int32_t, 2> back, int64_t half, int64_t row, C::Counts counts, Workspace workspace,
          uintptr_t stream) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const Reach reach = C::reach(lists, back, half);
        const int64_t rows = counts.shape(0);
        check_rows(row, rows, lists.n);
        void* space = room(workspace, dgfast::cuda::expand_workspace(lists, reach, rows));
        check_cuda(
            dgfast::cuda::expand_count(lists, back.data(), reach, row, rows, counts.data(), space, as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert(), "half"_a,
      "row"_a, "counts"_a.noconvert(), "workspace"_a.noconvert(), "stream"_a);
  m.def(
      "expand_fill",
      [=](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest,
          C::Array<const int32_t, 2> back, int64_t half, C::Array<const float, 2> features, bool squared, int64_t row,
          C::Offsets offsets, C::Array<int32_t, 1> columns, C::Array<float, 1> values, Workspace workspace,
          uintptr_t stream) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const Reach reach = C::reach(lists, back, half);
        const int64_t rows = int64_t(offsets.shape(0)) - 1;
        check_rows(row, rows, lists.n);
        check(int64_t(features.shape(0)) == lists.n, "expand_fill: expected features [n, dims]");
        void* space = room(workspace, dgfast::cuda::expand_workspace(lists, reach, rows));
        check_cuda(dgfast::cuda::expand_fill(lists, back.data(), reach, features.data(), features.shape(1), squared,
                                             row, rows, offsets.data(), columns.data(), values.data(), space,
                                             as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "back"_a.noconvert(), "half"_a,
      "features"_a.noconvert(), "squared"_a, "row"_a, "offsets"_a.noconvert(), "columns"_a.noconvert(),
      "values"_a.noconvert(), "workspace"_a.noconvert(), "stream"_a);

  m.def("average_workspace", &dgfast::cuda::average_workspace, "k2"_a, "longest"_a, "rows"_a);
  m.def(
      "average_count",
      [=](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest, int64_t k2,
          C::Offsets offsets, C::Columns columns, C::Vector values, int64_t longest, int64_t row, C::Counts counts,
          Workspace workspace, uintptr_t stream) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t rows = counts.shape(0);
        check(int64_t(offsets.shape(0)) == lists.n + 1 && k2 >= 1 && k2 <= lists.k,
              "average: expected n rows and 1 <= k2 <= k");
        check_rows(row, rows, lists.n);
        void* space = room(workspace, dgfast::cuda::average_workspace(k2, longest, rows));
        check_cuda(dgfast::cuda::average_count(lists, k2, weights, longest, row, rows, counts.data(), space,
                                               as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "k2"_a, "offsets"_a.noconvert(),
      "columns"_a.noconvert(), "values"_a.noconvert(), "longest"_a, "row"_a, "counts"_a.noconvert(),
      "workspace"_a.noconvert(), "stream"_a);
  m.def(
      "average_fill",
      [=](C::Array<const float, 2> distances, C::Array<const int32_t, 2> indices, C::Vector farthest, int64_t k2,
          C::Offsets offsets, C::Columns columns, C::Vector values, int64_t longest, int64_t row,
          C::Offsets new_offsets, C::Array<int32_t, 1> new_columns, C::Array<float, 1> new_values, Workspace workspace,
          uintptr_t stream) {
        const Neighbours lists = C::neighbours(distances, indices, farthest);
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t rows = int64_t(new_offsets.shape(0)) - 1;
        check(int64_t(offsets.shape(0)) == lists.n + 1 && k2 >= 1 && k2 <= lists.k,
              "average: expected n rows and 1 <= k2 <= k");
        check_rows(row, rows, lists.n);
        void* space = room(workspace, dgfast::cuda::average_workspace(k2, longest, rows));
        check_cuda(dgfast::cuda::average_fill(lists, k2, weights, longest, row, rows, new_offsets.data(),
                                              new_columns.data(), new_values.data(), space, as_stream(stream)));
      },
      "distances"_a.noconvert(), "indices"_a.noconvert(), "farthest"_a.noconvert(), "k2"_a, "offsets"_a.noconvert(),
      "columns"_a.noconvert(), "values"_a.noconvert(), "longest"_a, "row"_a, "new_offsets"_a.noconvert(),
      "new_columns"_a.noconvert(), "new_values"_a.noconvert(), "workspace"_a.noconvert(), "stream"_a);

  m.def(
      "invert_count",
      [=](C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Counts counts, uintptr_t stream) {
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t n = counts.shape(0);
        check(int64_t(offsets.shape(0)) == n + 1 && row >= 0 && row <= n, "invert: expected n rows of n columns");
        check_cuda(dgfast::cuda::invert_count(weights, row, n - row, n, counts.data(), as_stream(stream)));
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "counts"_a.noconvert(),
      "stream"_a);
  m.def("invert_fill_workspace", &dgfast::cuda::invert_fill_workspace, "n"_a, "entries"_a);
  m.def(
      "invert_fill",
      [=](C::Offsets offsets, C::Columns columns, C::Vector values, int64_t row, C::Offsets list_offsets,
          C::Array<int32_t, 1> rows_of, C::Array<float, 1> list_values, Workspace workspace, uintptr_t stream) {
        const SparseRows weights = C::sparse(offsets, columns, values);
        const int64_t n = int64_t(offsets.shape(0)) - 1, entries = rows_of.shape(0);
        check(int64_t(list_offsets.shape(0)) == n + 1 && row >= 0 && row <= n, "invert: expected n rows of n columns");
        void* space = room(workspace, dgfast::cuda::invert_fill_workspace(n, entries));
        check_cuda(dgfast::cuda::invert_fill(weights, row, n - row, n, entries, list_offsets.data(), rows_of.data(),
                                             list_values.data(), space, as_stream(stream)));
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "row"_a, "list_offsets"_a.noconvert(),
      "rows_of"_a.noconvert(), "list_values"_a.noconvert(), "workspace"_a.noconvert(), "stream"_a);

  m.def("jaccard_workspace", &dgfast::cuda::jaccard_workspace, "rows"_a, "gallery"_a);
  m.def(
      "jaccard",
      [=](C::Offsets offsets, C::Columns columns, C::Vector values, C::Offsets list_offsets, C::Columns rows_of,
          C::Vector list_values, C::Vector farthest, int64_t row, float lambda, bool squared, C::Matrix block,
          Workspace workspace, uintptr_t stream) {
        const SparseRows weights = C::sparse(offsets, columns, values),
                         lists = C::sparse(list_offsets, rows_of, list_values);
        check(offsets.shape(0) == farthest.shape(0) + 1 && list_offsets.shape(0) == offsets.shape(0),
              "jaccard: expected n rows and n lists");
        const int64_t rows = block.shape(0), gallery = block.shape(1);
        check_rows(row, rows, farthest.shape(0));
        void* space = room(workspace, dgfast::cuda::jaccard_workspace(rows, gallery));
        check_cuda(dgfast::cuda::jaccard(weights, lists, farthest.data(), row, rows, gallery, lambda, squared,
                                         block.data(), space, as_stream(stream)));
      },
      "offsets"_a.noconvert(), "columns"_a.noconvert(), "values"_a.noconvert(), "list_offsets"_a.noconvert(),
      "rows_of"_a.noconvert(), "list_values"_a.noconvert(), "farthest"_a.noconvert(), "row"_a, "lambda_"_a, "squared"_a,
      "block"_a.noconvert(), "workspace"_a.noconvert(), "stream"_a);
}
#endif

}  // namespace

NB_MODULE(_rerank, m) {
  m.doc() =
      "The compiled part of dgfast: the stages of re-ranking (csrc/rerank.hpp says what each does) in the submodules "
      "cpu and, in CUDA "
      "builds, cuda; what it was built for, and what the processor and the driver offer. dgfast.retrieval is its user.";
  m.def("build_info", &build_info,
        "cuda (bool), cuda_architectures (CMake's notation, '' without CUDA), compiler, instruction_set picked at run "
        "time (scalar, avx2 or avx512), max_threads (of OpenMP).");
  m.def("cuda_device_count", &cuda_device_count,
        "CUDA devices in sight; 0 in a build without CUDA and where there is no driver.");
  m.def("on_threads", &on_threads, "count"_a, "work"_a,
        "Call work(0) .. work(count - 1) on OpenMP's threads, in any order; an exception of one is raised here.");
  nb::module_ cpu = m.def_submodule("cpu", "The stages on the CPU.");
  bind_cpu(cpu);
#if DGFAST_WITH_CUDA
  nb::module_ cuda =
      m.def_submodule("cuda", "The stages on a CUDA device; arrays by DLPack, the stream as an integer.");
  bind_cuda(cuda);
#endif
}
