// dgfast._rerank.cpu: the steps of re-ranking on the CPU. Each function calls the one of the same name in rerank.hpp,
// which says what it does. `set` names the instruction set; "" is the processor's best.
#include <algorithm>
#include <string>

#include "bindings.hpp"

namespace dgfast {
namespace {

using Here = On<nb::device::cpu>;
using List = Here::NeighbourLists;
using Rows = Here::Rows;
using Matrix = Here::Matrix;
using Vector = Here::Vector;
using Indices = Here::Indices;
using Offsets = Here::Offsets;
using Counts = Here::Counts;
using Columns = Here::Array<const int32_t, 1>;

InstructionSet chosen(const std::string& set) {
  if (set.empty()) return instruction_set();
  for (const auto known : {InstructionSet::scalar, InstructionSet::avx2, InstructionSet::avx512})
    if (set == name(known) && known <= instruction_set()) return known;
  throw nb::value_error(("instruction set '" + set + "' is not one that this processor runs").c_str());
}

template <typename T>
int64_t hit_ranks(Here::Array<const T, 2> values, Offsets hit_offsets, Columns hits, Offsets ignored_offsets,
                  Columns ignored, Columns junk, Counts ranks) {
  const int64_t rows = values.shape(0), columns = values.shape(1);
  check(int64_t(hit_offsets.shape(0)) == rows + 1 && int64_t(ignored_offsets.shape(0)) == rows + 1 &&
            hit_offsets.data()[rows] == int64_t(hits.shape(0)) &&
            ignored_offsets.data()[rows] == int64_t(ignored.shape(0)) && hits.shape(0) == ranks.shape(0),
        "hit_ranks: the lists do not fit the rows");
  for (const auto& list : {hits, ignored, junk})
    check(std::all_of(list.data(), list.data() + list.shape(0), [&](int32_t c) { return c >= 0 && c < columns; }),
          "hit_ranks: a column is out of range");
  return cpu::hit_ranks(values.data(), rows, columns, {hit_offsets.data(), hits.data()},
                        {ignored_offsets.data(), ignored.data()}, junk.data(), int64_t(junk.shape(0)), ranks.data(),
                        instruction_set());
}

}  // namespace

void bind_cpu(nb::module_& m) {
  Here::bind_classes(m);
  def(m, "nearest_start", +[](const List& lists) { cpu::nearest_start(lists.open(), lists.rows); });
  def(
      m, "nearest_block",
      +[](Matrix values, int64_t row, int64_t column, Vector norms, const List& lists, bool symmetric,
          const std::string& set) {
        const Block block = Here::block(values, row, column, norms);
        cpu::nearest_block(block, norms.data(), Here::lists_of(block, lists, norms, symmetric), symmetric, chosen(set));
      });
  def(
      m, "distances_block", +[](Matrix values, int64_t row, int64_t column, Vector norms, const std::string& set) {
        cpu::distances_block(Here::block(values, row, column, norms), norms.data(), chosen(set));
      });
  def(
      m, "reciprocal", +[](const List& lists, Indices back) {
        cpu::reciprocal(lists.all(0, lists.rows), Here::reach(lists, back, 1).near, back.data());
      });
  def(
      m, "expand_count", +[](const List& lists, Indices back, int64_t half, int64_t row, Counts counts) {
        const int64_t rows = counts.shape(0);
        cpu::expand_count(lists.all(row, rows), back.data(), Here::reach(lists, back, half), row, rows, counts.data());
      });
  def(
      m, "expand_fill",
      +[](const List& lists, Indices back, int64_t half, Matrix features, bool squared, int64_t row, const Rows& out,
          const std::string& set) {
        cpu::expand_fill(lists.all(row, out.count), back.data(), Here::reach(lists, back, half),
                         Here::features(lists, features), features.shape(1), squared, row, out.count,
                         out.offsets.data(), out.columns.data(), out.values.data(), chosen(set));
      });
  def(
      m, "average_count", +[](const List& lists, int64_t k2, const Rows& weights, int64_t row, Counts counts) {
        const int64_t rows = counts.shape(0);
        cpu::average_count(lists.all(row, rows), k2, Here::averaged(lists, k2, weights), row, rows, counts.data());
      });
  def(
      m, "average_fill", +[](const List& lists, int64_t k2, const Rows& weights, int64_t row, const Rows& out) {
        cpu::average_fill(lists.all(row, out.count), k2, Here::averaged(lists, k2, weights), row, out.count,
                          out.offsets.data(), out.columns.data(), out.values.data());
      });
  def(
      m, "invert_count", +[](const Rows& weights, int64_t row, Counts counts) {
        const int64_t n = counts.shape(0);
        cpu::invert_count(weights.invertible(row, n), row, n - row, n, counts.data());
      });
  def(
      m, "invert_fill", +[](const Rows& weights, int64_t row, const Rows& out) {
        const int64_t n = out.count;
        cpu::invert_fill(weights.invertible(row, n), row, n - row, n, out.offsets.data(), out.columns.data(),
                         out.values.data());
      });
  def(
      m, "jaccard",
      +[](const Rows& weights, const Rows& inverted, Vector farthest, int64_t row, double lambda, bool squared,
          Matrix block) {
        Here::check_jaccard(weights, inverted, farthest, row, block);
        cpu::jaccard(weights.view(), inverted.view(), farthest.data(), row, block.shape(0), block.shape(1),
                     float(lambda), squared, block.data());
      });
  def(
      m, "smallest", +[](Matrix values, const List& lists, const std::string& set) {
        check(int64_t(values.shape(0)) == lists.rows && lists.k <= int64_t(values.shape(1)),
              "smallest: expected values [rows, columns] and k <= columns");
        cpu::smallest(values.data(), values.shape(0), values.shape(1), lists.open(), chosen(set));
      });
  def(m, "hit_ranks", &hit_ranks<float>);
  def(m, "hit_ranks", &hit_ranks<double>);
}

}  // namespace dgfast
