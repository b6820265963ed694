#include "common/weights/beacon_config.h"

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status/status_macros.h"
#include "common/weights/strict_json.h"

namespace mneme::weights {
namespace {

using nlohmann::json;

constexpr int kMaxConfigDepth = 32;
constexpr int64_t kMaxWindow = int64_t{1} << 24;

absl::Status Wrong(absl::string_view key, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", key, " must be ", wanted));
}

// Reads keys of one object into fields; the first error is kept.
class Reader {
 public:
  explicit Reader(const json& object) : object_(object) {}

  void Int(const char* key, int64_t min, int64_t max, int64_t* value) {
    const json* const found = Find(key);
    if (found == nullptr) return;
    if (!found->is_number_integer() || *found < min || *found > max) {
      return Fail(Wrong(key, absl::StrCat("a whole number from ", min, " to ", max)));
    }
    *value = found->get<int64_t>();
  }

  void Bool(const char* key, bool* value) {
    const json* const found = Find(key);
    if (found == nullptr) return;
    if (!found->is_boolean()) return Fail(Wrong(key, "true or false"));
    *value = found->get<bool>();
  }

  // A whole number or a list of them.
  void Ints(const char* key, int64_t min, int64_t max, std::vector<int64_t>* values) {
    const json* const found = Find(key);
    if (found == nullptr) return;
    const json list = found->is_array() ? *found : json::array({*found});
    values->clear();
    for (const json& item : list) {
      if (!item.is_number_integer() || item < min || item > max) {
        return Fail(Wrong(key, absl::StrCat("whole numbers from ", min, " to ", max)));
      }
      values->push_back(item.get<int64_t>());
    }
  }

  std::string Text(const char* key, const char* missing) {
    const json* const found = Find(key);
    if (found == nullptr) return missing;
    if (!found->is_string()) {
      Fail(Wrong(key, "text"));
      return missing;
    }
    return found->get<std::string>();
  }

  const json* Find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void Fail(absl::Status status) { status_.Update(std::move(status)); }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

void ReadMix(Reader& reader, BeaconConfig& config) {
  const std::string mix = reader.Text("beacon_ratio_mix", "step-random");
  absl::string_view reserve = mix;
  if (mix == "step-random") {
    config.mix = BeaconRatioMix::kStepRandom;
  } else if (mix == "instance-random") {
    config.mix = BeaconRatioMix::kInstanceRandom;
  } else if (mix == "sequence") {
    config.mix = BeaconRatioMix::kSequence;
  } else if (absl::ConsumePrefix(&reserve, "adapt-") &&
             absl::SimpleAtoi(reserve, &config.adapt_reserve) && config.adapt_reserve >= 0) {
    config.mix = BeaconRatioMix::kAdapt;
  } else {
    reader.Fail(
        Wrong("beacon_ratio_mix", "step-random, instance-random, sequence or adapt-<tokens>"));
  }
}

void ReadParams(Reader& reader, BeaconConfig& config) {
  const json* const params = reader.Find("beacon_param");
  if (params == nullptr) return;
  const json list = params->is_array() ? *params : json::array({*params});
  for (const json& item : list) {
    bool* const has = item == "q"   ? &config.has_q
                      : item == "k" ? &config.has_k
                      : item == "v" ? &config.has_v
                      : item == "o" ? &config.has_o
                                    : nullptr;
    if (has == nullptr) return reader.Fail(Wrong("beacon_param", "some of q, k, v and o"));
    *has = true;
  }
}

}  // namespace

absl::StatusOr<std::optional<BeaconConfig>> ParseBeaconConfig(absl::string_view config_json) {
  ASSIGN_OR_RETURN(const json object, ParseStrictJson(config_json, kMaxConfigDepth));
  if (!object.is_object()) return absl::InvalidArgumentError("config.json: not a JSON object");
  bool has_any = false;
  for (const auto& [key, value] : object.items()) has_any |= absl::StartsWith(key, "beacon_");
  if (!has_any) return std::optional<BeaconConfig>();

  BeaconConfig config;
  Reader reader(object);
  reader.Int("beacon_window", 1, kMaxWindow, &config.window);
  config.stride = config.window;
  reader.Int("beacon_stride", 1, kMaxWindow, &config.stride);
  reader.Ints("beacon_ratio", 0, kMaxWindow, &config.ratios);
  ReadMix(reader, config);
  ReadParams(reader, config);
  reader.Bool("beacon_attend_prev", &config.attend_previous);
  reader.Int("beacon_sink_size", 0, kMaxWindow, &config.sink_size);
  reader.Int("beacon_parallel_window", 1, 1024, &config.parallel_windows);

  const std::string placement = reader.Text("beacon_pos", "interleave");
  if (placement == "append") {
    config.placement = BeaconPlacement::kAppend;
  } else if (placement != "interleave") {
    reader.Fail(Wrong("beacon_pos", "interleave or append"));
  }
  const std::string attention = reader.Text("beacon_attn", "full-coverage");
  if (attention == "step-expansion") {
    config.attention = BeaconAttention::kStepExpansion;
  } else if (attention == "segmentation") {
    reader.Fail(absl::UnimplementedError("config.json: beacon_attn segmentation is not supported"));
  } else if (attention != "full-coverage") {
    reader.Fail(Wrong("beacon_attn", "full-coverage or step-expansion"));
  }
  const std::string init = reader.Text("beacon_embed_init", "eos");
  if (init == "bos") {
    config.embed_init = BeaconEmbedInit::kBos;
  } else if (init != "eos") {
    reader.Fail(Wrong("beacon_embed_init", "eos or bos"));
  }
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(CheckBeaconConfig(config));
  return std::optional(std::move(config));
}

absl::Status CheckBeaconConfig(const BeaconConfig& config) {
  if (config.stride != config.window) {
    return absl::UnimplementedError(
        absl::StrCat("a beacon stride other than the window is not supported: stride ",
                     config.stride, ", window ", config.window));
  }
  if (config.ratios.empty()) return absl::InvalidArgumentError("no beacon ratio is given");
  if (config.parallel_windows == 1) return absl::OkStatus();
  if (config.placement != BeaconPlacement::kInterleave ||
      config.attention != BeaconAttention::kFullCoverage) {
    return absl::UnimplementedError(
        "parallel beacon windows need interleaved beacons with full coverage");
  }
  for (const int64_t ratio : config.ratios) {
    if (ratio == 0) {
      return absl::InvalidArgumentError("parallel beacon windows can't have the ratio 0");
    }
  }
  return absl::OkStatus();
}

}  // namespace mneme::weights
