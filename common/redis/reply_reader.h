// Reads replies in RESP2. Not hiredis' reader, which collects a whole bulk string in a buffer that
// it grows by doubling and then copies it: here the bytes of a large one go from the kernel into
// the string that the caller gets.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/redis/reply.h"
#include "common/redis/transport.h"

namespace mneme::redis {

// Used by one thread at a time.
class ReplyReader {
 public:
  // `transport` must outlive the reader. `address` is named in the errors of replies.
  ReplyReader(Transport& transport, std::string address);

  // Returns the next reply, which may be an error of Redis. UNAVAILABLE: what came is no reply.
  // Other errors are the transport's. After one the reader is of no more use.
  absl::StatusOr<Reply> Read(absl::Time deadline);

  // Returns whether nothing was read beyond the last reply.
  bool IsEmpty() const { return begin_ == end_; }

 private:
  absl::StatusOr<Reply> ReadNested(int depth, absl::Time deadline);
  absl::StatusOr<Reply> ReadArray(int64_t count, int depth, absl::Time deadline);
  // Returns a line without its end; valid until the next read.
  absl::StatusOr<absl::string_view> ReadLine(absl::Time deadline);
  absl::StatusOr<std::string> ReadBulk(size_t size, absl::Time deadline);
  // Reads what has arrived, at least one byte.
  absl::Status Fill(absl::Time deadline);

  Transport& transport_;
  const std::string address_;
  const std::unique_ptr<char[]> buffer_;
  size_t begin_ = 0;  // of what was read and not yet used
  size_t end_ = 0;
};

}  // namespace mneme::redis
