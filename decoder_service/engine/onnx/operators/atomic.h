// What the pool needs of std::atomic: the operators are built without the C++ library. Sequentially consistent.

#pragma once

template <typename T>
class Atomic {
 public:
  constexpr Atomic(T value = T()) : value_(value) {}
  Atomic(const Atomic&) = delete;

  T load() const { return __atomic_load_n(&value_, __ATOMIC_SEQ_CST); }
  void store(T value) { __atomic_store_n(&value_, value, __ATOMIC_SEQ_CST); }
  T fetch_add(T more) { return __atomic_fetch_add(&value_, more, __ATOMIC_SEQ_CST); }
  T fetch_sub(T less) { return __atomic_fetch_sub(&value_, less, __ATOMIC_SEQ_CST); }
  // Whether it was `from`; then it is `to` now.
  bool change(T from, T to) {
    return __atomic_compare_exchange_n(&value_, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  }

 private:
  T value_;
};
