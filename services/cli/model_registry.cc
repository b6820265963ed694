#include "services/cli/model_registry.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= 128 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains("_.:-", absl::string_view(&c, 1));
  });
}

// What the services are given for a folder: the only GGUF file in it, or the folder itself.
std::string ModelPathIn(const fs::path& folder) {
  std::error_code error;
  std::vector<std::string> gguf;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".gguf") gguf.push_back(entry.path().string());
  }
  return gguf.size() == 1 ? gguf[0] : folder.string();
}

}  // namespace

std::string ModelNameFor(const std::string& path) {
  fs::path whole(path);
  if (!whole.has_filename()) whole = whole.parent_path();
  const bool is_file = absl::AsciiStrToLower(whole.extension().string()) == ".gguf";
  std::string name = absl::AsciiStrToLower((is_file ? whole.stem() : whole.filename()).string());
  for (char& c : name) {
    if (!IsName(absl::string_view(&c, 1))) c = '-';
  }
  return name;
}

absl::StatusOr<v1::ModelRegistry> ModelList::Read() const {
  v1::ModelRegistry registry;
  const absl::Status read = config::FromFile(folder_.models_file(), &registry);
  if (!read.ok() && !absl::IsNotFound(read)) return read;
  return registry;
}

absl::Status ModelList::Write(const v1::ModelRegistry& registry) const {
  RETURN_IF_ERROR(folder_.Create());
  return config::WriteFileAtomically(folder_.models_file(), config::ToJson(registry));
}

absl::StatusOr<std::vector<NamedModel>> ModelList::List() const {
  ASSIGN_OR_RETURN(const v1::ModelRegistry registry, Read());
  std::map<std::string, NamedModel> models;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(CacheFolder() + "/models", error)) {
    if (!entry.is_directory(error)) continue;
    const std::string name = entry.path().filename().string();
    models[name] = {name, ModelPathIn(entry.path()), false, false};
  }
  for (const auto& [name, path] : registry.models()) models[name] = {name, path, true, false};
  const std::string fallback =
      registry.default_model().empty() ? kDefaultModel : registry.default_model();
  std::vector<NamedModel> list;
  for (auto& [name, model] : models) {
    model.is_default = name == fallback;
    list.push_back(std::move(model));
  }
  return list;
}

absl::StatusOr<NamedModel> ModelList::Find(const std::string& name_or_path) const {
  ASSIGN_OR_RETURN(const std::vector<NamedModel> models, List());
  std::vector<std::string> names;
  for (const NamedModel& model : models) {
    if (name_or_path.empty() ? model.is_default : model.name == name_or_path) {
      std::error_code error;
      if (fs::exists(model.path, error)) return model;
      return absl::NotFoundError(
          absl::StrCat("the files of model ", model.name, " are gone: ", model.path,
                       "\nput them back, or register the model anew: mneme models add PATH --name ",
                       model.name));
    }
    names.push_back(model.name);
  }
  std::error_code error;
  if (!name_or_path.empty() && fs::exists(name_or_path, error)) {
    const std::string path = fs::absolute(name_or_path, error).lexically_normal().string();
    return NamedModel{ModelNameFor(path), path, false, false};
  }
  if (name_or_path.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "there is no default model in ", CacheFolder(), "/models",
        "\nfetch it with `make setup`, or register one: mneme models add PATH --default"));
  }
  return absl::NotFoundError(
      absl::StrCat("no such model: ", name_or_path,
                   "\nknown: ", names.empty() ? "none" : absl::StrJoin(names, ", "),
                   "; register another with `mneme models add PATH --name NAME`"));
}

absl::Status ModelList::Add(const std::string& name, const std::string& path,
                            bool make_default) const {
  if (!IsName(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a model's name is made of letters, digits, '_', '.', ':' and '-', at most "
                     "128 of them: ",
                     name));
  }
  ASSIGN_OR_RETURN(v1::ModelRegistry registry, Read());
  const auto found = registry.models().find(name);
  if (found != registry.models().end() && found->second != path) {
    return absl::AlreadyExistsError(
        absl::StrCat("model ", name, " is registered already, with ", found->second,
                     "\nuse another --name, or first `mneme models remove ", name, "`"));
  }
  (*registry.mutable_models())[name] = path;
  if (make_default) registry.set_default_model(name);
  return Write(registry);
}

absl::Status ModelList::Remove(const std::string& name) const {
  ASSIGN_OR_RETURN(v1::ModelRegistry registry, Read());
  if (registry.mutable_models()->erase(name) == 0) {
    return absl::NotFoundError(absl::StrCat("no model of that name is registered: ", name));
  }
  if (registry.default_model() == name) registry.clear_default_model();
  return Write(registry);
}

}  // namespace mneme::cli
