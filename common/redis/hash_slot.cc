#include "common/redis/hash_slot.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace mneme::redis {
namespace {

// CRC-16/XMODEM: polynomial 0x1021, begins with 0, not reflected.
constexpr std::array<uint16_t, 256> MakeCrcTable() {
  std::array<uint16_t, 256> table{};
  for (int byte = 0; byte < 256; ++byte) {
    int crc = byte << 8;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 0x8000) != 0 ? (crc << 1) ^ 0x1021 : crc << 1;
    table[byte] = static_cast<uint16_t>(crc);
  }
  return table;
}
constexpr std::array<uint16_t, 256> kCrcTable = MakeCrcTable();

constexpr absl::string_view kAnyNodeCommands[] = {"PING", "ECHO",    "TIME",   "INFO",
                                                  "ROLE", "COMMAND", "CLUSTER"};

constexpr absl::string_view kEachNodeCommands[] = {
    "KEYS",   "SCAN",    "DBSIZE",   "FLUSHALL", "FLUSHDB", "RANDOMKEY", "CONFIG",
    "SCRIPT", "CLIENT",  "ACL",      "SAVE",     "BGSAVE",  "LASTSAVE",  "BGREWRITEAOF",
    "WAIT",   "SLOWLOG", "FUNCTION", "LATENCY",  "DEBUG",   "SHUTDOWN",  "MODULE"};

// Where the first key stands in commands that do not begin with it.
struct KeyPosition {
  absl::string_view name;
  size_t position;
};
constexpr KeyPosition kKeyPositions[] = {
    {"EVAL", 3},     {"EVALSHA", 3},    {"EVAL_RO", 3}, {"EVALSHA_RO", 3}, {"FCALL", 3},
    {"FCALL_RO", 3}, {"OBJECT", 2},     {"MEMORY", 2},  {"XGROUP", 2},     {"XINFO", 2},
    {"BITOP", 2},    {"ZUNION", 2},     {"ZINTER", 2},  {"ZDIFF", 2},      {"ZINTERCARD", 2},
    {"LMPOP", 2},    {"SINTERCARD", 2}, {"ZMPOP", 2},   {"BLMPOP", 3},     {"BZMPOP", 3}};

template <size_t N>
bool IsOneOf(absl::string_view name, const absl::string_view (&names)[N]) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool TakesScript(absl::string_view name) {
  return absl::StartsWith(name, "EVAL") || absl::StartsWith(name, "FCALL");
}

// Position of the first key, 0 where there is none.
size_t KeyPositionOf(absl::string_view name, const Command& command) {
  if (TakesScript(name) && command.size() > 2 && command[2].bytes() == "0") return 0;
  if (name == "XREAD" || name == "XREADGROUP") {
    for (size_t i = 1; i + 1 < command.size(); ++i) {
      if (absl::EqualsIgnoreCase(command[i].bytes(), "STREAMS")) return i + 1;
    }
    return command.size();
  }
  for (const KeyPosition& known : kKeyPositions) {
    if (known.name == name) return known.position;
  }
  return 1;
}

}  // namespace

int HashSlot(absl::string_view key) {
  const size_t open = key.find('{');
  if (open != absl::string_view::npos) {
    const size_t close = key.find('}', open + 1);
    if (close != absl::string_view::npos && close > open + 1) {
      key = key.substr(open + 1, close - open - 1);
    }
  }
  uint16_t crc = 0;
  for (const char c : key) {
    const auto byte = static_cast<uint8_t>(c);
    crc = static_cast<uint16_t>((crc << 8) ^ kCrcTable[(crc >> 8) ^ byte]);
  }
  return crc % kNumSlots;
}

absl::StatusOr<Target> TargetOf(const Command& command) {
  if (command.empty()) return absl::InvalidArgumentError("a Redis command has no name");
  const std::string name = absl::AsciiStrToUpper(command[0].bytes());
  if (IsOneOf(name, kAnyNodeCommands)) return Target{Scope::kAnyNode};
  if (IsOneOf(name, kEachNodeCommands)) return Target{Scope::kEachNode};
  const size_t position = KeyPositionOf(name, command);
  if (position == 0) return Target{Scope::kAnyNode};
  if (position >= command.size()) {
    return absl::InvalidArgumentError(absl::StrCat("a Redis command lacks its key: ", name));
  }
  return Target{Scope::kKeys, HashSlot(command[position].bytes())};
}

}  // namespace mneme::redis
