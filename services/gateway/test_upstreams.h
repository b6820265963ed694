// The three services behind the gateway, small and deterministic, on real loopback servers that
// speak the real stubs. A test can break each of them in the ways that happen.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/server.h"
#include "common/status/annotate.h"
#include "common/text/utf8.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "mneme/tokenizer/v1/tokenizer.grpc.pb.h"

namespace mneme::gateway {

// Token ids are bytes; 256 is the beginning of a text, 257 ends a message.
inline constexpr int32_t kBos = 256;
inline constexpr int32_t kEnd = 257;
inline constexpr int32_t kVocabulary = 258;

inline std::vector<int32_t> IdsOf(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

// A tokenizer of bytes. Its template: "role:content" and kEnd per message, then "assistant:".
class ByteTokenizer final : public tokenizer::v1::TokenizerService::Service {
 public:
  grpc::Status Encode(grpc::ServerContext*, const tokenizer::v1::EncodeRequest* request,
                      tokenizer::v1::EncodeResponse* response) override {
    for (const std::string& text : request->texts()) {
      auto* ids = response->add_encodings()->mutable_ids();
      if (request->add_special_tokens()) ids->Add(kBos);
      for (const int32_t id : IdsOf(text)) ids->Add(id);
    }
    return grpc::Status::OK;
  }
  grpc::Status EncodeChat(grpc::ServerContext* context,
                          const tokenizer::v1::EncodeChatRequest* request,
                          tokenizer::v1::EncodeChatResponse* response) override {
    {
      std::lock_guard lock(mutex_);
      request_ids_.push_back(rpc::ContextOf(*context).request_id);
      traceparents_.push_back(rpc::ContextOf(*context).traceparent);
    }
    std::vector<int32_t> ids = {kBos};
    for (const auto& message : request->messages()) {
      if (message.content() == "raise") {
        return rpc::ToGrpc(absl::InvalidArgumentError("the template raised: no such talk"));
      }
      for (const int32_t id : IdsOf(message.role() + ":" + message.content())) ids.push_back(id);
      ids.push_back(kEnd);
    }
    for (const int32_t id : IdsOf("assistant:")) ids.push_back(id);
    const auto& prefix = request->prefix_ids();
    const bool matched = static_cast<size_t>(prefix.size()) <= ids.size() &&
                         std::equal(prefix.begin(), prefix.end(), ids.begin());
    response->set_prefix_matched(matched);
    const size_t skip = matched ? prefix.size() : 0;
    for (size_t i = skip; i < ids.size(); ++i) response->add_token_ids(ids[i]);
    return grpc::Status::OK;
  }
  grpc::Status CountTokens(grpc::ServerContext*, const tokenizer::v1::CountTokensRequest* request,
                           tokenizer::v1::CountTokensResponse* response) override {
    for (const std::string& text : request->texts()) {
      response->add_text_counts(static_cast<int32_t>(text.size()));
    }
    return grpc::Status::OK;
  }
  grpc::Status GetTokenizer(grpc::ServerContext*, const tokenizer::v1::GetTokenizerRequest* request,
                            tokenizer::v1::GetTokenizerResponse* response) override {
    response->set_model(request->model());
    response->set_vocab_size(kVocabulary);
    response->set_fingerprint("bytes");
    response->set_chat_template("{% if message.role == 'narrator' %}…");
    if (!request->pieces()) return grpc::Status::OK;
    ++num_tables;
    for (int32_t id = 0; id < 256; ++id) response->add_piece_bytes(std::string(1, char(id)));
    response->add_piece_bytes("<s>");
    response->add_piece_bytes("<end>");
    response->add_special_ids(kBos);
    response->add_special_ids(kEnd);
    response->set_invalid_bytes(tokenizer::v1::INVALID_BYTES_MAXIMAL_SUBPART);
    return grpc::Status::OK;
  }

  std::vector<std::string> request_ids() {
    std::lock_guard lock(mutex_);
    return request_ids_;
  }
  std::vector<std::string> traceparents() {
    std::lock_guard lock(mutex_);
    return traceparents_;
  }
  std::atomic<int> num_tables{0};

 private:
  std::mutex mutex_;
  std::vector<std::string> request_ids_;
  std::vector<std::string> traceparents_;
};

// Says its answer byte by byte, then kEnd, whatever it is asked; honours max_tokens, n, logprobs,
// ignore_eos (it then begins again), generated_ids, FinishGeneration, and its bounds if it is given
// any. A session's answer comes with the id of a snapshot.
class ScriptedExecutor final : public executor::v1::ExecutorService::Service {
 public:
  grpc::Status Estimate(grpc::ServerContext*, const executor::v1::EstimateRequest* request,
                        executor::v1::EstimateResponse* response) override {
    const auto& window = request->memory_policy().window();
    response->mutable_estimate()->set_resident_pages(window.sinks() + window.recent());
    response->mutable_estimate()->set_peak_bytes(request->tokens());
    response->mutable_estimate()->set_fits(true);
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const executor::v1::GetModelRequest*,
                        executor::v1::GetModelResponse* response) override {
    response->set_model("script");
    response->set_architecture("script");
    response->set_fingerprint("0123456789abcdef");
    response->set_context_length(10'000);
    response->set_vocab_size(kVocabulary);
    response->add_eos_token_ids(kEnd);
    response->add_memory_policies("full");
    response->set_max_running(max_running);
    response->set_max_waiting(max_waiting);
    return grpc::Status::OK;
  }
  grpc::Status GetLoad(grpc::ServerContext*, const executor::v1::GetLoadRequest*,
                       executor::v1::GetLoadResponse* response) override {
    response->set_running(running + others);
    return grpc::Status::OK;
  }
  grpc::Status Generate(grpc::ServerContext* context, const executor::v1::GenerateRequest* request,
                        grpc::ServerWriter<executor::v1::GenerateResponse>* writer) override {
    ++calls;
    const int answers = std::max(1, request->sampling().n());
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(*request);
      const int places = max_running + max_waiting;
      if (places > 0 && running + others >= places) {
        ++refused;
        return Full();
      }
      running += answers;
    }
    const grpc::Status status = Speak(*context, *request, *writer);
    running -= answers;
    // A write may fail before the context says why: gRPC's servers look at it only now and then.
    if (status.error_code() == grpc::StatusCode::CANCELLED || context->IsCancelled()) ++cancelled;
    return status;
  }

  grpc::Status FinishGeneration(grpc::ServerContext*,
                                const executor::v1::FinishGenerationRequest* request,
                                executor::v1::FinishGenerationResponse*) override {
    std::lock_guard lock(mutex_);
    finishes_.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status ForgetMemory(grpc::ServerContext*, const executor::v1::ForgetMemoryRequest* request,
                            executor::v1::ForgetMemoryResponse*) override {
    std::lock_guard lock(mutex_);
    forgotten_.push_back(request->tenant() + "/" + request->session_id());
    return grpc::Status::OK;
  }

  std::vector<executor::v1::GenerateRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  std::vector<executor::v1::FinishGenerationRequest> finishes() {
    std::lock_guard lock(mutex_);
    return finishes_;
  }
  std::vector<std::string> forgotten() {
    std::lock_guard lock(mutex_);
    return forgotten_;
  }

  // What it says from the next call on.
  void Say(std::string answer) {
    std::lock_guard lock(mutex_);
    answer_ = std::move(answer);
  }

  std::atomic<int> token_ms{0};           // pause before each token
  std::atomic<int> refuse{0};             // so many calls fail UNAVAILABLE at once
  std::atomic<int> queue_full{0};         // so many calls fail RESOURCE_EXHAUSTED at once
  std::atomic<int> break_after{-1};       // one call fails UNAVAILABLE after so many tokens
  std::atomic<bool> deaf{false};          // FinishGeneration is answered and changes nothing
  std::atomic<bool> loses_memory{false};  // sessions' memory is not stored
  std::atomic<int> max_running{0};        // with max_waiting: how many answers it takes; 0: any
  std::atomic<int> max_waiting{0};
  std::atomic<int> others{0};  // answers of other gateways
  std::atomic<int> calls{0};
  std::atomic<int> refused{0};  // calls beyond max_running + max_waiting
  std::atomic<int> running{0};  // answers
  std::atomic<int> cancelled{0};

 private:
  static grpc::Status Full() {
    return rpc::ToGrpc(status::WithRetryAfter(absl::ResourceExhaustedError("the queue is full"),
                                              absl::Seconds(2)));
  }
  grpc::Status Speak(grpc::ServerContext& context, const executor::v1::GenerateRequest& request,
                     grpc::ServerWriter<executor::v1::GenerateResponse>& writer) {
    if (refuse > 0) {
      --refuse;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone for a moment");
    }
    if (queue_full > 0) {
      --queue_full;
      return Full();
    }
    std::vector<int32_t> ids;
    {
      std::lock_guard lock(mutex_);
      ids = IdsOf(answer_);
    }
    ids.push_back(kEnd);
    const auto& sampling = request.sampling();
    const bool endless = sampling.ignore_eos();
    const size_t limit = sampling.has_max_tokens() ? sampling.max_tokens() : 1'000'000;
    const int answers = std::max(1, sampling.n());
    for (size_t i = request.generated_ids_size();; ++i) {
      const size_t end = endless ? ids.size() - 1 : ids.size();
      const int32_t id = ids[i % end];
      if (token_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(token_ms));
      if (context.IsCancelled()) return grpc::Status::CANCELLED;
      if (break_after == static_cast<int>(i)) {
        break_after = -1;
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, "struck down");
      }
      const bool finished = FinishedAt(request, i);
      const bool stop = finished || id == kEnd;
      const bool last = stop || i + 1 >= limit;
      for (int k = 0; k < answers; ++k) {
        executor::v1::GenerateResponse response;
        response.set_index(k);
        if (!finished) response.add_token_ids(id);
        if (i == 0 && k == 0 && sampling.has_prompt_logprobs()) {
          for (int j = 1; j < request.prompt_ids_size(); ++j) {
            auto* logprob = response.add_prompt_logprobs();
            logprob->set_token_id(request.prompt_ids(j));
            logprob->set_logprob(-0.5F);
          }
        }
        if (sampling.has_logprobs() && !finished) {
          auto* logprob = response.add_logprobs();
          logprob->set_token_id(id);
          logprob->set_logprob(-0.25F);
          for (int j = 0; j < sampling.logprobs(); ++j) {
            auto* top = logprob->add_top();
            top->set_token_id('a' + j);
            top->set_logprob(-1.0F - static_cast<float>(j));
          }
        }
        if (last) {
          response.set_finish_reason(stop ? inference::v1::FINISH_REASON_STOP
                                          : inference::v1::FINISH_REASON_LENGTH);
          response.mutable_usage()->set_cached_tokens(3);
          response.mutable_receipt()->set_prefilled_tokens(request.prompt_ids_size());
          response.mutable_receipt()->set_tier("hot");
          response.mutable_receipt()->set_restored_tokens(7);
          if (!request.session_id().empty() && loses_memory) {
            response.mutable_receipt()->set_not_persisted_reason("the memory could not be stored");
          } else if (!request.session_id().empty()) {
            response.set_snapshot_id(absl::StrCat("snapshot-", request.lease_token()));
          }
        }
        if (!writer.Write(response)) return grpc::Status::CANCELLED;
      }
      if (last) return grpc::Status::OK;
    }
  }

  bool FinishedAt(const executor::v1::GenerateRequest& request, size_t num_tokens) {
    if (deaf) return false;
    std::lock_guard lock(mutex_);
    for (const auto& finish : finishes_) {
      if (finish.session_id() == request.session_id() &&
          finish.lease_token() == request.lease_token() &&
          num_tokens >= static_cast<size_t>(finish.num_tokens())) {
        return true;
      }
    }
    return false;
  }

  std::mutex mutex_;
  std::string answer_ = "Hello, world";
  std::vector<executor::v1::GenerateRequest> requests_;
  std::vector<executor::v1::FinishGenerationRequest> finishes_;
  std::vector<std::string> forgotten_;
};

// Sessions in a map, with the leases and the compare-and-set of the real service.
class MapMemory final : public memory::v1::MemoryService::Service {
 public:
  grpc::Status CreateSession(grpc::ServerContext*, const memory::v1::CreateSessionRequest* request,
                             memory::v1::CreateSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const std::string id =
        request->session_id().empty() ? absl::StrCat("made-", ++made_) : request->session_id();
    const std::string key = request->tenant() + "/" + id;
    if (sessions_.count(key) > 0) {
      return grpc::Status(grpc::StatusCode::ALREADY_EXISTS, "the session id is taken");
    }
    Make(key, id, request->model());
    sessions_[key].session.set_title(request->title());
    *response->mutable_session() = sessions_[key].session;
    return grpc::Status::OK;
  }
  grpc::Status GetSession(grpc::ServerContext*, const memory::v1::GetSessionRequest* request,
                          memory::v1::GetSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    *response->mutable_session() = found->second.session;
    for (const auto& message : found->second.messages) *response->add_messages() = message;
    for (const int32_t id : found->second.log) response->add_token_ids(id);
    return grpc::Status::OK;
  }
  grpc::Status ListSessions(grpc::ServerContext*, const memory::v1::ListSessionsRequest* request,
                            memory::v1::ListSessionsResponse* response) override {
    std::lock_guard lock(mutex_);
    for (const auto& [key, stored] : sessions_) {
      if (absl::StartsWith(key, request->tenant() + "/")) {
        *response->add_sessions() = stored.session;
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status DeleteSession(grpc::ServerContext*, const memory::v1::DeleteSessionRequest* request,
                             memory::v1::DeleteSessionResponse*) override {
    std::lock_guard lock(mutex_);
    return sessions_.erase(request->tenant() + "/" + request->session_id()) > 0 ? grpc::Status::OK
                                                                                : NotFound();
  }
  grpc::Status ForkSession(grpc::ServerContext*, const memory::v1::ForkSessionRequest* request,
                           memory::v1::ForkSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    const std::string id = request->new_session_id().empty() ? absl::StrCat("made-", ++made_)
                                                             : request->new_session_id();
    const std::string key = request->tenant() + "/" + id;
    if (sessions_.count(key) > 0) {
      return grpc::Status(grpc::StatusCode::ALREADY_EXISTS, "the session id is taken");
    }
    const uint64_t version =
        request->has_version() ? request->version() : found->second.session.version();
    if (version > found->second.session.version()) return NoVersion();
    Stored fork = found->second;
    fork.session.set_session_id(id);
    fork.session.set_parent_session(request->session_id());
    fork.session.set_parent_session_version(version);
    if (!request->title().empty()) fork.session.set_title(request->title());
    fork.lease = 0;
    Cut(version, &fork);
    *response->mutable_session() = fork.session;
    sessions_[key] = std::move(fork);
    return grpc::Status::OK;
  }
  grpc::Status RewindSession(grpc::ServerContext*, const memory::v1::RewindSessionRequest* request,
                             memory::v1::RewindSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    if (request->version() > found->second.session.version()) return NoVersion();
    if (found->second.lease != 0) return Busy();
    Cut(request->version(), &found->second);
    *response->mutable_session() = found->second.session;
    return grpc::Status::OK;
  }
  // Half of a memory of 2000 bytes and 10 entries goes.
  grpc::Status CompactSession(grpc::ServerContext*,
                              const memory::v1::CompactSessionRequest* request,
                              memory::v1::CompactSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    if (found->second.lease != 0) return Busy();
    const uint64_t head = found->second.session.version();
    if (request->has_parent_version() && request->parent_version() != head)
      return Stale(found->second);
    if (request->has_memory_policy()) {
      *found->second.session.mutable_memory_policy() = request->memory_policy();
    }
    compacted_.push_back(*request);
    *response->mutable_session() = found->second.session;
    response->set_kv_bytes_before(2000);
    response->set_kv_bytes_after(1000);
    response->set_entries_before(10);
    response->set_entries_after(5);
    response->set_snapshots_dropped(request->drop_older_snapshots() ? 1 : 0);
    return grpc::Status::OK;
  }
  // The compactions that were asked for.
  std::vector<memory::v1::CompactSessionRequest> compacted() {
    std::lock_guard lock(mutex_);
    return compacted_;
  }
  grpc::Status DescribeSession(grpc::ServerContext*,
                               const memory::v1::DescribeSessionRequest* request,
                               memory::v1::DescribeSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    const Stored& stored = found->second;
    *response->mutable_session() = stored.session;
    int64_t num_tokens = 0;
    for (const auto& turn : stored.turns) {
      num_tokens =
          turn.replaces_tokens() ? turn.token_ids_size() : num_tokens + turn.token_ids_size();
      auto& version = *response->add_versions();
      version.set_version(turn.version());
      version.set_num_tokens(num_tokens);
      version.set_request_id(turn.request_id());
      if (stored.snapshots.count(turn.version()) > 0) version.set_snapshot_tokens(num_tokens);
    }
    (*response->mutable_bytes_by_tier())["redis"] = 1000 * response->versions_size();
    response->set_leased(stored.lease != 0);
    response->set_executor(stored.executor);
    return grpc::Status::OK;
  }
  grpc::Status UpdateSession(grpc::ServerContext*, const memory::v1::UpdateSessionRequest* request,
                             memory::v1::UpdateSessionResponse* response) override {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
    if (found == sessions_.end()) return NotFound();
    memory::v1::Session& session = found->second.session;
    if (request->has_title()) session.set_title(request->title());
    if (request->has_ttl_seconds()) session.set_ttl_seconds(request->ttl_seconds());
    if (request->has_pinned()) session.set_pinned(request->pinned());
    if (request->has_memory_policy()) *session.mutable_memory_policy() = request->memory_policy();
    *response->mutable_session() = session;
    return grpc::Status::OK;
  }
  // The file: the messages, a line each; a "!" stands for a changed byte.
  grpc::Status ExportSession(
      grpc::ServerContext*, const memory::v1::ExportSessionRequest* request,
      grpc::ServerWriter<memory::v1::ExportSessionResponse>* writer) override {
    std::vector<inference::v1::Message> messages;
    {
      std::lock_guard lock(mutex_);
      const auto found = sessions_.find(request->tenant() + "/" + request->session_id());
      if (found == sessions_.end()) return NotFound();
      messages = found->second.messages;
    }
    for (const auto& message : messages) {
      memory::v1::ExportSessionResponse response;
      response.set_piece(message.content() + "\n");
      writer->Write(response);
    }
    for (int i = 0; i < export_filler_pieces; ++i) {
      memory::v1::ExportSessionResponse response;
      response.set_piece(std::string(1 << 20, '#'));
      writer->Write(response);
    }
    return grpc::Status::OK;
  }
  grpc::Status ImportSession(grpc::ServerContext* context,
                             grpc::ServerReader<memory::v1::ImportSessionRequest>* reader,
                             memory::v1::ImportSessionResponse* response) override {
    memory::v1::ImportSessionRequest part;
    reader->Read(&part);
    const memory::v1::ImportSessionRequest::Header header = part.header();
    std::string file;
    while (reader->Read(&part)) {
      file += part.piece();
      if (absl::StrContains(file, "!")) {
        return grpc::Status(grpc::StatusCode::DATA_LOSS, "the file is damaged at byte 7");
      }
    }
    if (context->IsCancelled()) return grpc::Status::CANCELLED;
    std::lock_guard lock(mutex_);
    const std::string id = header.session_id().empty() ? "imported" : header.session_id();
    const std::string key = header.tenant() + "/" + id;
    if (sessions_.count(key) > 0) {
      return grpc::Status(grpc::StatusCode::ALREADY_EXISTS, "the session id is taken");
    }
    Make(key, id, "script");
    Stored& stored = sessions_[key];
    for (const absl::string_view line : absl::StrSplit(file, '\n', absl::SkipEmpty())) {
      if (absl::StartsWith(line, "#")) continue;
      stored.messages.emplace_back().set_content(std::string(line));
    }
    stored.session.set_num_messages(static_cast<int32_t>(stored.messages.size()));
    imported_bytes = file.size();
    *response->mutable_session() = stored.session;
    return grpc::Status::OK;
  }
  grpc::Status ForgetTenant(grpc::ServerContext*, const memory::v1::ForgetTenantRequest* request,
                            memory::v1::ForgetTenantResponse* response) override {
    std::lock_guard lock(mutex_);
    response->set_sessions(static_cast<int64_t>(std::erase_if(sessions_, [&](const auto& each) {
      return absl::StartsWith(each.first, request->tenant() + "/");
    })));
    return grpc::Status::OK;
  }
  grpc::Status AcquireLease(grpc::ServerContext*, const memory::v1::AcquireLeaseRequest* request,
                            memory::v1::AcquireLeaseResponse* response) override {
    std::lock_guard lock(mutex_);
    const std::string key = request->tenant() + "/" + request->session_id();
    if (sessions_.count(key) == 0) {
      if (!request->create()) return NotFound();
      Make(key, request->session_id(), request->model());
    }
    Stored& stored = sessions_[key];
    *response->mutable_session() = stored.session;
    for (const auto& turn : stored.turns) {
      if (!request->request_id().empty() && turn.request_id() == request->request_id()) {
        *response->mutable_committed() = turn;
        return grpc::Status::OK;
      }
    }
    if (request->has_parent_version() && request->parent_version() != stored.session.version()) {
      return Stale(stored);
    }
    if (stored.lease != 0) return Busy();
    stored.lease = ++last_lease_;
    response->set_lease_token(stored.lease);
    response->set_executor(stored.executor);
    response->set_snapshot_version(stored.snapshot_version);
    memory::v1::MemoryPlan& plan = *response->mutable_plan();
    plan.set_encoding(snapshot::v1::ENCODING_BFLOAT16);
    if (request->has_memory_policy()) {
      *plan.mutable_policy() = request->memory_policy();
    } else {
      plan.mutable_policy()->mutable_window()->set_recent(512);
    }
    for (const auto& message : stored.messages) *response->add_messages() = message;
    for (const int32_t id : stored.log) response->add_token_ids(id);
    return grpc::Status::OK;
  }
  grpc::Status RenewLease(grpc::ServerContext*, const memory::v1::RenewLeaseRequest* request,
                          memory::v1::RenewLeaseResponse*) override {
    ++renewals;
    std::lock_guard lock(mutex_);
    Stored& stored = sessions_[request->tenant() + "/" + request->session_id()];
    if (stored.lease == request->lease_token()) {
      stored.has_run_out = false;
      return grpc::Status::OK;
    }
    ++refused_renewals;
    return LeaseLost();
  }
  grpc::Status ReleaseLease(grpc::ServerContext*, const memory::v1::ReleaseLeaseRequest* request,
                            memory::v1::ReleaseLeaseResponse*) override {
    ++releases;
    std::lock_guard lock(mutex_);
    Stored& stored = sessions_[request->tenant() + "/" + request->session_id()];
    if (stored.lease == request->lease_token()) stored.lease = 0;
    return grpc::Status::OK;
  }
  grpc::Status CommitTurn(grpc::ServerContext*, const memory::v1::CommitTurnRequest* request,
                          memory::v1::CommitTurnResponse* response) override {
    if (fail_commits > 0) {
      --fail_commits;
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the store does not answer");
    }
    std::lock_guard lock(mutex_);
    Stored& stored = sessions_[request->tenant() + "/" + request->session_id()];
    if (stored.lease != request->lease_token() || stored.has_run_out) return LeaseLost();
    if (request->parent_version() != stored.session.version()) return Stale(stored);
    memory::v1::Turn turn = request->turn();
    stored.session.set_version(request->parent_version() + 1);
    turn.set_version(stored.session.version());
    for (const auto& message : turn.messages()) stored.messages.push_back(message);
    if (turn.replaces_tokens()) stored.log.clear();
    stored.log.insert(stored.log.end(), turn.token_ids().begin(), turn.token_ids().end());
    stored.session.set_num_messages(static_cast<int32_t>(stored.messages.size()));
    stored.turns.push_back(std::move(turn));
    if (request->release()) stored.lease = 0;
    stored.executor = request->executor();
    if (lose_snapshots) {
      response->set_snapshot_lost_reason("the store is full");
    } else if (!request->snapshot_id().empty()) {
      stored.snapshot_version = stored.session.version();
      stored.snapshots[stored.session.version()] = request->snapshot_id();
    }
    response->set_version(stored.session.version());
    return grpc::Status::OK;
  }

  struct Stored {
    memory::v1::Session session;
    std::vector<inference::v1::Message> messages;
    std::vector<int32_t> log;
    std::vector<memory::v1::Turn> turns;
    uint64_t lease = 0;
    bool has_run_out = false;  // the lease; nobody else has taken the session
    std::string executor;
    uint64_t snapshot_version = 0;
    std::map<uint64_t, std::string> snapshots;  // by version
  };
  Stored Look(const std::string& key) {
    std::lock_guard lock(mutex_);
    return sessions_[key];
  }
  void SetLog(const std::string& key, std::vector<int32_t> log) {
    std::lock_guard lock(mutex_);
    sessions_[key].log = std::move(log);
  }
  void SetExecutor(const std::string& key, std::string executor) {
    std::lock_guard lock(mutex_);
    sessions_[key].executor = std::move(executor);
  }
  void SetLease(const std::string& key, uint64_t lease) {
    std::lock_guard lock(mutex_);
    sessions_[key].lease = lease;
  }
  void LetLeaseRunOut(const std::string& key) {
    std::lock_guard lock(mutex_);
    sessions_[key].has_run_out = true;
  }
  // Another holder takes the session, as after a lease that ran out.
  void TakeOver(const std::string& key) {
    std::lock_guard lock(mutex_);
    sessions_[key].lease = ++last_lease_;
  }

  std::atomic<int> fail_commits{0};
  std::atomic<bool> lose_snapshots{false};
  std::atomic<int> export_filler_pieces{0};  // of 1 MiB, behind a session's messages
  std::atomic<size_t> imported_bytes{0};
  std::atomic<int> renewals{0};
  std::atomic<int> refused_renewals{0};
  std::atomic<int> releases{0};

 private:
  static grpc::Status NotFound() {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such session");
  }
  static grpc::Status NoVersion() {
    return grpc::Status(grpc::StatusCode::OUT_OF_RANGE, "no such version");
  }
  static grpc::Status Busy() {
    return rpc::ToGrpc(status::WithRetryAfter(
        status::WithPayload(absl::FailedPreconditionError("another turn runs"),
                            status::kReasonPayload, "SESSION_BUSY"),
        absl::Seconds(1)));
  }
  // Leaves the turns up to a version.
  static void Cut(uint64_t version, Stored* stored) {
    stored->session.set_version(version);
    stored->turns.resize(version);
    stored->messages.clear();
    stored->log.clear();
    for (const auto& turn : stored->turns) {
      stored->messages.insert(stored->messages.end(), turn.messages().begin(),
                              turn.messages().end());
      if (turn.replaces_tokens()) stored->log.clear();
      stored->log.insert(stored->log.end(), turn.token_ids().begin(), turn.token_ids().end());
    }
    stored->session.set_num_messages(static_cast<int32_t>(stored->messages.size()));
    stored->snapshots.erase(stored->snapshots.upper_bound(version), stored->snapshots.end());
    stored->snapshot_version = stored->snapshots.empty() ? 0 : stored->snapshots.rbegin()->first;
  }
  static grpc::Status LeaseLost() {
    return rpc::ToGrpc(status::WithPayload(absl::AbortedError("the lease is another's"),
                                           status::kReasonPayload, "LEASE_LOST"));
  }
  static grpc::Status Stale(const Stored& stored) {
    const absl::Status status = status::WithPayload(absl::AbortedError("the head has moved on"),
                                                    status::kReasonPayload, "STALE_VERSION");
    return rpc::ToGrpc(status::WithPayload(status, status::kVersionPayload,
                                           absl::StrCat(stored.session.version())));
  }
  void Make(const std::string& key, const std::string& id, const std::string& model) {
    memory::v1::Session& session = sessions_[key].session;
    session.set_session_id(id);
    session.set_model(model);
  }

  std::mutex mutex_;
  std::map<std::string, Stored> sessions_;
  std::vector<memory::v1::CompactSessionRequest> compacted_;
  uint64_t last_lease_ = 0;
  int made_ = 0;
};

// A service on a loopback port that can be taken away and brought back.
template <typename Service>
class Upstream {
 public:
  Upstream() { Start("127.0.0.1:0"); }

  Service* operator->() { return &service; }
  const std::string& address() const { return address_; }
  void Kill() { server_.reset(); }
  void Restart() { Start(address_); }

  Service service;

 private:
  void Start(const std::string& listen) {
    server_ = rpc::Server::Start({.listen = listen}, {&service}).value();
    address_ = server_->address();
  }

  std::unique_ptr<rpc::Server> server_;
  std::string address_;
};

}  // namespace mneme::gateway
