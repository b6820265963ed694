#include "services/cli/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

namespace mneme::cli {

Interrupt::Interrupt() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, &old_mask_);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

Interrupt::~Interrupt() {
  Take();
  close(signal_fd_);
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

bool Interrupt::Take() const {
  bool taken = false;
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) taken = true;
  return taken;
}

Interrupt::Watch::Watch(const Interrupt& interrupt, std::function<void()> action)
    : stop_fd_(eventfd(0, EFD_CLOEXEC)),
      thread_([&interrupt, stop_fd = stop_fd_, action = std::move(action)] {
        while (true) {
          pollfd files[] = {{interrupt.fd(), POLLIN, 0}, {stop_fd, POLLIN, 0}};
          poll(files, 2, -1);
          if ((files[1].revents & POLLIN) != 0) return;
          if (interrupt.Take()) action();
        }
      }) {}

Interrupt::Watch::~Watch() {
  eventfd_write(stop_fd_, 1);
  thread_.join();
  close(stop_fd_);
}

}  // namespace mneme::cli
