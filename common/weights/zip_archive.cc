#include "common/weights/zip_archive.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::weights {
namespace {

// Records of the format (PKWARE APPNOTE 6.3, sections 4.3.7 to 4.3.16): signature, fixed size.
constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint64_t kLocalHeaderBytes = 30;
constexpr uint32_t kDirectoryEntry = 0x02014b50;
constexpr uint64_t kDirectoryEntryBytes = 46;
constexpr uint32_t kEnd = 0x06054b50;
constexpr uint64_t kEndBytes = 22;
constexpr uint32_t kEnd64 = 0x06064b50;
constexpr uint64_t kEnd64Bytes = 56;
constexpr uint32_t kEnd64Locator = 0x07064b50;
constexpr uint64_t kEnd64LocatorBytes = 20;
constexpr uint16_t kZip64Extra = 1;
constexpr uint64_t kMaxCommentBytes = 65535;

// Little-endian numbers at checked places.
class Bytes {
 public:
  explicit Bytes(absl::Span<const uint8_t> bytes) : bytes_(bytes) {}

  uint64_t size() const { return bytes_.size(); }
  bool Has(uint64_t offset, uint64_t size) const {
    return offset <= bytes_.size() && size <= bytes_.size() - offset;
  }
  uint64_t Number(uint64_t offset, int num_bytes) const {
    uint64_t value = 0;
    for (int i = num_bytes - 1; i >= 0; --i) value = value << 8 | bytes_[offset + i];
    return value;
  }
  uint32_t Signature(uint64_t offset) const {
    return Has(offset, 4) ? static_cast<uint32_t>(Number(offset, 4)) : 0;
  }
  absl::Span<const uint8_t> Part(uint64_t offset, uint64_t size) const {
    return bytes_.subspan(offset, size);
  }

 private:
  absl::Span<const uint8_t> bytes_;
};

absl::Status Broken(absl::string_view what, uint64_t offset) {
  return absl::InvalidArgumentError(absl::StrCat("zip archive: ", what, ", at byte ", offset));
}

struct Directory {
  uint64_t num_entries = 0;
  uint64_t offset = 0;
};

absl::StatusOr<Directory> FindDirectory(const Bytes& bytes) {
  if (bytes.size() < kEndBytes) return Broken("no end record", 0);
  const uint64_t last = bytes.size() - kEndBytes;
  const uint64_t first = last - std::min(last, kMaxCommentBytes);
  for (uint64_t end = last + 1; end-- > first;) {
    if (bytes.Signature(end) != kEnd) continue;
    Directory directory{.num_entries = bytes.Number(end + 10, 2),
                        .offset = bytes.Number(end + 16, 4)};
    if (end < kEnd64LocatorBytes || bytes.Signature(end - kEnd64LocatorBytes) != kEnd64Locator) {
      return directory;
    }
    const uint64_t record = bytes.Number(end - kEnd64LocatorBytes + 8, 8);
    if (bytes.Signature(record) != kEnd64 || !bytes.Has(record, kEnd64Bytes)) {
      return Broken("no zip64 end record", record);
    }
    return Directory{.num_entries = bytes.Number(record + 32, 8),
                     .offset = bytes.Number(record + 48, 8)};
  }
  return Broken("no end record", last);
}

}  // namespace

absl::StatusOr<ZipMembers> ReadZip(absl::Span<const uint8_t> data) {
  const Bytes bytes(data);
  ASSIGN_OR_RETURN(const Directory directory, FindDirectory(bytes));
  ZipMembers members;
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.num_entries; ++i) {
    if (bytes.Signature(at) != kDirectoryEntry || !bytes.Has(at, kDirectoryEntryBytes)) {
      return Broken("no directory entry", at);
    }
    const uint64_t flags = bytes.Number(at + 8, 2);
    const uint64_t method = bytes.Number(at + 10, 2);
    uint64_t stored_size = bytes.Number(at + 20, 4);
    uint64_t size = bytes.Number(at + 24, 4);
    const uint64_t name_size = bytes.Number(at + 28, 2);
    const uint64_t extra_size = bytes.Number(at + 30, 2);
    const uint64_t comment_size = bytes.Number(at + 32, 2);
    uint64_t local = bytes.Number(at + 42, 4);
    uint64_t next = at + kDirectoryEntryBytes;
    if (!bytes.Has(next, name_size + extra_size + comment_size)) {
      return Broken("a directory entry is cut short", at);
    }
    const absl::Span<const uint8_t> name_bytes = bytes.Part(next, name_size);
    std::string name(name_bytes.begin(), name_bytes.end());
    next += name_size;
    for (uint64_t extra = next; extra + 4 <= next + extra_size;) {
      const uint64_t id = bytes.Number(extra, 2);
      const uint64_t end = extra + 4 + bytes.Number(extra + 2, 2);
      if (end > next + extra_size) return Broken("an extra field is cut short", extra);
      uint64_t field = extra + 4;
      // It has those numbers that did not fit into the entry, in this order.
      for (uint64_t* const number : {&size, &stored_size, &local}) {
        if (id != kZip64Extra || *number != 0xffffffff) continue;
        if (field + 8 > end) return Broken("a zip64 field is cut short", extra);
        *number = bytes.Number(field, 8);
        field += 8;
      }
      extra = end;
    }
    if ((flags & 1) != 0 || method != 0 || stored_size != size) {
      return Broken(absl::StrCat("the member is compressed or encrypted: ", name), at);
    }
    if (bytes.Signature(local) != kLocalHeader || !bytes.Has(local, kLocalHeaderBytes)) {
      return Broken(absl::StrCat("no local header of ", name), local);
    }
    const uint64_t begin =
        local + kLocalHeaderBytes + bytes.Number(local + 26, 2) + bytes.Number(local + 28, 2);
    if (!bytes.Has(begin, size)) return Broken(absl::StrCat("the file ends within ", name), begin);
    if (!members.emplace(std::move(name), bytes.Part(begin, size)).second) {
      return Broken("a name is there twice", at);
    }
    at = next + extra_size + comment_size;
  }
  return members;
}

}  // namespace mneme::weights
