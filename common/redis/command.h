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

  // Two pieces that are one word on the wire: a large value need not move to get an end. Not for a
  // command's name or its keys.
  static Argument Joined(std::string bytes, std::string end) {
    Argument argument(std::move(bytes));
    argument.end_ = std::move(end);
    return argument;
  }

  // Refers to this one, in the same way.
  Argument Borrowed() const {
    Argument argument = Borrow(bytes());
    argument.end_ = end_;
    return argument;
  }

  // The word, or the first piece of two.
  absl::string_view bytes() const { return is_borrowed_ ? borrowed_ : absl::string_view(owned_); }
  absl::string_view end() const { return end_; }

 private:
  std::string owned_;
  absl::string_view borrowed_;
  bool is_borrowed_ = false;
  std::string end_;  // short
};

// A command's name and arguments.
using Command = std::vector<Argument>;

}  // namespace mneme::redis
