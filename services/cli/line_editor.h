// Reads a line from a terminal: UTF-8, cursor keys, history, pasted text of several lines.
//
// Keys: arrows, Home/End, Ctrl-A/E/B/F, Ctrl-Left/Right or Alt-B/F (words), Backspace, Delete,
// Ctrl-W/U/K, Ctrl-L, up/down or Ctrl-P/N (history), Alt-Enter (a new line within the text),
// Ctrl-C (gives the line up), Ctrl-D (end, on an empty line).
#pragma once

#include <termios.h>

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme::cli {

// Not thread-safe.
class LineEditor {
 public:
  enum class Result { kLine, kInterrupted, kEnd };

  // Reads keys from `in` and draws on `out`, both a terminal. The history is read from and kept in
  // `history_file`, for this user only; "": in memory only. Its failures are silent.
  LineEditor(int in, int out, std::string history_file);

  // Returns what the user did; `line` is the text for kLine.
  Result ReadLine(const std::string& prompt, std::string* line);

 private:
  enum class Key {
    kText,
    kEnter,
    kNewLine,
    kLeft,
    kRight,
    kWordLeft,
    kWordRight,
    kHome,
    kEnd,
    kUp,
    kDown,
    kBackspace,
    kDelete,
    kDeleteWord,
    kDeleteToStart,
    kDeleteToEnd,
    kClear,
    kInterrupt,
    kEndOfInput,
    kPasteBegin,
    kPasteEnd,
    kClosed,
    kUnknown
  };

  Key NextKey(std::string* text);
  Key KeyOfEscape();
  Key KeyOfSequence();
  bool NextByte(char* byte, int timeout_ms);
  void Apply(Key key, const std::string& text);
  void Insert(absl::string_view text);
  void MoveInHistory(int step);
  size_t WordLeft() const;
  size_t WordRight() const;
  void Draw(const std::string& prompt) const;
  void Remember(const std::string& line);

  const int in_;
  const int out_;
  const std::string history_file_;
  std::vector<std::string> history_;
  size_t history_at_ = 0;   // history_.size(): the line being written
  std::string unfinished_;  // that line, while an older one is shown
  std::string line_;
  size_t cursor_ = 0;  // byte offset, on a character's boundary
  bool pasting_ = false;
};

}  // namespace mneme::cli
