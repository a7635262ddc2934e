// The steps of csrc/cuda/ under plain C names, for ctypes; everything on the one stream there is.
#include "../../csrc/rerank.hpp"

using namespace dgfast;

extern "C" {

int64_t step_longest_list() { return cuda::longest_list(); }
int step_nearest_start(Lists lists, int64_t rows) { return cuda::nearest_start(lists, rows, nullptr); }
int step_nearest_block(Block block, const float* norms, Lists lists, bool symmetric) {
  return cuda::nearest_block(block, norms, lists, symmetric, nullptr);
}
int step_distances_block(Block block, const float* norms) { return cuda::distances_block(block, norms, nullptr); }
int step_reciprocal(Neighbours lists, int64_t near, int32_t* back) {
  return cuda::reciprocal(lists, near, back, nullptr);
}
int64_t step_expand_workspace(Reach reach, int64_t rows) { return cuda::expand_workspace(reach, rows); }
int step_expand_count(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows, int64_t* counts,
                      void* workspace) {
  return cuda::expand_count(lists, back, reach, row, rows, counts, workspace, nullptr);
}
int step_expand_fill(Neighbours lists, const int32_t* back, Reach reach, const float* features, int64_t dims,
                     bool squared, int64_t row, int64_t rows, const int64_t* offsets, int32_t* columns, float* values,
                     void* workspace) {
  return cuda::expand_fill(lists, back, reach, features, dims, squared, row, rows, offsets, columns, values, workspace,
                           nullptr);
}
int step_average_count(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, int64_t* counts) {
  return cuda::average_count(lists, k2, weights, row, rows, counts, nullptr);
}
int step_average_fill(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows,
                      const int64_t* offsets, int32_t* columns, float* values) {
  return cuda::average_fill(lists, k2, weights, row, rows, offsets, columns, values, nullptr);
}
int step_invert_count(SparseRows weights, int64_t row, int64_t rows, int64_t n, int64_t* counts) {
  return cuda::invert_count(weights, row, rows, n, counts, nullptr);
}
int64_t step_invert_fill_workspace(int64_t n) { return cuda::invert_fill_workspace(n); }
int step_invert_fill(SparseRows weights, int64_t row, int64_t rows, int64_t n, const int64_t* offsets, int32_t* rows_of,
                     float* values, void* workspace) {
  return cuda::invert_fill(weights, row, rows, n, offsets, rows_of, values, workspace, nullptr);
}
int64_t step_jaccard_workspace(int64_t rows, int64_t gallery) { return cuda::jaccard_workspace(rows, gallery); }
int step_jaccard(SparseRows weights, SparseRows inverted, const float* farthest, int64_t row, int64_t rows,
                 int64_t gallery, float lambda, bool squared, float* block, void* workspace) {
  return cuda::jaccard(weights, inverted, farthest, row, rows, gallery, lambda, squared, block, workspace, nullptr);
}

}  // extern "C"
