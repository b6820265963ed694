#include "services/gateway/session_directory.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/request_checks.h"

namespace mneme::gateway {
namespace {

namespace mv1 = memory::v1;

constexpr size_t kMaxTitleBytes = 1024;
constexpr int64_t kMaxTtlSeconds = int64_t{100} * 365 * 24 * 3600;
// A session of many gigabytes takes its time; one that hangs must not take it for ever.
constexpr absl::Duration kTransferTimeout = absl::Minutes(30);
// Of one whose chunks are all read and written anew.
constexpr absl::Duration kCompactTimeout = absl::Minutes(10);

absl::Status CheckId(const std::string& id) {
  if (trace::IsIdentifier(id)) return absl::OkStatus();
  return status::InvalidField("session_id", "must match [A-Za-z0-9_.:-]{1,128}");
}

absl::Status CheckRequestId(const std::string& id) {
  if (id.empty() || trace::IsIdentifier(id)) return absl::OkStatus();
  return status::InvalidField("request_id", "must match [A-Za-z0-9_.:-]{1,128}");
}

absl::Status CheckTitle(const std::string& title) {
  if (title.size() <= kMaxTitleBytes) return absl::OkStatus();
  return status::InvalidField("title", "must have at most 1024 bytes");
}

absl::Status CheckTtl(int64_t seconds) {
  if (seconds >= 0 && seconds <= kMaxTtlSeconds) return absl::OkStatus();
  return status::InvalidField("ttl_seconds", "must lie between 0 and 100 years");
}

// A call that is tried again after its answer was lost must not be done twice.
std::string RequestIdOr(const std::string& id) {
  return id.empty() ? absl::StrCat("gateway-", trace::RandomHex(24)) : id;
}

v1::Session ToPublic(const mv1::Session& session) {
  v1::Session shown;
  shown.set_session_id(session.session_id());
  shown.set_model(session.model());
  shown.set_version(session.version());
  shown.set_created_unix_ms(session.created_unix_ms());
  shown.set_used_unix_ms(session.used_unix_ms());
  shown.set_num_messages(session.num_messages());
  shown.set_num_tokens(session.num_tokens());
  shown.set_title(session.title());
  if (session.has_memory_policy()) *shown.mutable_memory_policy() = session.memory_policy();
  shown.set_ttl_seconds(session.ttl_seconds());
  shown.set_pinned(session.pinned());
  shown.set_parent_session(session.parent_session());
  shown.set_parent_session_version(session.parent_session_version());
  shown.set_kv_bytes(session.kv_bytes());
  return shown;
}

}  // namespace

absl::StatusOr<v1::CreateSessionResponse> SessionDirectory::Create(
    const v1::CreateSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  if (!request.session_id().empty()) RETURN_IF_ERROR(CheckId(request.session_id()));
  RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  RETURN_IF_ERROR(CheckTitle(request.title()));
  RETURN_IF_ERROR(CheckTtl(request.ttl_seconds()));
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy()));
  mv1::CreateSessionRequest create;
  create.set_tenant(caller.tenant);
  create.set_session_id(request.session_id());
  ASSIGN_OR_RETURN(*create.mutable_model(), core_.executors().Resolve(request.model()));
  create.set_request_id(RequestIdOr(request.request_id()));
  create.set_title(request.title());
  create.set_ttl_seconds(request.ttl_seconds());
  if (request.has_memory_policy()) *create.mutable_memory_policy() = request.memory_policy();
  ASSIGN_OR_RETURN(const mv1::CreateSessionResponse made, store->Create(create, caller.context));
  v1::CreateSessionResponse response;
  *response.mutable_session() = ToPublic(made.session());
  return response;
}

absl::StatusOr<v1::GetSessionResponse> SessionDirectory::Get(const v1::GetSessionRequest& request,
                                                             const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  mv1::GetSessionRequest get;
  get.set_tenant(caller.tenant);
  get.set_session_id(request.session_id());
  get.set_with_messages(request.with_messages());
  ASSIGN_OR_RETURN(mv1::GetSessionResponse found, store->Get(get, caller.context));
  v1::GetSessionResponse response;
  *response.mutable_session() = ToPublic(found.session());
  response.mutable_messages()->Swap(found.mutable_messages());
  return response;
}

absl::StatusOr<v1::ListSessionsResponse> SessionDirectory::List(
    const v1::ListSessionsRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  if (request.page_size() < 0 || request.page_size() > 1000) {
    return status::InvalidField("page_size", "must lie between 1 and 1000");
  }
  mv1::ListSessionsRequest list;
  list.set_tenant(caller.tenant);
  list.set_page_size(request.page_size() == 0 ? 100 : request.page_size());
  list.set_page_token(request.page_token());
  list.set_model(request.model());
  ASSIGN_OR_RETURN(const mv1::ListSessionsResponse found, store->List(list, caller.context));
  v1::ListSessionsResponse response;
  for (const mv1::Session& session : found.sessions()) {
    *response.add_sessions() = ToPublic(session);
  }
  response.set_next_page_token(found.next_page_token());
  return response;
}

absl::StatusOr<v1::DeleteSessionResponse> SessionDirectory::Delete(
    const v1::DeleteSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  mv1::DeleteSessionRequest remove;
  remove.set_tenant(caller.tenant);
  remove.set_session_id(request.session_id());
  RETURN_IF_ERROR(store->Delete(remove, caller.context).status());
  ForgetMemory(caller.tenant, request.session_id(), caller);
  return v1::DeleteSessionResponse();
}

void SessionDirectory::ForgetMemory(const std::string& tenant, const std::string& session_id,
                                    const Caller& caller) const {
  executor::v1::ForgetMemoryRequest forget;
  forget.set_tenant(tenant);
  forget.set_session_id(session_id);
  core_.executors().ForgetMemory(forget, caller.context);
}

absl::StatusOr<v1::ForkSessionResponse> SessionDirectory::Fork(
    const v1::ForkSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  if (!request.new_session_id().empty() && !trace::IsIdentifier(request.new_session_id())) {
    return status::InvalidField("new_session_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  RETURN_IF_ERROR(CheckTitle(request.title()));
  mv1::ForkSessionRequest fork;
  fork.set_tenant(caller.tenant);
  fork.set_session_id(request.session_id());
  if (request.has_version()) fork.set_version(request.version());
  fork.set_new_session_id(request.new_session_id());
  fork.set_title(request.title());
  fork.set_request_id(RequestIdOr(request.request_id()));
  ASSIGN_OR_RETURN(const mv1::ForkSessionResponse made, store->Fork(fork, caller.context));
  v1::ForkSessionResponse response;
  *response.mutable_session() = ToPublic(made.session());
  return response;
}

absl::StatusOr<v1::RewindSessionResponse> SessionDirectory::Rewind(
    const v1::RewindSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  mv1::RewindSessionRequest rewind;
  rewind.set_tenant(caller.tenant);
  rewind.set_session_id(request.session_id());
  rewind.set_version(request.version());
  ASSIGN_OR_RETURN(const mv1::RewindSessionResponse rewound, store->Rewind(rewind, caller.context));
  v1::RewindSessionResponse response;
  *response.mutable_session() = ToPublic(rewound.session());
  return response;
}

absl::StatusOr<v1::CompactSessionResponse> SessionDirectory::Compact(
    const v1::CompactSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy()));
  mv1::CompactSessionRequest compact;
  compact.set_tenant(caller.tenant);
  compact.set_session_id(request.session_id());
  if (request.has_parent_version()) compact.set_parent_version(request.parent_version());
  if (request.has_memory_policy()) *compact.mutable_memory_policy() = request.memory_policy();
  switch (request.encoding()) {
    case v1::COMPACT_ENCODING_UNSPECIFIED:
      break;
    case v1::COMPACT_ENCODING_INT8:
      compact.set_encoding(snapshot::v1::ENCODING_INT8);
      break;
    case v1::COMPACT_ENCODING_FP8:
      compact.set_encoding(snapshot::v1::ENCODING_FP8_E4M3);
      break;
    default:
      return status::InvalidField("encoding", "must be int8 or fp8");
  }
  compact.set_drop_older_snapshots(request.drop_older_snapshots());
  if (!request.has_memory_policy() && request.encoding() == v1::COMPACT_ENCODING_UNSPECIFIED &&
      !request.drop_older_snapshots()) {
    return status::InvalidField(
        "memory_policy", "nor encoding nor drop_older_snapshots is given: there is nothing to do");
  }
  ASSIGN_OR_RETURN(const mv1::CompactSessionResponse made,
                   store->Compact(compact, caller.context,
                                  std::min(caller.deadline, absl::Now() + kCompactTimeout)));
  // What executors have is larger than what is stored now, and of chunks that may be gone: the next
  // turn begins with what is stored.
  ForgetMemory(caller.tenant, request.session_id(), caller);
  v1::CompactSessionResponse response;
  *response.mutable_session() = ToPublic(made.session());
  response.set_kv_bytes_before(made.kv_bytes_before());
  response.set_kv_bytes_after(made.kv_bytes_after());
  response.set_entries_before(made.entries_before());
  response.set_entries_after(made.entries_after());
  response.set_snapshots_dropped(made.snapshots_dropped());
  return response;
}

absl::StatusOr<v1::DescribeSessionResponse> SessionDirectory::Describe(
    const v1::DescribeSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  mv1::DescribeSessionRequest describe;
  describe.set_tenant(caller.tenant);
  describe.set_session_id(request.session_id());
  ASSIGN_OR_RETURN(const mv1::DescribeSessionResponse found,
                   store->Describe(describe, caller.context));
  v1::DescribeSessionResponse response;
  *response.mutable_session() = ToPublic(found.session());
  for (const auto& version : found.versions()) {
    v1::DescribeSessionResponse::Version& shown = *response.add_versions();
    shown.set_version(version.version());
    shown.set_committed_unix_ms(version.committed_unix_ms());
    shown.set_num_tokens(version.num_tokens());
    shown.set_snapshot_tokens(version.snapshot_tokens());
    shown.set_snapshot_bytes(version.snapshot_bytes());
    shown.set_own_bytes(version.own_bytes());
    shown.set_request_id(version.request_id());
  }
  *response.mutable_bytes_by_tier() = found.bytes_by_tier();
  response.set_shared_bytes(found.shared_bytes());
  *response.mutable_shares_with() = found.shares_with();
  response.set_busy(found.leased());
  response.set_executor(found.executor());
  return response;
}

absl::StatusOr<v1::UpdateSessionResponse> SessionDirectory::Update(
    const v1::UpdateSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  RETURN_IF_ERROR(CheckTitle(request.title()));
  RETURN_IF_ERROR(CheckTtl(request.ttl_seconds()));
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy()));
  mv1::UpdateSessionRequest update;
  update.set_tenant(caller.tenant);
  update.set_session_id(request.session_id());
  if (request.has_title()) update.set_title(request.title());
  if (request.has_ttl_seconds()) update.set_ttl_seconds(request.ttl_seconds());
  if (request.has_pinned()) update.set_pinned(request.pinned());
  if (request.has_memory_policy()) *update.mutable_memory_policy() = request.memory_policy();
  ASSIGN_OR_RETURN(const mv1::UpdateSessionResponse updated, store->Update(update, caller.context));
  v1::UpdateSessionResponse response;
  *response.mutable_session() = ToPublic(updated.session());
  return response;
}

absl::StatusOr<SessionDirectory::CommittedTurn> SessionDirectory::FindTurn(
    const std::string& session_id, uint64_t version, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(session_id));
  mv1::DescribeSessionRequest describe;
  describe.set_tenant(caller.tenant);
  describe.set_session_id(session_id);
  ASSIGN_OR_RETURN(const mv1::DescribeSessionResponse found,
                   store->Describe(describe, caller.context));
  for (const auto& each : found.versions()) {
    if (each.version() != version || each.request_id().empty()) continue;
    CommittedTurn committed;
    committed.session = ToPublic(found.session());
    ASSIGN_OR_RETURN(committed.turn,
                     store->FindTurn(caller.tenant, session_id, each.request_id(), caller.context));
    return committed;
  }
  return absl::NotFoundError(absl::StrCat("no such version: ", version));
}

absl::StatusOr<v1::ForgetTenantResponse> SessionDirectory::ForgetTenant(
    const v1::ForgetTenantRequest& request, const Caller& caller) const {
  if (!caller.admin) {
    return absl::PermissionDeniedError("only a key of an administrator may forget a tenant");
  }
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  if (!trace::IsIdentifier(request.tenant())) {
    return status::InvalidField("tenant", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  mv1::ForgetTenantRequest forget;
  forget.set_tenant(request.tenant());
  ASSIGN_OR_RETURN(const mv1::ForgetTenantResponse forgotten,
                   store->ForgetTenant(forget, caller.context));
  ForgetMemory(request.tenant(), "", caller);
  v1::ForgetTenantResponse response;
  response.set_sessions(forgotten.sessions());
  return response;
}

absl::StatusOr<std::unique_ptr<SessionExport>> SessionDirectory::Export(
    const v1::ExportSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  RETURN_IF_ERROR(CheckId(request.session_id()));
  mv1::ExportSessionRequest write;
  write.set_tenant(caller.tenant);
  write.set_session_id(request.session_id());
  write.set_without_snapshot(request.without_snapshot());
  return store->Export(write, caller.context,
                       std::min(caller.deadline, absl::Now() + kTransferTimeout));
}

absl::StatusOr<std::unique_ptr<SessionImport>> SessionDirectory::Import(
    const v1::ImportSessionRequest::Header& header, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  if (!header.session_id().empty()) RETURN_IF_ERROR(CheckId(header.session_id()));
  mv1::ImportSessionRequest::Header to;
  to.set_tenant(caller.tenant);
  to.set_session_id(header.session_id());
  return store->Import(to, caller.context,
                       std::min(caller.deadline, absl::Now() + kTransferTimeout));
}

absl::StatusOr<v1::ImportSessionResponse> SessionDirectory::Finish(SessionImport& transfer) {
  ASSIGN_OR_RETURN(const mv1::ImportSessionResponse made, transfer.Finish());
  v1::ImportSessionResponse response;
  *response.mutable_session() = ToPublic(made.session());
  return response;
}

}  // namespace mneme::gateway
