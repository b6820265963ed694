#include "services/gateway/memory_policy_json.h"

#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "services/gateway/beacon_policy_json.h"
#include "services/gateway/json_text.h"
#include "services/gateway/request_checks.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

constexpr int32_t kDefaultSinks = 4;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxBytes = int64_t{1} << 53;  // what JSON numbers hold exactly

int32_t ReadInt32(JsonFields& fields, const char* name, int64_t lowest) {
  return static_cast<int32_t>(fields.Integer(name, lowest, kMaxInt32).value_or(0));
}

// Gives `fields` an error of an object inside, or of what was read of it.
void PassOn(const absl::Status& error, JsonFields& fields, size_t path_size) {
  if (error.ok()) return;
  const std::string field = status::PayloadOf(error, status::kFieldPayload);
  fields.Fail(field.substr(path_size), error.message().substr(field.size() + 2));
}

void ReadBudget(JsonFields& fields, const std::string& path, iv1::MemoryPolicy::Budget* budget) {
  const Json* const object = fields.Object("budget");
  if (object == nullptr) {
    fields.Fail("budget", "must be given: {\"tokens\": …}, {\"bytes\": …} or {\"fraction\": …}");
    return;
  }
  JsonFields inner(*object, path + "budget.");
  int given = 0;
  if (const auto tokens = inner.Integer("tokens", 1, kMaxInt32)) {
    budget->set_tokens(*tokens);
    ++given;
  }
  if (const auto bytes = inner.Integer("bytes", 1, kMaxBytes)) {
    budget->set_bytes(*bytes);
    ++given;
  }
  if (const auto fraction = inner.Number("fraction")) {
    budget->set_fraction(*fraction);
    ++given;
  }
  PassOn(inner.status(), fields, path.size());
  if (given != 1) fields.Fail("budget", "must have one of tokens, bytes and fraction");
}

void AppendBudget(const iv1::MemoryPolicy::Budget& budget, std::string* out) {
  *out += ",\"budget\":{";
  if (budget.has_tokens()) absl::StrAppend(out, "\"tokens\":", budget.tokens());
  if (budget.has_bytes()) absl::StrAppend(out, "\"bytes\":", budget.bytes());
  if (budget.has_fraction()) {
    *out += "\"fraction\":";
    AppendJsonNumber(budget.fraction(), out);
  }
  *out += "}";
}

void ReadGuard(JsonFields& fields, const std::string& path, iv1::MemoryPolicy* policy) {
  const Json* const object = fields.Object("guard");
  if (object == nullptr) return;
  JsonFields inner(*object, path + "guard.");
  policy->mutable_guard()->set_max_kl(inner.Number("max_kl").value_or(0));
  policy->mutable_guard()->set_probe_every(ReadInt32(inner, "probe_every", 1));
  PassOn(inner.status(), fields, path.size());
}

// Zeros are defaults, and not written.
void AppendField(absl::string_view name, int64_t value, std::string* out) {
  if (value != 0) absl::StrAppend(out, ",\"", name, "\":", value);
}

void ReadWindow(JsonFields& fields, iv1::MemoryPolicy::Window* window) {
  window->set_sinks(
      static_cast<int32_t>(fields.Integer("sinks", 0, kMaxInt32).value_or(kDefaultSinks)));
  if (const auto recent = fields.Integer("recent", 1, kMaxInt32)) {
    window->set_recent(static_cast<int32_t>(*recent));
  } else {
    fields.Fail("recent", "must be given: how many of the last tokens are kept");
  }
}

void ReadNamm(JsonFields& fields, iv1::MemoryPolicy::Namm* namm) {
  if (const auto artifact = fields.String("artifact")) {
    namm->set_artifact(*artifact);
  } else {
    fields.Fail("artifact", "must be given: the name of a network that the executor has loaded");
  }
  namm->set_cache_size(ReadInt32(fields, "cache_size", 1));
  namm->set_delay(ReadInt32(fields, "delay", 1));
  if (const auto threshold = fields.Number("threshold")) {
    namm->set_threshold(static_cast<float>(*threshold));
  }
}

}  // namespace

void ReadMemoryPolicy(JsonFields& fields, iv1::MemoryPolicy* policy) {
  const Json* const object = fields.Object("memory_policy");
  if (object == nullptr) return;
  const std::string path = "memory_policy.";
  JsonFields inner(*object, path);
  const std::string type = inner.String("type").value_or("");
  if (type == "full") {
    policy->mutable_full();
  } else if (type == "window") {
    ReadWindow(inner, policy->mutable_window());
  } else if (type == "h2o") {
    iv1::MemoryPolicy::H2o& h2o = *policy->mutable_h2o();
    ReadBudget(inner, path, h2o.mutable_budget());
    h2o.set_recent(ReadInt32(inner, "recent", 1));
    h2o.set_interval(ReadInt32(inner, "interval", 1));
  } else if (type == "snapkv") {
    iv1::MemoryPolicy::SnapKv& snapkv = *policy->mutable_snapkv();
    ReadBudget(inner, path, snapkv.mutable_budget());
    snapkv.set_window(ReadInt32(inner, "window", 1));
    snapkv.set_kernel_size(ReadInt32(inner, "kernel_size", 1));
    snapkv.set_interval(ReadInt32(inner, "interval", 1));
  } else if (type == "l2norm") {
    iv1::MemoryPolicy::L2Norm& l2norm = *policy->mutable_l2norm();
    ReadBudget(inner, path, l2norm.mutable_budget());
    if (const auto layers = inner.Integer("skip_layers", 0, kMaxInt32)) {
      l2norm.set_skip_layers(static_cast<int32_t>(*layers));
    }
    l2norm.set_interval(ReadInt32(inner, "interval", 1));
  } else if (type == "namm") {
    ReadNamm(inner, policy->mutable_namm());
  } else if (type == "beacon") {
    ReadBeacon(inner, policy->mutable_beacon());
  } else {
    inner.Fail(
        "type",
        "must be \"full\", \"window\", \"h2o\", \"snapkv\", \"l2norm\", \"namm\" or \"beacon\"");
  }
  if (const auto elastic = inner.Bool("elastic")) policy->set_elastic(*elastic);
  ReadGuard(inner, path, policy);
  PassOn(inner.status(), fields, 0);
  PassOn(CheckMemoryPolicy(*policy), fields, 0);
}

void AppendMemoryPolicy(const iv1::MemoryPolicy& policy, std::string* out) {
  switch (policy.policy_case()) {
    case iv1::MemoryPolicy::kFull:
      *out += "{\"type\":\"full\"";
      break;
    case iv1::MemoryPolicy::kWindow:
      absl::StrAppend(out, "{\"type\":\"window\",\"sinks\":", policy.window().sinks(),
                      ",\"recent\":", policy.window().recent());
      break;
    case iv1::MemoryPolicy::kH2O:
      *out += "{\"type\":\"h2o\"";
      AppendBudget(policy.h2o().budget(), out);
      AppendField("recent", policy.h2o().recent(), out);
      AppendField("interval", policy.h2o().interval(), out);
      break;
    case iv1::MemoryPolicy::kSnapkv:
      *out += "{\"type\":\"snapkv\"";
      AppendBudget(policy.snapkv().budget(), out);
      AppendField("window", policy.snapkv().window(), out);
      AppendField("kernel_size", policy.snapkv().kernel_size(), out);
      AppendField("interval", policy.snapkv().interval(), out);
      break;
    case iv1::MemoryPolicy::kL2Norm:
      *out += "{\"type\":\"l2norm\"";
      AppendBudget(policy.l2norm().budget(), out);
      if (policy.l2norm().has_skip_layers()) {
        absl::StrAppend(out, ",\"skip_layers\":", policy.l2norm().skip_layers());
      }
      AppendField("interval", policy.l2norm().interval(), out);
      break;
    case iv1::MemoryPolicy::kNamm:
      *out += "{\"type\":\"namm\",\"artifact\":";
      AppendJsonString(policy.namm().artifact(), out);
      AppendField("cache_size", policy.namm().cache_size(), out);
      AppendField("delay", policy.namm().delay(), out);
      if (policy.namm().has_threshold()) {
        *out += ",\"threshold\":";
        AppendJsonNumber(policy.namm().threshold(), out);
      }
      break;
    case iv1::MemoryPolicy::kBeacon:
      AppendBeacon(policy.beacon(), out);
      return;
    case iv1::MemoryPolicy::POLICY_NOT_SET:
      *out += "null";
      return;
  }
  if (policy.has_guard()) {
    *out += ",\"guard\":{\"max_kl\":";
    AppendJsonNumber(policy.guard().max_kl(), out);
    AppendField("probe_every", policy.guard().probe_every(), out);
    *out += "}";
  }
  if (policy.has_elastic()) {
    absl::StrAppend(out, ",\"elastic\":", policy.elastic() ? "true" : "false");
  }
  *out += "}";
}

}  // namespace mneme::gateway
