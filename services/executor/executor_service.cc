#include "services/executor/executor_service.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/executor/request_check.h"

namespace mneme::executor {
namespace {

// How often a call that gets no tokens looks whether its caller is still there.
// Beyond any context, so that products of it stay in range.
constexpr int64_t kMaxEstimatedTokens = int64_t{1} << 32;
constexpr std::chrono::milliseconds kCancelPoll{20};

void Convert(const TokenScore& score, inference::v1::TokenLogprob* logprob) {
  logprob->set_token_id(score.id);
  logprob->set_logprob(score.logprob);
  logprob->set_rank(score.rank);
}

void Convert(const std::vector<TokenScores>& scores,
             google::protobuf::RepeatedPtrField<inference::v1::TokenLogprob>* logprobs) {
  for (const TokenScores& token : scores) {
    inference::v1::TokenLogprob* const logprob = logprobs->Add();
    Convert(token.chosen, logprob);
    for (const TokenScore& alternative : token.top) Convert(alternative, logprob->add_top());
  }
}

// Reads a request's events until its end, which it returns. A caller that has gone, or a `take`
// that returns false, cancels the request; the engine's end is awaited all the same.
absl::Status ReadAll(const grpc::ServerContext& context, TokenStream* stream,
                     absl::FunctionRef<bool(const StreamEvent&)> take) {
  bool is_wanted = true;
  for (;;) {
    StreamEvent event;
    const TokenStream::Read read =
        stream->Next(&event, std::chrono::steady_clock::now() + kCancelPoll);
    if (read == TokenStream::Read::kEnd) return stream->status();
    if (is_wanted && context.IsCancelled()) is_wanted = false;
    if (is_wanted && read == TokenStream::Read::kEvent) is_wanted = take(event);
    if (!is_wanted) stream->Cancel();
  }
}

}  // namespace

void ExecutorServiceImpl::SetEngine(Engine* engine, v1::GetModelResponse description) {
  description_ = std::move(description);
  engine_.store(engine, std::memory_order_release);
}

absl::StatusOr<Engine*> ExecutorServiceImpl::LoadedEngine() const {
  Engine* const engine = engine_.load(std::memory_order_acquire);
  if (engine == nullptr) return absl::UnavailableError("the model is loading; try again later");
  return engine;
}

absl::Status ExecutorServiceImpl::Generate(grpc::ServerContext* context,
                                           const v1::GenerateRequest& request,
                                           grpc::ServerWriter<v1::GenerateResponse>* writer) const {
  ASSIGN_OR_RETURN(Engine* const engine, LoadedEngine());
  RETURN_IF_ERROR(CheckModelName(request.model(), description_.model()));
  ASSIGN_OR_RETURN(WorkSpec spec, CheckGenerate(request, engine->limits().model));
  spec.trace = rpc::ContextOf(*context);
  spec.deadline = rpc::DeadlineOf(*context);
  ASSIGN_OR_RETURN(const std::shared_ptr<TokenStream> stream, engine->Submit(std::move(spec)));
  return ReadAll(*context, stream.get(), [&](const StreamEvent& event) {
    v1::GenerateResponse response;
    response.set_index(event.index);
    response.mutable_token_ids()->Assign(event.token_ids.begin(), event.token_ids.end());
    Convert(event.logprobs, response.mutable_logprobs());
    Convert(event.prompt_logprobs, response.mutable_prompt_logprobs());
    if (event.end.has_value()) {
      response.set_finish_reason(event.end->reason);
      *response.mutable_usage() = event.end->usage;
      *response.mutable_receipt() = event.end->receipt;
      response.set_snapshot_id(event.end->snapshot_id);
    }
    return writer->Write(response);
  });
}

absl::StatusOr<v1::ScoreResponse> ExecutorServiceImpl::Score(
    grpc::ServerContext* context, const v1::ScoreRequest& request) const {
  ASSIGN_OR_RETURN(Engine* const engine, LoadedEngine());
  RETURN_IF_ERROR(CheckModelName(request.model(), description_.model()));
  ASSIGN_OR_RETURN(WorkSpec spec, CheckScore(request, engine->limits().model));
  spec.deadline = rpc::DeadlineOf(*context);
  ASSIGN_OR_RETURN(const std::shared_ptr<TokenStream> stream, engine->Submit(std::move(spec)));
  v1::ScoreResponse response;
  for (int i = 0; i < request.continuations_size(); ++i) response.add_scores()->set_is_greedy(true);
  RETURN_IF_ERROR(ReadAll(*context, stream.get(), [&](const StreamEvent& event) {
    v1::ContinuationScore& score = *response.mutable_scores(event.index);
    for (const TokenScores& token : event.logprobs) {
      score.add_logprobs(token.chosen.logprob);
      score.set_sum(score.sum() + token.chosen.logprob);
      if (token.chosen.rank != 1) score.set_is_greedy(false);
    }
    return true;
  }));
  return response;
}

grpc::Status ExecutorServiceImpl::Generate(grpc::ServerContext* context,
                                           const v1::GenerateRequest* request,
                                           grpc::ServerWriter<v1::GenerateResponse>* writer) {
  const absl::Status status = Generate(context, *request, writer);
  // What callers do wrong or too often is counted, not logged: a flood must not fill the disk.
  if (status.code() == absl::StatusCode::kInternal) {
    log::Error("generation failed",
               {{"request", request->request_id()}, {"error", std::string(status.message())}});
  }
  return rpc::ToGrpc(status);
}

grpc::Status ExecutorServiceImpl::Score(grpc::ServerContext* context,
                                        const v1::ScoreRequest* request,
                                        v1::ScoreResponse* response) {
  return rpc::Reply(Score(context, *request), response);
}

grpc::Status ExecutorServiceImpl::GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                                           v1::GetModelResponse* response) {
  const absl::StatusOr<Engine*> engine = LoadedEngine();
  if (!engine.ok()) return rpc::ToGrpc(engine.status());
  *response = description_;
  return grpc::Status::OK;
}

absl::StatusOr<v1::EstimateResponse> ExecutorServiceImpl::Estimate(
    const v1::EstimateRequest& request) const {
  ASSIGN_OR_RETURN(Engine* const engine, LoadedEngine());
  if (request.tokens() < 1 || request.tokens() > kMaxEstimatedTokens) {
    return status::InvalidField(
        "tokens", absl::StrCat("must be from 1 to ", kMaxEstimatedTokens, ": ", request.tokens()));
  }
  ASSIGN_OR_RETURN(
      const memory::PolicyChoice choice,
      memory::CreatePolicyChoice(request.memory_policy(), engine->limits().model.policies));
  v1::EstimateResponse response;
  *response.mutable_estimate() =
      EstimateMemory(*choice.policy, engine->limits(), request.tokens(), engine->page_bytes());
  return response;
}

grpc::Status ExecutorServiceImpl::Estimate(grpc::ServerContext*, const v1::EstimateRequest* request,
                                           v1::EstimateResponse* response) {
  return rpc::Reply(Estimate(*request), response);
}

grpc::Status ExecutorServiceImpl::FinishGeneration(grpc::ServerContext*,
                                                   const v1::FinishGenerationRequest* request,
                                                   v1::FinishGenerationResponse*) {
  const absl::StatusOr<Engine*> engine = LoadedEngine();
  if (!engine.ok()) return rpc::ToGrpc(engine.status());
  return rpc::ToGrpc((*engine)->FinishTurn(request->tenant(), request->session_id(),
                                           request->lease_token(), request->num_tokens()));
}

grpc::Status ExecutorServiceImpl::ForgetMemory(grpc::ServerContext*,
                                               const v1::ForgetMemoryRequest* request,
                                               v1::ForgetMemoryResponse*) {
  const absl::StatusOr<Engine*> engine = LoadedEngine();
  if (!engine.ok()) return rpc::ToGrpc(engine.status());
  if (request->tenant().empty()) {
    return rpc::ToGrpc(status::InvalidField("tenant", "must be named"));
  }
  return rpc::ToGrpc((*engine)->Forget(request->tenant(), request->session_id()));
}

grpc::Status ExecutorServiceImpl::GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                                          v1::GetLoadResponse* response) {
  const absl::StatusOr<Engine*> engine = LoadedEngine();
  if (!engine.ok()) return rpc::ToGrpc(engine.status());
  const EngineLoad load = (*engine)->load();
  response->set_running(static_cast<int32_t>(load.running));
  response->set_waiting(static_cast<int32_t>(load.waiting));
  response->set_pages_used(load.pages_used);
  response->set_pages_total(load.pages_total);
  return grpc::Status::OK;
}

}  // namespace mneme::executor
