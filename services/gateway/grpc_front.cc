#include "services/gateway/grpc_front.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/chat_events.h"
#include "services/gateway/model_queries.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

// Writes an answer's events to a gRPC stream, in the order that the proto documents. `Wrap` puts an
// event into the stream's message.
template <typename Response, typename Wrap>
class GrpcSink final : public AnswerSink {
 public:
  GrpcSink(grpc::ServerWriter<Response>* writer, grpc::ServerContext& context, WriteWatch& watch,
           Wrap wrap)
      : writer_(writer), context_(context), watched_(watch, context), wrap_(wrap) {}

  void OnStarted(const Started& started) override {
    vocabulary_ = started.vocabulary;
    resumable_ = started.resumable;
    AppendStarted(started, &events_);
    Number();
  }
  void OnPrompt(int index, const PromptEcho& prompt) override {
    AppendPrompt(index, prompt, *vocabulary_, &events_);
    Number();
  }
  void OnDelta(int index, absl::string_view text,
               absl::Span<const iv1::TokenLogprob> tokens) override {
    AppendDelta(index, text, tokens, *vocabulary_, &events_);
    Number();
  }
  void OnFinish(int index, iv1::FinishReason reason) override {
    AppendFinish(index, reason, &events_);
    Number();
  }
  void OnUsage(const iv1::Usage& usage) override {
    AppendUsage(usage, &events_);
    Number();
  }
  void OnReceipt(const iv1::MemoryReceipt& receipt) override {
    AppendReceipt(receipt, &events_);
    Number();
  }
  void OnDone(const Done& done) override {
    AppendDone(done, &events_);
    Number();
  }
  void OnSequence(uint64_t last) override { last_ = last; }
  void Drop() override {
    events_.clear();
    numbered_ = 0;
  }
  bool Flush() override {
    bool ok = true;
    watched_.Begin();
    for (size_t i = 0; i < events_.size() && ok; ++i) {
      Response response;
      wrap_(response).Swap(&events_[i]);
      // No buffer hint: a synchronous Write would wait for the buffer to be sent, which only the
      // next write, or a keepalive ping 20 s later, does.
      ok = writer_->Write(response);
    }
    watched_.End();
    Drop();
    return ok && !context_.IsCancelled();
  }

 private:
  // Numbers the events that the last call has made, the last one last.
  void Number() {
    for (size_t i = numbered_; resumable_ && i < events_.size(); ++i) {
      events_[i].set_sequence(last_ - (events_.size() - 1 - i));
    }
    numbered_ = events_.size();
  }

  grpc::ServerWriter<Response>* const writer_;
  const grpc::ServerContext& context_;
  WriteWatch::Stream watched_;
  const Wrap wrap_;
  const Vocabulary* vocabulary_ = nullptr;
  bool resumable_ = false;
  uint64_t last_ = 0;
  std::vector<v1::ChatResponse> events_;
  size_t numbered_ = 0;
};

absl::Status RunAnswer(absl::StatusOr<std::unique_ptr<AnswerSource>> answer, AnswerSink& sink,
                       AccessRecord* record) {
  RETURN_IF_ERROR(answer.status());
  const absl::Status status = (*answer)->Run(sink);
  record->model = (*answer)->started().model;
  record->prompt_tokens = (*answer)->num_prompt_tokens();
  record->completion_tokens = (*answer)->num_completion_tokens();
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
  caller->admin = identity->admin;
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
    GrpcSink<v1::ChatResponse, decltype(wrap)> sink(writer, *context, watch_, wrap);
    status = RunAnswer(core_.StartChat(*request, std::move(caller)), sink, &record);
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
    GrpcSink<v1::CompleteResponse, decltype(wrap)> sink(writer, *context, watch_, wrap);
    status =
        RunAnswer(core_.StartCompletion(std::move(completion), std::move(caller)), sink, &record);
  }
  return edge_.End(status, &record);
}

grpc::Status ChatServiceImpl::Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                                     grpc::ServerWriter<v1::AttachResponse>* writer) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "Attach", &caller, &record);
  if (status.ok()) {
    const auto wrap = [](v1::AttachResponse& response) -> v1::ChatResponse& {
      return *response.mutable_event();
    };
    GrpcSink<v1::AttachResponse, decltype(wrap)> sink(writer, *context, watch_, wrap);
    status =
        RunAnswer(core_.Attach(request->id(), request->after(), std::move(caller)), sink, &record);
  }
  return edge_.End(status, &record);
}

grpc::Status ChatServiceImpl::Cancel(grpc::ServerContext* context, const v1::CancelRequest* request,
                                     v1::CancelResponse*) {
  Caller caller;
  AccessRecord record;
  absl::Status status = edge_.Begin(context, "Cancel", &caller, &record);
  if (status.ok()) status = core_.Cancel(request->id(), caller);
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
  return Run(edge_, context, "CountTokens", [&](const Caller& caller) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string name, core_.executors().Resolve(request->model()));
    const absl::Time deadline = std::min(caller.deadline, caller.arrived + absl::Seconds(30));
    ASSIGN_OR_RETURN(const int32_t count, core_.tokenizer().CountTokens(name, request->text(),
                                                                        caller.context, deadline));
    response->set_tokens(count);
    return absl::OkStatus();
  });
}

grpc::Status ModelServiceImpl::Tokenize(grpc::ServerContext* context,
                                        const v1::TokenizeRequest* request,
                                        v1::TokenizeResponse* response) {
  return Run(edge_, context, "Tokenize", [&](const Caller& caller) {
    return Take(gateway::Tokenize(core_, *request, caller), response);
  });
}

grpc::Status ModelServiceImpl::Estimate(grpc::ServerContext* context,
                                        const v1::EstimateRequest* request,
                                        v1::EstimateResponse* response) {
  return Run(edge_, context, "Estimate", [&](const Caller& caller) {
    return Take(gateway::Estimate(core_, *request, caller), response);
  });
}

}  // namespace mneme::gateway
