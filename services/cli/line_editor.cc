#include "services/cli/line_editor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/config/config.h"
#include "services/cli/console.h"
#include "services/cli/utf8.h"

namespace mneme::cli {
namespace {

constexpr size_t kMaxHistory = 1000;
constexpr int kEscapeTimeoutMs = 50;  // a lone Escape key is followed by nothing
constexpr absl::string_view kNewLineMark = "⏎";

// Raw mode while a line is read; pasted text is marked by the terminal.
class RawMode {
 public:
  RawMode(int in, int out) : in_(in), out_(out) {
    tcgetattr(in_, &saved_);
    termios raw = saved_;
    raw.c_iflag &= ~(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
    raw.c_cflag |= CS8;
    raw.c_lflag &= ~(ECHO | ICANON | IEXTEN | ISIG);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    tcsetattr(in_, TCSADRAIN, &raw);
    Send("\x1b[?2004h");
  }
  ~RawMode() {
    Send("\x1b[?2004l");
    tcsetattr(in_, TCSADRAIN, &saved_);
  }

 private:
  void Send(absl::string_view text) const {
    if (write(out_, text.data(), text.size()) < 0) return;
  }

  const int in_;
  const int out_;
  termios saved_;
};

size_t ColumnsOf(int fd) {
  winsize size = {};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// A history line is one line of the file.
std::string ToHistoryLine(const std::string& line) {
  return absl::StrReplaceAll(line, {{"\\", "\\\\"}, {"\n", "\\n"}});
}

std::string FromHistoryLine(absl::string_view line) {
  return absl::StrReplaceAll(line, {{"\\\\", "\\"}, {"\\n", "\n"}});
}

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t'; }

}  // namespace

LineEditor::LineEditor(int in, int out, std::string history_file)
    : in_(in), out_(out), history_file_(std::move(history_file)) {
  if (history_file_.empty()) return;
  const absl::StatusOr<std::string> content = config::ReadFile(history_file_);
  if (!content.ok()) return;
  for (const absl::string_view line : absl::StrSplit(*content, '\n', absl::SkipEmpty())) {
    history_.push_back(FromHistoryLine(line));
  }
  if (history_.size() > kMaxHistory) history_.erase(history_.begin(), history_.end() - kMaxHistory);
}

void LineEditor::Remember(const std::string& line) {
  if (line.empty() || (!history_.empty() && history_.back() == line)) return;
  history_.push_back(line);
  if (history_.size() > kMaxHistory) history_.erase(history_.begin());
  if (history_file_.empty()) return;
  std::string content;
  for (const std::string& old : history_) absl::StrAppend(&content, ToHistoryLine(old), "\n");
  config::WriteFileAtomically(history_file_, content, 0600).IgnoreError();
}

LineEditor::Result LineEditor::ReadLine(const std::string& prompt, std::string* line) {
  const RawMode raw(in_, out_);
  line_.clear();
  cursor_ = 0;
  pasting_ = false;
  history_at_ = history_.size();
  const auto end_line = [this] {
    if (write(out_, "\r\n", 2) < 0) return;
  };
  while (true) {
    Draw(prompt);
    std::string text;
    const Key key = NextKey(&text);
    if (key == Key::kClosed || (key == Key::kEndOfInput && line_.empty())) {
      end_line();
      return Result::kEnd;
    }
    if (key == Key::kInterrupt) {
      end_line();
      return Result::kInterrupted;
    }
    if (key == Key::kEnter && !pasting_) {
      cursor_ = line_.size();
      Draw(prompt);
      end_line();
      Remember(line_);
      *line = line_;
      return Result::kLine;
    }
    Apply(key, text);
  }
}

bool LineEditor::NextByte(char* byte, int timeout_ms) {
  pollfd file = {in_, POLLIN, 0};
  int ready = 0;
  do {
    ready = poll(&file, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0 && read(in_, byte, 1) == 1;
}

LineEditor::Key LineEditor::NextKey(std::string* text) {
  char byte = 0;
  if (!NextByte(&byte, -1)) return Key::kClosed;
  switch (byte) {
    case '\r':
    case '\n':
      return Key::kEnter;
    case 1:
      return Key::kHome;
    case 2:
      return Key::kLeft;
    case 3:
      return Key::kInterrupt;
    case 4:
      return Key::kEndOfInput;
    case 5:
      return Key::kEnd;
    case 6:
      return Key::kRight;
    case 8:
    case 127:
      return Key::kBackspace;
    case 11:
      return Key::kDeleteToEnd;
    case 12:
      return Key::kClear;
    case 14:
      return Key::kDown;
    case 16:
      return Key::kUp;
    case 21:
      return Key::kDeleteToStart;
    case 23:
      return Key::kDeleteWord;
    case 27:
      return KeyOfEscape();
    default:
      break;
  }
  if (static_cast<unsigned char>(byte) < 0x20 && byte != '\t') return Key::kUnknown;
  text->assign(1, byte);
  for (size_t i = LengthByFirstByte(byte); i > 1; --i) {
    if (!NextByte(&byte, kEscapeTimeoutMs)) break;
    text->push_back(byte);
  }
  // What is not UTF-8 would break the line's boundaries.
  if (NextCharacter(*text).bytes != text->size()) return Key::kUnknown;
  if (NextCharacter(*text).code == 0xFFFD && text->size() == 1) return Key::kUnknown;
  return Key::kText;
}

LineEditor::Key LineEditor::KeyOfEscape() {
  char byte = 0;
  if (!NextByte(&byte, kEscapeTimeoutMs)) return Key::kUnknown;
  switch (byte) {
    case '\r':
    case '\n':
      return Key::kNewLine;
    case 'b':
      return Key::kWordLeft;
    case 'f':
      return Key::kWordRight;
    case '[':
    case 'O':
      return KeyOfSequence();
    default:
      return Key::kUnknown;
  }
}

// After "ESC [": parameters, then one letter or '~'.
LineEditor::Key LineEditor::KeyOfSequence() {
  std::string parameters;
  char byte = 0;
  while (true) {
    if (!NextByte(&byte, kEscapeTimeoutMs)) return Key::kUnknown;
    if (byte >= 0x40 && byte <= 0x7E) break;
    parameters.push_back(byte);
  }
  const bool with_modifier = parameters.find(';') != std::string::npos;
  switch (byte) {
    case 'A':
      return Key::kUp;
    case 'B':
      return Key::kDown;
    case 'C':
      return with_modifier ? Key::kWordRight : Key::kRight;
    case 'D':
      return with_modifier ? Key::kWordLeft : Key::kLeft;
    case 'H':
      return Key::kHome;
    case 'F':
      return Key::kEnd;
    case '~':
      break;
    default:
      return Key::kUnknown;
  }
  if (parameters == "1" || parameters == "7") return Key::kHome;
  if (parameters == "4" || parameters == "8") return Key::kEnd;
  if (parameters == "3") return Key::kDelete;
  if (parameters == "200") return Key::kPasteBegin;
  if (parameters == "201") return Key::kPasteEnd;
  return Key::kUnknown;
}

void LineEditor::Insert(absl::string_view text) {
  line_.insert(cursor_, text.data(), text.size());
  cursor_ += text.size();
}

size_t LineEditor::WordLeft() const {
  size_t at = cursor_;
  while (at > 0 && IsSpace(line_[at - 1])) --at;
  while (at > 0 && !IsSpace(line_[at - 1])) --at;
  return at;
}

size_t LineEditor::WordRight() const {
  size_t at = cursor_;
  while (at < line_.size() && IsSpace(line_[at])) ++at;
  while (at < line_.size() && !IsSpace(line_[at])) ++at;
  return at;
}

void LineEditor::MoveInHistory(int step) {
  if ((step < 0 && history_at_ == 0) || (step > 0 && history_at_ >= history_.size())) return;
  if (history_at_ == history_.size()) unfinished_ = line_;
  history_at_ += step;
  line_ = history_at_ == history_.size() ? unfinished_ : history_[history_at_];
  cursor_ = line_.size();
}

void LineEditor::Apply(Key key, const std::string& text) {
  const auto next = [this] {
    return cursor_ + NextCharacter(absl::string_view(line_).substr(cursor_)).bytes;
  };
  const auto erase = [this](size_t begin, size_t end) {
    line_.erase(begin, end - begin);
    cursor_ = begin;
  };
  switch (key) {
    case Key::kText:
      return Insert(text);
    case Key::kEnter:  // within pasted text
    case Key::kNewLine:
      return Insert("\n");
    case Key::kLeft:
      if (cursor_ > 0) cursor_ = PreviousBoundary(line_, cursor_);
      return;
    case Key::kRight:
      if (cursor_ < line_.size()) cursor_ = next();
      return;
    case Key::kWordLeft:
      cursor_ = WordLeft();
      return;
    case Key::kWordRight:
      cursor_ = WordRight();
      return;
    case Key::kHome:
      cursor_ = 0;
      return;
    case Key::kEnd:
      cursor_ = line_.size();
      return;
    case Key::kUp:
      return MoveInHistory(-1);
    case Key::kDown:
      return MoveInHistory(1);
    case Key::kBackspace:
      if (cursor_ > 0) erase(PreviousBoundary(line_, cursor_), cursor_);
      return;
    case Key::kDelete:
    case Key::kEndOfInput:
      if (cursor_ < line_.size()) erase(cursor_, next());
      return;
    case Key::kDeleteWord:
      return erase(WordLeft(), cursor_);
    case Key::kDeleteToStart:
      return erase(0, cursor_);
    case Key::kDeleteToEnd:
      return erase(cursor_, line_.size());
    case Key::kClear:
      if (write(out_, "\x1b[H\x1b[2J", 7) < 0) return;
      return;
    case Key::kPasteBegin:
      pasting_ = true;
      return;
    case Key::kPasteEnd:
      pasting_ = false;
      return;
    default:
      return;
  }
}

// One row: what does not fit is scrolled out on the left, so that the cursor stays in sight.
void LineEditor::Draw(const std::string& prompt) const {
  const size_t prompt_width = DisplayWidth(prompt);
  const size_t columns = ColumnsOf(out_);
  const size_t room = columns > prompt_width + 2 ? columns - prompt_width - 1 : 1;
  struct Cell {
    std::string text;
    size_t width;
  };
  std::vector<Cell> cells;
  size_t cursor_cell = 0;
  for (size_t at = 0; at < line_.size();) {
    const absl::string_view rest = absl::string_view(line_).substr(at);
    const Utf8Character character = NextCharacter(rest);
    if (at < cursor_) ++cursor_cell;
    if (rest[0] == '\n') {
      cells.push_back({std::string(kNewLineMark), 1});
    } else if (rest[0] == '\t') {
      cells.push_back({" ", 1});
    } else {
      cells.push_back({std::string(rest.substr(0, character.bytes)), character.width});
    }
    at += character.bytes;
  }
  size_t before = 0;  // columns from the first cell shown to the cursor
  size_t begin = cursor_cell;
  while (begin > 0 && before + cells[begin - 1].width <= room) before += cells[--begin].width;
  std::string shown = absl::StrCat("\r", prompt);
  size_t used = 0;
  for (size_t i = begin; i < cells.size() && used + cells[i].width <= room; ++i) {
    used += cells[i].width;
    absl::StrAppend(&shown, cells[i].text);
  }
  absl::StrAppend(&shown, "\x1b[K\r\x1b[", prompt_width + before, "C");
  if (write(out_, shown.data(), shown.size()) < 0) return;
}

}  // namespace mneme::cli
