// Speaks the Hugging Face hub's HTTP protocol: lists a repository's files and downloads them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace mneme::cli {

// Which repository, at which revision, and maybe one file of it.
struct HubAddress {
  std::string repository;  // ORG/NAME
  std::string revision = "main";
  std::string file;  // "": all that a model needs
};

// Reads ORG/NAME[@REVISION][:FILE]. INVALID_ARGUMENT: not that.
absl::StatusOr<HubAddress> ParseHubAddress(absl::string_view text);

// A file of a repository.
struct HubFile {
  std::string path;
  int64_t size = -1;     // -1: the listing does not say
  std::string sha256;    // of the content, for large files; may be empty
  std::string git_sha1;  // of the git blob, for small ones; may be empty
};

struct HubOptions {
  std::string endpoint;  // http(s)://host[:port][/prefix]
  std::string token;     // sent to the endpoint's own host only; may be empty
  int attempts = 5;      // without any progress between them
  absl::Duration first_pause = absl::Milliseconds(500);
  absl::Duration timeout = absl::Seconds(60);  // without a byte
};

// Not thread-safe.
class HubClient {
 public:
  // (bytes so far, bytes in all or -1)
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // INVALID_ARGUMENT: the endpoint is not an http address.
  static absl::StatusOr<HubClient> Create(HubOptions options);

  // NOT_FOUND: no such repository or revision. UNAUTHENTICATED or PERMISSION_DENIED: it needs a
  // token, or one with more rights. UNAVAILABLE: the endpoint cannot be reached.
  absl::StatusOr<std::vector<HubFile>> List(const HubAddress& address) const;

  // Downloads into `target`, by way of `target`.part, which a later call continues. The hash is
  // checked before the file appears under its name. DATA_LOSS: the hash is wrong (what was
  // downloaded is removed).
  absl::Status Download(const HubAddress& address, const HubFile& file, const std::string& target,
                        const Progress& progress) const;

 private:
  struct Url {
    std::string origin;  // scheme://host:port
    std::string path;    // with the query
  };
  struct Response {
    int status = 0;
    std::string body;
    std::string next;  // of a paged listing
  };
  struct Transfer;

  explicit HubClient(HubOptions options) : options_(std::move(options)) {}
  static absl::StatusOr<Url> ParseUrl(const std::string& url, const Url* base);
  absl::StatusOr<Response> Get(const std::string& url) const;
  absl::StatusOr<std::vector<HubFile>> ListTree(const HubAddress& address) const;
  absl::StatusOr<std::vector<HubFile>> ListSiblings(const HubAddress& address) const;
  absl::Status Fetch(const Url& first, Transfer& transfer) const;

  HubOptions options_;
};

// Returns whether a file's content has the hash (or one of the hashes) that the listing named; true
// where it named none.
absl::StatusOr<bool> HasExpectedHash(const std::string& path, const HubFile& file);

}  // namespace mneme::cli
