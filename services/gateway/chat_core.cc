#include "services/gateway/chat_core.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/request_checks.h"

namespace mneme::gateway {
namespace {

namespace ev1 = executor::v1;
namespace iv1 = inference::v1;
namespace mv1 = memory::v1;
namespace tv1 = tokenizer::v1;

uint64_t DrawSeed() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  // JSON numbers are exact up to 2^53, so that a client can send it back.
  return generator() >> 11;
}

std::string NewId(absl::string_view prefix) { return absl::StrCat(prefix, trace::RandomHex(24)); }

std::string LastSystemMessage(const google::protobuf::RepeatedPtrField<iv1::Message>& messages) {
  for (int i = messages.size() - 1; i >= 0; --i) {
    if (messages[i].role() == "system") return messages[i].content();
  }
  return "";
}

bool IsFull(const iv1::MemoryPolicy& policy) { return !policy.has_window(); }

std::string TextOf(const Vocabulary& vocabulary, const std::vector<int32_t>& ids) {
  return vocabulary.table.Decode(ids, /*skip_special_tokens=*/false).value_or("");
}

// Turns of one session prefer one executor.
std::string AffinityOf(const Turn::Parts& parts) {
  if (parts.session == nullptr) return "";
  return absl::StrCat(parts.caller.tenant, "/", parts.session->session_id);
}

// Keys and values of all layers.
int64_t KvBytesPerToken(const ev1::GetModelResponse& model) {
  const int64_t number_bytes = model.compute_type() == "bfloat16" ? 2 : 4;
  return 2 * number_bytes * model.num_layers() * model.num_kv_heads() * model.head_size();
}

}  // namespace

ChatCore::ChatCore(CompletionLoop& loop, ExecutorPool& executors, TokenizerClient& tokenizer,
                   SessionStore* sessions, Admission& admission, GatewayMetrics& metrics,
                   const clock::Clock& clock, const Options& options)
    : loop_(loop),
      executors_(executors),
      tokenizer_(tokenizer),
      sessions_(sessions),
      admission_(admission),
      metrics_(metrics),
      options_(options),
      answers_(options.answers, clock) {}

absl::StatusOr<SessionStore*> ChatCore::Sessions() const {
  if (sessions_ != nullptr) return sessions_;
  return absl::FailedPreconditionError("this server keeps no sessions: it has no memory service");
}

absl::StatusOr<std::unique_ptr<Admission::Ticket>> ChatCore::Enter(const Caller& caller) {
  absl::StatusOr<std::unique_ptr<Admission::Ticket>> ticket =
      admission_.Enter(caller.tenant, caller.limits);
  if (!ticket.ok()) {
    const std::string quota = status::PayloadOf(ticket.status(), status::kQuotaPayload);
    metrics_.CountRejection(!quota.empty()                         ? quota
                            : absl::IsUnavailable(ticket.status()) ? "draining"
                                                                   : "max_streams");
  }
  return ticket;
}

absl::Status ChatCore::CountFull(absl::Status status) {
  if (absl::IsResourceExhausted(status)) metrics_.CountRejection("queue_full");
  return status;
}

absl::StatusOr<ExecutorPool::Claim> ChatCore::ClaimPlace(const ExecutorPool::Query& query) {
  absl::StatusOr<ExecutorPool::Claim> claim = executors_.Pick(query);
  if (absl::IsResourceExhausted(claim.status())) return CountFull(claim.status());
  return claim.ok() ? *std::move(claim) : ExecutorPool::Claim();
}

absl::Status ChatCore::OpenSession(const v1::ChatRequest& request, const std::string& model,
                                   const Caller& caller, SessionStore::Opened* opened) {
  ASSIGN_OR_RETURN(SessionStore * sessions, Sessions());
  if (request.sampling().n() > 1) {
    return status::InvalidField("sampling.n", "must be 1 in a session");
  }
  mv1::AcquireLeaseRequest acquire;
  acquire.set_tenant(caller.tenant);
  acquire.set_session_id(request.session_id());
  if (request.has_parent_version()) acquire.set_parent_version(request.parent_version());
  acquire.set_create(true);
  acquire.set_model(model);
  acquire.set_with_history(true);
  acquire.set_request_id(request.request_id());
  if (!request.request_id().empty()) {
    sessions->AwaitLateCommit(caller.tenant, request.session_id(), request.request_id(),
                              caller.deadline);
  }
  if (request.memory_policy().policy_case() != iv1::MemoryPolicy::POLICY_NOT_SET) {
    *acquire.mutable_memory_policy() = request.memory_policy();
  }
  ASSIGN_OR_RETURN(*opened, sessions->Open(acquire, caller.context, caller.deadline,
                                           [&caller] { return caller.gone && caller.gone(); }));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<AnswerSource>> ChatCore::StartChat(const v1::ChatRequest& request,
                                                                  Caller caller,
                                                                  const std::string& instructions) {
  caller.deadline = std::min(caller.deadline, caller.arrived + options_.request_timeout);
  const bool in_session = !request.session_id().empty();
  const bool resumable = request.has_resumable() ? request.resumable() : in_session;
  if (in_session && !trace::IsIdentifier(request.session_id())) {
    return status::InvalidField("session_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  if (!request.request_id().empty() && !trace::IsIdentifier(request.request_id())) {
    return status::InvalidField("request_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  if (resumable && !in_session && request.sampling().n() > 1) {
    return status::InvalidField("resumable", "must not be true where n is over 1");
  }
  if (!in_session && !resumable) {
    return StartTurn(request, std::move(caller), instructions, nullptr);
  }
  bool made = false;
  const std::shared_ptr<AnswerLog> log = answers_.JoinOrBegin(
      caller.tenant, request.session_id(), in_session ? request.request_id() : "",
      NewId("chatcmpl-"), resumable, &made);
  if (!made) {
    auto joined = std::make_unique<LoggedAnswer>(log, /*after=*/0, caller);
    const absl::Status begun = joined->Begin();
    if (begun.ok()) return joined;
    if (!absl::IsOutOfRange(begun)) return begun;
    // The answer is too long to be kept whole, but the turn will have its text.
    RETURN_IF_ERROR(joined->AwaitEnd());
    return StartTurn(request, std::move(caller), instructions, nullptr);
  }
  caller.gone = [log, client_gone = std::move(caller.gone)] {
    if (client_gone && client_gone()) log->LeaveClient();
    return log->Abandoned();
  };
  absl::StatusOr<std::unique_ptr<AnswerSource>> turn =
      StartTurn(request, std::move(caller), instructions, log);
  if (!turn.ok()) log->End(turn.status());
  return turn;
}

absl::StatusOr<std::unique_ptr<AnswerSource>> ChatCore::Attach(const std::string& id,
                                                               uint64_t after, Caller caller) {
  caller.deadline = std::min(caller.deadline, caller.arrived + options_.request_timeout);
  ASSIGN_OR_RETURN(const std::shared_ptr<AnswerLog> log, answers_.Find(caller.tenant, id));
  log->Enter();
  auto answer = std::make_unique<LoggedAnswer>(log, after, std::move(caller));
  RETURN_IF_ERROR(answer->Begin());
  return answer;
}

absl::Status ChatCore::Cancel(const std::string& id, const Caller& caller) {
  ASSIGN_OR_RETURN(const std::shared_ptr<AnswerLog> log, answers_.Find(caller.tenant, id));
  log->Cancel();
  return absl::OkStatus();
}

absl::StatusOr<int> ChatCore::AddMessages(
    const std::string& session_id, const google::protobuf::RepeatedPtrField<iv1::Message>& messages,
    const std::string& request_id, const Caller& caller) {
  ASSIGN_OR_RETURN(SessionStore * sessions, Sessions());
  if (!trace::IsIdentifier(session_id)) {
    return status::InvalidField("session_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  if (!request_id.empty() && !trace::IsIdentifier(request_id)) {
    return status::InvalidField("request_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  const absl::Time deadline = std::min(caller.deadline, caller.arrived + options_.request_timeout);
  mv1::AcquireLeaseRequest acquire;
  acquire.set_tenant(caller.tenant);
  acquire.set_session_id(session_id);
  acquire.set_request_id(request_id);
  ASSIGN_OR_RETURN(SessionStore::Opened opened,
                   sessions->Open(acquire, caller.context, deadline,
                                  [&caller] { return caller.gone && caller.gone(); }));
  const mv1::Session& session = opened.state.session();
  if (opened.lease == nullptr) {
    return session.num_messages() - opened.state.committed().messages_size();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const Vocabulary> vocabulary,
                   tokenizer_.VocabularyOf(session.model(), caller.context, deadline));
  RETURN_IF_ERROR(CheckMessages(messages, options_.max_messages, vocabulary->chat_template));
  mv1::CommitTurnRequest commit;
  commit.set_parent_version(session.version());
  mv1::Turn& turn = *commit.mutable_turn();
  *turn.mutable_messages() = messages;
  turn.set_request_id(request_id.empty() ? NewId("turn-") : request_id);
  RETURN_IF_ERROR(opened.lease->Commit(&commit).status());
  return session.num_messages();
}

absl::StatusOr<std::unique_ptr<AnswerSource>> ChatCore::StartTurn(const v1::ChatRequest& request,
                                                                  Caller caller,
                                                                  const std::string& instructions,
                                                                  std::shared_ptr<AnswerLog> log) {
  Turn::Parts parts;
  parts.started.id = log != nullptr ? log->id() : NewId("chatcmpl-");
  parts.started.resumable = log != nullptr && log->resumable();
  parts.log = std::move(log);
  ASSIGN_OR_RETURN(parts.ticket, Enter(caller));
  ASSIGN_OR_RETURN(std::string model, executors_.Resolve(request.model()));
  ExecutorPool::Claim claim;
  if (request.session_id().empty()) {
    ASSIGN_OR_RETURN(claim, ClaimPlace({.model = model}));
  } else if (const absl::Status room = executors_.CheckRoom({.model = request.model()});
             absl::IsResourceExhausted(room)) {
    // Only looked at: a turn may have to wait for the session's other turn, and its own model is
    // not known yet.
    return CountFull(room);
  }
  ASSIGN_OR_RETURN(parts.vocabulary,
                   tokenizer_.VocabularyOf(model, caller.context, caller.deadline));
  const Vocabulary& vocabulary = *parts.vocabulary;
  RETURN_IF_ERROR(
      CheckMessages(request.messages(), options_.max_messages, vocabulary.chat_template));
  RETURN_IF_ERROR(CheckSampling(request.sampling(), vocabulary.table.size()));
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy()));

  google::protobuf::RepeatedPtrField<iv1::Message> messages;
  if (!instructions.empty()) {
    messages.Add()->set_role("system");
    messages[0].set_content(instructions);
  }
  messages.MergeFrom(request.messages());
  tv1::EncodeChatRequest encode;
  iv1::MemoryPolicy policy = request.memory_policy();
  mv1::AcquireLeaseResponse history;
  if (!request.session_id().empty()) {
    SessionStore::Opened opened;
    RETURN_IF_ERROR(OpenSession(request, model, caller, &opened));
    history = std::move(opened.state);
    parts.session = std::make_unique<Turn::SessionPart>();
    Turn::SessionPart& session = *parts.session;
    session.session_id = request.session_id();
    session.store = sessions_;
    session.lease = std::move(opened.lease);
    session.parent_version = history.session().version();
    session.executor = history.executor();
    session.snapshot_version = history.snapshot_version();
    session.plan = history.plan();
    if (const std::string& own = history.session().model(); !own.empty() && own != model) {
      if (!request.model().empty()) {
        return status::InvalidField("model", absl::StrCat("must be the session's own: ", own));
      }
      ASSIGN_OR_RETURN(model, executors_.Resolve(own));
      ASSIGN_OR_RETURN(parts.vocabulary,
                       tokenizer_.VocabularyOf(model, caller.context, caller.deadline));
    }
    if (history.has_committed()) {
      session.turn = std::move(*history.mutable_committed());
      parts.prompts.emplace_back();
    } else {
      if (!instructions.empty() && LastSystemMessage(history.messages()) == instructions) {
        messages.erase(messages.begin());
      }
      *session.turn.mutable_messages() = messages;
      session.turn.set_request_id(request.request_id().empty()
                                      ? absl::StrCat("turn-", trace::RandomHex(24))
                                      : request.request_id());
      parts.answer.keep_text = true;
      *encode.mutable_messages() = std::move(*history.mutable_messages());
      *encode.mutable_prefix_ids() = history.token_ids();
      // The plan is made of the request's own choice and what else there is.
      if (session.plan.policy().policy_case() != iv1::MemoryPolicy::POLICY_NOT_SET) {
        policy = session.plan.policy();
      } else if (policy.policy_case() == iv1::MemoryPolicy::POLICY_NOT_SET) {
        policy = history.session().memory_policy();
      }
    }
  }
  parts.started.model = model;
  parts.started.vocabulary = parts.vocabulary.get();
  parts.caller = std::move(caller);
  if (parts.session != nullptr) {
    parts.started.session_id = parts.session->session_id;
    parts.started.session_version = parts.session->lease != nullptr
                                        ? parts.session->parent_version + 1
                                        : parts.session->turn.version();
  }
  if (parts.session != nullptr && parts.session->lease == nullptr) {
    parts.started.created_unix_s = parts.session->turn.committed_unix_ms() / 1000;
    return std::make_unique<Turn>(std::move(parts), metrics_);
  }

  if (parts.session != nullptr) {
    ASSIGN_OR_RETURN(
        claim,
        ClaimPlace({.model = model,
                    .prefer = {.affinity = AffinityOf(parts), .hot = parts.session->executor}}));
  }
  encode.set_model(model);
  encode.mutable_messages()->MergeFrom(messages);
  encode.set_add_generation_prompt(true);
  encode.set_tools_json(request.tools_json());
  encode.set_template_arguments_json(request.template_arguments_json());
  absl::StatusOr<tv1::EncodeChatResponse> encoded =
      tokenizer_.EncodeChat(encode, parts.caller.context, parts.caller.deadline);
  if (!encoded.ok()) {
    if (absl::IsInvalidArgument(encoded.status()) &&
        status::PayloadOf(encoded.status(), status::kFieldPayload).empty()) {
      return status::WithPayload(encoded.status(), status::kFieldPayload, "messages");
    }
    return encoded.status();
  }
  Turn::Prompt prompt;
  const bool goes_on = encoded->prefix_matched() && !history.token_ids().empty();
  if (goes_on) prompt.token_ids.assign(history.token_ids().begin(), history.token_ids().end());
  prompt.token_ids.insert(prompt.token_ids.end(), encoded->token_ids().begin(),
                          encoded->token_ids().end());
  if (parts.session != nullptr) {
    *parts.session->turn.mutable_token_ids() = encoded->token_ids();
    parts.session->turn.set_replaces_tokens(!goes_on && !history.token_ids().empty());
  }
  parts.prompts.push_back(std::move(prompt));
  return Start(std::move(parts), request.sampling(), policy, std::move(claim));
}

absl::StatusOr<std::unique_ptr<AnswerSource>> ChatCore::StartCompletion(CompletionRequest request,
                                                                        Caller caller) {
  caller.deadline = std::min(caller.deadline, caller.arrived + options_.request_timeout);
  Turn::Parts parts;
  parts.started.id = NewId("cmpl-");
  ASSIGN_OR_RETURN(parts.ticket, Enter(caller));
  ASSIGN_OR_RETURN(const std::string model, executors_.Resolve(request.model));
  ASSIGN_OR_RETURN(ExecutorPool::Claim claim, ClaimPlace({.model = model}));
  ASSIGN_OR_RETURN(parts.vocabulary,
                   tokenizer_.VocabularyOf(model, caller.context, caller.deadline));
  const Vocabulary& vocabulary = *parts.vocabulary;
  RETURN_IF_ERROR(CheckSampling(request.sampling, vocabulary.table.size()));
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy));
  if (request.prompts.empty()) return status::InvalidField("prompt", "must not be empty");
  if (request.prompts.size() > static_cast<size_t>(options_.max_prompts)) {
    return status::InvalidField("prompt",
                                absl::StrCat("must have at most ", options_.max_prompts, " parts"));
  }
  std::vector<std::string> texts;
  for (const CompletionRequest::Prompt& prompt : request.prompts) {
    if (prompt.token_ids.empty()) texts.push_back(prompt.text);
    for (const int32_t id : prompt.token_ids) {
      if (!vocabulary.table.Contains(id)) {
        return status::InvalidField(
            "prompt", absl::StrCat("must have token ids of the vocabulary, not ", id));
      }
    }
  }
  std::vector<std::vector<int32_t>> encodings;
  if (!texts.empty()) {
    ASSIGN_OR_RETURN(encodings, tokenizer_.Encode(model, texts, /*add_special_tokens=*/true,
                                                  caller.context, caller.deadline));
  }
  size_t next = 0;
  for (CompletionRequest::Prompt& prompt : request.prompts) {
    Turn::Prompt encoded;
    if (prompt.token_ids.empty()) {
      encoded.token_ids = std::move(encodings[next++]);
      encoded.text = std::move(prompt.text);
    } else {
      encoded.token_ids = std::move(prompt.token_ids);
      if (request.echo) encoded.text = TextOf(vocabulary, encoded.token_ids);
    }
    if (encoded.token_ids.empty()) return status::InvalidField("prompt", "must not be empty");
    parts.prompts.push_back(std::move(encoded));
  }
  parts.started.model = model;
  parts.started.vocabulary = parts.vocabulary.get();
  parts.echo = request.echo;
  parts.echo_only = request.echo && request.echo_only;
  parts.answer.continues_text = true;
  parts.caller = std::move(caller);
  return Start(std::move(parts), std::move(request.sampling), request.memory_policy,
               std::move(claim));
}

absl::StatusOr<std::unique_ptr<AnswerSource>> ChatCore::Start(Turn::Parts parts,
                                                              iv1::Sampling sampling,
                                                              const iv1::MemoryPolicy& policy,
                                                              ExecutorPool::Claim claim) {
  ASSIGN_OR_RETURN(const ev1::GetModelResponse model, executors_.Describe(parts.started.model));
  for (const Turn::Prompt& prompt : parts.prompts) {
    const auto size = static_cast<int64_t>(prompt.token_ids.size());
    if (IsFull(policy) && model.context_length() > 0 && size >= model.context_length()) {
      return status::WithPayload(
          status::InvalidField(
              parts.answer.continues_text ? "prompt" : "messages",
              absl::StrCat("must be shorter: the model's context has ", model.context_length(),
                           " tokens, the prompt alone ", size)),
          status::kReasonPayload, "CONTEXT_LENGTH_EXCEEDED");
    }
  }
  if (!sampling.has_seed()) sampling.set_seed(DrawSeed());
  parts.answers_per_prompt = std::max(1, sampling.n());
  parts.started.seed = sampling.seed();
  parts.started.fingerprint = model.fingerprint();
  parts.kv_bytes_per_token = KvBytesPerToken(model);
  parts.started.created_unix_s = absl::ToUnixSeconds(absl::Now());
  parts.started.num_answers = static_cast<int>(parts.prompts.size()) * parts.answers_per_prompt;
  parts.answer.stop.assign(sampling.stop().begin(), sampling.stop().end());
  parts.answer.eos_token_ids.assign(model.eos_token_ids().begin(), model.eos_token_ids().end());
  sampling.clear_stop();  // the executor knows no text
  if (parts.echo_only) sampling.set_max_tokens(1);
  parts.shutdown = &shutdown_;
  parts.generation =
      std::make_unique<GenerationGroup>(loop_, executors_, metrics_, options_.generation,
                                        parts.caller.context, parts.caller.deadline);
  for (const Turn::Prompt& prompt : parts.prompts) {
    ev1::GenerateRequest generate;
    generate.set_request_id(parts.caller.context.request_id);
    generate.set_model(parts.started.model);
    generate.mutable_prompt_ids()->Add(prompt.token_ids.begin(), prompt.token_ids.end());
    *generate.mutable_sampling() = sampling;
    *generate.mutable_memory_policy() = policy;
    generate.set_tenant(parts.caller.tenant);
    std::string hot;
    if (parts.session != nullptr) {
      generate.set_session_id(parts.session->session_id);
      generate.set_lease_token(parts.session->lease->token());
      generate.set_parent_version(parts.session->parent_version);
      generate.set_snapshot_version(parts.session->snapshot_version);
      generate.set_snapshot_encoding(parts.session->plan.encoding());
      hot = parts.session->executor;
    }
    parts.generation->Add(std::move(generate),
                          {.affinity = AffinityOf(parts), .hot = std::move(hot)},
                          std::exchange(claim, {}));
  }
  const std::shared_ptr<AnswerLog> log = parts.log;
  auto turn = std::make_unique<Turn>(std::move(parts), metrics_);
  const absl::Status begun = CountFull(turn->Begin());
  if (begun.ok()) return turn;
  // Before the turn's destructor ends it: others who wait for this answer are to know why.
  if (log != nullptr) log->End(begun);
  return begun;
}

}  // namespace mneme::gateway
