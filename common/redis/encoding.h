// Commands as the bytes that go over the wire.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/redis/command.h"

namespace mneme::redis {

// Pieces for one gathered write. Small arguments are joined, large ones are referred to: the
// commands must outlive this.
class Encoding {
 public:
  explicit Encoding(absl::Span<const Command> commands);
  Encoding(const Encoding&) = delete;
  Encoding& operator=(const Encoding&) = delete;

  absl::Span<const absl::string_view> pieces() const { return pieces_; }

 private:
  // Ends the piece that is being joined.
  void EndPiece();

  std::string joined_;
  size_t piece_start_ = 0;  // in joined_
  std::vector<absl::string_view> pieces_;
};

}  // namespace mneme::redis
