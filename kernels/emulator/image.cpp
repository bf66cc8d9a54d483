// Reads as much of an AMD code object as the emulator checks launches with: the e_flags of its ELF
// header and the metadata note, MessagePack (LLVM's "User Guide for AMDGPU Backend").
#include "image.h"

#include <elf.h>

#include <cstdint>
#include <cstring>

namespace emulator {
namespace {

constexpr char MARK[] = "engine emulator";
constexpr unsigned EM_AMDGPU_MACHINE = 224, NOTE_METADATA = 32;

const std::map<unsigned, const char*>& machines() {
  static const std::map<unsigned, const char*> all = {
      {0x02c, "gfx900"},  {0x02f, "gfx906"},  {0x030, "gfx908"},  {0x033, "gfx1010"}, {0x034, "gfx1011"},
      {0x035, "gfx1012"}, {0x036, "gfx1030"}, {0x037, "gfx1031"}, {0x038, "gfx1032"}, {0x03f, "gfx90a"},
      {0x041, "gfx1100"}, {0x044, "gfx1103"}, {0x046, "gfx1101"}, {0x047, "gfx1102"}, {0x048, "gfx1200"},
      {0x04c, "gfx942"},  {0x04e, "gfx1201"}, {0x04f, "gfx950"}};
  return all;
}

struct Bytes {
  const unsigned char* at;
  const unsigned char* end;
  bool has(size_t n) const { return size_t(end - at) >= n; }
  // A big-endian number of `n` bytes.
  std::uint64_t number(size_t n) {
    std::uint64_t value = 0;
    for (; n > 0 && has(1); --n) value = value << 8 | *at++;
    return value;
  }
};

// The head of a MessagePack value: a number, or the length of a string, array or map.
struct Head {
  enum { NUMBER, STRING, ARRAY, MAP, OTHER } kind = OTHER;
  std::uint64_t value = 0;
};

Head head_of(Bytes& b) {
  if (!b.has(1)) return {};
  unsigned tag = *b.at++;
  if (tag < 0x80) return {Head::NUMBER, tag};
  if (tag < 0x90) return {Head::MAP, tag & 15};
  if (tag < 0xa0) return {Head::ARRAY, tag & 15};
  if (tag < 0xc0) return {Head::STRING, tag & 31};
  switch (tag) {
    case 0xcc: case 0xcd: case 0xce: case 0xcf: return {Head::NUMBER, b.number(size_t(1) << (tag - 0xcc))};
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return {Head::NUMBER, b.number(size_t(1) << (tag - 0xd0))};
    case 0xd9: case 0xda: case 0xdb: return {Head::STRING, b.number(size_t(1) << (tag - 0xd9))};
    case 0xdc: case 0xdd: return {Head::ARRAY, b.number(size_t(2) << (tag - 0xdc))};
    case 0xde: case 0xdf: return {Head::MAP, b.number(size_t(2) << (tag - 0xde))};
    default: return {Head::OTHER, 0};
  }
}

std::string text(Bytes& b, const Head& head) {
  if (head.kind != Head::STRING || !b.has(head.value)) return {};
  std::string found(reinterpret_cast<const char*>(b.at), size_t(head.value));
  b.at += head.value;
  return found;
}

void skip(Bytes& b) {
  Head head = head_of(b);
  if (head.kind == Head::STRING) text(b, head);
  std::uint64_t values = head.kind == Head::ARRAY ? head.value : head.kind == Head::MAP ? 2 * head.value : 0;
  for (; values > 0 && b.has(1); --values) skip(b);
}

void read_kernel(Bytes& b, Image& image) {
  Head map = head_of(b);
  std::string name;
  KernelFacts facts;
  for (std::uint64_t i = 0; map.kind == Head::MAP && i < map.value && b.has(1); ++i) {
    Head key_head = head_of(b);
    std::string key = text(b, key_head);
    unsigned* number = key == ".group_segment_fixed_size"  ? &facts.shared
                       : key == ".wavefront_size"          ? &facts.wave
                       : key == ".max_flat_workgroup_size" ? &facts.threads
                       : key == ".kernarg_segment_size"    ? &facts.arguments
                                                           : nullptr;
    if (number) {
      *number = unsigned(head_of(b).value);
    } else if (key == ".name") {
      Head head = head_of(b);
      name = text(b, head);
    } else {
      skip(b);
    }
  }
  if (!name.empty()) image.kernels[name] = facts;
}

void read_metadata(Bytes b, Image& image) {
  Head map = head_of(b);
  for (std::uint64_t i = 0; map.kind == Head::MAP && i < map.value && b.has(1); ++i) {
    Head key_head = head_of(b);
    if (text(b, key_head) != "amdhsa.kernels") {
      skip(b);
      continue;
    }
    Head kernels = head_of(b);
    for (std::uint64_t k = 0; kernels.kind == Head::ARRAY && k < kernels.value; ++k) read_kernel(b, image);
  }
}

size_t padded(size_t bytes) { return (bytes + 3) & ~size_t(3); }

void read_notes(const unsigned char* at, size_t bytes, Image& image) {
  const unsigned char* end = at + bytes;
  while (size_t(end - at) >= sizeof(Elf64_Nhdr)) {
    Elf64_Nhdr note;
    std::memcpy(&note, at, sizeof note);
    const unsigned char* content = at + sizeof note + padded(note.n_namesz);
    if (note.n_type == NOTE_METADATA) read_metadata({content, content + note.n_descsz}, image);
    at = content + padded(note.n_descsz);
  }
}

}  // namespace

bool read_image(const void* data, Image& image, std::string& problem) {
  const unsigned char* bytes = static_cast<const unsigned char*>(data);
  if (!std::strncmp(static_cast<const char*>(data), MARK, sizeof MARK - 1)) return true;
  if (std::memcmp(bytes, ELFMAG, SELFMAG)) {
    problem = "the image is no ELF file; compile with --no-gpu-bundle-output";
    return false;
  }
  Elf64_Ehdr header;
  std::memcpy(&header, bytes, sizeof header);
  if (header.e_machine != EM_AMDGPU_MACHINE) {
    problem = "the image is not for AMD cards";
    return false;
  }
  image.machine_code = true;
  auto machine = machines().find(header.e_flags & 0xff);
  if (machine != machines().end()) image.arch = machine->second;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, bytes + header.e_phoff + i * header.e_phentsize, sizeof segment);
    if (segment.p_type == PT_NOTE) read_notes(bytes + segment.p_offset, segment.p_filesz, image);
  }
  if (image.kernels.empty()) problem = "the image names no kernels";
  return !image.kernels.empty();
}

}  // namespace emulator
