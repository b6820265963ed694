#include "services/tokenizer/tokenizer_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/text/stream_decoder.h"
#include "common/text/utf8.h"
#include "services/tokenizer/chat_prompt.h"

namespace mneme::tokenizer {
namespace {

constexpr int kMaxTexts = 1024;
constexpr size_t kMaxTextBytes = size_t{16} << 20;  // of one request together
constexpr size_t kMaxIds = size_t{4} << 20;         // of one request together
constexpr int kMaxMessages = 16384;
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;

absl::Status CheckTexts(const google::protobuf::RepeatedPtrField<std::string>& texts) {
  if (texts.size() > kMaxTexts) {
    return status::InvalidField("texts",
                                absl::StrCat("more than ", kMaxTexts, " texts: ", texts.size()));
  }
  size_t size = 0;
  for (const std::string& text : texts) size += text.size();
  if (size > kMaxTextBytes) {
    return status::InvalidField(
        "texts", absl::StrCat("over the limit of ", kMaxTextBytes, " bytes together: ", size));
  }
  return absl::OkStatus();
}

// Puts the field with its index in front of an error of one text.
absl::Status InText(const absl::Status& error, int index) {
  if (error.code() != absl::StatusCode::kInvalidArgument) return error;
  return status::InvalidField(absl::StrCat("texts[", index, "]"), error.message());
}

absl::StatusOr<text::ChatInput> ToInput(
    const google::protobuf::RepeatedPtrField<inference::v1::Message>& messages,
    const std::string& tools_json, absl::Time now) {
  if (messages.size() > kMaxMessages) {
    return status::InvalidField(
        "messages", absl::StrCat("more than ", kMaxMessages, " messages: ", messages.size()));
  }
  text::ChatInput input;
  size_t size = tools_json.size();
  for (const inference::v1::Message& message : messages) {
    size += message.ByteSizeLong();
    input.messages.push_back({.role = message.role(),
                              .content = message.content(),
                              .name = message.name(),
                              .tool_call_id = message.tool_call_id(),
                              .tool_calls_json = message.tool_calls_json()});
  }
  if (size > kMaxTextBytes) {
    return status::InvalidField(
        "messages", absl::StrCat("over the limit of ", kMaxTextBytes, " bytes together: ", size));
  }
  input.tools_json = tools_json;
  input.now = now;
  return input;
}

v1::InvalidBytes ToProto(text::InvalidBytes invalid_bytes) {
  switch (invalid_bytes) {
    case text::InvalidBytes::kMaximalSubpart:
      return v1::INVALID_BYTES_MAXIMAL_SUBPART;
    case text::InvalidBytes::kWholeRun:
      return v1::INVALID_BYTES_WHOLE_RUN;
    case text::InvalidBytes::kEachByte:
      return v1::INVALID_BYTES_EACH_BYTE;
  }
  return v1::INVALID_BYTES_UNSPECIFIED;
}

absl::Status StatusOf(const absl::Status& status) { return status; }
template <typename Response>
absl::Status StatusOf(const absl::StatusOr<Response>& response) {
  return response.status();
}

}  // namespace

template <typename Core>
auto TokenizerServiceImpl::Call(absl::string_view method, const grpc::ServerContext& context,
                                const Core& core) {
  const absl::Time start = absl::Now();
  auto result = core();
  const absl::Status status = StatusOf(result);
  metrics_.CountCall(method, status, absl::Now() - start);
  if (status.code() == absl::StatusCode::kInternal) {
    log::Error("call failed", {{"method", method},
                               {"request", rpc::ContextOf(context).request_id},
                               {"error", std::string(status.message())}});
  }
  return result;
}

absl::StatusOr<v1::EncodeResponse> TokenizerServiceImpl::Encode(
    const v1::EncodeRequest& request) const {
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  RETURN_IF_ERROR(CheckTexts(request.texts()));
  const text::EncodeOptions options{.add_special_tokens = request.add_special_tokens(),
                                    .plain_text = request.plain_text()};
  v1::EncodeResponse response;
  for (int index = 0; index < request.texts_size(); ++index) {
    const auto ids = tokenizer->Encode(request.texts(index), options);
    if (!ids.ok()) return InText(ids.status(), index);
    response.add_encodings()->mutable_ids()->Assign(ids->begin(), ids->end());
    metrics_.CountEncoded(ids->size());
  }
  return response;
}

absl::StatusOr<v1::DecodeResponse> TokenizerServiceImpl::Decode(
    const v1::DecodeRequest& request) const {
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  size_t num_ids = 0;
  for (const v1::TokenIds& sequence : request.sequences()) num_ids += sequence.ids_size();
  if (request.sequences_size() > kMaxTexts || num_ids > kMaxIds) {
    return status::InvalidField(
        "sequences", absl::StrCat("over the limit of ", kMaxTexts, " sequences and ", kMaxIds,
                                  " ids together: ", num_ids));
  }
  v1::DecodeResponse response;
  for (const v1::TokenIds& sequence : request.sequences()) {
    ASSIGN_OR_RETURN(*response.add_texts(),
                     tokenizer->Decode(sequence.ids(), request.skip_special_tokens()));
  }
  metrics_.CountDecoded(num_ids);
  return response;
}

absl::StatusOr<v1::EncodeChatResponse> TokenizerServiceImpl::EncodeChat(
    const v1::EncodeChatRequest& request) const {
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  if (request.chat_template().size() > kMaxTemplateBytes) {
    return status::InvalidField("chat_template",
                                absl::StrCat("over the limit of ", kMaxTemplateBytes,
                                             " bytes: ", request.chat_template().size()));
  }
  if (static_cast<size_t>(request.prefix_ids_size()) > kMaxIds) {
    return status::InvalidField("prefix_ids", absl::StrCat("over the limit of ", kMaxIds, " ids"));
  }
  ASSIGN_OR_RETURN(text::ChatInput input,
                   ToInput(request.messages(), request.tools_json(), clock_.Now()));
  input.add_generation_prompt = request.add_generation_prompt();
  input.arguments_json = request.template_arguments_json();
  ASSIGN_OR_RETURN(ChatPrompt prompt, EncodeChatPrompt(*tokenizer, request.chat_template(), input,
                                                       request.prefix_ids(), kMaxTextBytes));
  metrics_.CountEncoded(prompt.token_ids.size());
  v1::EncodeChatResponse response;
  response.mutable_token_ids()->Assign(prompt.token_ids.begin(), prompt.token_ids.end());
  response.set_prefix_matched(prompt.prefix_matched);
  if (request.with_text()) response.set_text(std::move(prompt.text));
  return response;
}

absl::Status TokenizerServiceImpl::Detokenize(DetokenizeStream* stream) const {
  v1::DetokenizeRequest request;
  if (!stream->Read(&request)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  if (request.stop_size() > kMaxStops) {
    return status::InvalidField("stop", absl::StrCat("more than ", kMaxStops, " strings"));
  }
  for (const std::string& stop : request.stop()) {
    if (stop.size() > kMaxStopBytes || !text::IsUtf8(stop)) {
      return status::InvalidField(
          "stop", absl::StrCat("a string is not UTF-8 or over ", kMaxStopBytes, " bytes"));
    }
  }
  text::StreamDecoder decoder(tokenizer->table(),
                              {.stop = {request.stop().begin(), request.stop().end()},
                               .skip_special_tokens = request.skip_special_tokens()});
  do {
    v1::DetokenizeResponse response;
    ASSIGN_OR_RETURN(*response.mutable_text(), decoder.Push(request.token_ids()));
    metrics_.CountDecoded(request.token_ids_size());
    if (request.finish()) response.mutable_text()->append(decoder.Finish());
    response.set_stopped(decoder.stopped());
    if (!stream->Write(response) || request.finish()) return absl::OkStatus();
    if (!stream->Read(&request)) return absl::OkStatus();
    if (!request.model().empty() || request.stop_size() > 0) {
      return status::InvalidField("model", "model and stop belong into the first request only");
    }
  } while (true);
}

absl::StatusOr<v1::CountTokensResponse> TokenizerServiceImpl::CountTokens(
    const v1::CountTokensRequest& request) const {
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  RETURN_IF_ERROR(CheckTexts(request.texts()));
  v1::CountTokensResponse response;
  for (int index = 0; index < request.texts_size(); ++index) {
    const auto ids = tokenizer->Encode(request.texts(index), {});
    if (!ids.ok()) return InText(ids.status(), index);
    response.add_text_counts(static_cast<int32_t>(ids->size()));
  }
  if (request.messages_size() == 0) return response;
  ASSIGN_OR_RETURN(text::ChatInput input,
                   ToInput(request.messages(), request.tools_json(), clock_.Now()));
  input.add_generation_prompt = true;
  ASSIGN_OR_RETURN(const ChatPrompt prompt,
                   EncodeChatPrompt(*tokenizer, "", input, {}, kMaxTextBytes));
  response.set_chat_count(static_cast<int32_t>(prompt.token_ids.size()));
  return response;
}

absl::StatusOr<v1::GetTokenizerResponse> TokenizerServiceImpl::GetTokenizer(
    const v1::GetTokenizerRequest& request) const {
  v1::GetTokenizerResponse response;
  for (std::string& name : registry_.Names()) response.add_models(std::move(name));
  if (request.model().empty()) return response;
  ASSIGN_OR_RETURN(const text::Tokenizer* tokenizer, registry_.Find(request.model()));
  const text::TokenTable& table = tokenizer->table();
  response.set_model(request.model());
  response.set_vocab_size(tokenizer->vocab_size());
  for (const int32_t id : tokenizer->bos_token_ids()) response.add_bos_token_ids(id);
  for (const int32_t id : tokenizer->eos_token_ids()) response.add_eos_token_ids(id);
  if (tokenizer->chat_template() != nullptr) {
    response.set_chat_template(tokenizer->chat_template()->source());
  }
  response.set_bos_token(tokenizer->bos_token());
  response.set_eos_token(tokenizer->eos_token());
  response.set_fingerprint(tokenizer->fingerprint());
  for (const int32_t id : table.SpecialIds()) response.add_special_ids(id);
  response.set_strip_leading_space(table.strip_leading_space());
  response.set_invalid_bytes(ToProto(table.invalid_bytes()));
  if (!request.pieces()) return response;
  response.mutable_piece_bytes()->Reserve(table.size());
  for (int32_t id = 0; id < table.size(); ++id) {
    response.add_piece_bytes(std::string(table.Piece(id)));
  }
  for (const int32_t id : table.ByteIds()) response.add_byte_ids(id);
  return response;
}

grpc::Status TokenizerServiceImpl::Encode(grpc::ServerContext* context,
                                          const v1::EncodeRequest* request,
                                          v1::EncodeResponse* response) {
  return rpc::Reply(Call("Encode", *context, [&] { return Encode(*request); }), response);
}

grpc::Status TokenizerServiceImpl::Decode(grpc::ServerContext* context,
                                          const v1::DecodeRequest* request,
                                          v1::DecodeResponse* response) {
  return rpc::Reply(Call("Decode", *context, [&] { return Decode(*request); }), response);
}

grpc::Status TokenizerServiceImpl::EncodeChat(grpc::ServerContext* context,
                                              const v1::EncodeChatRequest* request,
                                              v1::EncodeChatResponse* response) {
  return rpc::Reply(Call("EncodeChat", *context, [&] { return EncodeChat(*request); }), response);
}

grpc::Status TokenizerServiceImpl::Detokenize(grpc::ServerContext* context,
                                              DetokenizeStream* stream) {
  return rpc::ToGrpc(Call("Detokenize", *context, [&] { return Detokenize(stream); }));
}

grpc::Status TokenizerServiceImpl::CountTokens(grpc::ServerContext* context,
                                               const v1::CountTokensRequest* request,
                                               v1::CountTokensResponse* response) {
  return rpc::Reply(Call("CountTokens", *context, [&] { return CountTokens(*request); }), response);
}

grpc::Status TokenizerServiceImpl::GetTokenizer(grpc::ServerContext* context,
                                                const v1::GetTokenizerRequest* request,
                                                v1::GetTokenizerResponse* response) {
  return rpc::Reply(Call("GetTokenizer", *context, [&] { return GetTokenizer(*request); }),
                    response);
}

}  // namespace mneme::tokenizer
