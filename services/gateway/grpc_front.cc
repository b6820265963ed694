#include "services/gateway/grpc_front.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

// Writes an answer's events to a gRPC stream, in the order that the proto documents. `Wrap` puts an
// event into the stream's message.
template <typename Response, typename Wrap>
class GrpcSink final : public AnswerSink {
 public:
  GrpcSink(grpc::ServerWriter<Response>* writer, const grpc::ServerContext& context, std::string id,
           Wrap wrap)
      : writer_(writer), context_(context), id_(std::move(id)), wrap_(wrap) {}

  void OnStarted(const Started& started) override {
    vocabulary_ = started.vocabulary;
    v1::ChatStarted& event = *New(0).mutable_started();
    event.set_id(id_);
    event.set_model(started.model);
    event.set_role("assistant");
    event.set_created_unix_s(started.created_unix_s);
    event.set_seed(started.seed);
  }
  void OnPrompt(int index, const PromptEcho& prompt) override {
    New(index).set_text_delta(std::string(prompt.text));
    AddLogprobs(index, prompt.logprobs);
  }
  void OnDelta(int index, absl::string_view text,
               absl::Span<const iv1::TokenLogprob> tokens) override {
    if (!text.empty()) New(index).set_text_delta(std::string(text));
    AddLogprobs(index, tokens);
  }
  void OnFinish(int index, iv1::FinishReason reason) override {
    New(index).set_finish_reason(reason);
  }
  void OnUsage(const iv1::Usage& usage) override { *New(0).mutable_usage() = usage; }
  void OnReceipt(const iv1::MemoryReceipt& receipt) override {
    *New(0).mutable_receipt() = receipt;
  }
  void OnDone(const Done& done) override {
    v1::ChatDone& event = *New(0).mutable_done();
    event.set_session_id(done.session_id);
    event.set_version(done.version);
  }
  bool Flush() override {
    bool ok = true;
    for (size_t i = 0; i < pending_.size() && ok; ++i) {
      // No buffer hint: a synchronous Write would wait for the buffer to be sent, which only the
      // next write, or a keepalive ping 20 s later, does.
      ok = writer_->Write(pending_[i]);
    }
    pending_.clear();
    return ok && !context_.IsCancelled();
  }

 private:
  v1::ChatResponse& New(int index) {
    v1::ChatResponse& event = wrap_(pending_.emplace_back());
    event.set_index(index);
    return event;
  }
  void AddLogprobs(int index, absl::Span<const iv1::TokenLogprob> tokens) {
    if (tokens.empty()) return;
    v1::Logprobs& logprobs = *New(index).mutable_logprobs();
    for (const iv1::TokenLogprob& token : tokens) {
      v1::TextLogprob& shown = *logprobs.add_tokens();
      Fill(token, &shown);
      for (const iv1::TokenLogprob& other : token.top()) Fill(other, shown.add_top());
    }
  }
  void Fill(const iv1::TokenLogprob& token, v1::TextLogprob* shown) const {
    shown->set_token_id(token.token_id());
    shown->set_logprob(token.logprob());
    if (vocabulary_->table.Contains(token.token_id())) {
      shown->set_token(std::string(vocabulary_->table.Piece(token.token_id())));
    }
  }

  grpc::ServerWriter<Response>* const writer_;
  const grpc::ServerContext& context_;
  const std::string id_;
  const Wrap wrap_;
  const Vocabulary* vocabulary_ = nullptr;
  std::vector<Response> pending_;
};

absl::Status RunTurn(absl::StatusOr<std::unique_ptr<Turn>> turn, AnswerSink& sink,
                     AccessRecord* record) {
  RETURN_IF_ERROR(turn.status());
  const absl::Status status = (*turn)->Run(sink);
  record->model = (*turn)->started().model;
  record->prompt_tokens = (*turn)->num_prompt_tokens();
  record->completion_tokens = (*turn)->num_completion_tokens();
  return status;
}

}  // namespace

absl::Status GrpcEdge::Begin(grpc::ServerContext* context, const char* route, Caller* caller,
                             AccessRecord* record) const {
  caller->arrived = absl::Now();
  caller->context = rpc::ContextOf(*context);
  caller->deadline = rpc::DeadlineOf(*context);
  caller->gone = [context] { return context->IsCancelled(); };
  context->AddInitialMetadata(std::string(trace::kRequestIdKey), caller->context.request_id);
  context->AddInitialMetadata(std::string(trace::kTraceparentKey), caller->context.traceparent);
  record->front = "grpc";
  record->route = route;
  record->arrived = caller->arrived;
  record->request_id = caller->context.request_id;
  record->traceparent = caller->context.traceparent;
  absl::StatusOr<Authenticator::Identity> identity =
      authenticator_.Identify(rpc::MetadataOf(*context, "authorization"));
  if (!identity.ok()) {
    metrics_.CountRejection("unauthenticated");
    return identity.status();
  }
  caller->tenant = std::move(identity->tenant);
  caller->limits = std::move(identity->limits);
  record->tenant = caller->tenant;
  return absl::OkStatus();
}

grpc::Status GrpcEdge::End(const absl::Status& status, AccessRecord* record) const {
  record->code = absl::StatusCodeToString(status.code());
  record->error = std::string(status.message());
  record->overload = absl::IsResourceExhausted(status);
  log_.Write(*record);
  return rpc::ToGrpc(status);
}

grpc::Status ChatServiceImpl::Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                                   grpc::ServerWriter<v1::ChatResponse>* writer) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "Chat", &caller, &record);
  if (status.ok()) {
    const auto wrap = [](v1::ChatResponse& response) -> v1::ChatResponse& { return response; };
    GrpcSink<v1::ChatResponse, decltype(wrap)> sink(
        writer, *context, absl::StrCat("chatcmpl-", trace::RandomHex(24)), wrap);
    status = RunTurn(core_.StartChat(*request, std::move(caller)), sink, &record);
  }
  return edge_.End(status, &record);
}

grpc::Status ChatServiceImpl::Complete(grpc::ServerContext* context,
                                       const v1::CompleteRequest* request,
                                       grpc::ServerWriter<v1::CompleteResponse>* writer) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "Complete", &caller, &record);
  if (status.ok() && !request->prompt().empty() && request->prompt_ids_size() > 0) {
    status = status::InvalidField("prompt", "must not be given together with prompt_ids");
  }
  if (status.ok()) {
    CompletionRequest completion;
    completion.model = request->model();
    completion.prompts.push_back(
        {request->prompt(), {request->prompt_ids().begin(), request->prompt_ids().end()}});
    completion.sampling = request->sampling();
    completion.memory_policy = request->memory_policy();
    completion.echo = request->echo();
    const auto wrap = [](v1::CompleteResponse& response) -> v1::ChatResponse& {
      return *response.mutable_event();
    };
    GrpcSink<v1::CompleteResponse, decltype(wrap)> sink(
        writer, *context, absl::StrCat("cmpl-", trace::RandomHex(24)), wrap);
    status =
        RunTurn(core_.StartCompletion(std::move(completion), std::move(caller)), sink, &record);
  }
  return edge_.End(status, &record);
}

grpc::Status SessionServiceImpl::CreateSession(grpc::ServerContext* context,
                                               const v1::CreateSessionRequest* request,
                                               v1::CreateSessionResponse* response) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "CreateSession", &caller, &record);
  if (status.ok()) {
    absl::StatusOr<v1::CreateSessionResponse> made = sessions_.Create(*request, caller);
    status = made.status();
    if (made.ok()) *response = *std::move(made);
  }
  return edge_.End(status, &record);
}

grpc::Status SessionServiceImpl::GetSession(grpc::ServerContext* context,
                                            const v1::GetSessionRequest* request,
                                            v1::GetSessionResponse* response) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "GetSession", &caller, &record);
  if (status.ok()) {
    absl::StatusOr<v1::GetSessionResponse> found = sessions_.Get(*request, caller);
    status = found.status();
    if (found.ok()) *response = *std::move(found);
  }
  return edge_.End(status, &record);
}

grpc::Status SessionServiceImpl::ListSessions(grpc::ServerContext* context,
                                              const v1::ListSessionsRequest* request,
                                              v1::ListSessionsResponse* response) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "ListSessions", &caller, &record);
  if (status.ok()) {
    absl::StatusOr<v1::ListSessionsResponse> found = sessions_.List(*request, caller);
    status = found.status();
    if (found.ok()) *response = *std::move(found);
  }
  return edge_.End(status, &record);
}

grpc::Status SessionServiceImpl::DeleteSession(grpc::ServerContext* context,
                                               const v1::DeleteSessionRequest* request,
                                               v1::DeleteSessionResponse*) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "DeleteSession", &caller, &record);
  if (status.ok()) status = sessions_.Delete(*request, caller).status();
  return edge_.End(status, &record);
}

grpc::Status ModelServiceImpl::ListModels(grpc::ServerContext* context,
                                          const v1::ListModelsRequest*,
                                          v1::ListModelsResponse* response) {
  Caller caller;
  AccessRecord record;
  const absl::Status status = edge_.Begin(context, "ListModels", &caller, &record);
  if (status.ok()) {
    for (v1::Model& model : core_.executors().Models()) {
      *response->add_models() = std::move(model);
    }
  }
  return edge_.End(status, &record);
}

grpc::Status ModelServiceImpl::GetModel(grpc::ServerContext* context,
                                        const v1::GetModelRequest* request,
                                        v1::GetModelResponse* response) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "GetModel", &caller, &record);
  if (status.ok()) {
    const absl::StatusOr<std::string> name = core_.executors().Resolve(request->name());
    status = name.status();
    for (v1::Model& model : core_.executors().Models()) {
      if (name.ok() && model.name() == *name) *response->mutable_model() = std::move(model);
    }
  }
  return edge_.End(status, &record);
}

grpc::Status ModelServiceImpl::CountTokens(grpc::ServerContext* context,
                                           const v1::CountTokensRequest* request,
                                           v1::CountTokensResponse* response) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "CountTokens", &caller, &record);
  if (status.ok()) {
    const absl::StatusOr<std::string> name = core_.executors().Resolve(request->model());
    status = name.status();
    if (name.ok()) {
      const absl::Time deadline = std::min(caller.deadline, caller.arrived + absl::Seconds(30));
      const absl::StatusOr<int32_t> count =
          core_.tokenizer().CountTokens(*name, request->text(), caller.context, deadline);
      status = count.status();
      if (count.ok()) response->set_tokens(*count);
    }
  }
  return edge_.End(status, &record);
}

}  // namespace mneme::gateway
