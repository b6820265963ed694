// Published test vectors, and what must not open.
#include <thread>

#include "absl/strings/escaping.h"
#include "common/crypto/aead.h"
#include "common/crypto/crc32c.h"
#include "common/crypto/sha256.h"
#include "gtest/gtest.h"

namespace mneme::crypto {
namespace {

TEST(Crc32cTest, MatchesPublishedValues) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);              // the check value
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);    // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);  // RFC 3720, B.4
}

TEST(Crc32cTest, PiecesSumToTheWhole) {
  std::string text;
  for (int i = 0; i < 100; ++i) text.push_back(static_cast<char>(i * 37));
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(text.substr(cut), Crc32c(text.substr(0, cut))), Crc32c(text));
  }
}

// Bit by bit, as the polynomial says.
uint32_t SlowCrc32c(const std::string& text) {
  uint32_t sum = ~uint32_t{0};
  for (const char c : text) {
    sum ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ ((sum & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~sum;
}

TEST(Crc32cTest, LongTextsAreSummedAsShortOnes) {
  std::string text;
  for (int i = 0; i < 10'000; ++i) text.push_back(static_cast<char>((i * i) >> 3));
  for (const size_t size : {1023, 1024, 3071, 3072, 3073, 3081, 6143, 6144, 6150, 10'000}) {
    EXPECT_EQ(Crc32c(text.substr(0, size)), SlowCrc32c(text.substr(0, size))) << size;
  }
}

TEST(Sha256Test, MatchesPublishedValues) {
  const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(absl::BytesToHexString(Sha256("abc")), abc);  // FIPS 180-4
  Sha256Stream stream;
  stream.Add("a");
  stream.Add("");
  stream.Add("bc");
  EXPECT_EQ(absl::BytesToHexString(stream.Finish()), abc);
}

TEST(KeyTest, MacIsHmacSha256AndDerivedKeysAreHkdfs) {
  // Each value made by another implementation (Python's hmac): HMAC-SHA256 of "abc" and of
  // "purpose\x01" under the key 00 01 … 1f.
  std::string bytes;
  for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<char>(i));
  const Key key = Key::FromBytes(bytes);
  EXPECT_EQ(absl::BytesToHexString(Mac(key, "abc")),
            "f0133729c4163dede81e21cd47839256da58171238c8a0d874397c73b14e1e47");
  EXPECT_EQ(absl::BytesToHexString(key.Derive("purpose").view()),
            "f8376940d73135b5192c4ce1f82fb835766e29d5459e4026f9b544f103fb72e4");
}

TEST(AeadTest, SealedTextOfAnySizeOpens) {
  const Key key = Key::Random();
  for (const size_t size : {0u, 1u, 15u, 16u, 17u, 4096u, 1u << 20}) {
    std::string text(size, 'x');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 131);
    const std::string sealed = Seal(key, text, "place");
    EXPECT_EQ(sealed.size(), size + kSealBytes);
    if (size >= 16) {
      EXPECT_EQ(sealed.find(text.substr(0, 16)), std::string::npos);
    }
    const auto opened = Open(key, sealed, "place");
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, text);
    std::string in_place = text;
    const std::string seal = SealInPlace(key, &in_place, "place");
    EXPECT_EQ(seal.size(), kSealBytes);
    const auto reopened = Open(key, in_place + seal, "place");
    ASSERT_TRUE(reopened.ok()) << reopened.status();
    EXPECT_EQ(*reopened, text);
  }
}

TEST(AeadTest, SameTextIsNeverSealedAlike) {
  const Key key = Key::Random();
  EXPECT_NE(Seal(key, "text", "place"), Seal(key, "text", "place"));
}

TEST(AeadTest, AnyChangedByteOtherPlaceOrOtherKeyIsDataLoss) {
  const Key key = Key::Random();
  const std::string sealed = Seal(key, "some text", "place");
  for (size_t i = 0; i < sealed.size(); ++i) {
    std::string changed = sealed;
    changed[i] ^= 4;
    EXPECT_EQ(Open(key, changed, "place").status().code(), absl::StatusCode::kDataLoss) << i;
    EXPECT_EQ(Open(key, sealed.substr(0, i), "place").status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(Open(key, sealed, "other").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Open(Key::Random(), sealed, "place").status().code(), absl::StatusCode::kDataLoss);
  // A failure leaves nothing behind in the thread's context.
  EXPECT_EQ(*Open(key, sealed, "place"), "some text");
}

TEST(AeadTest, ThreadsDoNotDisturbEachOther) {
  constexpr int kThreads = 4;
  std::vector<std::jthread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([] {
      const Key key = Key::Random();
      for (int i = 0; i < 500; ++i) {
        const std::string text = std::to_string(i);
        EXPECT_EQ(*Open(key, Seal(key, text, text), text), text);
      }
    });
  }
}

}  // namespace
}  // namespace mneme::crypto
