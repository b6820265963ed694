// Ctrl-C as an event instead of the end of the program.
#pragma once

#include <csignal>
#include <functional>
#include <thread>

namespace mneme::cli {

// While it lives, SIGINT is blocked in the thread that made it and in all that are started
// afterwards: make it first, before any thread.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // Becomes readable when SIGINT has come.
  int fd() const { return signal_fd_; }
  // Returns whether SIGINT came since the last time, and forgets it.
  bool Take() const;

  // Calls `action` (in a thread of its own) when SIGINT comes while this watch lives.
  class Watch {
   public:
    Watch(const Interrupt& interrupt, std::function<void()> action);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    int stop_fd_ = -1;
    std::jthread thread_;
  };

 private:
  sigset_t old_mask_;
  int signal_fd_ = -1;
};

}  // namespace mneme::cli
