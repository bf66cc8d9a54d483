// The race detector: a shadow of all memory that kernels touch.
//
// The kernels are compiled with -fsanitize=thread, whose calls before every load and store arrive
// here instead of at a sanitizer's runtime (this file is compiled without it). Threads run one at a
// time, so what is looked for is two accesses, at least one a write, that no barrier orders: by
// threads of one block since the same barrier (in one wave: since the same shuffle or wave barrier),
// or by different blocks of one launch in global memory.
//
// ENGINE_EMULATOR_RACES=count goes on after a report and tells each pair of lines once; else a report
// ends the process.
#include "machine.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

namespace {
using emulator::Range;

// An access: who and between which barriers (a stamp; 0: nobody), and the instruction.
struct Access {
  unsigned stamp = 0, code = 0;
};

// Two bytes of memory, the smallest that kernels write. Of the reads since the last write, two are
// kept, from two waves or blocks where there are such: whoever conflicts with any of the reads then
// conflicts with one of these.
struct Cell {
  Access write, read[2];
};
constexpr size_t CELL = 2, PAGE = 4096, CELLS = PAGE / CELL;
struct Page {
  Cell cells[CELLS];
};

struct Stamp {
  unsigned block, thread, epoch, phase;
};

struct State {
  const char* kernel = "";
  Range fixed{}, dynamic{}, quiet{};
  unsigned block = 0;
  // Stamps of this launch are `first` and above: stamps[stamp - first]. What has one below belongs
  // to an earlier launch, and is over.
  unsigned first = 1;
  std::vector<Stamp> stamps;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  struct { uintptr_t number; Page* page; } recent[256] = {};
  std::set<std::pair<unsigned, unsigned>> reported;
  bool counting = false;
  const char* library = "";
  uintptr_t base = 0;
};

State& state() {
  static State* all = new State;
  return *all;
}

Page& page_of(State& s, uintptr_t number) {
  auto& recent = s.recent[number % 256];
  if (recent.page && recent.number == number) return *recent.page;
  std::unique_ptr<Page>& page = s.pages[number];
  if (!page) page.reset(new Page);
  recent.number = number, recent.page = page.get();
  return *page;
}

// True where the two accesses of the running launch are in the order in which they came.
bool ordered(const Stamp& before, const Stamp& now, bool shared) {
  if (before.block != now.block) return shared;  // shared memory of another block is other memory
  if (before.thread == now.thread || before.epoch != now.epoch) return true;
  return before.thread / WAVE == now.thread / WAVE && before.phase != now.phase;
}

const Stamp* find(const State& s, const Access& access) {
  return access.stamp < s.first ? nullptr : &s.stamps[access.stamp - s.first];
}

void print(const State& s, const char* what, const Access& access, bool write) {
  const Stamp& by = *find(s, access);
  std::fprintf(stderr, "  %s %s by block %u thread %u: ", what, write ? "write" : "read", by.block, by.thread);
  std::fflush(stderr);
  char command[1024];
  std::snprintf(command, sizeof command, "addr2line -Cfpe '%s' 0x%x >&2 2>/dev/null", s.library, access.code);
  if (std::system(command) != 0) std::fprintf(stderr, "%s+0x%x\n", s.library, access.code);
}

void report(State& s, uintptr_t address, const Access& before, bool wrote, const Access& now, bool writes) {
  if (!s.reported.insert({before.code, now.code}).second) return;
  const void* at = reinterpret_cast<const void*>(address);
  const char* where = s.fixed.has(at) ? "shared memory" : s.dynamic.has(at) ? "dynamic shared memory" : "global memory";
  std::fprintf(stderr, "emulator: %s: a race in %s", s.kernel, where);
  if (s.dynamic.has(at)) std::fprintf(stderr, ", byte %zu", size_t(static_cast<const char*>(at) - s.dynamic.begin));
  std::fputc('\n', stderr);
  // Calls return behind the access that they precede.
  print(s, "first a", {before.stamp, before.code - 1}, wrote);
  print(s, "then a", {now.stamp, now.code - 1}, writes);
  if (!s.counting) std::abort();
}

// True where `now` and `other` are of different waves or blocks.
bool apart(const State& s, const Access& other, const Stamp& now) {
  const Stamp* by = find(s, other);
  return by && (by->block != now.block || (by->epoch == now.epoch && by->thread / WAVE != now.thread / WAVE));
}

void access_cell(State& s, uintptr_t address, Cell& cell, Access now, bool writes) {
  const Stamp& by = *find(s, now);
  const void* at = reinterpret_cast<const void*>(address);
  bool shared = s.fixed.has(at) || s.dynamic.has(at);
  if (const Stamp* before = find(s, cell.write))
    if (!ordered(*before, by, shared)) report(s, address, cell.write, true, now, writes);
  if (!writes) {
    if (cell.read[0].stamp == now.stamp) return;
    if (!apart(s, cell.read[1], by)) cell.read[1] = cell.read[0];
    cell.read[0] = now;
    return;
  }
  for (const Access& read : cell.read)
    if (const Stamp* before = find(s, read))
      if (!ordered(*before, by, shared)) report(s, address, read, false, now, true);
  cell.write = now;
  cell.read[0] = cell.read[1] = Access{};
}

inline void access(const void* pointer, size_t bytes, bool writes, const void* code) {
  const emulator::Thread* thread = emulator::current;
  if (!thread) return;
  char here;
  const char* p = static_cast<const char*>(pointer);
  if (p >= &here && p < thread->stack_end) return;
  State& s = state();
  if (s.quiet.has(p)) return;
  Access now{thread->stamp, unsigned(reinterpret_cast<uintptr_t>(code) - s.base)};
  uintptr_t first = reinterpret_cast<uintptr_t>(p) / CELL;
  uintptr_t last = (reinterpret_cast<uintptr_t>(p) + bytes - 1) / CELL;
  for (uintptr_t cell = first; cell <= last; ++cell)
    access_cell(s, cell * CELL, page_of(s, cell / CELLS).cells[cell % CELLS], now, writes);
}

}  // namespace

namespace emulator {

void race_launch(const char* kernel, Range fixed, Range dynamic, Range quiet) {
  State& s = state();
  if (s.first > 0xf0000000u - unsigned(s.stamps.size())) {  // stamps run out: forget all
    s.pages.clear();
    for (auto& recent : s.recent) recent.page = nullptr;
    s.first = 1;
  } else {
    s.first += unsigned(s.stamps.size());
  }
  s.stamps.clear();
  s.kernel = kernel, s.fixed = fixed, s.dynamic = dynamic, s.quiet = quiet;
  const char* mode = std::getenv("ENGINE_EMULATOR_RACES");
  s.counting = mode && !std::strcmp(mode, "count");
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&race_launch), &info)) {
    s.library = info.dli_fname;
    s.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  }
}

void race_block(unsigned block) { state().block = block; }

unsigned race_stamp(unsigned thread, unsigned epoch, unsigned phase) {
  State& s = state();
  s.stamps.push_back(Stamp{s.block, thread, epoch, phase});
  return s.first + unsigned(s.stamps.size()) - 1;
}

}  // namespace emulator

// What the compiler calls.
#define CALLED extern "C" __attribute__((visibility("default")))
#define ACCESSES(bytes)                                                                             \
  CALLED void __tsan_read##bytes(void* p) { access(p, bytes, false, __builtin_return_address(0)); }  \
  CALLED void __tsan_write##bytes(void* p) { access(p, bytes, true, __builtin_return_address(0)); }  \
  CALLED void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false, __builtin_return_address(0)); } \
  CALLED void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
CALLED void __tsan_read_range(void* p, size_t n) { access(p, n, false, __builtin_return_address(0)); }
CALLED void __tsan_write_range(void* p, size_t n) { access(p, n, true, __builtin_return_address(0)); }
CALLED void __tsan_vptr_read(void*) {}
CALLED void __tsan_vptr_update(void*, void*) {}
CALLED void __tsan_func_entry(void*) {}
CALLED void __tsan_func_exit() {}
CALLED void __tsan_init() {}
