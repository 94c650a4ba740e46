// The threads of the operators. A section is a number of items; each thread takes the next one until none is left.
//
// ONNX Runtime's pool ends a section when every thread has finished the item it took. Where another process holds one
// of the cores, that is when the kernel gives the core back, milliseconds later, and a step has two hundred sections.
// Here the thread that runs a section, the caller, does not wait for a thread that has been interrupted: it computes
// that thread's item itself. An interrupted thread may go on after the section has ended, so it must neither read nor
// write memory that ends with the section: it reads scratch memory, which the pool keeps until every thread has left,
// and writes to memory of its own, from which results are committed by the one thread that wins the item.
//
// Threads without work spin for a short time and then sleep: a spinning thread would keep the kernel from moving an
// interrupted one to its core.

#pragma once

#include <stddef.h>

struct Section {
  size_t items;
  // Computes an item. Writes to `results` where it is given, else to where results belong.
  void (*compute)(const void* job, size_t item, char* results);
  // Copies results to where they belong. Without it, threads write there themselves and the caller waits for all.
  void (*commit)(const void* job, size_t item, const char* results);
  size_t result_bytes;  // of an item, where there is `commit`
};

// Each kernel joins when it is created, with the number of threads that it uses, and leaves when it is destroyed; after
// that no thread reads its memory. With the last kernel the threads end.
bool join_pool(size_t threads);
void leave_pool();

struct Slot;

// A caller's use of the pool for a few sections, of which only the last may have `commit`. While another caller uses
// the pool, sections run on the caller's thread alone.
class Turn {
 public:
  // The most threads of a section, bytes of scratch memory, and the most items of a section with `commit`.
  Turn(size_t threads, size_t bytes, size_t items);
  ~Turn();
  Turn(const Turn&) = delete;

  // Null where there is no memory.
  char* scratch() const { return scratch_; }
  // `job` must be in the scratch memory if the section has `commit`.
  void run(const Section& section, const void* job);

 private:
  Slot* slot_ = nullptr;
  char* scratch_ = nullptr;
  size_t threads_;
};
