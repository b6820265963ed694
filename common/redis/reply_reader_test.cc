#include "common/redis/reply_reader.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/redis/encoding.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::redis {
namespace {

using ::testing::HasSubstr;

// Gives given bytes in pieces of a given size, and then is closed.
class Bytes final : public Transport {
 public:
  Bytes(std::string bytes, size_t step) : bytes_(std::move(bytes)), step_(step) {}
  absl::Status Write(absl::Span<const absl::string_view>, absl::Time) override {
    return absl::OkStatus();
  }
  absl::StatusOr<size_t> Read(char* buffer, size_t size, absl::Time) override {
    if (next_ == bytes_.size()) return absl::UnavailableError("closed");
    const size_t count = std::min({size, step_, bytes_.size() - next_});
    std::memcpy(buffer, bytes_.data() + next_, count);
    next_ += count;
    return count;
  }
  bool IsQuiet() override { return false; }

 private:
  const std::string bytes_;
  const size_t step_;
  size_t next_ = 0;
};

absl::StatusOr<Reply> ReadOne(const std::string& bytes) {
  Bytes transport(bytes, 1 << 20);
  return ReplyReader(transport, "a:1").Read(absl::InfiniteFuture());
}

class StepTest : public ::testing::TestWithParam<size_t> {};

TEST_P(StepTest, EveryKindIsReadHoweverItArrives) {
  std::string large;
  for (int i = 0; i < 700'001; ++i) large.push_back(static_cast<char>(i * 7));
  const std::string buffer_full(64 << 10, 'b');
  const std::string bytes =
      absl::StrCat("+OK\r\n:-42\r\n$-1\r\n*-1\r\n$0\r\n\r\n$", large.size(), "\r\n", large,
                   "\r\n*4\r\n$3\r\na\r\n\r\n*2\r\n:1\r\n-ERR no\r\n$-1\r\n*0\r\n$",
                   buffer_full.size(), "\r\n", buffer_full, "\r\n-OOM full\r\n");
  Bytes transport(bytes, GetParam());
  ReplyReader reader(transport, "a:1");
  const auto next = [&] {
    auto reply = reader.Read(absl::InfiniteFuture());
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.value_or(Reply());
  };
  EXPECT_EQ(next().text(), "OK");
  EXPECT_EQ(next().Integer().value(), -42);
  EXPECT_TRUE(next().is_nil());
  EXPECT_TRUE(next().is_nil());
  EXPECT_EQ(next().String().value(), "");
  EXPECT_EQ(next().text(), large);
  const Reply array = next();
  ASSERT_EQ(array.elements().size(), 4u);
  EXPECT_EQ(array.elements()[0].text(), "a\r\n");
  EXPECT_EQ(array.elements()[1].elements()[0].Integer().value(), 1);
  EXPECT_EQ(array.elements()[1].elements()[1].status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(array.elements()[2].is_nil());
  EXPECT_EQ(array.elements()[3].kind(), Reply::Kind::kArray);
  EXPECT_EQ(next().text(), buffer_full);
  EXPECT_TRUE(reader.IsEmpty() || GetParam() > 1);
  EXPECT_EQ(next().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(reader.IsEmpty());
  EXPECT_EQ(reader.Read(absl::InfiniteFuture()).status().message(), "closed");
}

INSTANTIATE_TEST_SUITE_P(Steps, StepTest, ::testing::Values(1, 2, 3, 1000, 1 << 20));

TEST(ReplyReaderTest, WhatIsNoReplyIsUnavailable) {
  for (const std::string bytes :
       {"HTTP/1.1 400 Bad Request\r\n", "\r\n", "+OK\n", ":12x\r\n", "$-2\r\n", "$abc\r\n",
        "$3\r\nabcd\r\n", "*-7\r\n", "$99999999999999999999\r\n", "$8589934592\r\n", "%1\r\n"}) {
    const absl::Status status = ReadOne(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << bytes;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no Redis")) << bytes;
  }
}

TEST(ReplyReaderTest, ALineOrANestingWithoutEndIsRefused) {
  EXPECT_THAT(std::string(ReadOne("+" + std::string(1 << 20, 'x')).status().message()),
              HasSubstr("too long"));
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "*1\r\n";
  EXPECT_THAT(std::string(ReadOne(nested).status().message()), HasSubstr("too deeply"));
}

TEST(ReplyReaderTest, ALengthAloneTakesNoMemory) {
  // Would fail by bad_alloc or the sanitizers' limit if it were believed.
  EXPECT_EQ(ReadOne("*9000000000000000000\r\n").status().message(), "closed");
  EXPECT_EQ(ReadOne("$4294967296\r\nabc").status().message(), "closed");
}

TEST(EncodingTest, SmallArgumentsAreJoinedAndLargeOnesReferredTo) {
  const std::string large(100'000, 'l');
  const std::vector<Command> commands = {{"SET", "k", Argument::Borrow(large)}, {"GET", "k"}};
  const Encoding encoding(commands);
  std::string bytes;
  bool refers = false;
  for (const absl::string_view piece : encoding.pieces()) {
    bytes.append(piece.data(), piece.size());
    refers |= piece.data() == large.data();
  }
  EXPECT_EQ(bytes, absl::StrCat("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\n", large,
                                "\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"));
  EXPECT_TRUE(refers);
  EXPECT_EQ(encoding.pieces().size(), 3u);
}

TEST(EncodingTest, TwoPiecesAreOneWordBorrowedOrNot) {
  for (const size_t size : {size_t{3}, size_t{100'000}}) {
    const std::string large(size, 'l');
    const Argument joined = Argument::Joined(large, "end");
    const std::vector<Command> commands = {{"SET", "k", joined, "NX", joined.Borrowed()}};
    const Encoding encoding(commands);
    std::string bytes;
    for (const absl::string_view piece : encoding.pieces())
      bytes.append(piece.data(), piece.size());
    const std::string word = absl::StrCat("$", size + 3, "\r\n", large, "end\r\n");
    EXPECT_EQ(bytes, absl::StrCat("*5\r\n$3\r\nSET\r\n$1\r\nk\r\n", word, "$2\r\nNX\r\n", word));
  }
}

}  // namespace
}  // namespace mneme::redis
