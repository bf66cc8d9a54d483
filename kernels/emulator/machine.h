// Between the parts of the emulator: the scheduler (emulator.cpp), the race detector (race.cpp) and
// the HIP runtime in front of them (hip.cpp).
#pragma once
#include <cstddef>
#include <string>

#include "device.h"

namespace emulator {

struct Kernel {
  std::string name;
  Entry entry;
  unsigned params;  // bytes of argument 0
};
// None where no kernel of that name was compiled in.
const Kernel* find(const std::string& name);

struct Geometry {
  unsigned grid[3], block, shared;
};
// Runs all blocks of a launch. What a kernel does wrong is printed, and ends the process.
void run(const Kernel& kernel, const Geometry& geometry, const void* params, const void* operands);

// What is not written yet: NaN in f32, bf16 and f16 alike.
constexpr unsigned char POISON = 0xff;

struct Range {
  const char* begin;
  const char* end;
  bool has(const void* p) const {
    return static_cast<const char*>(p) >= begin && static_cast<const char*>(p) < end;
  }
};

#ifdef ENGINE_RACE
// A launch begins; `kernel` names it in reports. What is in `quiet` is the emulator's own.
void race_launch(const char* kernel, Range static_shared, Range dynamic_shared, Range quiet);
void race_block(unsigned block);
// The number of what thread `thread` does from here on, after `epoch` barriers of its block and
// `phase` meetings of its wave.
unsigned race_stamp(unsigned thread, unsigned epoch, unsigned phase);
#endif

}  // namespace emulator
