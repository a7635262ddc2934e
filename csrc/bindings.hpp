// What the bindings of the CPU path and of the CUDA path share: arrays of one device, and the objects that are made of
// several arrays and whose constructors check that these fit together. Only the bindings*.cpp files know Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <type_traits>

#include "rerank.hpp"

namespace dgfast {

namespace nb = nanobind;

// Registers the steps of re-ranking, and the classes of their arguments, in a Python module.
void bind_cpu(nb::module_& m);
void bind_cuda(nb::module_& m);  // CUDA builds only

inline void check(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

// An argument by position that is never converted: a wrong dtype or layout is an error, and not a silent copy.
template <typename>
auto exact() {
  return nb::arg().noconvert();
}

// Binds a function. It runs without Python's lock, so other Python threads go on meanwhile.
template <typename Result, typename... Arguments>
void def(nb::module_& m, const char* name, Result (*function)(Arguments...)) {
  m.def(name, function, exact<Arguments>()..., nb::call_guard<nb::gil_scoped_release>());
}

// The arguments on one device (nb::device::cpu or nb::device::cuda), C-contiguous. The objects keep their arrays alive.
template <typename Device>
struct On {
  template <typename T, size_t dims>
  using Array = nb::ndarray<T, nb::ndim<dims>, nb::c_contig, Device>;
  using Matrix = Array<float, 2>;
  using Vector = Array<const float, 1>;
  using Counts = Array<int64_t, 1>;
  using Indices = Array<int32_t, 2>;
  using Offsets = Array<const int64_t, 1>;

  // The nearest images of the images first, first + 1, ...
  struct NeighbourLists {
    NeighbourLists(Matrix distances_, Indices indices_, Array<float, 1> farthest_, int64_t first_)
        : distances(distances_),
          indices(indices_),
          farthest(farthest_),
          first(first_),
          rows(farthest_.shape(0)),
          k(distances_.shape(1)) {
      check(int64_t(distances.shape(0)) == rows && int64_t(indices.shape(0)) == rows &&
                int64_t(indices.shape(1)) == k && k > 0 && first >= 0,
            "NeighbourLists: expected distances and indices [rows, k], farthest [rows], k > 0, first >= 0");
    }
    // As they are while blocks are entered.
    Lists open() const { return {distances.data(), indices.data(), farthest.data(), first, k}; }
    // Finished and of all images, for a step that takes the images row .. row + count - 1.
    Neighbours all(int64_t row, int64_t count) const {
      check(first == 0 && row >= 0 && row + count <= rows, "the rows reach past the images");
      return {distances.data(), indices.data(), farthest.data(), rows, k};
    }

    Matrix distances;
    Indices indices;
    Array<float, 1> farthest;
    int64_t first, rows, k;
  };

  // Sparse rows, to read or to fill. `offsets` may be a part of longer offsets: then the rows are in the midst of the
  // columns and values. Offsets on a GPU are not looked at, because that would wait for the GPU.
  struct Rows {
    Rows(Offsets offsets_, Array<int32_t, 1> columns_, Array<float, 1> values_)
        : offsets(offsets_), columns(columns_), values(values_), count(int64_t(offsets_.shape(0)) - 1) {
      check(count >= 0 && columns.shape(0) == values.shape(0),
            "SparseRows: expected offsets [rows + 1], columns and values alike");
      if constexpr (std::is_same_v<Device, nb::device::cpu>)
        check(offsets.data()[0] >= 0 && offsets.data()[count] <= int64_t(columns.shape(0)),
              "SparseRows: the offsets reach past the columns");
    }
    SparseRows view() const { return {offsets.data(), columns.data(), values.data()}; }
    // Rows of as many columns, of which those from `row` on are inverted into `lists` lists.
    SparseRows invertible(int64_t row, int64_t lists) const {
      check(count == lists && row >= 0 && row <= lists, "invert: expected n rows of n columns, and n lists");
      return view();
    }

    Offsets offsets;
    Array<int32_t, 1> columns;
    Array<float, 1> values;
    int64_t count;
  };

  static void bind_classes(nb::module_& m) {
    nb::class_<NeighbourLists>(m, "NeighbourLists",
                               "Nearest images of `first`, `first` + 1, ...: (distances, indices, farthest, first).")
        .def(nb::init<Matrix, Indices, Array<float, 1>, int64_t>(), exact<Matrix>(), exact<Matrix>(), exact<Matrix>(),
             exact<int64_t>());
    nb::class_<Rows>(m, "SparseRows", "Sparse rows: (offsets, columns, values).")
        .def(nb::init<Offsets, Array<int32_t, 1>, Array<float, 1>>(), exact<Matrix>(), exact<Matrix>(),
             exact<Matrix>());
  }

  static Block block(const Matrix& values, int64_t row, int64_t column, const Vector& norms) {
    const int64_t rows = values.shape(0), columns = values.shape(1), n = norms.shape(0);
    check(row >= 0 && column >= 0 && row + rows <= n && column + columns <= n, "block: it reaches past the norms");
    check(n <= INT32_MAX, "block: image ids are 32 bits wide");
    return {values.data(), columns, row, rows, column, columns};
  }

  // The lists that take a block's distances.
  static Lists lists_of(const Block& block, const NeighbourLists& lists, const Vector& norms, bool symmetric) {
    const Lists open = lists.open();
    if (symmetric)
      check(open.first == 0 && lists.rows == int64_t(norms.shape(0)),
            "nearest_block: a symmetric block needs the lists of all images");
    else
      check(block.row >= open.first && block.row + block.rows <= open.first + lists.rows,
            "nearest_block: no lists for the block's rows");
    return open;
  }

  static Reach reach(const NeighbourLists& lists, const Indices& back, int64_t half) {
    check(int64_t(back.shape(0)) == lists.rows && int64_t(back.shape(1)) <= lists.k && half >= 1 &&
              half <= int64_t(back.shape(1)),
          "expand: expected back [n, near], near <= k, 1 <= half <= near");
    return {int64_t(back.shape(1)), half};
  }

  static const float* features(const NeighbourLists& lists, const Matrix& features) {
    check(int64_t(features.shape(0)) == lists.rows, "expand_fill: expected features [n, dims]");
    return features.data();
  }

  // What is averaged over the first k2 neighbours.
  static SparseRows averaged(const NeighbourLists& lists, int64_t k2, const Rows& weights) {
    check(weights.count == lists.rows && k2 >= 1 && k2 <= lists.k, "average: expected n rows and 1 <= k2 <= k");
    return weights.view();
  }

  static void check_jaccard(const Rows& weights, const Rows& inverted, const Vector& farthest, int64_t row,
                            const Matrix& block) {
    const int64_t n = farthest.shape(0);
    check(weights.count == n && inverted.count == n && row >= 0 && row + int64_t(block.shape(0)) <= n,
          "jaccard: expected n rows, n lists, and a block within them");
  }
};

}  // namespace dgfast
