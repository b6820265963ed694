// `mneme models`: which models can be served.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status/status_macros.h"
#include "common/weights/model_files.h"
#include "nlohmann/json.hpp"
#include "services/cli/chat_settings.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/hub_client.h"
#include "services/cli/model_pull.h"
#include "services/cli/model_registry.h"

namespace mneme::cli {
namespace {

void AddDataOption(Arguments& arguments, std::string* data) {
  arguments.Option("data", "DIR", data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
}

nlohmann::ordered_json ToJson(const NamedModel& model) {
  return {{"name", model.name},
          {"path", model.path},
          {"registered", model.registered},
          {"default", model.is_default}};
}

int List(const std::vector<std::string>& words) {
  std::string data;
  bool json = false;
  Arguments arguments("mneme models list",
                      "Lists the models that `mneme up --model` knows by name.");
  arguments.Flag("json", &json, "prints one line of JSON per model");
  AddDataOption(arguments, &data);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const DataFolder folder(data);
  const absl::StatusOr<std::vector<NamedModel>> models = ModelList(folder).List();
  if (!models.ok()) return Fail(models.status());
  std::vector<std::vector<std::string>> rows = {{"name", "", "path"}};
  for (const NamedModel& model : *models) {
    if (json) PrintLine(ToJson(model).dump());
    rows.push_back({model.name, model.is_default ? "default" : "", model.path});
  }
  if (!json) PrintLine(models->empty() ? "no models; `make setup` fetches one" : Table(rows));
  return kExitOk;
}

// What an executor of the model offers; namm needs an artifact in its configuration besides.
std::vector<std::string> PoliciesOf(const weights::ModelConfig& config) {
  // Models with sliding windows of their own take none that moves entries.
  if (config.has_sliding_window()) return {"full", "window", "beacon"};
  return {"full", "window", "h2o", "snapkv", "l2norm", "namm", "beacon"};
}

int Show(const std::vector<std::string>& words) {
  std::string data;
  std::vector<std::string> names;
  bool json = false;
  Arguments arguments("mneme models show", "Opens a model and says what it is.");
  arguments.Positional("NAME|PATH", 0, 1, &names, "the model (default: the default one)");
  arguments.Flag("json", &json, "prints one line of JSON");
  AddDataOption(arguments, &data);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const DataFolder folder(data);
  const absl::StatusOr<NamedModel> model = ModelList(folder).Find(names.empty() ? "" : names[0]);
  if (!model.ok()) return Fail(model.status());
  const auto files = weights::ModelFiles::Open(model->path);
  if (!files.ok()) return Fail(files.status());
  const weights::ModelConfig& config = (*files)->config();
  const std::string architecture(weights::ArchitectureName(config.architecture));
  if (json) {
    nlohmann::ordered_json line = ToJson(*model);
    line["architecture"] = architecture;
    line["weights"] = (*files)->file_type();
    line["parameters"] = (*files)->num_parameters();
    line["bytes"] = (*files)->weight_bytes();
    line["layers"] = config.num_layers;
    line["heads"] = config.num_heads;
    line["kv_heads"] = config.num_kv_heads;
    line["context_length"] = config.context_length;
    line["vocab_size"] = config.vocab_size;
    line["memory_policies"] = PoliciesOf(config);
    line["trained_beacons"] = config.beacon.has_value();
    line["fingerprint"] = (*files)->fingerprint();
    PrintLine(line.dump());
    return kExitOk;
  }
  PrintLine(Table(
      {{"name", model->name},
       {"path", model->path},
       {"architecture", architecture},
       {"weights", absl::StrCat((*files)->file_type(), ", ", BytesText((*files)->weight_bytes()))},
       {"parameters", absl::StrCat((*files)->num_parameters())},
       {"layers", absl::StrCat(config.num_layers)},
       {"heads", absl::StrCat(config.num_heads, ", ", config.num_kv_heads, " of keys and values")},
       {"context", absl::StrCat(config.context_length, " tokens")},
       {"memory policies",
        absl::StrCat(absl::StrJoin(PoliciesOf(config), ", "),
                     config.beacon.has_value() ? "" : " (its beacons are not trained)")},
       {"vocabulary", absl::StrCat(config.vocab_size)},
       {"fingerprint", (*files)->fingerprint()}}));
  return kExitOk;
}

// Opens the model, so that a broken one is refused here and not by a service.
absl::Status Register(const std::string& data, const std::string& path, const std::string& name,
                      bool make_default) {
  RETURN_IF_ERROR(weights::ModelFiles::Open(path).status());
  const DataFolder folder(data);
  return ModelList(folder).Add(name, path, make_default);
}

int Add(const std::vector<std::string>& words) {
  std::string data;
  std::string name;
  std::vector<std::string> paths;
  bool make_default = false;
  Arguments arguments("mneme models add", "Registers a model by a name.");
  arguments.Positional("PATH", 1, 1, &paths, "a .gguf file or a Hugging Face folder");
  arguments.Option("name", "NAME", &name,
                   "what it is called (default: the file's or folder's name)");
  arguments.Flag("default", &make_default, "`mneme up` takes it when no other is named");
  AddDataOption(arguments, &data);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  std::error_code error;
  std::string path = std::filesystem::absolute(paths[0], error).lexically_normal().string();
  if (path.size() > 1 && path.back() == '/') path.pop_back();
  if (name.empty()) name = ModelNameFor(path);
  const absl::Status added = Register(data, path, name, make_default);
  if (!added.ok()) return Fail(added);
  PrintLine(
      absl::StrCat("added: ", name, " (", path, ")\nserve it with `mneme up --model ", name, "`"));
  return kExitOk;
}

int Remove(const std::vector<std::string>& words) {
  std::string data;
  std::vector<std::string> names;
  Arguments arguments("mneme models remove", "Forgets a registered model; its files stay.");
  arguments.Positional("NAME", 1, 1, &names, "the model");
  AddDataOption(arguments, &data);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const DataFolder folder(data);
  const absl::Status removed = ModelList(folder).Remove(names[0]);
  if (!removed.ok()) return Fail(removed);
  PrintLine(absl::StrCat("removed: ", names[0]));
  return kExitOk;
}

absl::StatusOr<std::string> Fetch(const HubAddress& address) {
  HubOptions options;
  options.endpoint = Environment("HF_ENDPOINT");
  options.token = Environment("HF_TOKEN");
  if (options.endpoint.empty()) {
    return absl::FailedPreconditionError(
        "HF_ENDPOINT is not set\n"
        "set it to the address of a Hugging Face hub or a mirror of one: export "
        "HF_ENDPOINT=https://HOST");
  }
  ASSIGN_OR_RETURN(const HubClient hub, HubClient::Create(options));
  const bool to_terminal = isatty(STDERR_FILENO) != 0;
  absl::Time last = absl::InfinitePast();
  const auto progress = [&](const std::string& line) {
    // A log needs no line for every moment.
    if (!to_terminal && absl::Now() - last < absl::Seconds(5)) return;
    last = absl::Now();
    std::fprintf(stderr, to_terminal ? "\r%s\x1b[K" : "%s\n", line.c_str());
    std::fflush(stderr);
  };
  absl::StatusOr<std::string> path = PullModel(hub, address, CacheFolder(), progress);
  if (to_terminal) std::fputc('\n', stderr);
  return path;
}

int Pull(const std::vector<std::string>& words) {
  std::string data;
  std::string name;
  std::vector<std::string> sources;
  bool make_default = false;
  Arguments arguments("mneme models pull", "Fetches a model from a Hugging Face hub.");
  arguments.Positional("ORG/NAME[@REVISION][:FILE]", 1, 1, &sources,
                       "the repository; FILE chooses one of its GGUF files");
  arguments.Option("name", "NAME", &name, "what it is called (default: NAME or FILE)");
  arguments.Flag("default", &make_default, "`mneme up` takes it when no other is named");
  AddDataOption(arguments, &data);
  arguments.Footer(
      "HF_ENDPOINT is the hub's address, HF_TOKEN an access token for private models.\nA download "
      "that broke off goes on where it stopped; hashes are checked.");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<HubAddress> address = ParseHubAddress(sources[0]);
  if (!address.ok()) return Fail(address.status());
  const absl::StatusOr<std::string> path = Fetch(*address);
  if (!path.ok()) return Fail(path.status());
  if (name.empty()) {
    name = ModelNameFor(absl::EndsWithIgnoreCase(*path, ".gguf") ? *path : address->repository);
  }
  const absl::Status added = Register(data, *path, name, make_default);
  if (!added.ok()) return Fail(added);
  PrintLine(absl::StrCat("fetched: ", name, " (", *path, ")\nserve it with `mneme up --model ",
                         name, "`"));
  return kExitOk;
}

}  // namespace

int ModelsCommand(const std::vector<std::string>& words) {
  return RunSubcommand("mneme models", "Which models can be served.",
                       {{"list", "lists the models that are known by name", List},
                        {"show", "opens a model and says what it is", Show},
                        {"add", "registers a GGUF file or a Hugging Face folder", Add},
                        {"pull", "fetches a model from a Hugging Face hub", Pull},
                        {"remove", "forgets a registered model", Remove}},
                       words);
}

}  // namespace mneme::cli
