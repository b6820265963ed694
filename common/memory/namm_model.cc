#include "common/memory/namm_model.h"

#include <ATen/Functions.h>
#include <openssl/sha.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/dequantize.h"
#include "common/weights/safetensors.h"
#include "common/weights/strict_json.h"
#include "common/weights/tensor_view.h"
#include "common/weights/torch_checkpoint.h"

namespace mneme::memory {
namespace {

using nlohmann::json;
using weights::TensorView;

constexpr int kJsonDepth = 8;

std::string MaskName(BamMask mask) {
  switch (mask) {
    case BamMask::kBackward:
      return "backward";
    case BamMask::kForward:
      return "forward";
    case BamMask::kNone:
      break;
  }
  return "none";
}

// Fields of a JSON object into variables; absent and null ones leave the default.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  absl::Status Integer(const char* name, int64_t* value) const {
    const json* const field = Find(name);
    if (field == nullptr) return absl::OkStatus();
    if (!field->is_number_integer()) return Wrong(name, "a whole number");
    *value = field->get<int64_t>();
    return absl::OkStatus();
  }
  absl::Status Number(const char* name, double* value) const {
    const json* const field = Find(name);
    if (field == nullptr) return absl::OkStatus();
    if (!field->is_number()) return Wrong(name, "a number");
    *value = field->get<double>();
    return absl::OkStatus();
  }
  absl::Status Truth(const char* name, bool* value) const {
    const json* const field = Find(name);
    if (field == nullptr) return absl::OkStatus();
    if (!field->is_boolean()) return Wrong(name, "true or false");
    *value = field->get<bool>();
    return absl::OkStatus();
  }
  absl::Status Mask(const char* name, BamMask* value) const {
    const json* const field = Find(name);
    if (field == nullptr) return absl::OkStatus();
    for (const BamMask mask : {BamMask::kBackward, BamMask::kForward, BamMask::kNone}) {
      if (*field != MaskName(mask)) continue;
      *value = mask;
      return absl::OkStatus();
    }
    return Wrong(name, "backward, forward or none");
  }

 private:
  const json* Find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  static absl::Status Wrong(const char* name, const char* expected) {
    return status::InvalidField(name, absl::StrCat("must be ", expected));
  }

  const json& object_;
};

absl::StatusOr<std::vector<float>> Floats(const TensorView* tensor, absl::string_view name) {
  if (tensor == nullptr) return absl::InvalidArgumentError(absl::StrCat("no tensor ", name));
  std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
  RETURN_IF_ERROR(weights::Dequantize(*tensor, absl::MakeSpan(values)));
  return values;
}

// From tensors mean, var and num under their names in a file; none of the first: empty.
template <typename File>
absl::StatusOr<FrequencyStatistics> ReadStatistics(const File& file, const std::string& mean,
                                                   const std::string& variance,
                                                   const std::string& count) {
  FrequencyStatistics statistics;
  if (file.FindTensor(mean) == nullptr) return statistics;
  ASSIGN_OR_RETURN(const std::vector<float> means, Floats(file.FindTensor(mean), mean));
  ASSIGN_OR_RETURN(const std::vector<float> variances, Floats(file.FindTensor(variance), variance));
  statistics.mean.assign(means.begin(), means.end());
  statistics.variance.assign(variances.begin(), variances.end());
  // Known to be measured, if not on how many tokens.
  statistics.count.assign(means.size(), 1);
  if (file.FindTensor(count) != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<float> counts, Floats(file.FindTensor(count), count));
    statistics.count.assign(counts.begin(), counts.end());
  }
  // A checkpoint written before anything was measured has zeros.
  if (statistics.count.empty() || statistics.count[0] == 0) return FrequencyStatistics();
  return statistics;
}

template <typename T>
TensorView ViewOf(std::string name, weights::TensorType type, const std::vector<T>& values) {
  return {.name = std::move(name),
          .type = type,
          .shape = {static_cast<int64_t>(values.size())},
          .data = reinterpret_cast<const uint8_t*>(values.data()),
          .size_bytes = values.size() * sizeof(T)};
}

template <typename T>
void AppendBytes(absl::Span<const T> values, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

absl::StatusOr<NammConfig> ParseNammConfig(absl::string_view text) {
  ASSIGN_OR_RETURN(const json document, weights::ParseStrictJson(text, kJsonDepth));
  if (!document.is_object()) return absl::InvalidArgumentError("config is not a JSON object");
  const Fields fields(document);
  NammConfig config;
  RETURN_IF_ERROR(fields.Integer("n_fft", &config.spectrogram.n_fft));
  RETURN_IF_ERROR(fields.Integer("hop", &config.spectrogram.hop));
  RETURN_IF_ERROR(fields.Number("ema_coeff", &config.spectrogram.ema_coefficient));
  bool is_flat = false;
  RETURN_IF_ERROR(fields.Truth("flat_window", &is_flat));
  if (is_flat) config.spectrogram.window = SpectrogramWindow::kFlat;
  RETURN_IF_ERROR(fields.Integer("recency_embed_dim", &config.recency_dim));
  RETURN_IF_ERROR(fields.Number("recency_max_freq", &config.recency_max_frequency));
  RETURN_IF_ERROR(fields.Integer("start_recency_from", &config.start_recency_from));
  RETURN_IF_ERROR(fields.Integer("attn_hidden", &config.network.hidden_size));
  RETURN_IF_ERROR(fields.Integer("num_heads", &config.network.num_heads));
  RETURN_IF_ERROR(fields.Mask("masking", &config.network.mask));
  RETURN_IF_ERROR(fields.Truth("mult", &config.network.is_multiplicative));
  RETURN_IF_ERROR(fields.Truth("residual", &config.network.is_residual));
  RETURN_IF_ERROR(fields.Truth("use_rope", &config.network.use_rotary));
  RETURN_IF_ERROR(fields.Number("scoring_rope_theta", &config.network.rope_theta));
  RETURN_IF_ERROR(fields.Truth("attn_bias", &config.network.attention_bias));
  RETURN_IF_ERROR(fields.Truth("mlp_bias", &config.network.scorer_bias));
  double threshold = 0;
  RETURN_IF_ERROR(fields.Number("threshold", &threshold));
  config.selection.threshold = static_cast<float>(threshold);
  int64_t cache_size = 0;
  RETURN_IF_ERROR(fields.Integer("cache_size", &cache_size));
  if (cache_size != 0) config.selection.cache_size = cache_size;
  RETURN_IF_ERROR(fields.Integer("delay", &config.delay));
  return config;
}

std::string FormatNammConfig(const NammConfig& config) {
  json document = {{"n_fft", config.spectrogram.n_fft},
                   {"hop", config.spectrogram.hop},
                   {"ema_coeff", config.spectrogram.ema_coefficient},
                   {"flat_window", config.spectrogram.window == SpectrogramWindow::kFlat},
                   {"recency_embed_dim", config.recency_dim},
                   {"recency_max_freq", config.recency_max_frequency},
                   {"start_recency_from", config.start_recency_from},
                   {"attn_hidden", config.network.hidden_size},
                   {"num_heads", config.network.num_heads},
                   {"masking", MaskName(config.network.mask)},
                   {"mult", config.network.is_multiplicative},
                   {"residual", config.network.is_residual},
                   {"use_rope", config.network.use_rotary},
                   {"scoring_rope_theta", config.network.rope_theta},
                   {"attn_bias", config.network.attention_bias},
                   {"mlp_bias", config.network.scorer_bias},
                   {"threshold", config.selection.threshold},
                   {"cache_size", nullptr},
                   {"delay", config.delay}};
  if (config.selection.cache_size.has_value()) {
    document["cache_size"] = *config.selection.cache_size;
  }
  return document.dump();
}

absl::StatusOr<NammModel> NammModel::Create(NammConfig config, absl::Span<const float> parameters,
                                            FrequencyStatistics statistics) {
  ASSIGN_OR_RETURN(Spectrogram spectrogram, Spectrogram::Create(config.spectrogram));
  ASSIGN_OR_RETURN(RecencyEmbedding recency,
                   RecencyEmbedding::Create(config.recency_dim, config.recency_max_frequency));
  if (config.delay < 1 || config.delay % config.spectrogram.hop != 0) {
    return status::InvalidField("delay", absl::StrCat("must be a multiple of the hop, ",
                                                      config.spectrogram.hop, ": ", config.delay));
  }
  if (config.selection.cache_size.has_value() && *config.selection.cache_size < 1) {
    return status::InvalidField("cache_size",
                                absl::StrCat("must be at least 1: ", *config.selection.cache_size));
  }
  config.network.input_size = config.recency_dim + spectrogram.num_frequencies();
  ASSIGN_OR_RETURN(BamNetwork network, BamNetwork::Create(config.network, parameters));
  if (!statistics.empty()) {
    const auto expected = static_cast<size_t>(spectrogram.num_frequencies());
    if (statistics.mean.size() != expected || statistics.variance.size() != expected ||
        statistics.count.size() != expected) {
      return absl::InvalidArgumentError(absl::StrCat("the statistics have ", statistics.mean.size(),
                                                     " frequencies, not ",
                                                     spectrogram.num_frequencies()));
    }
    for (size_t f = 0; f < expected; ++f) {
      if (!std::isfinite(statistics.mean[f]) || !(statistics.variance[f] >= 0)) {
        return absl::InvalidArgumentError(
            absl::StrCat("the statistics of frequency ", f, " are none"));
      }
    }
  }
  return NammModel(std::move(config), std::move(spectrogram), std::move(recency),
                   std::move(network), std::move(statistics));
}

NammModel::NammModel(NammConfig config, Spectrogram spectrogram, RecencyEmbedding recency,
                     BamNetwork network, FrequencyStatistics statistics)
    : config_(std::move(config)),
      spectrogram_(std::move(spectrogram)),
      recency_(std::move(recency)),
      network_(std::move(network)),
      statistics_(std::move(statistics)) {
  std::string content = FormatNammConfig(config_);
  AppendBytes(network_.parameters(), &content);
  AppendBytes(absl::MakeConstSpan(statistics_.mean), &content);
  AppendBytes(absl::MakeConstSpan(statistics_.variance), &content);
  AppendBytes(absl::MakeConstSpan(statistics_.count), &content);
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(content.data()), content.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  digest_ = absl::BytesToHexString(digest);
}

absl::StatusOr<NammModel> NammModel::Load(const std::string& path) {
  if (absl::EndsWith(path, ".pt")) return LoadCheckpoint(path, NammConfig());
  ASSIGN_OR_RETURN(const auto file, weights::SafetensorsFile::Open(path));
  const auto config_text = file->metadata().find("config");
  if (config_text == file->metadata().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the metadata of the artifact has no config: ", path));
  }
  absl::StatusOr<NammModel> model = [&]() -> absl::StatusOr<NammModel> {
    ASSIGN_OR_RETURN(NammConfig config, ParseNammConfig(config_text->second));
    ASSIGN_OR_RETURN(const std::vector<float> parameters,
                     Floats(file->FindTensor("namm_params"), "namm_params"));
    ASSIGN_OR_RETURN(FrequencyStatistics statistics,
                     ReadStatistics(*file, "norm_mean", "norm_var", "norm_num"));
    return Create(std::move(config), parameters, std::move(statistics));
  }();
  if (!model.ok()) return status::Annotate(model.status(), path);
  return model;
}

absl::StatusOr<NammModel> NammModel::LoadCheckpoint(const std::string& path, NammConfig config) {
  ASSIGN_OR_RETURN(const auto file, weights::TorchCheckpoint::Open(path));
  absl::StatusOr<NammModel> model = [&]() -> absl::StatusOr<NammModel> {
    // Evaluation and service use the distribution's mean, not its best member.
    const std::string name = "evolution_state.mean";
    ASSIGN_OR_RETURN(const std::vector<float> parameters, Floats(file->FindTensor(name), name));
    ASSIGN_OR_RETURN(Spectrogram spectrogram, Spectrogram::Create(config.spectrogram));
    config.network.input_size = config.recency_dim + spectrogram.num_frequencies();
    // The layout does not name the hidden size, but the number of parameters grows with it.
    BamOptions& network = config.network;
    const auto count = static_cast<int64_t>(parameters.size());
    for (network.hidden_size = network.num_heads; BamNetwork::NumParameters(network) < count;) {
      network.hidden_size += network.num_heads;
    }
    const std::string buffers = "evolution_state.stored_buffers_to_save.token_embedding_0_output_";
    ASSIGN_OR_RETURN(FrequencyStatistics statistics,
                     ReadStatistics(*file, buffers + "mean", buffers + "var", buffers + "num"));
    return Create(std::move(config), parameters, std::move(statistics));
  }();
  if (!model.ok()) return status::Annotate(model.status(), path);
  return model;
}

absl::Status NammModel::Save(const std::string& path) const {
  const std::vector<float> parameters(network_.parameters().begin(), network_.parameters().end());
  const std::vector<float> mean(statistics_.mean.begin(), statistics_.mean.end());
  const std::vector<float> variance(statistics_.variance.begin(), statistics_.variance.end());
  std::vector<TensorView> views = {ViewOf("namm_params", weights::TensorType::kF32, parameters)};
  if (!statistics_.empty()) {
    views.push_back(ViewOf("norm_mean", weights::TensorType::kF32, mean));
    views.push_back(ViewOf("norm_var", weights::TensorType::kF32, variance));
    views.push_back(ViewOf("norm_num", weights::TensorType::kI64, statistics_.count));
  }
  return weights::WriteSafetensors(path, views, {{"config", FormatNammConfig(config_)}});
}

at::Tensor NammModel::Features(const at::Tensor& ema, const at::Tensor& positions,
                               const FrequencyStatistics& statistics) const {
  const int64_t heads = ema.size(0);
  const int64_t tokens = ema.size(1);
  const int64_t frequencies = ema.size(2);
  const at::Tensor dense = ema.contiguous();
  const at::Tensor absolute = positions.contiguous();
  at::Tensor features = at::empty({heads, tokens, num_features()}, at::kFloat);
  const float* average = dense.const_data_ptr<float>();
  const int64_t* const position = absolute.const_data_ptr<int64_t>();
  float* feature = features.data_ptr<float>();
  for (int64_t head = 0; head < heads; ++head) {
    // Positions ascend.
    const int64_t newest = tokens == 0 ? 0 : position[(head + 1) * tokens - 1];
    for (int64_t token = 0; token < tokens; ++token) {
      recency_.Embed(newest - position[head * tokens + token] + config_.start_recency_from,
                     feature);
      statistics.Normalise(absl::MakeConstSpan(average, frequencies), feature + recency_.dim());
      average += frequencies;
      feature += num_features();
    }
  }
  return features;
}

}  // namespace mneme::memory
