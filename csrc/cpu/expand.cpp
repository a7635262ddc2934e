// Reciprocal and expand: the sets of images that are near each other, and their weights.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "small_map.hpp"

namespace dgfast::cpu {

void reciprocal(Neighbours lists, int64_t near, int32_t* back) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < lists.n; ++i) {
    for (int64_t a = 0; a < near; ++a) {
      const int32_t* theirs = lists.indices + lists.indices[i * lists.k + a] * lists.k;
      back[i * near + a] = static_cast<int32_t>(std::find(theirs, theirs + near, static_cast<int32_t>(i)) - theirs);
    }
  }
}

namespace {

// Walks through the expanded set of one image after another.
class Expansion {
 public:
  Expansion(Neighbours lists, const int32_t* back, Reach reach)
      : lists_(lists), back_(back), reach_(reach), known_(std::min(reach.near * reach.half + lists.k, lists.n)) {}

  // Calls member(id, place) for each image of i's expanded set: place is where i's list holds it, or -1.
  template <typename Member>
  void each(int64_t i, Member member) {
    const int32_t* mine = lists_.indices + i * lists_.k;
    for (int64_t a = 0; a < lists_.k; ++a) known_.at(mine[a], static_cast<int32_t>(a));
    reciprocal_.clear();
    for (int64_t a = 0; a < reach_.near; ++a)
      if (back_[i * reach_.near + a] < reach_.near) reciprocal_.push_back(static_cast<int32_t>(a));
    for (int32_t a : reciprocal_) {
      member(mine[a], static_cast<int64_t>(a));
      known_.at(mine[a], a) |= in_reciprocal | in_set;
    }
    for (int32_t candidate : reciprocal_) {
      const int64_t c = mine[candidate];
      const int32_t* theirs = lists_.indices + c * lists_.k;
      const int32_t* mutual = back_ + c * reach_.near;
      int64_t size = 0, shared = 0;
      for (int64_t a = 0; a < reach_.half; ++a) {
        if (mutual[a] >= reach_.half) continue;
        ++size;
        shared += (known_.get(theirs[a], 0) & in_reciprocal) != 0;
      }
      if (3 * shared <= 2 * size) continue;
      for (int64_t a = 0; a < reach_.half; ++a) {
        if (mutual[a] >= reach_.half) continue;
        int32_t& known = known_.at(theirs[a], not_listed);
        if (known & in_set) continue;
        member(theirs[a], known == not_listed ? int64_t{-1} : static_cast<int64_t>(known));
        known |= in_set;
      }
    }
    known_.clear();
  }

 private:
  // What is known of an id near i: its place in i's list or not_listed, and marks above that.
  static constexpr int32_t in_reciprocal = 1 << 30, in_set = 1 << 29, not_listed = 1 << 28;

  Neighbours lists_;
  const int32_t* back_;
  Reach reach_;
  SmallMap<int32_t> known_;
  std::vector<int32_t> reciprocal_;  // R(i), as places in i's list
};

}  // namespace

void expand_count(Neighbours lists, const int32_t* back, Reach reach, int64_t row, int64_t rows, int64_t* counts) {
#pragma omp parallel
  {
    Expansion expansion(lists, back, reach);
#pragma omp for schedule(dynamic, 64)
    for (int64_t r = 0; r < rows; ++r) {
      int64_t count = 0;
      expansion.each(row + r, [&](int32_t, int64_t) { ++count; });
      counts[r] = count;
    }
  }
}

void expand_fill(Neighbours lists, const int32_t* back, Reach reach, const float* features, int64_t dims, bool squared,
                 int64_t row, int64_t rows, const int64_t* offsets, int32_t* columns, float* values,
                 InstructionSet set) {
  const Kernels& kernel = kernels(set);
#pragma omp parallel
  {
    Expansion expansion(lists, back, reach);
#pragma omp for schedule(dynamic, 64)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = row + r;
      const float farthest = lists.farthest[i];
      int64_t at = offsets[r];
      float sum = 0;
      expansion.each(i, [&](int32_t id, int64_t place) {
        float distance;
        if (place >= 0) {
          distance = lists.distances[i * lists.k + place];
        } else {
          const int32_t* theirs = lists.indices + id * lists.k;
          const int64_t back_place = std::find(theirs, theirs + lists.k, static_cast<int32_t>(i)) - theirs;
          distance = back_place < lists.k ? lists.distances[id * lists.k + back_place]
                                          : kernel.squared_difference(features + i * dims, features + id * dims, dims);
        }
        const float share = farthest > 0 ? distance / farthest : 0.0f;
        // In double, because the float exponential's last bit depends on the processor.
        const float weight = static_cast<float>(std::exp(-static_cast<double>(squared ? share * share : share)));
        columns[at] = id;
        values[at++] = weight;
        sum += weight;
      });
      for (int64_t entry = offsets[r]; entry < at; ++entry) values[entry] /= sum;
    }
  }
}

}  // namespace dgfast::cpu
