// A HIP runtime on the CPU: the functions of engine_hip.h over the emulator, with one device.
//
// What is enqueued runs when somebody waits for its stream, as late as a card might: a host that
// forgets to wait, or gives back memory too early, reads poison. Copies from ordinary host memory
// take their bytes when they are enqueued, as HIP's do.
//
// The device, from the environment when hipInit is called:
//   ENGINE_EMULATOR_ARCH    the card it claims to be; gfx1010, or gfx90a where built for wave64
//   ENGINE_EMULATOR_MEMORY  MiB of its memory
//   ENGINE_EMULATOR_FAIL    alloc:N    the N-th allocation finds no memory
//                           launch:N   the N-th launch, of a kernel or a graph, is refused
//                           lost:N     the device is lost when the N-th launch runs
//                           wrong:NAME the kernel NAME does nothing; NAME* : all that begin so
//                           busy       others hold all but a sixteenth of the memory
//                           nodevice   the runtime does not start without a device; nodevice:101 :
//                                      hipInit says 101, invalid device, as that of HIP 5.2 does
//                           nocards    the runtime starts, and counts none
//   ENGINE_EMULATOR_BOOKS   1: says at the end what was not given back, and how much was launched
#include "../../src/backend/gpu/hip/engine_hip.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cards.h"
#include "image.h"
#include "machine.h"

using emulator::KernelFacts;
using Clock = std::chrono::steady_clock;
using Operation = std::function<hipError_t()>;

struct ihipEvent_t {
  Clock::time_point time{};
  // Where in which stream it was recorded.
  hipStream_t stream = nullptr;
  size_t position = 0;
};
struct ihipStream_t {
  std::deque<Operation> pending;
  size_t done = 0;  // operations that have run
  hipGraph_t capture = nullptr;
};
struct ihipGraph {
  std::vector<Operation> operations;
};
struct hipGraphExec {
  std::vector<Operation> operations;
};
struct ihipModuleSymbol_t {
  const emulator::Kernel* kernel;
  KernelFacts facts;
};
struct ihipModule_t {
  emulator::Image image;
  std::map<std::string, std::unique_ptr<ihipModuleSymbol_t>> functions;
};

namespace {

constexpr unsigned LDS = 64 << 10, MOST_THREADS = 1024, MOST_OPERANDS = 12;
// Larger allocations are poisoned up to here, so that claiming 16 GiB does not take them.
constexpr size_t MOST_POISON = size_t(256) << 20;

struct Device {
  const Card* card = nullptr;
  size_t memory = 0, held = 0;
  std::map<const char*, size_t> allocations, pinned;
  std::vector<hipStream_t> streams;
  std::string fail;
  long long fail_at = 0;
  long long allocated = 0, launched = 0, run = 0;
  // Handles that live: made, less those given back.
  long long live_streams = 0, live_events = 0, live_modules = 0, live_graphs = 0;
  // An error that stays, as a card's does once it is lost.
  hipError_t lost = hipSuccess;
  bool ready = false;
};

Device& device() {
  static Device* only = new Device;
  return *only;
}

std::recursive_mutex& turn() {
  static std::recursive_mutex* only = new std::recursive_mutex;
  return *only;
}
using Turn = std::lock_guard<std::recursive_mutex>;

// At the end of the process, what the program has not given back.
void say_books() {
  Device& d = device();
  size_t bytes = 0;
  for (const auto& block : d.allocations) bytes += block.second;
  std::fprintf(stderr, "emulator: %lld launches, %lld kernels run, %lld allocations\n", d.launched, d.run, d.allocated);
  long long handles = d.live_streams + d.live_events + d.live_modules + d.live_graphs;
  if (d.allocations.empty() && d.pinned.empty() && handles == 0)
    std::fprintf(stderr, "emulator: everything was given back\n");
  else
    std::fprintf(stderr,
                 "emulator: not given back: %zu allocations of %zu bytes, %zu pinned, %lld streams, %lld events, "
                 "%lld modules, %lld graphs\n",
                 d.allocations.size(), bytes, d.pinned.size(), d.live_streams, d.live_events, d.live_modules,
                 d.live_graphs);
}

bool is_wrong(const std::string& kernel) {
  const std::string& fail = device().fail;
  if (fail.compare(0, 6, "wrong:")) return false;
  if (fail.back() == '*') return !kernel.compare(0, fail.size() - 7, fail, 6, fail.size() - 7);
  return fail == "wrong:" + kernel;
}

bool fails(const char* what, long long now) { return device().fail == what && device().fail_at == now; }

hipError_t start() {
  Device& d = device();
  if (d.ready) return d.lost;
  if (const char* fail = std::getenv("ENGINE_EMULATOR_FAIL")) {
    std::string all = fail;
    size_t colon = all.find(':');
    d.fail = all.substr(0, colon);
    if (colon != std::string::npos && d.fail != "wrong") d.fail_at = std::atoll(all.c_str() + colon + 1);
    if (d.fail == "wrong") d.fail = all;
  }
  if (d.fail == "nodevice") return hipErrorNoDevice;
  if (std::getenv("ENGINE_EMULATOR_BOOKS")) std::atexit(say_books);
  const char* arch = std::getenv("ENGINE_EMULATOR_ARCH");
  d.card = card_of(arch ? arch : WAVE == 64 ? "gfx90a" : "gfx1010");
  if (!d.card || d.card->wave != WAVE) {
    std::fprintf(stderr, "emulator: built for waves of %d lanes, and cannot be %s\n", WAVE, arch);
    return hipErrorNoDevice;
  }
  const char* memory = std::getenv("ENGINE_EMULATOR_MEMORY");
  d.memory = (memory ? size_t(std::atoll(memory)) : d.card->mib) << 20;
  d.ready = true;
  return hipSuccess;
}

// Every call but a few: errors that stay, and calls before a device was found.
hipError_t check() {
  if (!device().ready) return start();
  return device().lost;
}

hipError_t drain(hipStream_t stream) {
  while (!stream->pending.empty()) {
    Operation operation = std::move(stream->pending.front());
    stream->pending.pop_front();
    hipError_t error = device().lost ? device().lost : operation();
    stream->done += 1;
    if (error != hipSuccess) device().lost = error;
  }
  return device().lost;
}

hipError_t drain_all() {
  for (hipStream_t stream : device().streams) drain(stream);
  return device().lost;
}

hipStream_t stream_of(hipStream_t stream) {
  static hipStream_t null = nullptr;
  if (stream) return stream;
  if (!null) device().streams.push_back(null = new ihipStream_t);
  return null;
}

hipError_t enqueue(hipStream_t given, Operation operation) {
  hipStream_t stream = stream_of(given);
  if (stream->capture) stream->capture->operations.push_back(std::move(operation));
  else stream->pending.push_back(std::move(operation));
  return hipSuccess;
}

bool in(const std::map<const char*, size_t>& all, const void* at, size_t bytes) {
  const char* begin = static_cast<const char*>(at);
  auto after = all.upper_bound(begin);
  if (after == all.begin()) return false;
  --after;
  return begin + bytes <= after->first + after->second;
}

bool on_device(const void* at, size_t bytes) { return in(device().allocations, at, bytes); }

hipError_t allocate(std::map<const char*, size_t>& all, void** address, size_t bytes) {
  if (posix_memalign(address, 256, std::max(bytes, size_t(1)))) return hipErrorOutOfMemory;
  std::memset(*address, emulator::POISON, std::min(bytes, MOST_POISON));
  all[static_cast<char*>(*address)] = bytes;
  return hipSuccess;
}

// The two arguments of every kernel, as one launch keeps them.
struct Arguments {
  std::vector<char> params, operands;
};
constexpr size_t OPERANDS = 8 * MOST_OPERANDS + 16;

bool collect(const ihipModuleSymbol_t& function, void** params, void** extra, Arguments& to) {
  const char* first = nullptr;
  const char* second = nullptr;
  if (params) {
    first = static_cast<const char*>(params[0]), second = static_cast<const char*>(params[1]);
  } else {
    // Pairs of a key and a pointer: 1, the buffer; 2, its size; 3, the end.
    size_t bytes = 0;
    for (; extra && *extra != reinterpret_cast<void*>(3); extra += 2) {
      if (*extra == reinterpret_cast<void*>(1)) first = static_cast<const char*>(extra[1]);
      if (*extra == reinterpret_cast<void*>(2)) bytes = *static_cast<size_t*>(extra[1]);
    }
    size_t offset = (function.kernel->params + 7) & ~size_t(7);
    if (!first || bytes < offset + OPERANDS) return false;
    second = first + offset;
  }
  to.params.assign(first, first + function.kernel->params);
  to.operands.assign(second, second + OPERANDS);
  return true;
}

// Where a kernel's operands point. It ends the process no more than a card would: the error stays.
hipError_t check_operands(const emulator::Kernel& kernel, const Arguments& arguments) {
  void* at[MOST_OPERANDS + 1];
  unsigned count;
  std::memcpy(at, arguments.operands.data(), sizeof at);
  std::memcpy(&count, arguments.operands.data() + sizeof at + 4, 4);
  for (unsigned i = 0; i <= MOST_OPERANDS; ++i) {
    bool used = i < count || i == MOST_OPERANDS;
    if (!used || !at[i] || on_device(at[i], 0)) continue;
    std::fprintf(stderr, "emulator: %s: operand %u is no device memory\n", kernel.name.c_str(), i);
    return hipErrorIllegalAddress;
  }
  return hipSuccess;
}

hipError_t run(const emulator::Kernel& kernel, const emulator::Geometry& geometry, const Arguments& arguments) {
  if (fails("lost", ++device().run)) return hipErrorLaunchFailure;
  if (is_wrong(kernel.name)) return hipSuccess;
  if (hipError_t error = check_operands(kernel, arguments)) return error;
  emulator::run(kernel, geometry, arguments.params.data(), arguments.operands.data());
  return hipSuccess;
}

hipError_t copy(void* to, const void* from, size_t bytes, int kind) {
  bool reads = kind == hipMemcpyDeviceToHost || kind == hipMemcpyDeviceToDevice;
  bool writes = kind == hipMemcpyHostToDevice || kind == hipMemcpyDeviceToDevice;
  if ((reads && !on_device(from, bytes)) || (writes && !on_device(to, bytes))) {
    std::fprintf(stderr, "emulator: a copy of %zu bytes outside of device memory\n", bytes);
    return hipErrorIllegalAddress;
  }
  std::memmove(to, from, bytes);
  return hipSuccess;
}

}  // namespace

// libhipblas.so's way into a stream.
extern "C" __attribute__((visibility("default"))) int engine_emulator_enqueue(void* stream, int (*function)(void*),
                                                                              void (*drop)(void*), void* data) {
  Turn turn_held(turn());
  std::shared_ptr<void> held(data, drop);
  return enqueue(static_cast<hipStream_t>(stream), [function, held] { return function(held.get()); });
}

#pragma GCC visibility push(default)
extern "C" {

hipError_t hipInit(unsigned) {
  Turn held(turn());
  hipError_t error = start();
  bool other = device().fail == "nodevice" && device().fail_at;
  return other ? hipError_t(device().fail_at) : error;
}

hipError_t hipDriverGetVersion(int* version) {
  *version = 60300000;
  return hipSuccess;
}
hipError_t hipRuntimeGetVersion(int* version) { return hipDriverGetVersion(version); }

const char* hipGetErrorName(hipError_t error) {
  switch (error) {
    case hipSuccess: return "hipSuccess";
    case hipErrorInvalidValue: return "hipErrorInvalidValue";
    case hipErrorOutOfMemory: return "hipErrorOutOfMemory";
    case hipErrorNoDevice: return "hipErrorNoDevice";
    case hipErrorInvalidDevice: return "hipErrorInvalidDevice";
    case hipErrorInvalidImage: return "hipErrorInvalidImage";
    case hipErrorNoBinaryForGpu: return "hipErrorNoBinaryForGpu";
    case hipErrorInvalidHandle: return "hipErrorInvalidHandle";
    case hipErrorNotFound: return "hipErrorNotFound";
    case hipErrorIllegalAddress: return "hipErrorIllegalAddress";
    case hipErrorLaunchOutOfResources: return "hipErrorLaunchOutOfResources";
    case hipErrorLaunchFailure: return "hipErrorLaunchFailure";
    case hipErrorStreamCaptureUnsupported: return "hipErrorStreamCaptureUnsupported";
    default: return "hipErrorUnknown";
  }
}
const char* hipGetErrorString(hipError_t error) { return hipGetErrorName(error); }

hipError_t hipGetDeviceCount(int* count) {
  Turn held(turn());
  hipError_t error = check();
  *count = error == hipSuccess && device().fail != "nocards" ? 1 : 0;
  return error;
}

hipError_t hipSetDevice(int index) { return index == 0 ? check() : hipErrorInvalidDevice; }

hipError_t hipDeviceGetName(char* name, int length, int index) {
  if (hipError_t error = hipSetDevice(index)) return error;
  std::snprintf(name, size_t(length), "%s", device().card->name);
  return hipSuccess;
}

hipError_t hipDeviceGetAttribute(int* value, int attribute, int index) {
  if (hipError_t error = hipSetDevice(index)) return error;
  const Card& card = *device().card;
  switch (attribute) {
    case hipDeviceAttributeClockRate: *value = int(card.megahertz) * 1000; break;
    case hipDeviceAttributeL2CacheSize: *value = int(card.l2_kib) * 1024; break;
    case hipDeviceAttributeMaxThreadsPerBlock: *value = MOST_THREADS; break;
    case hipDeviceAttributeMemoryBusWidth: *value = int(card.bus_bits); break;
    case hipDeviceAttributeMemoryClockRate: *value = int(card.memory_megahertz) * 1000; break;
    // The runtime counts pairs of RDNA's compute units.
    case hipDeviceAttributeMultiprocessorCount: *value = int(card.units) / (WAVE == 32 ? 2 : 1); break;
    case hipDeviceAttributeMaxSharedMemoryPerBlock: *value = LDS; break;
    case hipDeviceAttributeWarpSize: *value = WAVE; break;
    default: return hipErrorInvalidValue;
  }
  return hipSuccess;
}

hipError_t hipGetDevicePropertiesR0600(void* properties, int index) {
  if (hipError_t error = hipSetDevice(index)) return error;
  char* name = static_cast<char*>(properties) + engineArchNameOffsetR0600;
  // As real ones have it where the card can be in several modes.
  const char* modes = WAVE == 64 ? ":sramecc+:xnack-" : "";
  std::snprintf(name, engineArchNameLength, "%s%s", device().card->arch, modes);
  return hipSuccess;
}
hipError_t hipGetDeviceProperties(void* properties, int index) {
  if (hipError_t error = hipSetDevice(index)) return error;
  std::snprintf(static_cast<char*>(properties) + engineArchNameOffset, engineArchNameLength, "%s", device().card->arch);
  return hipSuccess;
}

hipError_t hipDeviceSynchronize() {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  return drain_all();
}

hipError_t hipMemGetInfo(size_t* free, size_t* total) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  size_t others = device().fail == "busy" ? device().memory / 16 * 15 : 0;
  *total = device().memory;
  *free = device().memory - std::min(device().memory, device().held + others);
  return hipSuccess;
}

hipError_t hipMalloc(void** address, size_t bytes) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  size_t free = 0, total = 0;
  hipMemGetInfo(&free, &total);
  *address = nullptr;
  if (fails("alloc", ++device().allocated) || bytes > free) return hipErrorOutOfMemory;
  if (bytes == 0) return hipSuccess;
  device().held += bytes;
  return allocate(device().allocations, address, bytes);
}

hipError_t hipFree(void* address) {
  Turn held(turn());
  if (!address) return hipSuccess;
  drain_all();  // hipFree waits
  auto found = device().allocations.find(static_cast<char*>(address));
  if (found == device().allocations.end()) return hipErrorInvalidValue;
  device().held -= found->second;
  device().allocations.erase(found);
  std::free(address);
  return device().lost;
}

hipError_t hipHostMalloc(void** address, size_t bytes, unsigned) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  return allocate(device().pinned, address, bytes);
}
hipError_t hipHostFree(void* address) {
  Turn held(turn());
  if (!address) return hipSuccess;
  if (!device().pinned.erase(static_cast<char*>(address))) return hipErrorInvalidValue;
  std::free(address);
  return hipSuccess;
}

hipError_t hipMemcpyAsync(void* to, const void* from, size_t bytes, int kind, hipStream_t given) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  bool pageable = kind == hipMemcpyHostToDevice && !in(device().pinned, from, bytes);
  if (!pageable || stream_of(given)->capture)
    return enqueue(given, [=] { return copy(to, from, bytes, kind); });
  const char* begin = static_cast<const char*>(from);
  auto now = std::make_shared<std::vector<char>>(begin, begin + bytes);
  return enqueue(given, [=] { return copy(to, now->data(), bytes, kind); });
}

hipError_t hipMemsetAsync(void* to, int byte, size_t bytes, hipStream_t given) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (!on_device(to, bytes)) return hipErrorInvalidValue;
  return enqueue(given, [=] {
    std::memset(to, byte, bytes);
    return hipSuccess;
  });
}

hipError_t hipStreamCreateWithFlags(hipStream_t* stream, unsigned) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  device().streams.push_back(*stream = new ihipStream_t);
  device().live_streams += 1;
  return hipSuccess;
}
hipError_t hipStreamDestroy(hipStream_t stream) {
  Turn held(turn());
  if (!stream) return hipErrorInvalidHandle;
  drain(stream);
  auto& all = device().streams;
  all.erase(std::remove(all.begin(), all.end(), stream), all.end());
  device().live_streams -= 1;
  delete stream;
  return hipSuccess;
}
hipError_t hipStreamSynchronize(hipStream_t given) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (stream_of(given)->capture) return hipErrorStreamCaptureUnsupported;
  return drain(stream_of(given));
}
hipError_t hipStreamWaitEvent(hipStream_t stream, hipEvent_t event, unsigned) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  return enqueue(stream, [event] { return hipEventSynchronize(event); });
}

hipError_t hipEventCreateWithFlags(hipEvent_t* event, unsigned) {
  Turn held(turn());
  *event = new ihipEvent_t;
  device().live_events += 1;
  return hipSuccess;
}
hipError_t hipEventDestroy(hipEvent_t event) {
  Turn held(turn());
  drain_all();
  device().live_events -= 1;
  delete event;
  return hipSuccess;
}
hipError_t hipEventRecord(hipEvent_t event, hipStream_t given) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  hipStream_t stream = stream_of(given);
  enqueue(stream, [event] {
    event->time = Clock::now();
    return hipSuccess;
  });
  event->stream = stream;
  event->position = stream->done + stream->pending.size();
  return hipSuccess;
}
hipError_t hipEventSynchronize(hipEvent_t event) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (event->stream && event->stream->done < event->position) return drain(event->stream);
  return hipSuccess;
}
hipError_t hipEventElapsedTime(float* milliseconds, hipEvent_t from, hipEvent_t to) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return hipSuccess;
}

hipError_t hipModuleLoadData(hipModule_t* module, const void* data) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  std::unique_ptr<ihipModule_t> made(new ihipModule_t);
  std::string problem;
  if (!emulator::read_image(data, made->image, problem)) {
    std::fprintf(stderr, "emulator: %s\n", problem.c_str());
    return hipErrorInvalidImage;
  }
  if (made->image.machine_code && made->image.arch != device().card->arch) return hipErrorNoBinaryForGpu;
  *module = made.release();
  device().live_modules += 1;
  return hipSuccess;
}
hipError_t hipModuleUnload(hipModule_t module) {
  Turn held(turn());
  drain_all();
  device().live_modules -= 1;
  delete module;
  return hipSuccess;
}

hipError_t hipModuleGetFunction(hipFunction_t* function, hipModule_t module, const char* name) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  const emulator::Kernel* kernel = emulator::find(name);
  auto facts = module->image.kernels.find(name);
  bool known = facts != module->image.kernels.end();
  if (!kernel || (module->image.machine_code && !known)) return hipErrorNotFound;
  auto& slot = module->functions[name];
  if (!slot) slot.reset(new ihipModuleSymbol_t{kernel, known ? facts->second : KernelFacts{}});
  *function = slot.get();
  return hipSuccess;
}

hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                 unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                 hipStream_t stream, void** params, void** extra) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (!function) return hipErrorInvalidHandle;
  if (fails("launch", ++device().launched)) return hipErrorLaunchOutOfResources;
  const KernelFacts& facts = function->facts;
  unsigned most = facts.threads ? facts.threads : MOST_THREADS;
  // The grid, in threads, is a 32-bit number on AMD cards.
  bool fits = grid_x && grid_y && grid_z && block_x && block_x <= most && block_y == 1 && block_z == 1 &&
              std::uint64_t(grid_x) * block_x <= 0xffffffffu && grid_y <= 0xffff && grid_z <= 0xffff;
  if (!fits || facts.shared + shared > LDS || (facts.wave && facts.wave != WAVE)) {
    std::fprintf(stderr, "emulator: %s: %u,%u,%u blocks of %u,%u,%u threads (at most %u), %u + %u bytes of shared memory (at most %u), waves of %u\n",
                 function->kernel->name.c_str(), grid_x, grid_y, grid_z, block_x, block_y, block_z, most,
                 facts.shared, shared, LDS, facts.wave);
    return hipErrorInvalidValue;
  }
  auto arguments = std::make_shared<Arguments>();
  if (!collect(*function, params, extra, *arguments)) return hipErrorInvalidValue;
  emulator::Geometry geometry{{grid_x, grid_y, grid_z}, block_x, shared};
  const emulator::Kernel* kernel = function->kernel;
  return enqueue(stream, [=] { return run(*kernel, geometry, *arguments); });
}

hipError_t hipStreamBeginCapture(hipStream_t stream, int) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (!stream || stream->capture) return hipErrorStreamCaptureUnsupported;
  stream->capture = new ihipGraph;
  return hipSuccess;
}
hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t* graph) {
  Turn held(turn());
  if (!stream || !stream->capture) return hipErrorInvalidValue;
  *graph = stream->capture;
  stream->capture = nullptr;
  return device().lost;
}
hipError_t hipGraphInstantiate(hipGraphExec_t* exec, hipGraph_t graph, hipGraphNode_t*, char*, size_t) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  *exec = new hipGraphExec{graph->operations};
  device().live_graphs += 1;
  return hipSuccess;
}
hipError_t hipGraphLaunch(hipGraphExec_t exec, hipStream_t stream) {
  Turn held(turn());
  if (hipError_t error = check()) return error;
  if (fails("launch", ++device().launched)) return hipErrorLaunchOutOfResources;
  for (const Operation& operation : exec->operations) enqueue(stream, operation);
  return hipSuccess;
}
hipError_t hipGraphExecDestroy(hipGraphExec_t exec) {
  Turn held(turn());
  device().live_graphs -= 1;
  delete exec;
  return hipSuccess;
}
hipError_t hipGraphDestroy(hipGraph_t graph) {
  delete graph;
  return hipSuccess;
}

}  // extern "C"
#pragma GCC visibility pop
