// Tasks on PyTorch's own threads.
//
// PyTorch computes on the threads of an OpenMP library, and those that have nothing to do keep a processor busy for a while
// in the hope of more. Threads of our own would compete with them; so the work is given to the same ones.

#pragma once

#include <stdint.h>

// `GOMP_parallel` of that library: calls `work` with `data` on every thread of the team, and returns when all have.
// 0 threads: as many as `torch.set_num_threads` has set. A smaller number would end the others, and start them again.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// Calls `task` with 0 to `count` - 1. Threads take tasks until none is left: one that the system has stopped holds up no
// more than its own task.
template <typename Task>
void for_each(Parallel parallel, int64_t count, const Task& task) {
  struct Shared {
    const Task& task;
    int64_t count, next;
  } shared{task, count, 0};
  const auto work = [](void* data) {
    Shared& all = *static_cast<Shared*>(data);
    for (;;) {
      const int64_t number = __atomic_fetch_add(&all.next, 1, __ATOMIC_RELAXED);
      if (number >= all.count) return;
      all.task(number);
    }
  };
  if (count > 1) {
    parallel(work, &shared, 0, 0);
  } else {
    work(&shared);
  }
}
