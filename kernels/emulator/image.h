// What a module image says of its kernels: AMD code objects carry it as notes.
#pragma once
#include <map>
#include <string>

namespace emulator {

struct KernelFacts {
  unsigned shared = 0;   // bytes of static shared memory
  unsigned wave = 0;     // lanes, 0: not said
  unsigned threads = 0;  // most threads of a block, 0: not said
  unsigned arguments = 0;
};

struct Image {
  // False: the image without machine code, which holds every kernel.
  bool machine_code = false;
  std::string arch;  // "gfx1010"; empty where the number is not known
  std::map<std::string, KernelFacts> kernels;
};

// False, with the reason in `problem`, where `data` is neither an AMD code object nor the image that
// the build script writes.
bool read_image(const void* data, Image& image, std::string& problem);

}  // namespace emulator
