#include "common/log/log.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace mneme::log {
namespace {

// The process's own name and level: written once by Init before other threads exist.
std::string* service_name = nullptr;
std::atomic<Level> lowest_level{Level::kInfo};

// Returns the length of the UTF-8 character that begins at `text`, 0 if there is none.
size_t Utf8Length(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto continues = [&](size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  if (byte(0) < 0x80) return 1;
  if (byte(0) >= 0xC2 && byte(0) <= 0xDF && continues(1)) return 2;
  if (byte(0) >= 0xE0 && byte(0) <= 0xEF && continues(1) && continues(2)) {
    if (byte(0) == 0xE0 && byte(1) < 0xA0) return 0;
    if (byte(0) == 0xED && byte(1) > 0x9F) return 0;
    return 3;
  }
  if (byte(0) >= 0xF0 && byte(0) <= 0xF4 && continues(1) && continues(2) && continues(3)) {
    if (byte(0) == 0xF0 && byte(1) < 0x90) return 0;
    if (byte(0) == 0xF4 && byte(1) > 0x8F) return 0;
    return 4;
  }
  return 0;
}

absl::string_view LevelName(Level level) {
  switch (level) {
    case Level::kDebug:
      return "debug";
    case Level::kInfo:
      return "info";
    case Level::kWarning:
      return "warning";
    case Level::kError:
      return "error";
  }
  return "error";
}

void Write(Level level, absl::string_view message, Fields fields) {
  if (level < lowest_level.load(std::memory_order_relaxed)) return;
  std::string line = absl::StrCat(
      "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
      "\",\"level\":\"", LevelName(level),
      "\",\"service\":", service_name == nullptr ? "\"\"" : JsonString(*service_name),
      ",\"pid\":", getpid(), ",\"message\":", JsonString(message));
  for (const Field& field : fields) {
    absl::StrAppend(&line, ",", JsonString(field.key()), ":", field.json());
  }
  line.append("}\n");
  // One write keeps lines of several threads apart; a log that cannot be written is not an error.
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

}  // namespace

Field::Field(absl::string_view key, absl::string_view value)
    : key_(key), json_(JsonString(value)) {}

Field::Field(absl::string_view key, bool value) : key_(key), json_(value ? "true" : "false") {}

Field::Field(absl::string_view key, double value)
    : key_(key), json_(std::isfinite(value) ? absl::StrFormat("%.6g", value) : "null") {}

void Init(absl::string_view service, Level lowest) {
  static std::string name;
  name = std::string(service);
  service_name = &name;
  lowest_level = lowest;
}

void Debug(absl::string_view message, Fields fields) { Write(Level::kDebug, message, fields); }
void Info(absl::string_view message, Fields fields) { Write(Level::kInfo, message, fields); }
void Warning(absl::string_view message, Fields fields) { Write(Level::kWarning, message, fields); }
void Error(absl::string_view message, Fields fields) { Write(Level::kError, message, fields); }

void Fatal(absl::string_view message, Fields fields) {
  Write(Level::kError, message, fields);
  std::abort();
}

std::string JsonString(absl::string_view text) {
  std::string json = "\"";
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) {
      json.append("\\ufffd");
      text.remove_prefix(1);
      continue;
    }
    const char c = text[0];
    if (length > 1) {
      json.append(text.data(), length);
    } else if (c == '"' || c == '\\') {
      json.push_back('\\');
      json.push_back(c);
    } else if (c == '\n') {
      json.append("\\n");
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&json, "\\u%04x", static_cast<unsigned char>(c));
    } else {
      json.push_back(c);
    }
    text.remove_prefix(length);
  }
  json.push_back('"');
  return json;
}

}  // namespace mneme::log
