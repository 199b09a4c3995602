#include "runtime/lost_pages.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace kq {
namespace {

constexpr int kSlots = 256;

struct Slot {
  std::atomic<uintptr_t> begin{0}, end{0};  // end is 0 while nothing is watched
  std::atomic<bool> lost{false};
};

std::mutex slots_mutex;  // for taking and giving back slots; the handler only reads
Slot slots[kSlots];
struct sigaction previous_action;
uintptr_t page_size;  // set before the handler is installed

// Puts zeros where the file was, from the lost page on: what lies behind a file's end is lost altogether.
bool replace_lost_pages(uintptr_t at) {
  for (Slot& slot : slots) {
    const uintptr_t end = slot.end.load(std::memory_order_acquire), begin = slot.begin.load(std::memory_order_relaxed);
    if (at < begin || at >= end) continue;
    const uintptr_t from = at & ~(page_size - 1);
    slot.lost.store(true, std::memory_order_relaxed);
    return mmap((void*)from, end - from, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  const bool replaced = replace_lost_pages((uintptr_t)info->si_addr);
  errno = saved;
  if (replaced) return;
  if (previous_action.sa_flags & SA_SIGINFO)
    previous_action.sa_sigaction(signal, info, context);
  else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN)
    previous_action.sa_handler(signal);
  else
    sigaction(signal, &previous_action, nullptr);  // the instruction runs again and meets the default
}

void install_handler() {
  page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
  struct sigaction action = {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous_action);
}
}  // namespace

WatchedRange::WatchedRange(void* begin, size_t bytes) {
  static std::once_flag installed;
  std::call_once(installed, install_handler);
  std::lock_guard lock(slots_mutex);
  for (int i = 0; i < kSlots && slot_ < 0; i++)
    if (!slots[i].end.load(std::memory_order_relaxed)) slot_ = i;
  if (slot_ < 0) return;
  Slot& slot = slots[slot_];
  slot.lost.store(false, std::memory_order_relaxed);
  slot.begin.store((uintptr_t)begin, std::memory_order_relaxed);
  slot.end.store((uintptr_t)begin + bytes, std::memory_order_release);
}

WatchedRange::~WatchedRange() {
  if (slot_ >= 0) slots[slot_].end.store(0, std::memory_order_release);
}

bool WatchedRange::lost() const { return slot_ >= 0 && slots[slot_].lost.load(std::memory_order_relaxed); }
}  // namespace kq
