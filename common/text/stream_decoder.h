// Turns ids into text as they come.
//
//   StreamDecoder decoder(table, {.stop = {"\n\n"}, .skip_special_tokens = true});
//   ASSIGN_OR_RETURN(std::string text, decoder.Push({id}));   // may be empty
//   if (decoder.stopped()) ...
//   text = decoder.Finish();
//
// The pieces of text joined are exactly TokenTable::Decode of all ids, cut before the first stop
// string. Held back until it is decided: bytes of a character that is not whole (for kWholeRun
// tables: a run of byte tokens, which a later byte can still spoil), and text that may be the
// beginning of a stop string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/text/token_table.h"

namespace mneme::text {

// For one sequence; not thread-safe.
class StreamDecoder {
 public:
  struct Options {
    // The text ends before the stop string that is complete first (of several that complete at the
    // same byte, the longest). Empty strings are ignored.
    std::vector<std::string> stop;
    bool skip_special_tokens = false;
  };

  // `table` must outlive the decoder.
  StreamDecoder(const TokenTable& table, Options options);

  // Takes the next ids and returns the text that is certain now. After a stop it returns "".
  // INVALID_ARGUMENT: an id outside the vocabulary; ids before it are taken.
  absl::StatusOr<std::string> Push(absl::Span<const int32_t> ids);
  absl::StatusOr<std::string> Push(int32_t id) { return Push(absl::MakeConstSpan(&id, 1)); }

  // Returns what is still held back: no more ids come. Called once.
  std::string Finish();

  // Whether a stop string was met; its text and what follows is never returned.
  bool stopped() const { return stopped_; }
  // The stop string that was met, "" before.
  const std::string& stop_met() const { return stop_met_; }

 private:
  void AddPiece(int32_t id);
  void AddBytes(absl::string_view bytes, bool one_mark_per_byte);
  void EndByteRun();
  void AddText(absl::string_view text);
  std::string TakeText(bool is_end);

  const TokenTable& table_;
  Options options_;
  size_t longest_stop_ = 0;
  std::string bytes_;  // not decided yet: a cut character, or a run of byte tokens
  std::string text_;   // whole characters, not returned yet
  bool at_start_ = true;
  bool stopped_ = false;
  std::string stop_met_;
};

}  // namespace mneme::text
