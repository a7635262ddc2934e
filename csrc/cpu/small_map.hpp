// A map from image ids to small values, for the sets around one image: open addressing, emptied in the time of what it
// holds.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace dgfast::cpu {

template <typename Value>
class SmallMap {
 public:
  // For at most `most` ids at a time.
  explicit SmallMap(int64_t most)
      : slots_(std::bit_ceil(static_cast<uint64_t>(2 * most + 2))), shift_(64 - std::countr_zero(slots_.size())) {
    for (Slot& slot : slots_) slot.id = none;
  }

  // The id's value, entered as `fresh` if the id is new.
  Value& at(int32_t id, Value fresh) {
    Slot& slot = find(id);
    if (slot.id == none) {
      slot = {id, fresh};
      ids_.push_back(id);
      places_.push_back(&slot);
    }
    return slot.value;
  }

  // The id's value, or `missing`.
  Value get(int32_t id, Value missing) {
    const Slot& slot = find(id);
    return slot.id == none ? missing : slot.value;
  }

  // In the order in which they were entered.
  const std::vector<int32_t>& ids() const { return ids_; }
  Value value(int64_t entered) const { return places_[entered]->value; }

  void clear() {
    for (Slot* slot : places_) slot->id = none;
    ids_.clear();
    places_.clear();
  }

 private:
  static constexpr int32_t none = -1;
  struct Slot {
    int32_t id;
    Value value;
  };

  Slot& find(int32_t id) {
    // Fibonacci hashing: neighbouring ids, which are frequent, spread out.
    uint64_t at = (static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u) >> shift_;
    while (slots_[at].id != none && slots_[at].id != id) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

  std::vector<Slot> slots_;
  int shift_;
  std::vector<int32_t> ids_;
  std::vector<Slot*> places_;
};

}  // namespace dgfast::cpu
