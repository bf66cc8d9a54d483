// The cards that the emulator can claim to be, with published facts.
#pragma once
#include <cstring>

namespace {

struct Card {
  const char* arch;
  const char* name;
  unsigned units, mib, megahertz, bus_bits, memory_megahertz, l2_kib;
  int wave;
};
const Card CARDS[] = {
    {"gfx1010", "AMD Radeon RX 5600 XT", 36, 6128, 1560, 192, 750, 3072, 32},
    {"gfx1012", "AMD Radeon RX 5500 XT", 22, 8176, 1845, 128, 875, 2048, 32},
    {"gfx1030", "AMD Radeon RX 6800", 60, 16368, 2105, 256, 1000, 4096, 32},
    {"gfx1100", "AMD Radeon RX 7900 XTX", 96, 24560, 2500, 384, 1249, 6144, 32},
    {"gfx1201", "AMD Radeon RX 9070 XT", 64, 16304, 2970, 256, 1258, 8192, 32},
    {"gfx90a", "AMD Instinct MI210", 104, 65520, 1700, 4096, 1600, 8192, 64},
    {"gfx942", "AMD Instinct MI300X", 304, 196592, 2100, 8192, 1300, 4096, 64},
};

const Card* card_of(const char* arch) {
  for (const Card& card : CARDS)
    if (!std::strcmp(card.arch, arch)) return &card;
  return nullptr;
}

}  // namespace
