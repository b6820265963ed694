#include "common/scoring/words.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/match.h"
#include "common/scoring/unicode.h"

namespace mneme::scoring {
namespace {

// As the published metrics list them: opening 《 and both of 〈〉 are not among them.
constexpr std::u32string_view kChinesePunctuation =
    U"！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔"
    U"〕〖〗〘〙〚〛〜"
    U"〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

std::vector<std::string> SplitAtSpaces(std::u32string_view text) {
  std::vector<std::string> words;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && !IsSpace(text[i])) continue;
    if (i > begin) words.push_back(ToUtf8(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  return words;
}

bool IsArticle(std::u32string_view word) { return word == U"a" || word == U"an" || word == U"the"; }

// Words end where letters and numbers do, not only at spaces.
void BlankArticles(std::u32string* text) {
  size_t begin = 0;
  for (size_t i = 0; i <= text->size(); ++i) {
    if (i < text->size() && IsAlphanumeric((*text)[i])) continue;
    if (IsArticle(std::u32string_view(*text).substr(begin, i - begin))) {
      text->replace(begin, i - begin, i - begin, U' ');
    }
    begin = i + 1;
  }
}

}  // namespace

absl::string_view WithoutLeadingLineBreaks(absl::string_view text) {
  const size_t begin = text.find_first_not_of('\n');
  return begin == absl::string_view::npos ? absl::string_view() : text.substr(begin);
}

absl::string_view FirstLine(absl::string_view text) {
  text = WithoutLeadingLineBreaks(text);
  return text.substr(0, text.find('\n'));
}

std::string BlankOut(absl::string_view text, absl::string_view characters) {
  std::string blanked(text);
  std::replace_if(
      blanked.begin(), blanked.end(),
      [characters](char c) { return absl::StrContains(characters, c); }, ' ');
  return blanked;
}

std::string Strip(absl::string_view text) {
  const std::u32string characters = ToCharacters(text);
  std::u32string_view stripped = characters;
  while (!stripped.empty() && IsSpace(stripped.front())) stripped.remove_prefix(1);
  while (!stripped.empty() && IsSpace(stripped.back())) stripped.remove_suffix(1);
  return ToUtf8(stripped);
}

std::vector<std::string> SplitWords(absl::string_view text) {
  return SplitAtSpaces(ToCharacters(text));
}

std::vector<std::string> NormalisedWords(absl::string_view text) {
  std::u32string characters = ToLower(ToCharacters(text));
  std::erase_if(characters, IsAsciiPunctuation);
  BlankArticles(&characters);
  return SplitAtSpaces(characters);
}

std::vector<std::string> NormalisedSegments(absl::Span<const std::string> words) {
  std::vector<std::string> normalised;
  for (const std::string& word : words) {
    std::u32string characters = ToLower(ToCharacters(word));
    std::erase_if(characters, [](char32_t character) {
      return IsAsciiPunctuation(character) || IsSpace(character) ||
             kChinesePunctuation.find(character) != std::u32string_view::npos;
    });
    if (!characters.empty()) normalised.push_back(ToUtf8(characters));
  }
  return normalised;
}

}  // namespace mneme::scoring
