// Samples that hide a fact at a depth of a long text and ask for it: passkeys (a number in a text
// that repeats itself) and needles (a sentence in essays). Where texts go is what the published
// implementation of Activation Beacon (arXiv 2401.03462) does, its slips included, so that scores
// compare.
//
//   for (const PasskeyCase& one : DrawPasskeyCases(lengths, depths, 5, /*seed=*/123)) ..
//
// Lengths are in tokens, without bos and template, depths in percent. The text is tokenised in
// parts, joined, decoded and tokenised again, so that a sample has about the length asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/benchmarks/prompts.h"
#include "common/dataset/chat_template.h"
#include "common/dataset/text_encoder.h"

namespace mneme::benchmarks {

// Returns `count` equally spaced numbers from `min` to `max`, both included, cut to whole ones; of
// a count of 1 only `min`. INVALID_ARGUMENT: a count below 1 or a maximum below the minimum.
absl::StatusOr<std::vector<int64_t>> EquallySpaced(int64_t min, int64_t max, int64_t count);

struct PasskeyCase {
  int64_t length = 0;
  int64_t depth = 0;
  std::string passkey;  // decimal digits, the first not 0
};

// Draws a passkey for every depth of every length, lengths outer, from NumPy's default_rng(seed).
// INVALID_ARGUMENT: not 1 to 9 digits.
absl::StatusOr<std::vector<PasskeyCase>> DrawPasskeyCases(absl::Span<const int64_t> lengths,
                                                          absl::Span<const int64_t> depths,
                                                          int64_t num_digits, uint64_t seed);

// Each returns the prompt in the chat template, open for the answer. INVALID_ARGUMENT: a depth
// outside 0 to 100, a length without room for the texts (names the least), an empty haystack, or a
// template that does not take them.
absl::StatusOr<dataset::EncodedConversation> PasskeySample(const PasskeyTexts& texts,
                                                           const PasskeyCase& one,
                                                           dataset::TemplateName chat_template,
                                                           const dataset::TextEncoder& encoder);
// `haystack` is repeated as a whole where it is short. The fact's place counts from the haystack's
// beginning but is computed as if from the prompt's, so it is deeper than `depth` says, at the very
// end from some depth on.
absl::StatusOr<dataset::EncodedConversation> NeedleSample(const NeedleTexts& texts,
                                                          absl::string_view haystack,
                                                          int64_t length, int64_t depth,
                                                          dataset::TemplateName chat_template,
                                                          const dataset::TextEncoder& encoder);

}  // namespace mneme::benchmarks
