#include "services/cli/model_pull.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/status/status_macros.h"
#include "services/cli/chat_settings.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

// Files of a Hugging Face folder besides the weights; the services read what they need of them.
constexpr absl::string_view kFolderFiles[] = {"config.json",
                                              "generation_config.json",
                                              "tokenizer.json",
                                              "tokenizer.model",
                                              "tokenizer_config.json",
                                              "special_tokens_map.json",
                                              "tekken.json",
                                              "chat_template.jinja",
                                              "chat_template.json",
                                              "added_tokens.json",
                                              "vocab.json",
                                              "merges.txt",
                                              "model.safetensors.index.json"};

bool IsFolderFile(const std::string& path) {
  if (std::find(std::begin(kFolderFiles), std::end(kFolderFiles), path) != std::end(kFolderFiles)) {
    return true;
  }
  return absl::StartsWith(path, "model") && absl::EndsWith(path, ".safetensors") &&
         !absl::StrContains(path, "/");
}

// Shows how far a file is, at most some times a second.
class ProgressLine {
 public:
  ProgressLine(std::string name, const std::function<void(const std::string&)>& show)
      : name_(std::move(name)), show_(show), begin_(absl::Now()) {}

  void operator()(int64_t done, int64_t total) {
    if (first_done_ < 0) first_done_ = done;
    const absl::Time now = absl::Now();
    if (now - last_ < absl::Milliseconds(200) && done != total) return;
    last_ = now;
    const double seconds = absl::ToDoubleSeconds(now - begin_);
    const double rate = seconds > 0 ? (done - first_done_) / seconds : 0;
    show_(absl::StrCat(
        name_, "  ", BytesText(done),
        total > 0 ? absl::StrFormat(" of %s (%.0f %%)", BytesText(total), 100.0 * done / total)
                  : "",
        "  ", BytesText(static_cast<int64_t>(rate)), "/s"));
  }

 private:
  const std::string name_;
  const std::function<void(const std::string&)>& show_;
  const absl::Time begin_;
  absl::Time last_ = absl::InfinitePast();
  int64_t first_done_ = -1;
};

absl::Status CheckSpace(const std::string& folder, const std::vector<HubFile>& files) {
  int64_t needed = 0;
  for (const HubFile& file : files) needed += std::max<int64_t>(file.size, 0);
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || static_cast<int64_t>(space.available) >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the disk is too full: the model needs ", BytesText(needed), ", there are ",
                   BytesText(static_cast<int64_t>(space.available)), " in ", folder,
                   "\nmake room, or choose another place with MNEME_CACHE"));
}

}  // namespace

absl::StatusOr<std::vector<HubFile>> FilesOfModel(const HubAddress& address,
                                                  const std::vector<HubFile>& listing) {
  std::vector<HubFile> chosen;
  std::vector<std::string> gguf;
  bool has_config = false;
  bool has_weights = false;
  for (const HubFile& file : listing) {
    if (!address.file.empty() && file.path == address.file) return std::vector<HubFile>{file};
    if (absl::EndsWithIgnoreCase(file.path, ".gguf")) gguf.push_back(file.path);
    if (!IsFolderFile(file.path)) continue;
    has_config |= file.path == "config.json";
    has_weights |= absl::EndsWith(file.path, ".safetensors");
    chosen.push_back(file);
  }
  const std::string choice = gguf.empty() ? "" : "\nGGUF files: " + absl::StrJoin(gguf, ", ");
  if (!address.file.empty()) {
    return absl::NotFoundError(absl::StrCat("the repository ", address.repository,
                                            " has no such file: ", address.file, choice));
  }
  if (has_config && has_weights) return chosen;
  if (gguf.size() == 1) {
    HubAddress one = address;
    one.file = gguf[0];
    return FilesOfModel(one, listing);
  }
  if (gguf.empty()) {
    return absl::NotFoundError(
        absl::StrCat("the repository ", address.repository,
                     " holds neither safetensors with a config.json nor a GGUF file"));
  }
  return absl::NotFoundError(absl::StrCat("the repository ", address.repository,
                                          " holds several GGUF files: name one, as in ",
                                          address.repository, ":", gguf[0], choice));
}

absl::StatusOr<std::string> PullModel(const HubClient& hub, const HubAddress& address,
                                      const std::string& cache_folder,
                                      const std::function<void(const std::string&)>& progress) {
  ASSIGN_OR_RETURN(const std::vector<HubFile> listing, hub.List(address));
  ASSIGN_OR_RETURN(const std::vector<HubFile> files, FilesOfModel(address, listing));
  const std::string name = absl::StrReplaceAll(address.repository, {{"/", "--"}});
  const std::string folder = absl::StrCat(cache_folder, "/models/", name);
  // Until all files are there nobody sees any: a model that is half there is none.
  const std::string work = absl::StrCat(cache_folder, "/download/hub/", name);
  RETURN_IF_ERROR(CreateFolder(work));
  RETURN_IF_ERROR(CheckSpace(work, files));
  std::vector<std::string> fetched;
  for (const HubFile& file : files) {
    // Another file of the same name below the repository's folders would be in the way otherwise.
    const std::string flat = absl::StrReplaceAll(file.path, {{"/", "--"}});
    for (const std::string& place : {folder + "/" + flat, work + "/" + flat}) {
      std::error_code error;
      if (!fs::exists(place, error)) continue;
      progress(absl::StrCat(file.path, "  checking what is there"));
      ASSIGN_OR_RETURN(const bool right, HasExpectedHash(place, file));
      if (!right) fs::remove(place, error);
    }
    std::error_code error;
    if (fs::exists(folder + "/" + flat, error)) continue;
    if (!fs::exists(work + "/" + flat, error)) {
      ProgressLine line(file.path, progress);
      RETURN_IF_ERROR(hub.Download(address, file, work + "/" + flat,
                                   [&line](int64_t done, int64_t total) { line(done, total); }));
    }
    fetched.push_back(flat);
  }
  RETURN_IF_ERROR(CreateFolder(folder));
  for (const std::string& flat : fetched) {
    std::error_code error;
    fs::rename(work + "/" + flat, folder + "/" + flat, error);
    if (error) {
      return absl::PermissionDeniedError(
          absl::StrCat("cannot move ", flat, " to ", folder, ": ", error.message()));
    }
  }
  if (files.size() == 1) {
    return absl::StrCat(folder, "/", absl::StrReplaceAll(files[0].path, {{"/", "--"}}));
  }
  return folder;
}

}  // namespace mneme::cli
