#include "common/redis/reply_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

constexpr size_t kBufferBytes = 64 << 10;
// A bulk string of which more is missing is read past the buffer, in such steps: small enough that
// the zeroes of std::string::resize are still in the cache when the kernel overwrites them.
constexpr size_t kDirectBytes = 16 << 10;
constexpr size_t kStepBytes = 256 << 10;
// What a header alone may make us allocate.
constexpr size_t kMostReservedBytes = 64 << 20;
constexpr int64_t kMostReservedElements = 4096;
constexpr int64_t kLargestBulk = int64_t{4} << 30;  // beyond any proto-max-bulk-len in use
constexpr int kDeepest = 16;

absl::Status NoRedis(absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("what answers is no Redis server: ", why));
}

}  // namespace

ReplyReader::ReplyReader(Transport& transport, std::string address)
    : transport_(transport), address_(std::move(address)), buffer_(new char[kBufferBytes]) {}

absl::StatusOr<Reply> ReplyReader::Read(absl::Time deadline) { return ReadNested(0, deadline); }

absl::StatusOr<Reply> ReplyReader::ReadNested(int depth, absl::Time deadline) {
  if (depth > kDeepest) return NoRedis("its reply is nested too deeply");
  ASSIGN_OR_RETURN(const absl::string_view line, ReadLine(deadline));
  if (line.empty()) return NoRedis("its reply begins with an empty line");
  const absl::string_view rest = line.substr(1);
  switch (line[0]) {
    case '+':
      return Reply::OfString(std::string(rest));
    case '-':
      return Reply::OfError(std::string(rest), address_);
    case ':':
    case '$':
    case '*':
      break;
    default:
      return NoRedis("its reply has an unknown type");
  }
  const char type = line[0];
  int64_t number = 0;
  if (!absl::SimpleAtoi(rest, &number)) return NoRedis("a number of its reply is none");
  if (type == ':') return Reply::OfInteger(number);
  if (number == -1) return Reply();
  if (number < 0 || (type == '$' && number > kLargestBulk)) return NoRedis("a length is wrong");
  if (type == '*') return ReadArray(number, depth, deadline);
  ASSIGN_OR_RETURN(std::string bytes, ReadBulk(static_cast<size_t>(number), deadline));
  return Reply::OfString(std::move(bytes));
}

absl::StatusOr<Reply> ReplyReader::ReadArray(int64_t count, int depth, absl::Time deadline) {
  std::vector<Reply> elements;
  elements.reserve(std::min(count, kMostReservedElements));
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(Reply element, ReadNested(depth + 1, deadline));
    elements.push_back(std::move(element));
  }
  return Reply::OfArray(std::move(elements));
}

absl::StatusOr<absl::string_view> ReplyReader::ReadLine(absl::Time deadline) {
  size_t searched = 0;
  while (true) {
    const absl::string_view seen(&buffer_[begin_], end_ - begin_);
    const size_t end = seen.find('\n', searched);
    if (end != absl::string_view::npos) {
      if (end == 0 || seen[end - 1] != '\r') return NoRedis("a line does not end as it should");
      begin_ += end + 1;
      return seen.substr(0, end - 1);
    }
    searched = seen.size();
    if (searched == kBufferBytes) return NoRedis("a line is too long");
    RETURN_IF_ERROR(Fill(deadline));
  }
}

absl::StatusOr<std::string> ReplyReader::ReadBulk(size_t size, absl::Time deadline) {
  std::string bytes;
  bytes.reserve(std::min(size, kMostReservedBytes));
  size_t filled = std::min(size, end_ - begin_);
  bytes.append(&buffer_[begin_], filled);
  begin_ += filled;
  while (filled < size) {
    if (size - filled < kDirectBytes) {
      // With what follows, to save a system call.
      bytes.resize(filled);
      RETURN_IF_ERROR(Fill(deadline));
      const size_t count = std::min(size - filled, end_ - begin_);
      bytes.append(&buffer_[begin_], count);
      begin_ += count;
      filled += count;
      continue;
    }
    if (bytes.size() - filled < kStepBytes / 2) bytes.resize(std::min(size, filled + kStepBytes));
    ASSIGN_OR_RETURN(const size_t count,
                     transport_.Read(&bytes[filled], bytes.size() - filled, deadline));
    filled += count;
    // A server that always has something must not keep us longer than one that has not.
    if (filled < size && absl::Now() >= deadline) {
      return absl::DeadlineExceededError("no answer in time");
    }
  }
  while (end_ - begin_ < 2) RETURN_IF_ERROR(Fill(deadline));
  if (buffer_[begin_] != '\r' || buffer_[begin_ + 1] != '\n') {
    return NoRedis("a string does not end where it should");
  }
  begin_ += 2;
  return bytes;
}

absl::Status ReplyReader::Fill(absl::Time deadline) {
  if (begin_ > 0) {
    std::memmove(&buffer_[0], &buffer_[begin_], end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  ASSIGN_OR_RETURN(const size_t count,
                   transport_.Read(&buffer_[end_], kBufferBytes - end_, deadline));
  end_ += count;
  return absl::OkStatus();
}

}  // namespace mneme::redis
