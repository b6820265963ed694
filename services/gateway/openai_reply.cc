#include "services/gateway/openai_reply.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "services/gateway/json_text.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

absl::string_view FinishName(iv1::FinishReason reason) {
  switch (reason) {
    case iv1::FINISH_REASON_LENGTH:
      return "\"length\"";
    case iv1::FINISH_REASON_TOOL_CALLS:
      return "\"tool_calls\"";
    case iv1::FINISH_REASON_UNSPECIFIED:
      return "null";
    default:
      return "\"stop\"";
  }
}

int64_t CountCharacters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

// Appends `"token":…,"logprob":…,"bytes":[…]`.
void AppendToken(absl::string_view piece, float logprob, std::string* out) {
  *out += "\"token\":";
  AppendJsonString(piece, out);
  *out += ",\"logprob\":";
  AppendJsonNumber(logprob, out);
  *out += ",\"bytes\":[";
  for (size_t i = 0; i < piece.size(); ++i) {
    if (i > 0) *out += ',';
    absl::StrAppend(out, static_cast<int>(static_cast<unsigned char>(piece[i])));
  }
  *out += ']';
}

void Comma(std::string* list) {
  if (!list->empty()) *list += ',';
}

}  // namespace

void AppendMneme(const Done& done, const iv1::MemoryReceipt& receipt, uint64_t seed,
                 std::string* out) {
  *out += "{\"session_id\":";
  AppendJsonString(done.session_id, out);
  absl::StrAppend(out, ",\"version\":", done.version, ",\"seed\":", seed,
                  ",\"committed_version\":", receipt.committed_version(),
                  ",\"persisted\":", receipt.persisted() ? "true" : "false",
                  ",\"not_persisted_reason\":");
  AppendJsonString(receipt.not_persisted_reason(), out);
  *out += ",\"snapshot_lost_reason\":";
  AppendJsonString(receipt.snapshot_lost_reason(), out);
  absl::StrAppend(out, ",\"restored_tokens\":", receipt.restored_tokens(),
                  ",\"reused_tokens\":", receipt.reused_tokens(),
                  ",\"prefilled_tokens\":", receipt.prefilled_tokens(),
                  ",\"evicted_tokens\":", receipt.evicted_tokens(),
                  ",\"resident_tokens\":", receipt.resident_tokens(),
                  ",\"kv_bytes_resident\":", receipt.kv_bytes_resident(),
                  ",\"kv_bytes_full\":", receipt.kv_bytes_full(),
                  ",\"kv_bytes_peak\":", receipt.kv_bytes_peak(), ",\"compression_ratio\":");
  AppendJsonNumber(receipt.compression_ratio(), out);
  *out += ",\"tier\":";
  AppendJsonString(receipt.tier(), out);
  *out += ",\"policy\":";
  AppendJsonString(receipt.policy(), out);
  absl::StrAppend(out, ",\"shrinks\":", receipt.shrinks());
  if (receipt.has_guard()) {
    const iv1::GuardReport& guard = receipt.guard();
    absl::StrAppend(out, ",\"guard\":{\"probes\":", guard.probes(),
                    ",\"skipped\":", guard.skipped(), ",\"back_offs\":", guard.back_offs(),
                    ",\"worst_kl\":");
    AppendJsonNumber(guard.worst_kl(), out);
    *out += '}';
  }
  absl::StrAppend(out, ",\"bytes_moved\":", receipt.bytes_moved(), ",\"ms\":{");
  const std::map<std::string, double> stages(receipt.ms().begin(), receipt.ms().end());
  bool first = true;
  for (const auto& [stage, ms] : stages) {
    if (!std::exchange(first, false)) *out += ',';
    AppendJsonString(stage, out);
    *out += ':';
    AppendJsonNumber(ms, out);
  }
  *out += "}}";
}

absl::string_view OpenAiSink::PieceOf(int32_t token_id) const {
  return vocabulary_->table.Contains(token_id) ? vocabulary_->table.Piece(token_id)
                                               : absl::string_view();
}

void OpenAiSink::AppendHead(absl::string_view object, const Started& started,
                            std::string* out) const {
  absl::StrAppend(out, "\"id\":\"", id_, "\",\"object\":\"", object,
                  "\",\"created\":", started.created_unix_s, ",\"model\":");
  AppendJsonString(started.model, out);
  absl::StrAppend(out, ",\"system_fingerprint\":\"fp_");
  // The fingerprint is hexadecimal; its front names it well enough.
  for (const char c : started.fingerprint.substr(0, 12)) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c))) *out += c;
  }
  *out += '"';
}

void OpenAiSink::AppendUsage(std::string* out) const {
  absl::StrAppend(out, "{\"prompt_tokens\":", usage_.prompt_tokens(),
                  ",\"completion_tokens\":", usage_.completion_tokens(),
                  ",\"total_tokens\":", usage_.prompt_tokens() + usage_.completion_tokens(),
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", usage_.cached_tokens(), "}}");
}

void OpenAiSink::AppendChatTokens(absl::Span<const iv1::TokenLogprob> tokens,
                                  std::string* out) const {
  for (const iv1::TokenLogprob& token : tokens) {
    Comma(out);
    *out += '{';
    AppendToken(PieceOf(token.token_id()), token.logprob(), out);
    *out += ",\"top_logprobs\":[";
    for (int i = 0; i < token.top_size(); ++i) {
      *out += i > 0 ? ",{" : "{";
      AppendToken(PieceOf(token.top(i).token_id()), token.top(i).logprob(), out);
      *out += '}';
    }
    *out += "]}";
  }
}

void OpenAiSink::AddCompletionToken(int32_t token_id, const iv1::TokenLogprob* logprob,
                                    int64_t* offset, CompletionTokens* lists) const {
  const absl::string_view piece = PieceOf(token_id);
  Comma(&lists->tokens);
  AppendJsonString(piece, &lists->tokens);
  Comma(&lists->text_offset);
  absl::StrAppend(&lists->text_offset, *offset);
  *offset += CountCharacters(piece);
  Comma(&lists->token_logprobs);
  Comma(&lists->top_logprobs);
  if (logprob == nullptr) {
    lists->token_logprobs += "null";
    lists->top_logprobs += "null";
    return;
  }
  AppendJsonNumber(logprob->logprob(), &lists->token_logprobs);
  std::string& top = lists->top_logprobs;
  top += '{';
  bool has_chosen = false;
  for (int i = 0; i < logprob->top_size(); ++i) {
    if (i > 0) top += ',';
    has_chosen = has_chosen || logprob->top(i).token_id() == token_id;
    AppendJsonString(PieceOf(logprob->top(i).token_id()), &top);
    top += ':';
    AppendJsonNumber(logprob->top(i).logprob(), &top);
  }
  if (!has_chosen) {
    if (logprob->top_size() > 0) top += ',';
    AppendJsonString(piece, &top);
    top += ':';
    AppendJsonNumber(logprob->logprob(), &top);
  }
  top += '}';
}

void OpenAiSink::AppendCompletionTokens(const CompletionTokens& lists, std::string* out) {
  absl::StrAppend(out, "{\"tokens\":[", lists.tokens, "],\"token_logprobs\":[",
                  lists.token_logprobs, "],\"top_logprobs\":[", lists.top_logprobs,
                  "],\"text_offset\":[", lists.text_offset, "]}");
}

void OpenAiSink::AddPromptTokens(const PromptEcho& prompt, int64_t* offset,
                                 CompletionTokens* lists) const {
  if (!options_.logprobs) return;
  for (size_t i = 0; i < prompt.token_ids.size(); ++i) {
    // The first token follows nothing, so it has no probability.
    const bool has = i > 0 && i - 1 < prompt.logprobs.size();
    AddCompletionToken(prompt.token_ids[i], has ? &prompt.logprobs[i - 1] : nullptr, offset, lists);
  }
}

void OpenAiObject::OnStarted(const Started& started) {
  started_ = started;
  vocabulary_ = started.vocabulary;
  seed_ = started.seed;
  id_ = started.id;
  choices_.resize(started.num_answers);
}

void OpenAiObject::OnPrompt(int index, const PromptEcho& prompt) {
  Choice& choice = choices_[index];
  choice.text = std::string(prompt.text);
  AddPromptTokens(prompt, &choice.offset, &choice.tokens);
}

void OpenAiObject::OnDelta(int index, absl::string_view text,
                           absl::Span<const iv1::TokenLogprob> tokens) {
  Choice& choice = choices_[index];
  choice.text.append(text.data(), text.size());
  if (!options_.logprobs) return;
  if (is_chat()) {
    std::string& list = choice.chat_tokens;
    AppendChatTokens(tokens, &list);
    return;
  }
  for (const iv1::TokenLogprob& token : tokens) {
    AddCompletionToken(token.token_id(), &token, &choice.offset, &choice.tokens);
  }
}

void OpenAiObject::OnFinish(int index, iv1::FinishReason reason) {
  choices_[index].finish_reason = reason;
}

void OpenAiObject::OnDone(const Done& done) {
  std::string& out = body_;
  out = "{";
  AppendHead(is_chat() ? "chat.completion" : "text_completion", started_, &out);
  out += ",\"choices\":[";
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    absl::StrAppend(&out, i > 0 ? "," : "", "{\"index\":", i);
    out += is_chat() ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":";
    AppendJsonString(choice.text, &out);
    out += is_chat() ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":";
    if (!options_.logprobs) {
      out += "null";
    } else if (is_chat()) {
      absl::StrAppend(&out, "{\"content\":[", choice.chat_tokens, "],\"refusal\":null}");
    } else {
      AppendCompletionTokens(choice.tokens, &out);
    }
    absl::StrAppend(&out, ",\"finish_reason\":", FinishName(choice.finish_reason), "}");
  }
  out += "],\"usage\":";
  AppendUsage(&out);
  out += ",\"mneme\":";
  AppendMneme(done, receipt_, seed_, &out);
  out += "}\n";
}

void OpenAiStream::OnStarted(const Started& started) {
  vocabulary_ = started.vocabulary;
  seed_ = started.seed;
  id_ = started.id;
  resumable_ = started.resumable;
  offsets_.resize(started.num_answers);
  head_ = "data: {";
  AppendHead(is_chat() ? "chat.completion.chunk" : "text_completion", started, &head_);
  head_ += ",\"choices\":[";
  if (!is_chat()) return;
  for (int i = 0; i < started.num_answers; ++i) {
    AppendChunkStart(i);
    out_ += "{\"role\":\"assistant\",\"content\":\"\"}";
    AppendChunkEnd("null", "null", "");
  }
}

void OpenAiStream::AppendChunkStart(int index) {
  absl::StrAppend(&out_, head_, "{\"index\":", index, is_chat() ? ",\"delta\":" : ",\"text\":");
}

void OpenAiStream::AppendChunkEnd(absl::string_view logprobs, absl::string_view finish_reason,
                                  absl::string_view extra) {
  absl::StrAppend(&out_, ",\"logprobs\":", logprobs, ",\"finish_reason\":", finish_reason, "}]",
                  options_.include_usage ? ",\"usage\":null" : "", extra, "}");
  EndEvent();
}

void OpenAiStream::EndEvent() {
  if (resumable_) absl::StrAppend(&out_, "\nid: ", sequence_);
  out_ += "\n\n";
}

void OpenAiStream::OnPrompt(int index, const PromptEcho& prompt) {
  scratch_ = "null";
  if (options_.logprobs) {
    CompletionTokens lists;
    AddPromptTokens(prompt, &offsets_[index], &lists);
    scratch_.clear();
    AppendCompletionTokens(lists, &scratch_);
  }
  AppendChunkStart(index);
  AppendJsonString(prompt.text, &out_);
  AppendChunkEnd(scratch_, "null", "");
}

void OpenAiStream::OnDelta(int index, absl::string_view text,
                           absl::Span<const iv1::TokenLogprob> tokens) {
  AppendChunkStart(index);
  if (is_chat()) out_ += "{\"content\":";
  AppendJsonString(text, &out_);
  if (is_chat()) out_ += '}';
  scratch_ = "null";
  if (options_.logprobs && is_chat()) {
    scratch_.clear();
    AppendChatTokens(tokens, &scratch_);
    scratch_ = absl::StrCat("{\"content\":[", scratch_, "],\"refusal\":null}");
  } else if (options_.logprobs) {
    CompletionTokens lists;
    for (const iv1::TokenLogprob& token : tokens) {
      AddCompletionToken(token.token_id(), &token, &offsets_[index], &lists);
    }
    scratch_.clear();
    AppendCompletionTokens(lists, &scratch_);
  }
  AppendChunkEnd(scratch_, "null", "");
}

void OpenAiStream::AppendFinish(const Finish& finish, absl::string_view extra) {
  AppendChunkStart(finish.index);
  out_ += is_chat() ? "{}" : "\"\"";
  AppendChunkEnd("null", FinishName(finish.reason), extra);
}

void OpenAiStream::OnFinish(int index, iv1::FinishReason reason) {
  if (finish_) AppendFinish(*finish_, "");
  finish_ = Finish{index, reason};
}

void OpenAiStream::OnDone(const Done& done) {
  std::string extra = ",\"mneme\":";
  AppendMneme(done, receipt_, seed_, &extra);
  if (finish_) AppendFinish(*finish_, options_.include_usage ? "" : absl::string_view(extra));
  finish_.reset();
  if (options_.include_usage) {
    absl::StrAppend(&out_, head_, "],\"usage\":");
    AppendUsage(&out_);
    absl::StrAppend(&out_, extra, "}");
    EndEvent();
  }
  out_ += "data: [DONE]\n\n";
}

bool OpenAiStream::Flush() {
  const bool ok = write_(out_);
  out_.clear();
  return ok;
}

void OpenAiStream::Fail(absl::string_view error_json) {
  absl::StrAppend(&out_, "data: ", error_json, "\n\ndata: [DONE]\n\n");
  Flush();
}

}  // namespace mneme::gateway
