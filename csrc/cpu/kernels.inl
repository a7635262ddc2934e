// The loops of kernels.hpp, for one instruction set. The file that includes this first defines `Lanes`, a vector of
// floats, and DGFAST_KERNELS, the name of the table.
//
// No standard header may be included here or there: the linker keeps one copy of an inline function for the whole
// library, and that could be the one that was compiled for a processor newer than the user's.
//
// Lanes has: width; Vector; load, store, set, add, subtract, multiply, larger; up_to(a, b), a bit mask of a <= b;
// zero_up_to(x, bound), x with 0 where x <= bound.

namespace dgfast::cpu {
namespace {

using Vector = Lanes::Vector;

inline bool before(float distance, int32_t id, float other, int32_t other_id) {
  return distance < other || (distance == other && id < other_id);
}

// Enters one image into a list and returns the distance beyond which nothing enters any more.
inline float enter(float* distances, int32_t* indices, int64_t k, float distance, int32_t id) {
  int64_t place = k - 1;
  if (!before(distance, id, distances[place], indices[place])) return distances[place];
  for (; place > 0 && before(distance, id, distances[place - 1], indices[place - 1]); --place) {
    distances[place] = distances[place - 1];
    indices[place] = indices[place - 1];
  }
  distances[place] = distance;
  indices[place] = id;
  return distances[k - 1];
}

inline float one_distance(float product, float own_norm, float norm) {
  const float sum = own_norm + norm;
  const float distance = sum - (product + product);
  return distance <= zero_below * sum ? 0.0f : distance;
}

inline Vector some_distances(Vector product, Vector own_norm, Vector norm) {
  const Vector sum = Lanes::add(own_norm, norm);
  const Vector distance = Lanes::subtract(sum, Lanes::add(product, product));
  return Lanes::zero_up_to(distance, Lanes::multiply(Lanes::set(zero_below), sum));
}

void distances(float* values, int64_t count, float own_norm, const float* norms) {
  const Vector own = Lanes::set(own_norm);
  int64_t j = 0;
  for (; j + Lanes::width <= count; j += Lanes::width)
    Lanes::store(values + j, some_distances(Lanes::load(values + j), own, Lanes::load(norms + j)));
  for (; j < count; ++j) values[j] = one_distance(values[j], own_norm, norms[j]);
}

void distances_and_select(float* values, int64_t count, int32_t id, float own_norm, const float* norms, ListRows list) {
  const Vector own = Lanes::set(own_norm);
  float farthest = *list.farthest;
  Vector farthest_lanes = Lanes::set(farthest);
  float last = list.distances[list.k - 1];
  Vector bound = Lanes::set(last);
  int64_t j = 0;
  for (; j + Lanes::width <= count; j += Lanes::width) {
    const Vector d = some_distances(Lanes::load(values + j), own, Lanes::load(norms + j));
    Lanes::store(values + j, d);
    farthest_lanes = Lanes::larger(farthest_lanes, d);
    for (uint32_t mask = Lanes::up_to(d, bound); mask; mask &= mask - 1) {
      const int64_t at = j + __builtin_ctz(mask);
      last = enter(list.distances, list.indices, list.k, values[at], id + static_cast<int32_t>(at));
      bound = Lanes::set(last);
    }
  }
  float lanes[Lanes::width];
  Lanes::store(lanes, farthest_lanes);
  for (float lane : lanes) farthest = lane > farthest ? lane : farthest;
  for (; j < count; ++j) {
    const float d = values[j] = one_distance(values[j], own_norm, norms[j]);
    farthest = d > farthest ? d : farthest;
    if (d <= last) last = enter(list.distances, list.indices, list.k, d, id + static_cast<int32_t>(j));
  }
  *list.farthest = farthest;
}

void select_columns(const float* values, int64_t stride, int64_t rows, int64_t columns, int64_t skip, int32_t id,
                    ListRows lists, float* bounds) {
  const int64_t k = lists.k;
  for (int64_t j = 0; j < columns; ++j) bounds[j] = lists.distances[j * k + k - 1];
  for (int64_t r = 0; r < rows && skip + r < columns; ++r) {
    const float* row = values + r * stride;
    const int32_t image = id + static_cast<int32_t>(r);
    int64_t j = skip + r > 0 ? skip + r : 0;
    for (; j + Lanes::width <= columns; j += Lanes::width) {
      const Vector d = Lanes::load(row + j);
      Lanes::store(lists.farthest + j, Lanes::larger(Lanes::load(lists.farthest + j), d));
      for (uint32_t mask = Lanes::up_to(d, Lanes::load(bounds + j)); mask; mask &= mask - 1) {
        const int64_t at = j + __builtin_ctz(mask);
        bounds[at] = enter(lists.distances + at * k, lists.indices + at * k, k, row[at], image);
      }
    }
    for (; j < columns; ++j) {
      if (row[j] > lists.farthest[j]) lists.farthest[j] = row[j];
      if (row[j] <= bounds[j]) bounds[j] = enter(lists.distances + j * k, lists.indices + j * k, k, row[j], image);
    }
  }
}

void smallest(const float* values, int64_t count, ListRows list) {
  float last = list.distances[list.k - 1];
  Vector bound = Lanes::set(last);
  int64_t j = 0;
  for (; j + Lanes::width <= count; j += Lanes::width) {
    for (uint32_t mask = Lanes::up_to(Lanes::load(values + j), bound); mask; mask &= mask - 1) {
      const int64_t at = j + __builtin_ctz(mask);
      last = enter(list.distances, list.indices, list.k, values[at], static_cast<int32_t>(at));
      bound = Lanes::set(last);
    }
  }
  for (; j < count; ++j)
    if (values[j] <= last) last = enter(list.distances, list.indices, list.k, values[j], static_cast<int32_t>(j));
}

float squared_difference(const float* a, const float* b, int64_t count) {
  constexpr int64_t partial = 64, vectors = partial / Lanes::width;
  Vector sums[vectors];
  for (Vector& sum : sums) sum = Lanes::set(0.0f);
  int64_t i = 0;
  for (; i + partial <= count; i += partial) {
    for (int64_t v = 0; v < vectors; ++v) {
      const Vector difference =
          Lanes::subtract(Lanes::load(a + i + v * Lanes::width), Lanes::load(b + i + v * Lanes::width));
      sums[v] = Lanes::add(sums[v], Lanes::multiply(difference, difference));
    }
  }
  float lanes[partial];
  for (int64_t v = 0; v < vectors; ++v) Lanes::store(lanes + v * Lanes::width, sums[v]);
  for (int64_t lane = 0; i < count; ++i, ++lane) lanes[lane] += (a[i] - b[i]) * (a[i] - b[i]);
  for (int64_t half = partial / 2; half; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

template <typename T>
int64_t count_below(const T* values, int64_t count, T bound) {
  int32_t found = 0;  // count < 2^31; as wide as a float, so that the compiler counts in vectors
  for (int64_t j = 0; j < count; ++j) found += values[j] < bound;
  return found;
}

template <typename T>
int64_t count_up_to(const T* values, int64_t count, T bound) {
  int32_t found = 0;
  for (int64_t j = 0; j < count; ++j) found += values[j] <= bound;
  return found;
}

}  // namespace

extern const Kernels DGFAST_KERNELS;
const Kernels DGFAST_KERNELS = {distances,          distances_and_select, select_columns,
                                smallest,           squared_difference,   count_below<float>,
                                count_up_to<float>, count_below<double>,  count_up_to<double>};

}  // namespace dgfast::cpu
