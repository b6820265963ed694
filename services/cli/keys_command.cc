// `mneme keys`: the API keys that the gateway accepts.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/auth/api_keys.h"
#include "common/status/status_macros.h"
#include "nlohmann/json.hpp"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {
namespace {

// Where the keys are: --keys, else the data folder's own file.
struct KeysOptions {
  std::string file;
  std::string data;

  void AddTo(Arguments& arguments) {
    arguments.Option("keys", "FILE", &file, "key file (default keys.json of the data folder)");
    arguments.Option("data", "DIR", &data,
                     "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  }
  std::string path() const { return file.empty() ? DataFolder(data).keys_file() : file; }
};

// A file that does not exist yet holds no keys.
absl::StatusOr<std::vector<auth::KeyEntry>> Load(const std::string& path) {
  absl::StatusOr<std::vector<auth::KeyEntry>> entries = auth::LoadKeys(path);
  if (absl::IsNotFound(entries.status())) return std::vector<auth::KeyEntry>();
  return entries;
}

nlohmann::ordered_json ToJson(const auth::KeyEntry& entry) {
  nlohmann::ordered_json json = {{"id", entry.id},
                                 {"tenant", entry.tenant},
                                 {"admin", entry.admin},
                                 {"disabled", entry.disabled}};
  if (entry.limits.max_concurrent) json["max_concurrent"] = *entry.limits.max_concurrent;
  if (entry.limits.tokens_per_minute) json["tokens_per_minute"] = *entry.limits.tokens_per_minute;
  return json;
}

absl::StatusOr<auth::NewKey> AddKey(const KeysOptions& options, const std::string& id,
                                    const std::string& tenant, bool admin,
                                    const auth::KeyLimits& limits) {
  if (options.file.empty()) RETURN_IF_ERROR(DataFolder(options.data).Create());
  ASSIGN_OR_RETURN(std::vector<auth::KeyEntry> entries, Load(options.path()));
  ASSIGN_OR_RETURN(auth::NewKey made, auth::GenerateKey(id, tenant));
  const bool taken = std::any_of(entries.begin(), entries.end(), [&](const auth::KeyEntry& entry) {
    return entry.id == made.entry.id;
  });
  if (taken) {
    return absl::AlreadyExistsError(absl::StrCat("there is a key with this id: ", made.entry.id,
                                                 "\nuse another --id, or first `mneme keys remove ",
                                                 made.entry.id, "`"));
  }
  made.entry.admin = admin;
  made.entry.limits = limits;
  entries.push_back(made.entry);
  RETURN_IF_ERROR(auth::SaveKeys(options.path(), entries));
  return made;
}

int Add(const std::vector<std::string>& words) {
  KeysOptions options;
  std::string id;
  std::string tenant = "default";
  std::optional<int> max_concurrent;
  std::optional<uint64_t> tokens_per_minute;
  bool admin = false;
  bool json = false;
  Arguments arguments("mneme keys add",
                      "Makes an API key and shows it once; the file keeps a salted hash only.");
  arguments.Option("id", "ID", &id, "what the key is called in lists and logs (default: made up)");
  arguments.Option(
      "tenant", "TENANT", &tenant,
      "whom it speaks for; tenants do not see each other's sessions (default: default)");
  arguments.Option("max-concurrent", "N", &max_concurrent, "requests at a time; 0: no limit");
  arguments.Option("tokens-per-minute", "N", &tokens_per_minute,
                   "prompt and completion together; 0: no limit");
  arguments.Flag("admin", &admin, "may also forget whole tenants");
  arguments.Flag("json", &json, "prints one line of JSON");
  options.AddTo(arguments);
  arguments.Footer(
      "Once the data folder holds a key, the server asks for one: restart `mneme up` after the "
      "first.\nLater ones are taken up without a restart.");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  auth::KeyLimits limits;
  if (max_concurrent) limits.max_concurrent = *max_concurrent;
  if (tokens_per_minute) limits.tokens_per_minute = static_cast<int64_t>(*tokens_per_minute);
  const absl::StatusOr<auth::NewKey> made = AddKey(options, id, tenant, admin, limits);
  if (!made.ok()) return Fail(made.status());
  if (json) {
    nlohmann::ordered_json line = ToJson(made->entry);
    line["key"] = made->key;
    PrintLine(line.dump());
  } else {
    PrintLine(made->key);
    PrintErrorLine(absl::StrCat("Keep it: it is not shown again. id ", made->entry.id, ", tenant ",
                                made->entry.tenant, ", in ", options.path()));
  }
  return kExitOk;
}

int List(const std::vector<std::string>& words) {
  KeysOptions options;
  bool json = false;
  Arguments arguments("mneme keys list", "Lists the API keys, without the keys themselves.");
  arguments.Flag("json", &json, "prints one line of JSON per key");
  options.AddTo(arguments);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<std::vector<auth::KeyEntry>> entries = Load(options.path());
  if (!entries.ok()) return Fail(entries.status());
  std::vector<std::vector<std::string>> rows = {
      {"id", "tenant", "max concurrent", "tokens per minute", "admin", "disabled"}};
  for (const auth::KeyEntry& entry : *entries) {
    if (json) PrintLine(ToJson(entry).dump());
    const auto limit = [](const auto& value) { return value ? absl::StrCat(*value) : "-"; };
    rows.push_back({entry.id, entry.tenant, limit(entry.limits.max_concurrent),
                    limit(entry.limits.tokens_per_minute), entry.admin ? "yes" : "no",
                    entry.disabled ? "yes" : "no"});
  }
  if (!json) PrintLine(entries->empty() ? "no keys" : Table(rows));
  return kExitOk;
}

absl::Status RemoveKey(const std::string& path, const std::string& id) {
  ASSIGN_OR_RETURN(std::vector<auth::KeyEntry> entries, Load(path));
  const size_t removed =
      std::erase_if(entries, [&](const auth::KeyEntry& entry) { return entry.id == id; });
  if (removed == 0) {
    return absl::NotFoundError(
        absl::StrCat("no key has this id: ", id, "\n`mneme keys list` shows them"));
  }
  return auth::SaveKeys(path, entries);
}

int Remove(const std::vector<std::string>& words) {
  KeysOptions options;
  std::vector<std::string> ids;
  Arguments arguments("mneme keys remove", "Removes an API key; it stops working within seconds.");
  arguments.Positional("ID", 1, 1, &ids, "the key's id");
  options.AddTo(arguments);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::Status removed = RemoveKey(options.path(), ids[0]);
  if (!removed.ok()) return Fail(removed);
  PrintLine(absl::StrCat("removed: ", ids[0]));
  return kExitOk;
}

}  // namespace

int KeysCommand(const std::vector<std::string>& words) {
  return RunSubcommand("mneme keys", "The API keys that the server accepts.",
                       {{"add", "makes a key", Add},
                        {"list", "lists the keys", List},
                        {"remove", "removes a key", Remove}},
                       words);
}

}  // namespace mneme::cli
