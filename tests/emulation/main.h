// SPDX-License-Identifier: Apache-2.0
// Included after the kernel: fibers and the entry for Python.
namespace emu {
Dim tid, bid, gdim; unsigned threads; Warp warps[64]; Bar bars[16];
uint8_t* shared_base = shared - 1024;
static char message[256];
struct Fiber { void* sp; bool done; };
static Fiber fibers[1024]; static void* main_sp; static unsigned current;
extern "C" void emu_switch(void** save, void* load);
asm(".text\n.globl emu_switch\nemu_switch:\npush %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
void yield() { emu_switch(&fibers[current].sp, main_sp); }
void fail(const char* what) { snprintf(message, sizeof message, "%s (block %u thread %u)", what, bid.x, tid.x); fibers[0].sp = nullptr; emu_switch(&fibers[current].sp, main_sp); abort(); }
static void (*body)();
static void entry() { body(); fibers[current].done = true; yield(); abort(); }
static std::vector<uint8_t> stacks;
static std::vector<std::pair<uint64_t, uint64_t>> ranges;
// Runs one block; returns false on failure.
static bool run_block(unsigned seed) {
  constexpr size_t kStack = 65536;
  stacks.resize(kStack * threads);
  memset(shared, 0xA5, sizeof shared); memset(warps, 0, sizeof warps); memset(bars, 0, sizeof bars);
  for (unsigned i = 0; i < threads; ++i) {
    uint64_t top = (reinterpret_cast<uint64_t>(stacks.data()) + kStack * (i + 1)) & ~63ull;
    uint64_t* s = reinterpret_cast<uint64_t*>(top); *--s = 0; *--s = reinterpret_cast<uint64_t>(&entry); for (int r = 0; r < 6; ++r) *--s = 0;
    fibers[i] = {s, false};
  }
  // warps are scheduled in random order, lanes of a warp one after the other
  unsigned left = threads, idle = 0, state = seed * 2654435761u + 1;
  while (left) {
    unsigned before = left; (void)before;
    state = state * 1664525u + 1013904223u; unsigned w = (state >> 10) % (threads / 32);
    for (unsigned i = w * 32; i < w * 32 + 32; ++i) {
      if (fibers[i].done) continue;
      current = i; tid.x = i; emu_switch(&main_sp, fibers[i].sp);
      if (message[0]) return false;
      if (fibers[i].done) --left;
    }
    if (++idle > 400000000u / 32) { snprintf(message, sizeof message, "hang in block %u, %u threads left", bid.x, left); return false; }
  }
  return true;
}
}
namespace ws { void check_global(const void* p, u32 bytes) {
  uint64_t a = reinterpret_cast<uint64_t>(p);
  for (auto& r : emu::ranges) if (a >= r.first && a + bytes <= r.second) return;
  emu::fail("bulk copy beyond a tensor");
} }
static void** emu_params;
template <class T> static T& arg(int i) { return *static_cast<T*>(emu_params[i]); }
static ws::TensorMap map(int i) { ws::TensorMap m; memcpy(&m, emu_params[i], 128); return m; }
static void call() {
  using L = long long; using U = unsigned; using CV = const void*; using CF = const float*;
#if EMU_GATED
#define EMU_KERNEL ws_sm12x_gated_gemm
#define EMU_MORE , arg<void*>(24), arg<CF>(25), arg<U>(26), arg<float>(27), arg<float>(28)
#else
#define EMU_KERNEL ws_sm12x_blockscaled_gemm
#define EMU_MORE
#endif
  EMU_KERNEL(map(0), map(1), arg<CV>(2), arg<CV>(3), arg<void*>(4), arg<CV>(5), arg<CF>(6), arg<CF>(7), arg<CF>(8), arg<CV>(9), arg<float*>(10),
    arg<U*>(11), arg<L>(12), arg<L>(13), arg<L>(14), arg<L>(15), arg<L>(16), arg<U>(17), arg<U>(18), arg<U>(19), arg<U>(20), arg<U>(21), arg<float>(22), arg<U>(23) EMU_MORE);
}
extern "C" const char* emu_run(unsigned grid, void** params, const uint64_t* ranges, int n, unsigned seed) {
  emu_params = params; emu::body = call; emu::gdim = {grid, 1, 1}; emu::threads = ws::kThreads; emu::message[0] = 0; emu::ranges.clear();
  for (int i = 0; i < n; ++i) emu::ranges.push_back({ranges[2 * i], ranges[2 * i + 1]});
  std::vector<unsigned> order; for (unsigned b = 0; b < grid; ++b) order.push_back(b);
  for (unsigned b = grid; b > 1; --b) { seed = seed * 1664525u + 1013904223u; std::swap(order[b - 1], order[(seed >> 8) % b]); }
  for (unsigned b : order) { emu::bid = {b, 0, 0}; if (!emu::run_block(seed + b)) return emu::message; }
  return nullptr;
}
extern "C" const unsigned* emu_record() { return ws_record; }
