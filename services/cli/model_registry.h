// Which models a data folder can serve: those registered in its models.json, and those that lie in
// the cache folder.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {

// The model that deploy/setup.sh fetches.
inline constexpr char kDefaultModel[] = "smollm2-135m-instruct";

struct NamedModel {
  std::string name;
  std::string path;  // a .gguf file or a Hugging Face folder
  bool registered = false;
  bool is_default = false;
};

// Reads and changes models.json. Changes of two processes at a time: the later one wins.
class ModelList {
 public:
  explicit ModelList(const DataFolder& folder) : folder_(folder) {}

  // Returns all, by name.
  absl::StatusOr<std::vector<NamedModel>> List() const;
  // Finds a model by name or by path; "" is the default one. NOT_FOUND says what there is and how
  // to add one.
  absl::StatusOr<NamedModel> Find(const std::string& name_or_path) const;
  // INVALID_ARGUMENT: not a name. ALREADY_EXISTS: the name stands for another path.
  absl::Status Add(const std::string& name, const std::string& path, bool make_default) const;
  // NOT_FOUND. The model's files stay.
  absl::Status Remove(const std::string& name) const;

 private:
  absl::StatusOr<v1::ModelRegistry> Read() const;
  absl::Status Write(const v1::ModelRegistry& registry) const;

  const DataFolder& folder_;
};

// Returns a name for a model at a path: the file's or folder's own, lower case.
std::string ModelNameFor(const std::string& path);

}  // namespace mneme::cli
