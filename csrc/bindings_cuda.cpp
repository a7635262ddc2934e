// dgfast._rerank.cuda: the steps of re-ranking on a CUDA device. Each function calls the one of the same name in
// rerank.hpp, which says what it does. `stream` is a cudaStream_t as an integer.
#include <stdexcept>
#include <string>

#include "bindings.hpp"

namespace dgfast {
namespace {

using There = On<nb::device::cuda>;
using List = There::NeighbourLists;
using Rows = There::Rows;
using Matrix = There::Matrix;
using Vector = There::Vector;
using Indices = There::Indices;
using Counts = There::Counts;
using Workspace = There::Array<uint8_t, 1>;

void done(int code) {
  if (code) throw std::runtime_error(std::string("CUDA: ") + cuda_error_text(code));
}

void* at(uint64_t stream) { return reinterpret_cast<void*>(stream); }

void* room(const Workspace& workspace, int64_t needed) {
  check(int64_t(workspace.shape(0)) >= needed, "the workspace is too small");
  return workspace.data();
}

}  // namespace

void bind_cuda(nb::module_& m) {
  There::bind_classes(m);
  def(m, "longest_list", &cuda::longest_list);
  def(
      m, "nearest_start",
      +[](const List& lists, uint64_t stream) { done(cuda::nearest_start(lists.open(), lists.rows, at(stream))); });
  def(
      m, "nearest_block",
      +[](Matrix values, int64_t row, int64_t column, Vector norms, const List& lists, bool symmetric,
          uint64_t stream) {
        const Block block = There::block(values, row, column, norms);
        const Lists open = There::lists_of(block, lists, norms, symmetric);
        done(cuda::nearest_block(block, norms.data(), open, symmetric, at(stream)));
      });
  def(
      m, "distances_block", +[](Matrix values, int64_t row, int64_t column, Vector norms, uint64_t stream) {
        done(cuda::distances_block(There::block(values, row, column, norms), norms.data(), at(stream)));
      });
  def(
      m, "reciprocal", +[](const List& lists, Indices back, uint64_t stream) {
        const int64_t near = There::reach(lists, back, 1).near;
        done(cuda::reciprocal(lists.all(0, lists.rows), near, back.data(), at(stream)));
      });
  def(
      m, "expand_workspace",
      +[](int64_t near, int64_t half, int64_t rows) { return cuda::expand_workspace({near, half}, rows); });
  def(
      m, "expand_count",
      +[](const List& lists, Indices back, int64_t half, int64_t row, Counts counts, Workspace workspace,
          uint64_t stream) {
        const Reach reach = There::reach(lists, back, half);
        const int64_t rows = counts.shape(0);
        void* space = room(workspace, cuda::expand_workspace(reach, rows));
        done(cuda::expand_count(lists.all(row, rows), back.data(), reach, row, rows, counts.data(), space, at(stream)));
      });
  def(
      m, "expand_fill",
      +[](const List& lists, Indices back, int64_t half, Matrix features, bool squared, int64_t row, const Rows& out,
          Workspace workspace, uint64_t stream) {
        const Reach reach = There::reach(lists, back, half);
        void* space = room(workspace, cuda::expand_workspace(reach, out.count));
        done(cuda::expand_fill(lists.all(row, out.count), back.data(), reach, There::features(lists, features),
                               features.shape(1), squared, row, out.count, out.offsets.data(), out.columns.data(),
                               out.values.data(), space, at(stream)));
      });
  def(
      m, "average_count",
      +[](const List& lists, int64_t k2, const Rows& weights, int64_t row, Counts counts, uint64_t stream) {
        const int64_t rows = counts.shape(0);
        done(cuda::average_count(lists.all(row, rows), k2, There::averaged(lists, k2, weights), row, rows,
                                 counts.data(), at(stream)));
      });
  def(
      m, "average_fill",
      +[](const List& lists, int64_t k2, const Rows& weights, int64_t row, const Rows& out, uint64_t stream) {
        done(cuda::average_fill(lists.all(row, out.count), k2, There::averaged(lists, k2, weights), row, out.count,
                                out.offsets.data(), out.columns.data(), out.values.data(), at(stream)));
      });
  def(
      m, "invert_count", +[](const Rows& weights, int64_t row, Counts counts, uint64_t stream) {
        const int64_t n = counts.shape(0);
        done(cuda::invert_count(weights.invertible(row, n), row, n - row, n, counts.data(), at(stream)));
      });
  def(m, "invert_fill_workspace", &cuda::invert_fill_workspace);
  def(
      m, "invert_fill", +[](const Rows& weights, int64_t row, const Rows& out, Workspace workspace, uint64_t stream) {
        const int64_t n = out.count;
        void* space = room(workspace, cuda::invert_fill_workspace(n));
        done(cuda::invert_fill(weights.invertible(row, n), row, n - row, n, out.offsets.data(), out.columns.data(),
                               out.values.data(), space, at(stream)));
      });
  def(m, "jaccard_workspace", &cuda::jaccard_workspace);
  def(
      m, "jaccard",
      +[](const Rows& weights, const Rows& inverted, Vector farthest, int64_t row, double lambda, bool squared,
          Matrix block, Workspace workspace, uint64_t stream) {
        There::check_jaccard(weights, inverted, farthest, row, block);
        const int64_t rows = block.shape(0), gallery = block.shape(1);
        void* space = room(workspace, cuda::jaccard_workspace(rows, gallery));
        done(cuda::jaccard(weights.view(), inverted.view(), farthest.data(), row, rows, gallery, float(lambda), squared,
                           block.data(), space, at(stream)));
      });
}

}  // namespace dgfast
