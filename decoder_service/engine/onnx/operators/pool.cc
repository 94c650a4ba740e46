#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"

namespace {

constexpr size_t kMostThreads = 128;       // the caller's included
constexpr size_t kMostShards = 16;
constexpr uint64_t kSpinCycles = 600'000;  // 150 to 300 microseconds: longer than the time between two sections
constexpr uint64_t kItemCycles = 20'000;   // of an item, where the caller has computed none

// Of an item with results to commit. At first a thread has it, or will.
enum : uint32_t { kOpen, kWon, kDone };

char* allocate(size_t bytes) { return static_cast<char*>(aligned_alloc(64, (bytes + 64) / 64 * 64)); }

void sleep_while(const void* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(const void* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }

}  // namespace

// A turn's section and memory. A slot is used again when all threads have left it.
struct Slot {
  Atomic<uint64_t> open{0};  // number of the section that threads may enter, or 0
  Section section;
  const void* job;
  size_t threads;
  int core;  // of the caller
  // The items are shared out in shards, of which each thread begins with its own: neighbouring items read neighbouring
  // memory, of which the processor fetches the next part ahead.
  struct Shard {
    alignas(64) Atomic<size_t> next{0};
    size_t end = 0;
  } shards[kMostShards];
  size_t shard_count = 0;
  alignas(64) Atomic<uint32_t> inside{0};  // threads, without the caller
  Atomic<uint32_t> awaited{0};             // whether the caller sleeps
  Atomic<uint32_t>* items = nullptr;       // where there are results to commit
  char* scratch = nullptr;
  size_t most_items = 0, most_bytes = 0;

  bool reserve(size_t bytes, size_t count) {
    if (bytes > most_bytes || !scratch) {
      free(scratch);
      scratch = allocate(bytes);
      most_bytes = scratch ? bytes : 0;
    }
    if (count > most_items || !items) {
      free(items);
      items = reinterpret_cast<Atomic<uint32_t>*>(allocate(count * sizeof(*items)));
      most_items = items ? count : 0;
    }
    return scratch && items;
  }

  // For the caller, while a word has a value. It sleeps, so that the kernel can run an interrupted thread on its core.
  template <typename Waits>
  void wait(const Atomic<uint32_t>& word, Waits waits) {
    const uint64_t since = __rdtsc();
    while (waits(word.load()) && __rdtsc() - since < kSpinCycles) _mm_pause();
    if (!waits(word.load())) return;
    awaited.store(1);
    for (uint32_t value; waits(value = word.load());) sleep_while(&word, value);
    awaited.store(0);
  }

  // Calls `compute` with items, as long as there are any that no other thread has taken.
  template <typename Compute>
  void take(size_t thread, Compute compute) {
    for (size_t i = 0; i < shard_count; ++i) {
      Shard& shard = shards[(thread + i) % shard_count];
      for (size_t item; (item = shard.next.fetch_add(1)) < shard.end;) compute(item);
    }
  }

  void finish(size_t item) {
    items[item].store(kDone);
    if (awaited.load()) wake_all(&items[item]);
  }
};

namespace {

struct {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // of joining and leaving
  size_t kernels = 0, workers = 0;
  pthread_t threads[kMostThreads];
  Slot slots[kMostThreads];  // one for each thread that may be late, and one to use
  Atomic<bool> used{false}, ending{false};
  alignas(64) Atomic<uint64_t> latest{0};  // section's number, and in the low byte its slot
  alignas(64) Atomic<uint32_t> sleeping{0};
} pool;

void announce(uint64_t latest) {
  pool.latest.store(latest);
  if (pool.sleeping.load()) wake_all(&pool.latest);
}

// The latest section, once it is another than `seen`. Spins before it sleeps, for so long.
uint64_t wait_for_section(uint64_t seen, uint64_t cycles) {
  for (;;) {
    const uint64_t since = __rdtsc();
    do {
      const uint64_t latest = pool.latest.load();
      if (latest != seen) return latest;
      _mm_pause();
    } while (__rdtsc() - since < cycles);
    pool.sleeping.fetch_add(1);
    if (pool.latest.load() == seen) sleep_while(&pool.latest, static_cast<uint32_t>(seen));  // its low half
    pool.sleeping.fetch_sub(1);
  }
}

struct Results {
  char* bytes = nullptr;
  size_t size = 0;

  ~Results() { free(bytes); }
  bool reserve(size_t wanted) {
    if (wanted <= size) return true;
    free(bytes);
    bytes = allocate(wanted);
    size = bytes ? wanted : 0;
    return bytes;
  }
};

void help(Slot& slot, size_t thread, Results& results) {
  const Section& section = slot.section;
  if (section.commit && !results.reserve(section.result_bytes)) return;
  slot.take(thread, [&](size_t item) {
    section.compute(slot.job, item, section.commit ? results.bytes : nullptr);
    if (!section.commit || !slot.items[item].change(kOpen, kWon)) return;  // the caller has taken it over
    section.commit(slot.job, item, results.bytes);
    slot.finish(item);
  });
}

// Whether this thread is on another core than the caller, or goes to one. Where other processes keep the other cores
// busy, the kernel may leave both on one, where this thread can only get in the caller's way.
bool leaves_core(int core) {
  if (core < 0 || sched_getcpu() != core) return true;
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof(all), &all)) return false;
  cpu_set_t others = all;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof(others), &others)) return false;  // there is no other
  sched_setaffinity(0, sizeof(all), &all);
  return true;
}

void* work(void* argument) {
  const size_t thread = reinterpret_cast<size_t>(argument);
  Results results;
  uint64_t cycles = kSpinCycles;
  for (uint64_t seen = 0;;) {
    seen = wait_for_section(seen, cycles);
    if (pool.ending.load()) return nullptr;
    Slot& slot = pool.slots[seen & 0xff];
    slot.inside.fetch_add(1);
    if (slot.open.load() == seen >> 8 && thread < slot.threads) {
      const bool apart = leaves_core(slot.core);
      cycles = apart ? kSpinCycles : 0;
      if (apart) help(slot, thread, results);
    }
    if (slot.inside.fetch_sub(1) == 1 && slot.awaited.load()) wake_all(&slot.inside);
  }
}

bool start_worker() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads that were here before
  pthread_t& thread = pool.threads[pool.workers];
  const bool started = !pthread_create(&thread, nullptr, work, reinterpret_cast<void*>(pool.workers + 1));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!started) return false;
  pthread_setname_np(thread, "operators");
  ++pool.workers;
  return true;
}

void end_workers() {
  pool.ending.store(true);
  announce(pool.latest.load() + 0x100);
  while (pool.workers) pthread_join(pool.threads[--pool.workers], nullptr);
  pool.ending.store(false);
}

}  // namespace

bool join_pool(size_t threads) {
  if (threads > kMostThreads) threads = kMostThreads;
  pthread_mutex_lock(&pool.mutex);
  bool joined = true;
  while (joined && pool.workers + 1 < threads) joined = start_worker();
  if (joined)
    ++pool.kernels;
  else if (!pool.kernels)
    end_workers();
  pthread_mutex_unlock(&pool.mutex);
  return joined;
}

void leave_pool() {
  pthread_mutex_lock(&pool.mutex);
  for (Slot& slot : pool.slots)
    while (slot.inside.load()) sched_yield();
  if (!--pool.kernels) end_workers();
  pthread_mutex_unlock(&pool.mutex);
}

Turn::Turn(size_t threads, size_t bytes, size_t items) : threads_(threads) {
  if (threads > 1 && pool.used.change(false, true)) {
    for (size_t i = 0; i < kMostThreads && !slot_; ++i)
      if (!pool.slots[i].inside.load()) slot_ = &pool.slots[i];
    if (slot_ && slot_->reserve(bytes, items)) {
      scratch_ = slot_->scratch;
      return;
    }
    slot_ = nullptr;
    pool.used.store(false);
  }
  scratch_ = allocate(bytes);
}

Turn::~Turn() {
  if (slot_)
    pool.used.store(false);
  else
    free(scratch_);
}

void Turn::run(const Section& section, const void* job) {
  if (!slot_) {
    for (size_t item = 0; item < section.items; ++item) section.compute(job, item, nullptr);
    return;
  }
  Slot& slot = *slot_;
  slot.section = section;
  slot.job = job;
  slot.threads = threads_;
  slot.core = sched_getcpu();
  slot.shard_count = threads_ < kMostShards ? threads_ : kMostShards;
  for (size_t i = 0; i < slot.shard_count; ++i) {
    slot.shards[i].next.store(section.items * i / slot.shard_count);
    slot.shards[i].end = section.items * (i + 1) / slot.shard_count;
  }
  if (section.commit) __builtin_memset(static_cast<void*>(slot.items), 0, section.items * sizeof(*slot.items));
  const uint64_t number = (pool.latest.load() >> 8) + 1;
  slot.open.store(number);
  announce(number << 8 | static_cast<uint64_t>(slot_ - pool.slots));

  size_t computed = 0;
  const uint64_t since = __rdtsc();
  slot.take(0, [&](size_t item) {
    section.compute(job, item, nullptr);
    if (section.commit) slot.items[item].store(kDone);
    ++computed;
  });
  slot.open.store(0);
  if (!section.commit) return slot.wait(slot.inside, [](uint32_t inside) { return inside > 0; });

  // An item of another thread that runs is done in the time of one.
  const uint64_t now = __rdtsc();
  const uint64_t patience = computed ? (now - since) / computed * 3 / 2 + kSpinCycles / 4: kItemCycles;
  for (size_t item = 0; item < section.items; ++item) {
    while (slot.items[item].load() == kOpen && __rdtsc() - now < patience) _mm_pause();
    if (slot.items[item].change(kOpen, kWon))
      section.compute(job, item, nullptr), slot.finish(item);
    else
      slot.wait(slot.items[item], [](uint32_t state) { return state != kDone; });
  }
}
