#include "services/gateway/session_directory.h"

#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/request_checks.h"

namespace mneme::gateway {
namespace {

namespace mv1 = memory::v1;

constexpr int kMaxTitleBytes = 1024;

absl::Status CheckId(const std::string& id) {
  if (trace::IsIdentifier(id)) return absl::OkStatus();
  return status::InvalidField("session_id", "must match [A-Za-z0-9_.:-]{1,128}");
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
  return shown;
}

}  // namespace

absl::StatusOr<v1::CreateSessionResponse> SessionDirectory::Create(
    const v1::CreateSessionRequest& request, const Caller& caller) const {
  ASSIGN_OR_RETURN(SessionStore * store, core_.Sessions());
  if (!request.session_id().empty()) RETURN_IF_ERROR(CheckId(request.session_id()));
  if (!request.request_id().empty() && !trace::IsIdentifier(request.request_id())) {
    return status::InvalidField("request_id", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  if (request.title().size() > kMaxTitleBytes) {
    return status::InvalidField("title", "must have at most 1024 bytes");
  }
  RETURN_IF_ERROR(CheckMemoryPolicy(request.memory_policy()));
  mv1::CreateSessionRequest create;
  create.set_tenant(caller.tenant);
  create.set_session_id(request.session_id());
  ASSIGN_OR_RETURN(*create.mutable_model(), core_.executors().Resolve(request.model()));
  create.set_request_id(request.request_id());
  create.set_title(request.title());
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
  RETURN_IF_ERROR(store->Delete(remove, caller.context));
  return v1::DeleteSessionResponse();
}

}  // namespace mneme::gateway
