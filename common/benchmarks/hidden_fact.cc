#include "common/benchmarks/hidden_fact.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/random/pcg64.h"
#include "common/status/status_macros.h"

namespace mneme::benchmarks {
namespace {

using dataset::EncodedConversation;
using dataset::TemplateName;
using dataset::TextEncoder;
using Ids = std::vector<int32_t>;

constexpr int64_t kMaxDigits = 9;  // a draw is below 2^32

absl::StatusOr<Ids> Encode(absl::string_view text, const TextEncoder& encoder) {
  return encoder.Encode(text, /*add_special_tokens=*/false);
}

int64_t Size(const Ids& ids) { return static_cast<int64_t>(ids.size()); }

// Appends ids[begin, end), as much of it as there is.
void Append(const Ids& ids, int64_t begin, int64_t end, Ids* to) {
  begin = std::clamp<int64_t>(begin, 0, Size(ids));
  end = std::clamp<int64_t>(end, begin, Size(ids));
  to->insert(to->end(), ids.begin() + begin, ids.begin() + end);
}

std::string Repeat(absl::string_view text, int64_t times) {
  std::string repeated;
  repeated.reserve(text.size() * static_cast<size_t>(times));
  for (int64_t i = 0; i < times; ++i) absl::StrAppend(&repeated, text);
  return repeated;
}

// value / 100 to the nearest whole number, halves to the even one; not negative.
int64_t RoundedPercent(int64_t value) {
  const int64_t whole = value / 100;
  const int64_t rest = value % 100;
  return whole + (rest > 50 || (rest == 50 && whole % 2 == 1) ? 1 : 0);
}

// The parts around the filler, and where the fact goes.
struct Layout {
  Ids instruction;
  Ids fact;
  Ids question;
  int64_t position = 0;  // of the fact, from the beginning of the instruction
};

absl::StatusOr<Layout> MakeLayout(absl::string_view instruction, absl::string_view fact,
                                  absl::string_view question, int64_t length, int64_t depth,
                                  const TextEncoder& encoder) {
  if (depth < 0 || depth > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("a depth is a percentage, use 0 to 100: ", depth));
  }
  Layout layout;
  ASSIGN_OR_RETURN(layout.instruction, Encode(instruction, encoder));
  ASSIGN_OR_RETURN(layout.fact, Encode(fact, encoder));
  ASSIGN_OR_RETURN(layout.question, Encode(question, encoder));
  const int64_t num_texts =
      Size(layout.instruction) + Size(layout.fact) + Size(layout.question) + 1;
  if (length < num_texts) {
    return absl::InvalidArgumentError(
        absl::StrCat("the length has no room for the sample's own texts, use at least ", num_texts,
                     " tokens: ", length));
  }
  layout.position = Size(layout.instruction) + RoundedPercent((length - num_texts) * depth);
  return layout;
}

absl::StatusOr<EncodedConversation> AsPrompt(const Ids& ids, TemplateName chat_template,
                                             const TextEncoder& encoder) {
  ASSIGN_OR_RETURN(std::string text, encoder.Decode(ids, /*skip_special_tokens=*/false));
  const dataset::Conversation conversation = {
      .turns = {{.role = dataset::Role::kUser, .content = std::move(text)}},
      .add_generation_prompt = true};
  return dataset::EncodeConversation(chat_template, conversation, encoder, /*with_labels=*/false);
}

int64_t CountWords(absl::string_view text) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(text, absl::ByAnyChar(" \t\n\v\f\r"), absl::SkipEmpty());
  return static_cast<int64_t>(words.size());
}

}  // namespace

absl::StatusOr<std::vector<int64_t>> EquallySpaced(int64_t min, int64_t max, int64_t count) {
  if (count < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of values must be 1 or more: ", count));
  }
  if (max < min) {
    return absl::InvalidArgumentError(
        absl::StrCat("the maximum is below the minimum, exchange them: ", max, " < ", min));
  }
  std::vector<int64_t> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(count == 1 ? min : min + (max - min) * i / (count - 1));
  }
  return values;
}

absl::StatusOr<std::vector<PasskeyCase>> DrawPasskeyCases(absl::Span<const int64_t> lengths,
                                                          absl::Span<const int64_t> depths,
                                                          int64_t num_digits, uint64_t seed) {
  if (num_digits < 1 || num_digits > kMaxDigits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a passkey must have 1 to ", kMaxDigits, " digits: ", num_digits));
  }
  int64_t least = 1;
  for (int64_t i = 1; i < num_digits; ++i) least *= 10;
  random::Pcg64 generator(seed);
  std::vector<PasskeyCase> cases;
  for (const int64_t length : lengths) {
    for (const int64_t depth : depths) {
      cases.push_back({.length = length,
                       .depth = depth,
                       .passkey = absl::StrCat(generator.Integers(least, least * 10))});
    }
  }
  return cases;
}

absl::StatusOr<EncodedConversation> PasskeySample(const PasskeyTexts& texts, const PasskeyCase& one,
                                                  TemplateName chat_template,
                                                  const TextEncoder& encoder) {
  ASSIGN_OR_RETURN(const std::string fact, texts.fact.Fill({{"passkey", one.passkey}}));
  ASSIGN_OR_RETURN(const Layout layout, MakeLayout(texts.instruction, fact, texts.question,
                                                   one.length, one.depth, encoder));
  ASSIGN_OR_RETURN(const Ids filler, Encode(Repeat(texts.filler, one.length / 10), encoder));
  const int64_t num_before = layout.position - Size(layout.instruction);
  const int64_t num_after =
      one.length - layout.position - Size(layout.fact) - Size(layout.question);
  Ids ids = layout.instruction;
  Append(filler, 0, num_before, &ids);
  Append(layout.fact, 0, Size(layout.fact), &ids);
  Append(filler, 0, num_after, &ids);
  Append(layout.question, 0, Size(layout.question), &ids);
  return AsPrompt(ids, chat_template, encoder);
}

absl::StatusOr<EncodedConversation> NeedleSample(const NeedleTexts& texts,
                                                 absl::string_view haystack, int64_t length,
                                                 int64_t depth, TemplateName chat_template,
                                                 const TextEncoder& encoder) {
  const int64_t num_words = CountWords(haystack);
  if (num_words == 0) {
    return absl::InvalidArgumentError(
        "the haystack has no word: give a text to hide the needle in");
  }
  ASSIGN_OR_RETURN(const Layout layout, MakeLayout(texts.instruction, texts.needle, texts.question,
                                                   length, depth, encoder));
  const int64_t times = num_words < length ? (length + num_words - 1) / num_words : 1;
  ASSIGN_OR_RETURN(Ids filler, Encode(Repeat(haystack, times), encoder));
  const int64_t num_filler =
      length - Size(layout.instruction) - Size(layout.fact) - Size(layout.question);
  const int64_t end = std::min(num_filler, Size(filler));
  const int64_t position = std::min(layout.position, end);
  Ids ids = layout.instruction;
  Append(filler, 0, position, &ids);
  Append(layout.fact, 0, Size(layout.fact), &ids);
  Append(filler, position, end, &ids);
  Append(layout.question, 0, Size(layout.question), &ids);
  return AsPrompt(ids, chat_template, encoder);
}

}  // namespace mneme::benchmarks
