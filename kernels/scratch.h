// A buffer for the intermediate values of one operator call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace mneme::kernels {

// Grows when needed and is kept, so that a steady stream of calls does not allocate. Use as a
// thread_local variable.
class Scratch {
 public:
  // Returns at least `bytes` bytes, aligned to 64; the previous contents are lost.
  void* Get(int64_t bytes) {
    if (capacity_ < bytes) {
      buffer_.reset(new (std::align_val_t{64}) uint8_t[static_cast<size_t>(bytes)]);
      capacity_ = bytes;
    }
    return buffer_.get();
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };

  std::unique_ptr<uint8_t[], Free> buffer_;
  int64_t capacity_ = 0;
};

}  // namespace mneme::kernels
