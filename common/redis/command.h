// What is sent to Redis.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme::redis {

// One word of a command: any bytes, owned, or borrowed from the caller.
//
//   client.Run({"SET", key, redis::Argument::Borrow(value)});    // `value` is not copied
class Argument {
 public:
  Argument(std::string bytes) : owned_(std::move(bytes)) {}  // NOLINT: a word is given as it is
  Argument(const char* bytes) : owned_(bytes) {}             // NOLINT
  // Copies. Only for string_view itself, so that no string is taken for one.
  template <typename T, std::enable_if_t<std::is_same_v<T, absl::string_view>, int> = 0>
  Argument(T bytes) : owned_(bytes) {}  // NOLINT

  // Refers to `bytes`, which must stay as they are until the call that the command is given to has
  // returned. For large values.
  static Argument Borrow(absl::string_view bytes) {
    Argument argument{std::string()};
    argument.borrowed_ = bytes;
    argument.is_borrowed_ = true;
    return argument;
  }

  absl::string_view bytes() const { return is_borrowed_ ? borrowed_ : absl::string_view(owned_); }

 private:
  std::string owned_;
  absl::string_view borrowed_;
  bool is_borrowed_ = false;
};

// A command's name and arguments.
using Command = std::vector<Argument>;

}  // namespace mneme::redis
