#include "services/memory/family_directory.h"

#include "absl/strings/str_cat.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

using redis::Reply;

constexpr size_t kMaxRemembered = 100'000;

void Borrow(const std::vector<std::string>& words, std::vector<redis::Argument>* arguments) {
  arguments->reserve(arguments->size() + words.size());
  for (const std::string& word : words) arguments->push_back(redis::Argument::Borrow(word));
}

}  // namespace

absl::string_view Word(const Reply& reply) {
  return reply.elements().empty() ? absl::string_view() : reply.elements()[0].text();
}

absl::StatusOr<int64_t> Number(const Reply& reply, size_t i) {
  if (i >= reply.elements().size()) return absl::InternalError("a script's answer is too short");
  return reply.elements()[i].Integer();
}

std::string FamilyDirectory::IndexKey(absl::string_view tenant) {
  return absl::StrCat("mneme:2:{", tenant, "}:sessions");
}

std::string FamilyDirectory::FamiliesKey(absl::string_view tenant) {
  return absl::StrCat("mneme:2:{", tenant, "}:families");
}

std::string FamilyDirectory::UsageKey(absl::string_view tenant) {
  return absl::StrCat("mneme:2:{", tenant, "}:usage");
}

std::vector<std::string> FamilyDirectory::TenantKeysOf(absl::string_view tenant) {
  return {IndexKey(tenant), FamiliesKey(tenant), UsageKey(tenant)};
}

absl::StatusOr<Reply> FamilyDirectory::Eval(const redis::Script& script,
                                            const std::vector<std::string>& keys,
                                            const std::vector<redis::Argument>& arguments,
                                            absl::Time deadline) {
  absl::StatusOr<Reply> reply = client_.Eval(script, keys, arguments, deadline);
  if (!reply.ok()) redis_errors_.Increment();
  return reply;
}

absl::StatusOr<std::vector<Reply>> FamilyDirectory::RunPipeline(
    const std::vector<redis::Command>& commands, absl::Time deadline) {
  absl::StatusOr<std::vector<Reply>> replies = client_.RunPipeline(commands, deadline);
  absl::Status status = replies.status();
  if (replies.ok()) {
    for (const Reply& reply : *replies) status.Update(reply.status());
  }
  if (status.ok()) return replies;
  redis_errors_.Increment();
  return status;
}

absl::StatusOr<Reply> FamilyDirectory::RunIn(const Family& family, const redis::Script& script,
                                             const std::string& session_id,
                                             int64_t default_ttl_seconds,
                                             const Arguments& arguments, absl::Time deadline) {
  std::vector<redis::Argument> all = {redis::Argument::Borrow(family.key_id()),
                                      redis::Argument::Borrow(session_id),
                                      absl::StrCat(default_ttl_seconds)};
  Borrow(arguments, &all);
  return Eval(script, family.Keys(session_id), all, deadline);
}

absl::StatusOr<Reply> FamilyDirectory::RunOnFamily(const Family& family,
                                                   const redis::Script& script,
                                                   const Arguments& arguments,
                                                   absl::Time deadline) {
  std::vector<redis::Argument> all = {"*"};
  Borrow(arguments, &all);
  return Eval(script, family.Keys(), all, deadline);
}

absl::StatusOr<std::optional<Family>> FamilyDirectory::Find(const std::string& tenant,
                                                            const std::string& session_id,
                                                            bool again, absl::Time deadline) {
  std::string name;
  if (!again) {
    sync::MutexLock lock(mutex_);
    const auto known = families_.find({tenant, session_id});
    if (known != families_.end()) name = known->second;
  }
  if (name.empty()) {
    ASSIGN_OR_RETURN(const std::vector<Reply> replies,
                     RunPipeline({{"HGET", FamiliesKey(tenant), session_id}}, deadline));
    name = replies[0].text();
    Remember(tenant, session_id, name);
    if (name.empty()) return std::nullopt;
  }
  absl::StatusOr<std::shared_ptr<const TenantKey>> key = keys_.Find(tenant, again, deadline);
  if (absl::IsNotFound(key.status())) return std::nullopt;  // the tenant was forgotten
  RETURN_IF_ERROR(key.status());
  return Family(*std::move(key), tenant, name);
}

absl::StatusOr<Family> FamilyDirectory::FamilyOf(const std::string& tenant, const std::string& name,
                                                 absl::Time deadline) {
  ASSIGN_OR_RETURN(std::shared_ptr<const TenantKey> key,
                   keys_.Find(tenant, /*again=*/false, deadline));
  return Family(std::move(key), tenant, name);
}

void FamilyDirectory::Remember(const std::string& tenant, const std::string& session_id,
                               const std::string& family) {
  sync::MutexLock lock(mutex_);
  if (family.empty()) {
    families_.erase({tenant, session_id});
    return;
  }
  if (families_.size() >= kMaxRemembered) families_.clear();
  families_[{tenant, session_id}] = family;
}

absl::StatusOr<Family> FamilyDirectory::Claim(const std::string& tenant,
                                              const std::string& session_id,
                                              const std::optional<Family>& candidate,
                                              int64_t max_sessions, absl::Time deadline) {
  ASSIGN_OR_RETURN(std::shared_ptr<const TenantKey> key, keys_.FindOrMake(tenant, deadline));
  const std::string name = candidate.has_value() ? candidate->name() : NewFamilyName();
  ASSIGN_OR_RETURN(const Reply reply,
                   Eval(scripts_.claim, TenantKeysOf(tenant),
                        {session_id, name, absl::StrCat(max_sessions)}, deadline));
  if (Word(reply) == "full") return QuotaUsedUp("max_sessions", max_sessions);
  if (reply.elements().size() != 2) return absl::InternalError("a script's answer is too short");
  const std::string& family = reply.elements()[1].text();
  Remember(tenant, session_id, family);
  return Family(std::move(key), tenant, family);
}

absl::StatusOr<bool> FamilyDirectory::Touch(const std::string& tenant,
                                            const std::string& session_id,
                                            const std::string& family, const std::string& kv_bytes,
                                            absl::Time deadline) {
  ASSIGN_OR_RETURN(const Reply reply, Eval(scripts_.touch, TenantKeysOf(tenant),
                                           {session_id, family, kv_bytes}, deadline));
  return Word(reply) == "ok";
}

void FamilyDirectory::Unlink(const std::string& tenant, const std::vector<IndexEntry>& entries,
                             absl::Duration min_age, absl::Time deadline) {
  if (entries.empty()) return;
  std::vector<redis::Argument> arguments = {absl::StrCat(absl::ToInt64Microseconds(min_age))};
  for (const IndexEntry& entry : entries) {
    arguments.push_back(entry.session_id);
    arguments.push_back(entry.family);
    arguments.push_back(absl::StrCat(entry.order));
    Remember(tenant, entry.session_id, "");
  }
  Eval(scripts_.unlink, TenantKeysOf(tenant), arguments, deadline).IgnoreError();
}

}  // namespace mneme::memory
