// The emulator's scheduler: runs the blocks of a launch one after the other, the threads of a block
// as fibers with hand-written stack switches (x86-64, System V).
//
// ENGINE_EMULATOR_SEED permutes the order of waves, and of lanes in a wave, anew for every block.
// Shared memory is NaN when a block begins.
#include "machine.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "the emulator's stack switch is written for x86-64"
#endif

// The static shared memory of all kernels, where the build script has gathered it in one section.
extern "C" char __start_engine_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_engine_shared[] __attribute__((weak, visibility("hidden")));

namespace {
using emulator::Range;

constexpr size_t STACK = 256 << 10, GUARD = 4096;
constexpr size_t CHUNK = 64;

// Where a fiber waits, or last came past.
struct Meeting {
  const char* what = nullptr;
  const char* file = "";
  int line = 0;
  bool same(const Meeting& other) const {
    return what == other.what && line == other.line && (file == other.file || !std::strcmp(file, other.file));
  }
};

struct Wave {
  unsigned arrived = 0, live = 0, phase = 0, order = 0;
  Meeting at;
  // Two slots in turn: a lane that is ahead writes the next exchange while others read this one.
  char* slots[2] = {nullptr, nullptr};
  std::uint64_t present[2] = {0, 0};  // lanes that gave something
};

struct Fiber {
  emulator::Thread facts;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  bool done = false;
  // While it waits: the counter that must leave `seen`.
  const unsigned* counter = nullptr;
  unsigned seen = 0;
  Meeting at;
};

struct Launch {
  const emulator::Kernel* kernel = nullptr;
  const void* params = nullptr;
  const void* operands = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Wave> waves;
  std::vector<char*> dirty;  // chunks of static shared memory that this kernel writes
  unsigned at_barrier = 0, epoch = 0, live = 0, at = 0;
  Meeting barrier;
  void* scheduler = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
  char* shared = nullptr;
  char* slots = nullptr;
};

Launch* launch = nullptr;

std::unordered_map<std::string, emulator::Kernel>& kernels() {
  static std::unordered_map<std::string, emulator::Kernel> all;
  return all;
}

// Bytes an exchange may give each lane.
constexpr size_t SLOT = 64;
constexpr size_t MOST_THREADS = 1024, MOST_SLOTS = 2 * MOST_THREADS / WAVE;

extern "C" void engine_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl engine_switch
.hidden engine_switch
.type engine_switch, @function
engine_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size engine_switch, .-engine_switch
)");

// From the running fiber to the scheduler; for good where `ends`.
void leave(bool ends) {
  Fiber& fiber = launch->fibers[launch->at];
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(ends ? nullptr : &fiber.fake_stack, launch->scheduler_stack,
                                 launch->scheduler_bytes);
#else
  (void)ends;
#endif
  engine_switch(&fiber.stack_pointer, launch->scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void enter(unsigned thread) {
  Fiber& fiber = launch->fibers[thread];
  launch->at = thread;
  emulator::current = &fiber.facts;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&launch->scheduler_fake_stack, fiber.stack, STACK);
#endif
  engine_switch(&launch->scheduler, fiber.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(launch->scheduler_fake_stack, nullptr, nullptr);
#endif
  emulator::current = nullptr;
}

void stamp(Fiber& fiber) {
#ifdef ENGINE_RACE
  unsigned phase = launch->waves[fiber.facts.thread / WAVE].phase;
  fiber.facts.stamp = emulator::race_stamp(fiber.facts.thread, launch->epoch, phase);
#else
  (void)fiber;
#endif
}

void body() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &launch->scheduler_stack, &launch->scheduler_bytes);
#endif
  Fiber& fiber = launch->fibers[launch->at];
  stamp(fiber);
  launch->kernel->entry(launch->params, launch->operands);
  fiber.done = true;
  launch->live -= 1;
  launch->waves[fiber.facts.thread / WAVE].live -= 1;
  leave(true);
  std::abort();
}

// Memory below a stack is not accessible, so that an overflow shows.
char* new_stack() {
  void* memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::perror("emulator: stack of a thread"), std::abort();
  mprotect(memory, GUARD, PROT_NONE);
  return static_cast<char*>(memory) + GUARD;
}

void prepare(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, STACK);
#endif
  // Six saved registers and the return address; `body` is entered as if called.
  void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&body);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.done = false;
  fiber.counter = nullptr;
  fiber.at = Meeting{};
}

void print(const Fiber& fiber) {
  const unsigned* b = fiber.facts.block;
  std::fprintf(stderr, "  block %u,%u,%u thread %u ", b[0], b[1], b[2], fiber.facts.thread);
  if (fiber.done) std::fprintf(stderr, "has ended\n");
  else if (!fiber.at.what) std::fprintf(stderr, "has not come to a barrier or shuffle yet\n");
  else std::fprintf(stderr, "%s a %s, %s:%d\n", fiber.counter ? "waits at" : "came to", fiber.at.what,
                    fiber.at.file, fiber.at.line);
}

// Prints what is wrong, `named` threads, and one thread for each place where others are.
[[noreturn]] void refuse(const char* what, int named = -1) {
  std::fprintf(stderr, "emulator: %s: %s\n", launch->kernel->name.c_str(), what);
  std::vector<const Fiber*> shown;
  if (named >= 0) shown.push_back(&launch->fibers[size_t(named)]);
  for (const Fiber& fiber : launch->fibers) {
    bool known = false;
    for (const Fiber* other : shown)
      known = known || (other->done == fiber.done && (fiber.done || other->at.same(fiber.at)));
    if (!known) shown.push_back(&fiber);
  }
  for (const Fiber* fiber : shown) print(*fiber);
  std::abort();
}

// Waits until `counter` has left its value.
void wait(Fiber& fiber, const unsigned& counter) {
  fiber.counter = &counter;
  fiber.seen = counter;
  leave(false);
  fiber.counter = nullptr;
}

// Notes that a thread comes to a place where all of a group meet, `first` of them or not.
void meet(Fiber& fiber, Meeting& group, bool first, const char* what, const char* file, int line) {
  fiber.at = Meeting{what, file, line};
  if (first) group = fiber.at;
  else if (!group.same(fiber.at)) refuse("threads meet from different lines", int(fiber.facts.thread));
}

unsigned next(unsigned& state) {
  state ^= state << 13, state ^= state >> 17, state ^= state << 5;
  return state;
}

// The order of waves in this block, and in `order` of each wave where its lanes begin.
void permute(std::vector<unsigned>& order, unsigned& state) {
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  if (state == 0) return;
  for (unsigned i = unsigned(order.size()); i > 1; --i) std::swap(order[i - 1], order[next(state) % i]);
  for (Wave& wave : launch->waves) wave.order = next(state) % (2 * WAVE);
}

// Runs the lanes of a wave until all wait for other waves. False where none could.
bool run_wave(unsigned index) {
  Wave& wave = launch->waves[index];
  unsigned begin = index * WAVE, lanes = unsigned(launch->fibers.size()) - begin;
  bool ever = false, ran = true;
  while (ran) {
    ran = false;
    for (unsigned i = 0; i < WAVE; ++i) {
      // A rotation, backwards in half of the cases.
      unsigned lane = (wave.order / 2 + (wave.order % 2 ? WAVE - i : i)) % WAVE;
      if (lane >= lanes) continue;
      Fiber& fiber = launch->fibers[begin + lane];
      if (fiber.done || (fiber.counter && *fiber.counter == fiber.seen)) continue;
      enter(begin + lane);
      ran = ever = true;
    }
  }
  return ever;
}

void run_block(std::vector<unsigned>& order, unsigned& state) {
  launch->live = unsigned(launch->fibers.size());
  launch->at_barrier = 0;
  for (Wave& wave : launch->waves) wave.arrived = 0, wave.live = 0;
  for (Fiber& f : launch->fibers) prepare(f), launch->waves[f.facts.thread / WAVE].live += 1;
  permute(order, state);
  while (launch->live > 0) {
    bool progressed = false;
    for (unsigned wave : order) progressed = run_wave(wave) || progressed;
    if (!progressed) refuse("a barrier or shuffle that not all threads reach");
  }
}

// Fills with POISON, also the red zones that ASan keeps between arrays.
__attribute__((no_sanitize("address"))) void poison(char* begin, char* end) {
  unsigned long long pattern;
  std::memset(&pattern, emulator::POISON, sizeof pattern);
  volatile unsigned long long* at = reinterpret_cast<volatile unsigned long long*>(begin);
  for (; reinterpret_cast<char*>(const_cast<unsigned long long*>(at + 1)) <= end; ++at) *at = pattern;
}

__attribute__((no_sanitize("address"))) bool is_poisoned(const char* chunk) {
  const volatile unsigned long long* at = reinterpret_cast<const volatile unsigned long long*>(chunk);
  for (size_t i = 0; i < CHUNK / 8; ++i)
    if (at[i] != ~0ull) return false;
  return true;
}

// Makes static shared memory NaN again. A kernel uses little of all kernels' shared memory, so what
// it writes is looked for only after some blocks.
void poison_static(unsigned block) {
  char* begin = __start_engine_shared;
  char* end = __stop_engine_shared;
  if (!begin) return;
  if (block == 0) {
    launch->dirty.clear();
    poison(begin, end);
  } else if (block <= 2 || block % 16 == 0) {
    launch->dirty.clear();
    for (char* chunk = begin; chunk + CHUNK <= end; chunk += CHUNK)
      if (!is_poisoned(chunk)) launch->dirty.push_back(chunk);
    poison(end - (end - begin) % CHUNK, end);
  }
  for (char* chunk : launch->dirty) poison(chunk, chunk + CHUNK);
}

void resize(unsigned block) {
  while (launch->fibers.size() > block) {
    munmap(launch->fibers.back().stack - GUARD, GUARD + STACK);
    launch->fibers.pop_back();
  }
  launch->fibers.resize(block);
  for (Fiber& fiber : launch->fibers)
    if (!fiber.stack) fiber.stack = new_stack();
  launch->waves.assign((block + WAVE - 1) / WAVE, Wave{});
  if (!launch->slots) launch->slots = static_cast<char*>(std::malloc(MOST_SLOTS * WAVE * SLOT));
  for (size_t i = 0; i < launch->waves.size(); ++i)
    for (size_t j = 0; j < 2; ++j)
      launch->waves[i].slots[j] = launch->slots + (2 * i + j) * WAVE * SLOT;
}

}  // namespace

namespace emulator {
Thread* current = nullptr;

Registration::Registration(const char* name, Entry entry, unsigned params) {
  kernels()[name] = Kernel{name, entry, params};
}

const Kernel* find(const std::string& name) {
  auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : &found->second;
}

void barrier(const char* file, int line) {
  Fiber& fiber = launch->fibers[launch->at];
  meet(fiber, launch->barrier, launch->at_barrier == 0, "barrier", file, line);
  if (launch->live != launch->fibers.size()) refuse("a barrier after threads have ended", int(launch->at));
  if (++launch->at_barrier == launch->live) {
    launch->at_barrier = 0;
    launch->epoch += 1;
  } else {
    wait(fiber, launch->epoch);
  }
  stamp(fiber);
}

static void meet_wave(const char* what, const char* file, int line) {
  Fiber& fiber = launch->fibers[launch->at];
  Wave& wave = launch->waves[fiber.facts.thread / WAVE];
  meet(fiber, wave.at, wave.arrived == 0, what, file, line);
  if (++wave.arrived == wave.live) {
    wave.arrived = 0;
    wave.phase += 1;
  } else {
    wait(fiber, wave.phase);
  }
  stamp(fiber);
}

void wave_barrier(const char* file, int line) { meet_wave("wave barrier", file, line); }

const char* exchange(const void* mine, size_t bytes, const char* file, int line) {
  Fiber& fiber = launch->fibers[launch->at];
  Wave& wave = launch->waves[fiber.facts.thread / WAVE];
  if (bytes > SLOT) refuse("an exchange of more bytes than the emulator has room for");
  unsigned turn = wave.phase & 1, lane = fiber.facts.thread % WAVE;
  if (wave.arrived == 0) wave.present[turn] = 0;
  wave.present[turn] |= std::uint64_t(1) << lane;
  std::memcpy(wave.slots[turn] + bytes * lane, mine, bytes);
  meet_wave("shuffle", file, line);
  return wave.slots[turn];
}

void expect_lane(unsigned lane) {
  const Wave& wave = launch->waves[launch->fibers[launch->at].facts.thread / WAVE];
  // The exchange is over: its slot is that of the phase before.
  if (wave.present[(wave.phase - 1) & 1] >> lane & 1) return;
  refuse("a shuffle from a lane that is not there", int(launch->at));
}

void run(const Kernel& kernel, const Geometry& geometry, const void* params, const void* operands) {
  static Launch state;
  launch = &state;
  state.kernel = &kernel, state.params = params, state.operands = operands;
  resize(geometry.block);
  // Exactly as large as asked, for ASan's sake.
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, geometry.shared ? geometry.shared : 1)) std::abort();
  state.shared = static_cast<char*>(shared);
#ifdef ENGINE_RACE
  race_launch(kernel.name.c_str(), Range{__start_engine_shared, __stop_engine_shared},
              Range{state.shared, state.shared + geometry.shared},
              Range{state.slots, state.slots + MOST_SLOTS * WAVE * SLOT});
#endif
  const char* seed = std::getenv("ENGINE_EMULATOR_SEED");
  unsigned random = seed ? unsigned(std::strtoul(seed, nullptr, 10)) * 2654435761u : 0;
  std::vector<unsigned> order(state.waves.size());
  const unsigned* grid = geometry.grid;
  unsigned block = 0;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x, ++block) {
        for (unsigned i = 0; i < geometry.block; ++i)
          state.fibers[i].facts = {i, {x, y, z}, {grid[0], grid[1], grid[2]}, geometry.block, state.shared,
                                   state.fibers[i].stack + STACK, 0};
        std::memset(state.shared, POISON, geometry.shared);
        poison_static(block);
#ifdef ENGINE_RACE
        race_block(block);
#endif
        run_block(order, random);
      }
  std::free(state.shared);
}

}  // namespace emulator

// Runs a kernel, without the HIP runtime in front. 0: done; 1: there is no kernel of that name.
extern "C" __attribute__((visibility("default"))) int engine_emulator_launch(
    const char* name, const unsigned* grid, unsigned block, unsigned shared, const void* params,
    const void* operands) {
  const emulator::Kernel* kernel = emulator::find(name);
  if (!kernel) return 1;
  emulator::run(*kernel, {{grid[0], grid[1], grid[2]}, block, shared}, params, operands);
  return 0;
}
