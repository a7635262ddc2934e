// Fibers and scheduler behind the CPU stand-in for the CUDA runtime (see cuda_runtime.h in this folder).
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr size_t stack_bytes = 512 << 10;
#else
constexpr size_t stack_bytes = 128 << 10;
#endif

constexpr size_t most_shared = 99 << 10;   // of one block, on the smallest of the cards that the code is for
constexpr size_t plain_shared = 48 << 10;  // without cudaFuncAttributeMaxDynamicSharedMemorySize

namespace dgfast::cuda {
alignas(16) uint4 dynamic_shared[most_shared / sizeof(uint4)];
}

namespace cuda_on_cpu {
namespace {

// Where to go on, for the compiler's own setjmp: it makes no system call, and AddressSanitizer, which is told of every
// switch below, does not clear the whole stack's shadow on it.
using Place = void* [5];
#define BARE __attribute__((noinline, no_sanitize("address")))

enum class State { ready, waiting, done };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t context{};
  Place place;
  void* fake_stack = nullptr;
  bool started = false;
  State state = State::done;
  Collective kind;
  uint64_t value;
};

struct Warp {
  uint64_t values[32];
};

struct Machine {
  int schedule = 0;
  uint64_t random = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::map<const void*, int> allowed;
  Place scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  Fiber* running = nullptr;
  int threads = 0;
  void (*thread)(void*) = nullptr;
  void* arguments = nullptr;
} machine;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: block %u thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

void leaving([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}

void arrived([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
}

[[noreturn]] BARE void go_to(Place& place) { __builtin_longjmp(place, 1); }

// From a fiber to the scheduler, and back when the scheduler resumes it.
BARE void suspend(Fiber& me) {
  leaving(&me.fake_stack, machine.scheduler_bottom, machine.scheduler_size);
  if (__builtin_setjmp(me.place) == 0) go_to(machine.scheduler);
  arrived(machine.running->fake_stack, &machine.scheduler_bottom, &machine.scheduler_size);
}

void fiber_main() {
  arrived(nullptr, &machine.scheduler_bottom, &machine.scheduler_size);
  for (;;) {
    Fiber& me = *machine.running;
    machine.thread(machine.arguments);
    me.state = State::done;
    suspend(me);
  }
}

BARE void enter(Fiber& fiber) {
  if (fiber.started) go_to(fiber.place);
  fiber.started = true;
  setcontext(&fiber.context);
}

BARE void resume(Fiber& fiber) {
  machine.running = &fiber;
  leaving(&machine.scheduler_fake_stack, fiber.stack.get(), stack_bytes);
  if (__builtin_setjmp(machine.scheduler) == 0) enter(fiber);
  arrived(machine.scheduler_fake_stack, nullptr, nullptr);
}

void give_stack(Fiber& fiber) {
  fiber.stack.reset(new char[stack_bytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber.context, fiber_main, 0);
}

Fiber& fiber_of(int thread) { return *machine.fibers[thread]; }

unsigned next_random() {
  machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
  return unsigned(machine.random >> 33);
}

std::vector<unsigned> order(unsigned count) {
  std::vector<unsigned> out(count);
  std::iota(out.begin(), out.end(), 0u);
  if (machine.schedule == 1) std::reverse(out.begin(), out.end());
  for (unsigned i = count; machine.schedule > 1 && i > 1; --i) std::swap(out[i - 1], out[next_random() % i]);
  return out;
}

bool for_block(Collective kind) { return kind == Collective::block_barrier || kind == Collective::block_vote; }

// Runs the ready lanes of a warp until each waits or is done; true if any ran.
bool run_lanes(int warp, const std::vector<unsigned>& lanes) {
  bool ran = false;
  for (unsigned lane : lanes) {
    const int thread = warp * 32 + int(lane);
    if (thread >= machine.threads) continue;
    Fiber& fiber = fiber_of(thread);
    if (fiber.state != State::ready) continue;
    threadIdx = dim3(unsigned(thread));
    resume(fiber);
    ran = true;
  }
  return ran;
}

// Lets a warp pass the collective all its lanes wait at, unless they wait for the block or are done.
void release_warp(int warp) {
  int waiting = 0, done = 0;
  const int first = warp * 32;
  threadIdx = dim3(unsigned(first));
  for (int lane = 0; lane < 32; ++lane) {
    Fiber& fiber = fiber_of(first + lane);
    done += fiber.state == State::done;
    waiting += fiber.state == State::waiting;
    if (fiber.state == State::waiting && fiber.kind != fiber_of(first).kind)
      fail("lanes of a warp are at different collectives");
  }
  if (done == 32) return;
  if (done > 0) fail("some lanes of a warp have returned, others wait at a collective");
  if (waiting < 32 || for_block(fiber_of(first).kind)) return;
  for (int lane = 0; lane < 32; ++lane) {
    machine.warps[warp].values[lane] = fiber_of(first + lane).value;
    fiber_of(first + lane).state = State::ready;
  }
}

// All threads wait, and none of their warps could be released: they wait for the block.
void release_block() {
  uint64_t any = 0;
  for (int i = 0; i < machine.threads; ++i) {
    if (fiber_of(i).kind != fiber_of(0).kind) fail("threads of a block are at different barriers");
    any |= fiber_of(i).value;
    fiber_of(i).state = State::ready;
  }
  for (Warp& warp : machine.warps) warp.values[0] = any;
}

void run_block() {
  const int warps = machine.threads / 32;
  machine.warps.resize(warps);
  for (int i = 0; i < machine.threads; ++i) fiber_of(i).state = State::ready;
  for (;;) {
    // Every warp goes on to its next collective, so that the warps of a block take turns.
    bool progress = false;
    const auto lanes = order(32);
    for (unsigned warp : order(unsigned(warps))) {
      progress |= run_lanes(int(warp), lanes);
      release_warp(int(warp));
    }
    if (progress) continue;
    int done = 0;
    for (int i = 0; i < machine.threads; ++i) done += fiber_of(i).state == State::done;
    if (done == machine.threads) return;
    if (done > 0) fail("__syncthreads waits for threads that have returned");
    release_block();
  }
}

void fill_shared(size_t bytes) {
  auto* memory = reinterpret_cast<unsigned char*>(dgfast::cuda::dynamic_shared);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory, most_shared);
#endif
  std::memset(memory, machine.schedule == 1 ? 0x7f : 0xff, bytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(memory + bytes, most_shared - bytes);
#endif
}

}  // namespace

const uint64_t* meet(Collective kind, unsigned mask, uint64_t value) {
  if (mask != ~0u) fail("a collective's mask is not the whole warp");
  Fiber& me = *machine.running;
  const int warp = int(threadIdx.x) / 32;
  me.kind = kind;
  me.value = value;
  me.state = State::waiting;
  suspend(me);
  return machine.warps[warp].values;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*thread)(void*), void* arguments) {
  const auto shared = config.dynamicSmemBytes;
  const auto found = machine.allowed.find(kernel);
  const size_t allowed = found == machine.allowed.end() ? plain_shared : std::max<size_t>(plain_shared, found->second);
  if (shared > allowed || config.gridDim.x == 0 || config.gridDim.x > 0x7fffffffu ||
      config.gridDim.y * config.gridDim.z != 1 || config.blockDim.x == 0 || config.blockDim.x > 1024 ||
      config.blockDim.x % 32 != 0 || config.blockDim.y * config.blockDim.z != 1)
    return cudaErrorInvalidConfiguration;
  machine.threads = int(config.blockDim.x);
  while (int(machine.fibers.size()) < machine.threads) {
    machine.fibers.emplace_back(new Fiber);
    give_stack(*machine.fibers.back());
  }
  machine.thread = thread;
  machine.arguments = arguments;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  for (unsigned block : order(config.gridDim.x)) {
    blockIdx = dim3(block);
    fill_shared(shared);
    run_block();
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::machine;

void cuda_on_cpu_schedule(int schedule) {
  machine.schedule = schedule;
  machine.random = uint64_t(schedule);
}

cudaError_t cuda_on_cpu_allow_shared(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > int(most_shared)) return cudaErrorInvalidValue;
  machine.allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t) {
  std::memset(place, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaSuccess ? "no error" : "an error of the CPU stand-in";
}
