#include "common/scoring/unicode.h"

#include <gtest/gtest.h>

namespace mneme::scoring {
namespace {

std::string Lower(absl::string_view text) { return ToUtf8(ToLower(ToCharacters(text))); }
std::string Upper(absl::string_view text) { return ToUtf8(ToUpper(ToCharacters(text))); }

TEST(UnicodeTest, CharactersAndBack) {
  EXPECT_EQ(ToCharacters("aé中😀"), U"aé中😀");
  EXPECT_EQ(ToUtf8(U"aé中😀"), "aé中😀");
  EXPECT_EQ(ToCharacters(""), U"");
}

TEST(UnicodeTest, BytesThatAreNoTextAreReplaced) {
  EXPECT_EQ(ToCharacters("a\xff\xe4\xb8"), U"a\ufffd\ufffd");
}

TEST(UnicodeTest, CaseChangesInAllScripts) {
  EXPECT_EQ(Lower("ÀÉ ДА ΑΒ ÿ中1"), "àé да αβ ÿ中1");
  EXPECT_EQ(Upper("àé да αβ ÿ中1"), "ÀÉ ДА ΑΒ Ÿ中1");
}

TEST(UnicodeTest, ACharacterMayBecomeSeveral) {
  EXPECT_EQ(Upper("straße"), "STRASSE");
  EXPECT_EQ(Lower("İ"), "i̇");
}

TEST(UnicodeTest, KindsOfCharacters) {
  for (const char32_t character : std::u32string_view(U"aZ09é中ー²")) {
    EXPECT_TRUE(IsAlphanumeric(character)) << static_cast<uint32_t>(character);
  }
  for (const char32_t character : std::u32string_view(U" _-—，。’😀")) {
    EXPECT_FALSE(IsAlphanumeric(character)) << static_cast<uint32_t>(character);
  }
  for (const char32_t character : std::u32string_view(U" \t\n\r\v\f\u00a0\u2003\u3000")) {
    EXPECT_TRUE(IsSpace(character)) << static_cast<uint32_t>(character);
  }
  EXPECT_FALSE(IsSpace(U'\u200b'));
  EXPECT_TRUE(IsAsciiPunctuation(U'_'));
  EXPECT_FALSE(IsAsciiPunctuation(U'，'));
  EXPECT_FALSE(IsAsciiPunctuation(U'中'));
}

}  // namespace
}  // namespace mneme::scoring
