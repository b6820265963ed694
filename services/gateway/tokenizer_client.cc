#include "services/gateway/tokenizer_client.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/upstream_call.h"

namespace mneme::gateway {
namespace {

namespace tv1 = tokenizer::v1;

constexpr absl::string_view kService = "tokenizer";
// A tokenizer service that was killed is back within this time.
constexpr absl::Duration kPatience = absl::Seconds(10);
constexpr absl::Duration kCheckInterval = absl::Seconds(60);

text::InvalidBytes ToTable(tv1::InvalidBytes invalid_bytes) {
  switch (invalid_bytes) {
    case tv1::INVALID_BYTES_WHOLE_RUN:
      return text::InvalidBytes::kWholeRun;
    case tv1::INVALID_BYTES_EACH_BYTE:
      return text::InvalidBytes::kEachByte;
    default:
      return text::InvalidBytes::kMaximalSubpart;
  }
}

absl::StatusOr<std::shared_ptr<const Vocabulary>> ToVocabulary(tv1::GetTokenizerResponse response) {
  text::TokenTable::Definition definition;
  definition.pieces.assign(std::make_move_iterator(response.mutable_piece_bytes()->begin()),
                           std::make_move_iterator(response.mutable_piece_bytes()->end()));
  definition.special_ids.assign(response.special_ids().begin(), response.special_ids().end());
  definition.byte_ids.assign(response.byte_ids().begin(), response.byte_ids().end());
  definition.invalid_bytes = ToTable(response.invalid_bytes());
  ASSIGN_OR_RETURN(text::TokenTable middle, text::TokenTable::Create(definition));
  definition.strip_leading_space = response.strip_leading_space();
  ASSIGN_OR_RETURN(text::TokenTable table, text::TokenTable::Create(definition));
  return std::make_shared<const Vocabulary>(Vocabulary{
      std::move(table), std::move(middle), response.chat_template(), response.fingerprint()});
}

}  // namespace

TokenizerClient::TokenizerClient(const std::string& address)
    : stub_(tv1::TokenizerService::NewStub(rpc::ConnectTo(address))) {}

absl::StatusOr<std::shared_ptr<const Vocabulary>> TokenizerClient::VocabularyOf(
    const std::string& model, const trace::RequestContext& request, absl::Time deadline) {
  Cached cached;
  {
    sync::MutexLock lock(mutex_);
    const auto found = cache_.find(model);
    if (found != cache_.end()) {
      cached = found->second;
      const absl::Time now = absl::Now();
      if (now - cached.checked < kCheckInterval) return cached.vocabulary;
      found->second.checked = now;  // the others go on with what there is
    }
  }
  tv1::GetTokenizerRequest get;
  get.set_model(model);
  tv1::GetTokenizerResponse response;
  const auto fetch = [&](absl::Duration patience) {
    return CallUpstream(kService, request, deadline, patience, [&](grpc::ClientContext* context) {
      return stub_->GetTokenizer(context, get, &response);
    });
  };
  if (cached.vocabulary != nullptr) {
    const absl::Status status = fetch(absl::ZeroDuration());
    if (!status.ok() || response.fingerprint() == cached.vocabulary->fingerprint) {
      return cached.vocabulary;
    }
  }
  get.set_pieces(true);
  RETURN_IF_ERROR(fetch(kPatience));
  ASSIGN_OR_RETURN(std::shared_ptr<const Vocabulary> vocabulary, ToVocabulary(std::move(response)));
  sync::MutexLock lock(mutex_);
  cache_[model] = {vocabulary, absl::Now()};
  return vocabulary;
}

absl::StatusOr<tv1::EncodeChatResponse> TokenizerClient::EncodeChat(
    const tv1::EncodeChatRequest& encode, const trace::RequestContext& request,
    absl::Time deadline) {
  tv1::EncodeChatResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, deadline, kPatience,
      [&](grpc::ClientContext* context) { return stub_->EncodeChat(context, encode, &response); }));
  return response;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizerClient::Encode(
    const std::string& model, absl::Span<const std::string> texts, bool add_special_tokens,
    const trace::RequestContext& request, absl::Time deadline) {
  tv1::EncodeRequest encode;
  encode.set_model(model);
  encode.set_add_special_tokens(add_special_tokens);
  for (const std::string& text : texts) encode.add_texts(text);
  tv1::EncodeResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, deadline, kPatience,
      [&](grpc::ClientContext* context) { return stub_->Encode(context, encode, &response); }));
  if (static_cast<size_t>(response.encodings_size()) != texts.size()) {
    return absl::InternalError("the tokenizer service answered with another number of texts");
  }
  std::vector<std::vector<int32_t>> encodings;
  for (const tv1::TokenIds& ids : response.encodings()) {
    encodings.emplace_back(ids.ids().begin(), ids.ids().end());
  }
  return encodings;
}

absl::StatusOr<int32_t> TokenizerClient::CountTokens(const std::string& model,
                                                     const std::string& text,
                                                     const trace::RequestContext& request,
                                                     absl::Time deadline) {
  tv1::CountTokensRequest count;
  count.set_model(model);
  count.add_texts(text);
  tv1::CountTokensResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, deadline, kPatience,
      [&](grpc::ClientContext* context) { return stub_->CountTokens(context, count, &response); }));
  if (response.text_counts_size() != 1) {
    return absl::InternalError("the tokenizer service counted another number of texts");
  }
  return response.text_counts(0);
}

}  // namespace mneme::gateway
