// The line editor on a real pseudo-terminal.
#include "services/cli/line_editor.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/cli/console.h"
#include "services/cli/utf8.h"

namespace mneme::cli {
namespace {

class LineEditorTest : public ::testing::Test {
 protected:
  LineEditorTest() {
    std::setlocale(LC_CTYPE, "C.UTF-8");
    winsize size = {24, 40, 0, 0};
    EXPECT_EQ(openpty(&master_, &slave_, nullptr, nullptr, &size), 0);
    char folder[] = "/tmp/mneme-editor-XXXXXX";
    folder_ = mkdtemp(folder);
    // Reads what is drawn, so that the editor never blocks.
    reader_ = std::jthread([this](const std::stop_token& stop) {
      char buffer[4096];
      while (true) {
        pollfd file = {master_, POLLIN, 0};
        if (poll(&file, 1, 10) > 0) {
          const ssize_t count = read(master_, buffer, sizeof(buffer));
          if (count > 0) drawn_.append(buffer, count);
        } else if (stop.stop_requested()) {
          return;  // nothing is left to be read
        }
      }
    });
  }
  ~LineEditorTest() override {
    StopReading();
    close(master_);
    close(slave_);
    EXPECT_EQ(system(absl::StrCat("rm -rf ", folder_).c_str()), 0);
  }

  void StopReading() {
    reader_.request_stop();
    if (reader_.joinable()) reader_.join();
  }

  std::string History() const { return folder_ + "/history"; }

  // Types the keys and returns the line.
  std::string Type(LineEditor& editor, const std::string& keys,
                   LineEditor::Result expected = LineEditor::Result::kLine) {
    // Not before the terminal is raw: a canonical one would eat some keys.
    const std::jthread typist([this, &keys] {
      termios mode = {};
      do {
        tcgetattr(slave_, &mode);
        std::this_thread::yield();
      } while ((mode.c_lflag & ICANON) != 0);
      EXPECT_EQ(write(master_, keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
    });
    std::string line;
    EXPECT_EQ(editor.ReadLine("> ", &line), expected);
    return line;
  }

  std::string folder_;
  int master_ = -1;
  int slave_ = -1;
  std::string drawn_;
  std::jthread reader_;
};

TEST_F(LineEditorTest, EditsWithinALine) {
  LineEditor editor(slave_, slave_, "");
  EXPECT_EQ(Type(editor, "hello\r"), "hello");
  EXPECT_EQ(Type(editor, "helo\x1b[Dl\r"), "hello");
  EXPECT_EQ(Type(editor, "ello\x01h\x05!\r"), "hello!");
  EXPECT_EQ(Type(editor, "one two\x17three\r"), "one three");
  EXPECT_EQ(Type(editor, "one two\x1b[1;5D\x0b\r"), "one ");
  EXPECT_EQ(Type(editor, "abc\x15x\r"), "x");
  EXPECT_EQ(Type(editor, "abc\x7f\x7fz\r"), "az");
  EXPECT_EQ(Type(editor, "abc\x01\x1b[3~\x04\r"), "c");
  EXPECT_EQ(Type(editor, "a\x1b\rb\r"), "a\nb");
}

TEST_F(LineEditorTest, TreatsCharactersOfSeveralBytesAsOne) {
  LineEditor editor(slave_, slave_, "");
  EXPECT_EQ(Type(editor, "größer\r"), "größer");
  EXPECT_EQ(Type(editor, "aß日本🙂\x7f\x7f\r"), "aß日");
  EXPECT_EQ(Type(editor, "日本\x1b[D\x1b[Dx\x1b[Cy\r"), "x日y本");
  EXPECT_EQ(Type(editor, "ab\xff\xc3(c\r"), "abc");
}

TEST_F(LineEditorTest, PastedLinesAreOneText) {
  LineEditor editor(slave_, slave_, "");
  EXPECT_EQ(Type(editor, "\x1b[200~first\rsecond\r\x1b[201~ end\r"), "first\nsecond\n end");
}

TEST_F(LineEditorTest, ControlCGivesUpAndControlDEnds) {
  LineEditor editor(slave_, slave_, "");
  Type(editor, "abc\x03", LineEditor::Result::kInterrupted);
  Type(editor, "\x04", LineEditor::Result::kEnd);
  EXPECT_EQ(Type(editor, "x\r"), "x");
}

TEST_F(LineEditorTest, RemembersLinesAlsoInTheNextRunForThisUserOnly) {
  {
    LineEditor editor(slave_, slave_, History());
    Type(editor, "first\r");
    Type(editor, "second\x1b\rline\r");
    EXPECT_EQ(Type(editor, "\x1b[A\x1b[A\r"), "first");
    EXPECT_EQ(Type(editor, "new\x1b[A\x1b[B!\r"), "new!");
  }
  LineEditor editor(slave_, slave_, History());
  EXPECT_EQ(Type(editor, "\x1b[A\x10\x10\r"), "second\nline");
  struct stat info = {};
  ASSERT_EQ(stat(History().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600);
}

TEST_F(LineEditorTest, ALongLineScrollsInOneRow) {
  LineEditor editor(slave_, slave_, "");
  const std::string text(100, 'x');
  EXPECT_EQ(Type(editor, text + "END\r"), text + "END");
  StopReading();
  // The last drawing shows the end of the line within the 40 columns, and nothing was wrapped.
  const size_t begin = drawn_.rfind("\r> ");
  ASSERT_NE(begin, std::string::npos);
  const std::string row = drawn_.substr(begin, drawn_.find("\x1b[K", begin) - begin);
  EXPECT_THAT(row, ::testing::EndsWith("END"));
  EXPECT_LE(DisplayWidth(row.substr(1)), 40u);
}

TEST_F(LineEditorTest, TheTerminalIsLeftAsItWas) {
  termios before = {};
  tcgetattr(slave_, &before);
  LineEditor editor(slave_, slave_, "");
  Type(editor, "x\r");
  termios after = {};
  tcgetattr(slave_, &after);
  EXPECT_EQ(before.c_lflag, after.c_lflag);
  EXPECT_EQ(before.c_iflag, after.c_iflag);
}

TEST(ConsoleTest, WidthsCountColumns) {
  std::setlocale(LC_CTYPE, "C.UTF-8");
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("größe"), 5u);
  EXPECT_EQ(DisplayWidth("日本"), 4u);
  EXPECT_EQ(DisplayWidth("\xff\xff"), 2u);
}

TEST(ConsoleTest, TextCannotSteerTheTerminal) {
  EXPECT_EQ(WithoutControls("a\x1b[31mb\n\tc\r\x07\x7f\xc2\x9b"
                            "d é"),
            "a[31mb\n\tcd é");
}

TEST(ConsoleTest, TablesAlign) {
  EXPECT_EQ(Table({{"a", "b"}, {"größe", "x"}}), "a      b\ngröße  x\n");
}

}  // namespace
}  // namespace mneme::cli
