// JSON-line logs on standard error: one object a line, fixed message first, values as fields.
//
//   log::Info("session evicted", {{"session", id}, {"bytes", bytes}});
//
// Functions, not macros: LibTorch defines LOG and CHECK. Never pass prompts, answers, keys or
// tokens of a text. Thread-safe: a line is written with one write().
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"

namespace mneme::log {

enum class Level { kDebug, kInfo, kWarning, kError };

// One key with its value, kept as JSON text.
class Field {
 public:
  Field(absl::string_view key, absl::string_view value);
  Field(absl::string_view key, const char* value) : Field(key, absl::string_view(value)) {}
  Field(absl::string_view key, const std::string& value) : Field(key, absl::string_view(value)) {}
  Field(absl::string_view key, bool value);
  Field(absl::string_view key, double value);
  template <typename T>
    requires std::is_integral_v<T>
  Field(absl::string_view key, T value) : key_(key), json_(std::to_string(value)) {}

  absl::string_view key() const { return key_; }
  absl::string_view json() const { return json_; }

 private:
  std::string key_;
  std::string json_;
};

using Fields = std::initializer_list<Field>;

// Names the service in every line and sets the lowest level written. Call once, first in main.
void Init(absl::string_view service, Level lowest = Level::kInfo);

void Debug(absl::string_view message, Fields fields = {});
void Info(absl::string_view message, Fields fields = {});
void Warning(absl::string_view message, Fields fields = {});
void Error(absl::string_view message, Fields fields = {});

// Writes an error line and ends the process: for broken internal invariants only, never for
// anything a caller can cause.
[[noreturn]] void Fatal(absl::string_view message, Fields fields = {});

// Returns `text` as a quoted JSON string; bytes that are not UTF-8 become U+FFFD.
std::string JsonString(absl::string_view text);

}  // namespace mneme::log
