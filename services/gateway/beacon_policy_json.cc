#include "services/gateway/beacon_policy_json.h"

#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mneme::gateway {
namespace {

using Beacon = inference::v1::MemoryPolicy::Beacon;

constexpr int64_t kMost = int64_t{1} << 24;  // the executor's own bound

}  // namespace

void ReadBeacon(JsonFields& fields, Beacon* beacon) {
  const Json* const ratios = fields.Array("ratios");
  if (ratios == nullptr || ratios->empty()) {
    fields.Fail("ratios", "must be given: one ratio, or several to be used in turn");
    return;
  }
  for (const Json& ratio : *ratios) {
    if (!ratio.is_number_integer() || ratio < 0 || ratio > kMost) {
      fields.Fail("ratios", absl::StrCat("must be whole numbers from 0 to ", kMost));
      return;
    }
    beacon->add_ratios(ratio.get<int32_t>());
  }
  beacon->set_window(static_cast<int32_t>(fields.Integer("window", 1, kMost).value_or(0)));
  if (const auto sinks = fields.Integer("sinks", 0, kMost)) {
    beacon->set_sinks(static_cast<int32_t>(*sinks));
  }
  beacon->set_max_beacons(
      static_cast<int32_t>(fields.Integer("max_beacons", 0, kMost).value_or(0)));
  const std::string mix = fields.String("mix").value_or("in-turn");
  if (mix == "step-random") {
    beacon->set_mix(Beacon::MIX_STEP_RANDOM);
  } else if (mix == "instance-random") {
    beacon->set_mix(Beacon::MIX_INSTANCE_RANDOM);
  } else if (mix != "in-turn") {
    fields.Fail("mix", "must be \"in-turn\", \"step-random\" or \"instance-random\"");
  }
  if (const std::optional<uint64_t> seed = fields.Seed("seed")) beacon->set_seed(*seed);
}

void AppendBeacon(const Beacon& beacon, std::string* out) {
  absl::StrAppend(out, "{\"type\":\"beacon\",\"ratios\":[", absl::StrJoin(beacon.ratios(), ","),
                  "]");
  if (beacon.window() != 0) absl::StrAppend(out, ",\"window\":", beacon.window());
  if (beacon.has_sinks()) absl::StrAppend(out, ",\"sinks\":", beacon.sinks());
  if (beacon.max_beacons() != 0) absl::StrAppend(out, ",\"max_beacons\":", beacon.max_beacons());
  if (beacon.mix() == Beacon::MIX_STEP_RANDOM) *out += ",\"mix\":\"step-random\"";
  if (beacon.mix() == Beacon::MIX_INSTANCE_RANDOM) *out += ",\"mix\":\"instance-random\"";
  if (beacon.has_seed()) absl::StrAppend(out, ",\"seed\":", beacon.seed());
  *out += "}";
}

}  // namespace mneme::gateway
