// The interface of the re-ranking extension: k-reciprocal re-ranking (Zhong et al., CVPR 2017; docs/reranking.md), step
// by step. Nothing below it knows Python; above it are only the bindings*.cpp files.
//
// Images are numbered 0 .. n-1, the Q queries first, then the G gallery images; ids are int32 (n < 2^31, which the
// caller checks), every offset and every address is int64. All arrays are dense and row-major. The caller allocates
// everything; a step whose output length is not known beforehand comes as a counting and a filling function.
//
// dgfast::cuda has the steps of dgfast::cpu under the same names, but for smallest and hit_ranks. It takes device
// pointers, a cudaStream_t as void*, only enqueue work, and return a cudaError_t as int (0: no error). Steps with a
// `workspace` get at least NAME_workspace(...) bytes of device memory, aligned to 256, whose content is theirs during
// the call.
//
// Distance and d2 are the squared Euclidean distance, D is d2 as a share of the row's largest. Order of neighbours: by
// (d2, id), so the lower id wins a tie.
#pragma once

#include <cstdint>

namespace dgfast {

// Instruction sets the CPU path has code for, slowest first. All give the same bits.
enum class InstructionSet { scalar, avx2, avx512 };

// The fastest instruction set that this processor runs, found once.
InstructionSet instruction_set();

const char* name(InstructionSet set);

// Threads an OpenMP parallel region may use; 1 in a build without OpenMP.
int max_threads();

// The CUDA runtime's text for a code. CUDA builds only.
const char* cuda_error_text(int code);

// d2 = max(0, (a + b) - 2 p) from the squared norms a, b and the inner product p, and exactly 0 where that is at most
// zero_below * (a + b). The rounding error of the product is of that size, so equal images are at distance 0 on every
// device.
inline constexpr float zero_below = 0x1p-20f;

// The part [row, row + rows) x [column, column + columns) of the n x n matrix, with `stride` values from row to row.
struct Block {
  float* values;
  int64_t stride;
  int64_t row, rows;
  int64_t column, columns;
};

// The nearest images of the images first, first + 1, ...: image i's are at (i - first) * k, ascending by (d2, id).
// A place not yet taken holds (infinity, INT32_MAX).
struct Lists {
  float* distances;  // [rows, k]
  int32_t* indices;  // [rows, k]
  float* farthest;   // [rows] the largest d2 seen
  int64_t first;
  int64_t k;
};

// The same for all n images (first = 0), finished.
struct Neighbours {
  const float* distances;  // [n, k]
  const int32_t* indices;  // [n, k]
  const float* farthest;   // [n]
  int64_t n;
  int64_t k;
};

// Sparse rows: row r's entries are offsets[r] .. offsets[r + 1] - 1 of columns and values; no column twice, in any
// order.
struct SparseRows {
  const int64_t* offsets;
  const int32_t* columns;
  const float* values;
};

// What makes the expanded set of an image.
struct Reach {
  int64_t near;  // k1 + 1, at most Neighbours::k: neighbours that may be reciprocal
  int64_t half;  // round_half_even(k1 / 2) + 1: neighbours of a candidate that may be reciprocal
};

namespace cpu {

// --- nearest ---------------------------------------------------------------------------------------------------------
// Empties `rows` lists: every place (infinity, INT32_MAX), farthest 0.
void nearest_start(Lists lists, int64_t rows);

// Takes a block of inner products, turns it into d2 in place and enters it into the lists.
//   norms [n]: squared norms. Self-distances count as exactly 0.
//   symmetric: the block is one of those that cover the upper triangle (with the diagonal) once. Only elements whose
//     column is at least their row count; what the others hold afterwards is not specified. Each element serves the
//     list of its row and that of its column, so the lists are those of all n images. Without `symmetric` every element
//     counts, and serves the list of its row only.
// The lists do not depend on the order in which blocks are entered.
void nearest_block(Block block, const float* norms, Lists lists, bool symmetric, InstructionSet set);

// The same arithmetic without lists: products become d2 in place.
void distances_block(Block block, const float* norms, InstructionSet set);

// --- reciprocal ------------------------------------------------------------------------------------------------------
// back [n, near]: back[i, a] is where image i stands among the first `near` neighbours of its a-th neighbour, or `near`
// where it is not among them.
void reciprocal(Neighbours lists, int64_t near, int32_t* back);

// --- expand ----------------------------------------------------------------------------------------------------------
// R(i, m) = the a-th neighbours of i with a < m and back[i, a] < m. The expanded set of i: R(i, near), and R(c, half)
// for each c of R(i, near) for which |R(c, half) and R(i, near)| > 2/3 |R(c, half)|, that is 3 |...| > 2 |...| in
// integers. For the images row .. row + rows - 1: counts [rows], the sets' sizes.
void expand_count(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows, int64_t* counts);

// Weights V(i, j) = exp(-D(i, j)) over the expanded set, divided by their sum. D = d2 / farthest[i] (0 where that is
// 0), squared once more if `squared`. d2 comes from i's or j's list, or from the features: the sum of squared
// differences.
//   features [n, dims]; offsets [rows + 1]: running sums of the counts from any start, so that a caller may fill one
//   array in several calls; columns, values: written at offsets[0] .. offsets[rows] - 1.
void expand_fill(Neighbours lists, const int32_t* back, Reach reach, const float* features, int64_t dims, bool squared,
                 int64_t row, int64_t rows, const int64_t* offsets, int32_t* columns, float* values,
                 InstructionSet set);

// --- average ---------------------------------------------------------------------------------------------------------
// The k2 expansion: row i becomes the mean of the rows of its first k2 neighbours, 1 <= k2 <= Neighbours::k; `weights`
// holds all n rows.
void average_count(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, int64_t* counts);
void average_fill(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, const int64_t* offsets,
                  int32_t* columns, float* values);

// --- invert ----------------------------------------------------------------------------------------------------------
// Inverted lists of the rows row .. row + rows - 1 (the gallery's) of n columns: for each column the rows that hold it,
// numbered from 0 at `row`, ascending, with their weights. counts [n]; offsets [n + 1]; rows_of, values [offsets[n]].
void invert_count(SparseRows weights, int64_t row, int64_t rows, int64_t n, int64_t* counts);
void invert_fill(SparseRows weights, int64_t row, int64_t rows, int64_t n, const int64_t* offsets, int32_t* rows_of,
                 float* values);

// --- jaccard ---------------------------------------------------------------------------------------------------------
// For the queries row .. row + rows - 1: block [rows, gallery] holds their d2 to the gallery on entry, and on return
//   (1 - lambda) (1 - m / (2 - m)) + lambda D,   m = min(1, sum_j min(V(q, j), V(g, j))),
// D as in expand_fill. weights: V of all images; inverted: the gallery's lists by column; farthest [n].
void jaccard(SparseRows weights, SparseRows inverted, const float* farthest, int64_t row, int64_t rows, int64_t gallery,
             float lambda, bool squared, float* block);

// --- smallest --------------------------------------------------------------------------------------------------------
// The k smallest of each row of values [rows, columns], ascending by (value, column). No NaN. lists.first is 0, and
// lists.farthest is not touched.
void smallest(const float* values, int64_t rows, int64_t columns, Lists lists, InstructionSet set);

// --- hit ranks -------------------------------------------------------------------------------------------------------
// For each hit (row r's are hit_offsets[r] .. hit_offsets[r + 1] - 1 of hits) its 0-based rank in its row of values
// [rows, columns] by (value, column), not counting the columns of `ignored` (by row, likewise) and `junk` (of every
// row; count junk_count); no hit is ignored. Returns the first row that holds NaN, or -1 if none does; ranks
// [hit_offsets[rows]].
struct RowLists {
  const int64_t* offsets;
  const int32_t* columns;
};
template <typename T>  // float, double
int64_t hit_ranks(const T* values, int64_t rows, int64_t columns, RowLists hits, RowLists ignored, const int32_t* junk,
                  int64_t junk_count, int64_t* ranks, InstructionSet set);

}  // namespace cpu

// CUDA builds only. Arguments as in cpu; the order of entries within sparse rows, and so the last bits, may differ.
// expand_fill writes rows ascending by column, which average_count and average_fill need; theirs are in another order.
namespace cuda {

// The longest list (k) that nearest_block takes; beyond it the caller selects otherwise.
int64_t longest_list();

int nearest_start(Lists lists, int64_t rows, void* stream);
int nearest_block(Block block, const float* norms, Lists lists, bool symmetric, void* stream);
int distances_block(Block block, const float* norms, void* stream);

int reciprocal(Neighbours lists, int64_t near, int32_t* back, void* stream);

int64_t expand_workspace(Reach reach, int64_t rows);  // of expand_count and of expand_fill
int expand_count(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows, int64_t* counts,
                 void* workspace, void* stream);
int expand_fill(Neighbours lists, const int32_t* back, Reach reach, const float* features, int64_t dims, bool squared,
                int64_t row, int64_t rows, const int64_t* offsets, int32_t* columns, float* values, void* workspace,
                void* stream);

int average_count(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, int64_t* counts,
                  void* stream);
int average_fill(Neighbours lists, int64_t k2, SparseRows weights, int64_t row, int64_t rows, const int64_t* offsets,
                 int32_t* columns, float* values, void* stream);

// As in cpu, the ascending order included.
int invert_count(SparseRows weights, int64_t row, int64_t rows, int64_t n, int64_t* counts, void* stream);
int64_t invert_fill_workspace(int64_t n);
int invert_fill(SparseRows weights, int64_t row, int64_t rows, int64_t n, const int64_t* offsets, int32_t* rows_of,
                float* values, void* workspace, void* stream);

int64_t jaccard_workspace(int64_t rows, int64_t gallery);
int jaccard(SparseRows weights, SparseRows inverted, const float* farthest, int64_t row, int64_t rows, int64_t gallery,
            float lambda, bool squared, float* block, void* workspace, void* stream);

}  // namespace cuda

}  // namespace dgfast
