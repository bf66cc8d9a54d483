// The emulator's scheduler: runs the blocks of a launch one after the other, the threads of a block
// as fibers with hand-written stack switches (x86-64, System V).
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t STACK = 256 << 10;

struct Wave {
  unsigned arrived = 0, live = 0, phase = 0;
  std::vector<char> slots[2];
  unsigned turn = 0;
};

struct Fiber {
  emulator::Thread facts;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  bool done = false;
  const char* waits = nullptr;
};

struct Launch {
  emulator::Entry entry;
  const void* params;
  const void* operands;
  std::vector<Fiber> fibers;
  std::vector<Wave> waves;
  unsigned at_barrier = 0, barrier_phase = 0, live = 0, at = 0;
  bool progressed = false;
  void* scheduler = nullptr;
};

Launch* launch = nullptr;

std::unordered_map<std::string, emulator::Entry>& entries() {
  static std::unordered_map<std::string, emulator::Entry> all;
  return all;
}

extern "C" void engine_switch(void** from, void* to);
asm(R"(
.text
.globl engine_switch
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

void yield() { engine_switch(&launch->fibers[launch->at].stack_pointer, launch->scheduler); }

void body() {
  launch->entry(launch->params, launch->operands);
  Fiber& fiber = launch->fibers[launch->at];
  fiber.done = true;
  launch->progressed = true;
  launch->live -= 1;
  launch->waves[fiber.facts.thread / WAVE].live -= 1;
  yield();
  std::abort();
}

void prepare(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = static_cast<char*>(std::aligned_alloc(64, STACK));
  // Six saved registers and the return address; `body` is entered as if called.
  void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&body);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.done = false;
}

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "emulator: %s", what);
  for (Fiber& f : launch->fibers)
    if (!f.done && f.waits) {
      std::fprintf(stderr, "; block %u,%u,%u thread %u waits at a %s", f.facts.block[0],
                   f.facts.block[1], f.facts.block[2], f.facts.thread, f.waits);
      break;
    }
  std::fputc('\n', stderr);
  std::abort();
}

void run_block() {
  unsigned n = unsigned(launch->fibers.size());
  launch->live = n;
  launch->at_barrier = 0;
  for (Wave& wave : launch->waves) wave.arrived = 0, wave.live = 0;
  for (Fiber& f : launch->fibers) prepare(f), launch->waves[f.facts.thread / WAVE].live += 1;
  while (launch->live > 0) {
    launch->progressed = false;
    for (unsigned i = 0; i < n; ++i) {
      if (launch->fibers[i].done) continue;
      launch->at = i;
      emulator::current = &launch->fibers[i].facts;
      engine_switch(&launch->scheduler, launch->fibers[i].stack_pointer);
    }
    if (!launch->progressed) refuse("no thread can go on: a barrier or shuffle that not all reach");
  }
}

}  // namespace

namespace emulator {
Thread* current = nullptr;

Registration::Registration(const char* name, Entry entry) { entries()[name] = entry; }

void barrier() {
  Fiber& fiber = launch->fibers[launch->at];
  if (launch->live != launch->fibers.size()) refuse("a barrier after threads have ended");
  unsigned phase = launch->barrier_phase;
  if (++launch->at_barrier == launch->live) {
    launch->at_barrier = 0;
    launch->barrier_phase += 1;
    launch->progressed = true;
    return;
  }
  fiber.waits = "barrier";
  while (launch->barrier_phase == phase) yield();
  launch->progressed = true;
  fiber.waits = nullptr;
}

void wave_barrier() {
  Fiber& fiber = launch->fibers[launch->at];
  Wave& wave = launch->waves[fiber.facts.thread / WAVE];
  unsigned phase = wave.phase;
  if (++wave.arrived == wave.live) {
    wave.arrived = 0;
    wave.phase += 1;
    launch->progressed = true;
    return;
  }
  fiber.waits = "shuffle";
  while (wave.phase == phase) yield();
  launch->progressed = true;
  fiber.waits = nullptr;
}

const char* exchange(const void* mine, size_t bytes) {
  Fiber& fiber = launch->fibers[launch->at];
  Wave& wave = launch->waves[fiber.facts.thread / WAVE];
  // Two slots in turn: a lane that is ahead writes the next exchange while others read this one.
  std::vector<char>& slot = wave.slots[wave.phase & 1];
  if (slot.size() < bytes * WAVE) slot.resize(bytes * WAVE);
  std::memcpy(slot.data() + bytes * (fiber.facts.thread % WAVE), mine, bytes);
  wave_barrier();
  return slot.data();
}
}  // namespace emulator

unsigned short f16_bits(float x) {
  unsigned bits = bits_of(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);
  if (rest >= 0x47800000u) return (unsigned short)(sign | 0x7c00u);
  if (rest < 0x38800000u) {  // subnormal: the sum with 0.5 rounds at the right bit
    float shifted = float_of(rest) + 0.5f;
    return (unsigned short)(sign | (bits_of(shifted) - 0x3f000000u));
  }
  unsigned rounded = rest + 0xfffu + ((rest >> 13) & 1u);
  return (unsigned short)(sign | ((rounded - 0x38000000u) >> 13));
}

float f16_value(unsigned short x) {
  unsigned sign = unsigned(x & 0x8000u) << 16, rest = x & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest < 0x400u) return float_of(sign) + (sign ? -1.0f : 1.0f) * float(rest) * 5.9604644775390625e-08f;
  return float_of(sign | ((rest << 13) + 0x38000000u));
}

// Runs a kernel. 0: done; 1: there is no kernel of that name.
extern "C" int engine_emulator_launch(const char* name, const unsigned* grid, unsigned block,
                                      unsigned shared, const void* params, const void* operands) {
  auto found = entries().find(name);
  if (found == entries().end()) return 1;
  static Launch state;
  launch = &state;
  state.entry = found->second, state.params = params, state.operands = operands;
  while (state.fibers.size() > block) std::free(state.fibers.back().stack), state.fibers.pop_back();
  state.fibers.resize(block);
  state.waves.assign((block + WAVE - 1) / WAVE, Wave{});
  std::vector<char> memory(shared + 128);
  char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 127) & ~uintptr_t(127));
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        for (unsigned i = 0; i < block; ++i)
          state.fibers[i].facts = {i, {x, y, z}, {grid[0], grid[1], grid[2]}, block, aligned};
        run_block();
      }
  return 0;
}
