#include "services/gateway/session_store.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log/log.h"
#include "common/rpc/client.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/upstream_call.h"

namespace mneme::gateway {
namespace {

namespace mv1 = memory::v1;

constexpr absl::string_view kService = "memory";
constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr absl::Duration kReleaseTimeout = absl::Seconds(2);

std::string LateKey(const std::string& tenant, const std::string& session_id,
                    const std::string& request_id) {
  return absl::StrCat(tenant, "/", session_id, "/", request_id);
}

std::string LateKey(const mv1::CommitTurnRequest& commit) {
  return LateKey(commit.tenant(), commit.session_id(), commit.turn().request_id());
}

}  // namespace

SessionStore::SessionStore(const std::string& address, const Options& options)
    : options_(options),
      holder_(absl::StrCat("gateway-", trace::RandomHex(12))),
      stub_(mv1::MemoryService::NewStub(rpc::ConnectTo(address))),
      renewer_([this](std::stop_token stop) { RenewLoop(stop); }),
      late_committer_([this](std::stop_token stop) { CommitLoop(stop); }) {}

SessionStore::~SessionStore() {
  {
    sync::MutexLock lock(mutex_);
    late_committer_.request_stop();
    changed_.NotifyAll();
  }
  late_committer_.join();
  std::list<LateCommit> lost;
  {
    sync::MutexLock lock(mutex_);
    lost.swap(late_);
  }
  for (LateCommit& late : lost) {
    log::Error("a turn that was answered is lost: the gateway ends before the store is back",
               {{"request_id", late.lease->request_.request_id}});
    late.lease->released_ = true;  // nobody would answer
  }
  lost.clear();
  {
    sync::MutexLock lock(mutex_);
    renewer_.request_stop();
    changed_.NotifyAll();
  }
  renewer_.join();
}

absl::Duration SessionStore::BusyPause(const absl::Status& status) {
  if (!absl::IsFailedPrecondition(status) ||
      status::PayloadOf(status, status::kReasonPayload) != "SESSION_BUSY") {
    return absl::ZeroDuration();
  }
  return absl::Milliseconds(100);
}

absl::StatusOr<SessionStore::Opened> SessionStore::TryOpen(const mv1::AcquireLeaseRequest& acquire,
                                                           const trace::RequestContext& request,
                                                           absl::Time deadline) {
  mv1::AcquireLeaseRequest call = acquire;
  call.set_holder(holder_);
  call.set_ttl_ms(absl::ToInt64Milliseconds(options_.lease_ttl));
  Opened opened;
  RETURN_IF_ERROR(CallUpstream(kService, request, deadline, options_.unavailable_patience,
                               [&](grpc::ClientContext* context) {
                                 return stub_->AcquireLease(context, call, &opened.state);
                               }));
  if (opened.state.has_committed()) return opened;
  opened.lease.reset(
      new Lease(*this, call.tenant(), call.session_id(), opened.state.lease_token(), request));
  sync::MutexLock lock(mutex_);
  leases_.insert(opened.lease.get());
  return opened;
}

SessionStore::Lease::~Lease() {
  {
    sync::MutexLock lock(store_.mutex_);
    store_.leases_.erase(this);
    while (store_.renewing_ == this) store_.changed_.Wait(store_.mutex_);
  }
  if (released_ || lost_) return;
  mv1::ReleaseLeaseRequest release;
  release.set_tenant(tenant_);
  release.set_session_id(session_id_);
  release.set_lease_token(token_);
  mv1::ReleaseLeaseResponse response;
  const absl::Status status =
      CallUpstream(kService, request_, absl::Now() + kReleaseTimeout, kReleaseTimeout,
                   [&](grpc::ClientContext* context) {
                     return store_.stub_->ReleaseLease(context, release, &response);
                   });
  if (!status.ok()) {
    log::Warning("a lease was not given back and will run out",
                 {{"request_id", request_.request_id}, {"error", std::string(status.message())}});
  }
}

absl::StatusOr<mv1::CommitTurnResponse> SessionStore::Lease::Commit(
    mv1::CommitTurnRequest* commit) {
  commit->set_tenant(tenant_);
  commit->set_session_id(session_id_);
  commit->set_lease_token(token_);
  commit->set_release(true);
  return Commit(*commit, store_.options_.commit_patience);
}

absl::StatusOr<mv1::CommitTurnResponse> SessionStore::Lease::Commit(
    const mv1::CommitTurnRequest& commit, absl::Duration patience) {
  mv1::CommitTurnResponse response;
  absl::Status status = TryCommit(commit, patience, &response);
  // While the store was away, the lease may have run out; renewing it says whether the session is
  // still as the turn has left it.
  if (absl::IsAborted(status) &&
      status::PayloadOf(status, status::kReasonPayload) == "LEASE_LOST" && !lost_ &&
      store_.Renew(*this).ok()) {
    status = TryCommit(commit, patience, &response);
  }
  RETURN_IF_ERROR(status);
  released_ = true;
  return response;
}

absl::Status SessionStore::Lease::TryCommit(const mv1::CommitTurnRequest& commit,
                                            absl::Duration patience,
                                            mv1::CommitTurnResponse* response) {
  // The request id makes a commit whose answer was lost harmless to repeat.
  return CallUpstream(kService, request_, absl::Now() + patience, patience,
                      [&](grpc::ClientContext* context) {
                        return store_.stub_->CommitTurn(context, commit, response);
                      });
}

bool SessionStore::CommitLater(std::unique_ptr<Lease> lease, mv1::CommitTurnRequest commit) {
  sync::MutexLock lock(mutex_);
  if (num_late_ >= options_.max_late_commits || late_committer_.get_stop_token().stop_requested()) {
    return false;
  }
  ++num_late_;
  late_requests_.insert(LateKey(commit));
  late_.push_back(
      {std::move(lease), std::move(commit), absl::Now() + options_.late_commit_patience});
  changed_.NotifyAll();
  return true;
}

void SessionStore::AwaitLateCommit(const std::string& tenant, const std::string& session_id,
                                   const std::string& request_id, absl::Time deadline) {
  const std::string key = LateKey(tenant, session_id, request_id);
  const absl::Duration patience = std::min(options_.unavailable_patience, deadline - absl::Now());
  const auto until = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(patience);
  sync::MutexLock lock(mutex_);
  while (late_requests_.contains(key) && std::chrono::steady_clock::now() < until &&
         !late_committer_.get_stop_token().stop_requested()) {
    changed_.WaitUntil(mutex_, until);
  }
}

bool SessionStore::TryLateCommit(LateCommit& late) {
  // A lease that ran out meanwhile takes no commit.
  absl::Status status = Renew(*late.lease);
  if (status.ok()) status = late.lease->Commit(late.commit, options_.renew_interval).status();
  const std::string& request_id = late.lease->request_.request_id;
  if (status.ok()) {
    log::Info("a turn that was answered before is committed", {{"request_id", request_id}});
    return true;
  }
  const bool away = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
  if (away && absl::Now() < late.give_up) return false;
  log::Error("a turn that was answered is lost",
             {{"request_id", request_id}, {"error", std::string(status.message())}});
  return true;
}

void SessionStore::CommitLoop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    std::list<LateCommit> due;
    {
      sync::MutexLock lock(mutex_);
      while (!stop.stop_requested() && late_.empty()) changed_.Wait(mutex_);
      due.swap(late_);
    }
    for (auto late = due.begin(); late != due.end() && !stop.stop_requested();) {
      if (!TryLateCommit(*late)) {
        ++late;
        continue;
      }
      const std::string key = LateKey(late->commit);
      late = due.erase(late);
      sync::MutexLock lock(mutex_);
      late_requests_.erase(late_requests_.find(key));
      changed_.NotifyAll();
    }
    const auto until = std::chrono::steady_clock::now() +
                       absl::ToChronoMilliseconds(options_.late_commit_interval);
    sync::MutexLock lock(mutex_);
    late_.splice(late_.begin(), due);
    num_late_ = late_.size();
    while (!stop.stop_requested() && std::chrono::steady_clock::now() < until) {
      changed_.WaitUntil(mutex_, until);
    }
  }
}

absl::Status SessionStore::Renew(Lease& lease) {
  mv1::RenewLeaseRequest renew;
  renew.set_tenant(lease.tenant_);
  renew.set_session_id(lease.session_id_);
  renew.set_lease_token(lease.token_);
  renew.set_ttl_ms(absl::ToInt64Milliseconds(options_.lease_ttl));
  mv1::RenewLeaseResponse response;
  const absl::Status status = CallUpstream(
      kService, lease.request_, absl::Now() + options_.renew_interval, absl::ZeroDuration(),
      [&](grpc::ClientContext* context) { return stub_->RenewLease(context, renew, &response); });
  // Anything else than a clear refusal is tried again at the next round.
  if (absl::IsAborted(status) || absl::IsNotFound(status)) lease.lost_ = true;
  if (!status.ok()) {
    log::Warning("a lease was not renewed", {{"request_id", lease.request_.request_id},
                                             {"error", std::string(status.message())}});
  }
  return status;
}

void SessionStore::RenewLoop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const auto until =
        std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(options_.renew_interval);
    std::set<Lease*> due;
    {
      sync::MutexLock lock(mutex_);
      while (!stop.stop_requested() && std::chrono::steady_clock::now() < until) {
        changed_.WaitUntil(mutex_, until);
      }
      due = leases_;
    }
    for (Lease* lease : due) {
      if (stop.stop_requested()) return;
      {
        sync::MutexLock lock(mutex_);
        if (leases_.count(lease) == 0) continue;  // given back meanwhile
        renewing_ = lease;
      }
      if (!lease->lost_) Renew(*lease).IgnoreError();
      sync::MutexLock lock(mutex_);
      renewing_ = nullptr;
      changed_.NotifyAll();
    }
  }
}

template <typename Request, typename Response>
absl::StatusOr<Response> SessionStore::Call(grpc::Status (mv1::MemoryService::Stub::*method)(
                                                grpc::ClientContext*, const Request&, Response*),
                                            const Request& request,
                                            const trace::RequestContext& context) {
  Response response;
  RETURN_IF_ERROR(CallUpstream(
      kService, context, absl::Now() + kCallTimeout, options_.unavailable_patience,
      [&](grpc::ClientContext* call) { return (stub_.get()->*method)(call, request, &response); }));
  return response;
}

absl::StatusOr<mv1::CreateSessionResponse> SessionStore::Create(
    const mv1::CreateSessionRequest& create, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::CreateSession, create, request);
}

absl::StatusOr<mv1::GetSessionResponse> SessionStore::Get(const mv1::GetSessionRequest& get,
                                                          const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::GetSession, get, request);
}

absl::StatusOr<mv1::ListSessionsResponse> SessionStore::List(const mv1::ListSessionsRequest& list,
                                                             const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::ListSessions, list, request);
}

absl::StatusOr<mv1::DeleteSessionResponse> SessionStore::Delete(
    const mv1::DeleteSessionRequest& remove, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::DeleteSession, remove, request);
}

absl::StatusOr<mv1::ForkSessionResponse> SessionStore::Fork(const mv1::ForkSessionRequest& fork,
                                                            const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::ForkSession, fork, request);
}

absl::StatusOr<mv1::RewindSessionResponse> SessionStore::Rewind(
    const mv1::RewindSessionRequest& rewind, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::RewindSession, rewind, request);
}

absl::StatusOr<mv1::CompactSessionResponse> SessionStore::Compact(
    const mv1::CompactSessionRequest& compact, const trace::RequestContext& request,
    absl::Time deadline) {
  mv1::CompactSessionResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, deadline, options_.unavailable_patience,
      [&](grpc::ClientContext* call) { return stub_->CompactSession(call, compact, &response); }));
  return response;
}

absl::StatusOr<mv1::DescribeSessionResponse> SessionStore::Describe(
    const mv1::DescribeSessionRequest& describe, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::DescribeSession, describe, request);
}

absl::StatusOr<mv1::UpdateSessionResponse> SessionStore::Update(
    const mv1::UpdateSessionRequest& update, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::UpdateSession, update, request);
}

absl::StatusOr<mv1::ForgetTenantResponse> SessionStore::ForgetTenant(
    const mv1::ForgetTenantRequest& forget, const trace::RequestContext& request) {
  return Call(&mv1::MemoryService::Stub::ForgetTenant, forget, request);
}

absl::StatusOr<mv1::Turn> SessionStore::FindTurn(const std::string& tenant,
                                                 const std::string& session_id,
                                                 const std::string& request_id,
                                                 const trace::RequestContext& request) {
  // Asking for the lease again is how a committed turn is looked up; what was rewound meanwhile
  // gives a lease, which the destructor gives back.
  mv1::AcquireLeaseRequest acquire;
  acquire.set_tenant(tenant);
  acquire.set_session_id(session_id);
  acquire.set_request_id(request_id);
  ASSIGN_OR_RETURN(Opened opened, TryOpen(acquire, request, absl::Now() + kCallTimeout));
  if (opened.lease == nullptr) return std::move(*opened.state.mutable_committed());
  return absl::NotFoundError("the turn is not there any more");
}

std::unique_ptr<SessionExport> SessionStore::Export(const mv1::ExportSessionRequest& request,
                                                    const trace::RequestContext& context,
                                                    absl::Time deadline) {
  return std::make_unique<SessionExport>(*stub_, request, context, deadline);
}

std::unique_ptr<SessionImport> SessionStore::Import(const mv1::ImportSessionRequest::Header& header,
                                                    const trace::RequestContext& context,
                                                    absl::Time deadline) {
  return std::make_unique<SessionImport>(*stub_, header, context, deadline);
}

}  // namespace mneme::gateway
