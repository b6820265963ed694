#include "common/redis/encoding.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace mneme::redis {
namespace {

// From here on a system call's list is cheaper than a copy.
constexpr size_t kLargeArgument = 4 << 10;
// "*" or "$", at most 20 digits, and twice "\r\n".
constexpr size_t kMostAround = 25;

}  // namespace

Encoding::Encoding(absl::Span<const Command> commands) {
  size_t size = 0;
  for (const Command& command : commands) {
    size += kMostAround;
    for (const Argument& argument : command) {
      size += kMostAround + argument.end().size();
      if (argument.bytes().size() < kLargeArgument) size += argument.bytes().size();
    }
  }
  joined_.reserve(size);  // pieces point into it
  for (const Command& command : commands) {
    absl::StrAppend(&joined_, "*", command.size(), "\r\n");
    for (const Argument& argument : command) {
      const absl::string_view bytes = argument.bytes();
      absl::StrAppend(&joined_, "$", bytes.size() + argument.end().size(), "\r\n");
      if (bytes.size() < kLargeArgument) {
        absl::StrAppend(&joined_, bytes);
      } else {
        EndPiece();
        pieces_.push_back(bytes);
      }
      absl::StrAppend(&joined_, argument.end(), "\r\n");
    }
  }
  EndPiece();
}

void Encoding::EndPiece() {
  pieces_.push_back(absl::string_view(joined_).substr(piece_start_));
  piece_start_ = joined_.size();
}

}  // namespace mneme::redis
