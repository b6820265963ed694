#include "services/gateway/session_store.h"

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

}  // namespace

SessionStore::SessionStore(const std::string& address, const Options& options)
    : options_(options),
      holder_(absl::StrCat("gateway-", trace::RandomHex(12))),
      stub_(mv1::MemoryService::NewStub(rpc::ConnectTo(address))),
      renewer_([this](std::stop_token stop) { RenewLoop(stop); }) {}

SessionStore::~SessionStore() {
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

absl::StatusOr<uint64_t> SessionStore::Lease::Commit(uint64_t parent_version, mv1::Turn turn) {
  mv1::CommitTurnRequest commit;
  commit.set_tenant(tenant_);
  commit.set_session_id(session_id_);
  commit.set_lease_token(token_);
  commit.set_parent_version(parent_version);
  *commit.mutable_turn() = std::move(turn);
  commit.set_release(true);
  mv1::CommitTurnResponse response;
  const absl::Duration patience = store_.options_.commit_patience;
  // The request id makes a commit whose answer was lost harmless to repeat.
  RETURN_IF_ERROR(CallUpstream(kService, request_, absl::Now() + patience, patience,
                               [&](grpc::ClientContext* context) {
                                 return store_.stub_->CommitTurn(context, commit, &response);
                               }));
  released_ = true;
  return response.version();
}

void SessionStore::Renew(Lease& lease) {
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
      if (!lease->lost_) Renew(*lease);
      sync::MutexLock lock(mutex_);
      renewing_ = nullptr;
      changed_.NotifyAll();
    }
  }
}

absl::StatusOr<mv1::CreateSessionResponse> SessionStore::Create(
    const mv1::CreateSessionRequest& create, const trace::RequestContext& request) {
  mv1::CreateSessionResponse response;
  RETURN_IF_ERROR(CallUpstream(kService, request, absl::Now() + kCallTimeout,
                               options_.unavailable_patience, [&](grpc::ClientContext* context) {
                                 return stub_->CreateSession(context, create, &response);
                               }));
  return response;
}

absl::StatusOr<mv1::GetSessionResponse> SessionStore::Get(const mv1::GetSessionRequest& get,
                                                          const trace::RequestContext& request) {
  mv1::GetSessionResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, absl::Now() + kCallTimeout, options_.unavailable_patience,
      [&](grpc::ClientContext* context) { return stub_->GetSession(context, get, &response); }));
  return response;
}

absl::StatusOr<mv1::ListSessionsResponse> SessionStore::List(const mv1::ListSessionsRequest& list,
                                                             const trace::RequestContext& request) {
  mv1::ListSessionsResponse response;
  RETURN_IF_ERROR(CallUpstream(
      kService, request, absl::Now() + kCallTimeout, options_.unavailable_patience,
      [&](grpc::ClientContext* context) { return stub_->ListSessions(context, list, &response); }));
  return response;
}

absl::Status SessionStore::Delete(const mv1::DeleteSessionRequest& remove,
                                  const trace::RequestContext& request) {
  mv1::DeleteSessionResponse response;
  return CallUpstream(kService, request, absl::Now() + kCallTimeout, options_.unavailable_patience,
                      [&](grpc::ClientContext* context) {
                        return stub_->DeleteSession(context, remove, &response);
                      });
}

}  // namespace mneme::gateway
