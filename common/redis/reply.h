// What Redis answered, as a value.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct redisReply;

namespace mneme::redis {

// A copyable value; strings may hold any bytes.
class Reply {
 public:
  enum class Kind { kNil, kInteger, kString, kArray, kError };

  Reply() = default;
  // Copies a reply of hiredis; status lines ("OK") become strings. `address` is named in errors.
  Reply(const redisReply& reply, absl::string_view address);

  Kind kind() const { return kind_; }
  bool is_nil() const { return kind_ == Kind::kNil; }

  // The error that Redis answered, translated (see StatusOfError); OK for every other kind.
  const absl::Status& status() const { return status_; }
  // Bytes of a string, or Redis' own words of an error; else "".
  const std::string& text() const { return text_; }
  // The same, moved out of a reply that is no longer needed.
  std::string TakeText() { return std::move(text_); }
  // Elements of an array; else empty.
  const std::vector<Reply>& elements() const { return elements_; }

  // Returns an integer, also one that came as decimal text. INTERNAL: the reply is something else.
  absl::StatusOr<int64_t> Integer() const;
  // Returns a string's bytes. INTERNAL: the reply is something else.
  absl::StatusOr<std::string> String() const;

 private:
  Kind kind_ = Kind::kNil;
  int64_t integer_ = 0;
  std::string text_;
  std::vector<Reply> elements_;
  absl::Status status_;
};

// Translates an error line of Redis. RESOURCE_EXHAUSTED: out of memory. UNAVAILABLE: loading,
// read-only replica, busy with a script, cannot write to its disk. FAILED_PRECONDITION: the
// settings of this client do not fit the server; the message names the field. Else INTERNAL.
absl::Status StatusOfError(absl::string_view error, absl::string_view address);

}  // namespace mneme::redis
