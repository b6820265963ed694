#include "services/cli/hub_client.h"

#include <fcntl.h>
#include <httplib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "nlohmann/json.hpp"
#include "services/cli/file_hash.h"

namespace mneme::cli {
namespace {

constexpr int kMaxRedirects = 8;
constexpr int64_t kMaxListingBytes = 64 << 20;

bool IsHex(absl::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isxdigit(c); });
}

// Escapes what may not stand in a URL's path; '/' stays.
std::string EscapePath(absl::string_view path) {
  std::string escaped;
  for (const char c : path) {
    if (absl::ascii_isalnum(c) || absl::StrContains("-._~/", absl::string_view(&c, 1))) {
      escaped.push_back(c);
    } else {
      absl::StrAppendFormat(&escaped, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return escaped;
}

absl::Status StatusOfHttp(int status, absl::string_view what) {
  switch (status) {
    case 401:
      return absl::UnauthenticatedError(absl::StrCat(
          "the hub wants to know who asks, or there is no such repository: ", what,
          "\ncheck the name; for a private or gated model set HF_TOKEN to an access token"));
    case 403:
      return absl::PermissionDeniedError(absl::StrCat(
          "the hub refuses access: ", what,
          "\naccept the model's terms on its page, and set HF_TOKEN to a token that may read it"));
    case 404:
      return absl::NotFoundError(absl::StrCat("the hub has no such thing: ", what));
    case 429:
      return absl::UnavailableError("the hub asks to slow down; try again in some minutes");
    default:
      if (status >= 500)
        return absl::UnavailableError(absl::StrCat("the hub fails: HTTP ", status));
      return absl::InternalError(absl::StrCat("unexpected answer of the hub: HTTP ", status));
  }
}

std::string TextOf(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

int64_t SizeOf(const nlohmann::json& object) {
  const auto found = object.find("size");
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
}

// A listing could name files outside the folder they are written to.
bool IsSafePath(absl::string_view path) {
  if (path.empty() || path[0] == '/') return false;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

absl::StatusOr<nlohmann::json> ParseJson(const std::string& body) {
  nlohmann::json parsed = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    return absl::InternalError("the hub's listing is not JSON: is HF_ENDPOINT a hub's address?");
  }
  return parsed;
}

httplib::Client ClientFor(const std::string& origin, absl::Duration timeout) {
  httplib::Client client(origin);
  client.set_follow_location(false);  // see Fetch
  client.set_url_encode(false);
  client.set_connection_timeout(absl::ToChronoSeconds(std::min(timeout, absl::Seconds(15))));
  client.set_read_timeout(absl::ToChronoMicroseconds(timeout));
  return client;
}

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// rel="next" of a Link header.
std::string NextLink(const std::string& header) {
  for (const absl::string_view link : absl::StrSplit(header, ',')) {
    const size_t open = link.find('<');
    const size_t close = link.find('>');
    if (open == absl::string_view::npos || close == absl::string_view::npos) continue;
    if (absl::StrContains(link.substr(close), "rel=\"next\"")) {
      return std::string(link.substr(open + 1, close - open - 1));
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<HubAddress> ParseHubAddress(absl::string_view text) {
  HubAddress address;
  const std::pair<absl::string_view, absl::string_view> file =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  const std::pair<absl::string_view, absl::string_view> revision =
      absl::StrSplit(file.first, absl::MaxSplits('@', 1));
  address.repository = std::string(revision.first);
  address.file = std::string(file.second);
  if (absl::StrContains(file.first, "@")) address.revision = std::string(revision.second);
  const std::vector<std::string> parts = absl::StrSplit(address.repository, '/');
  const bool valid = parts.size() == 2 && IsSafePath(address.repository) &&
                     !address.revision.empty() &&
                     (address.file.empty() || IsSafePath(address.file));
  if (valid) return address;
  return absl::InvalidArgumentError(
      absl::StrCat("not a repository: ", text, "\nit is written ORG/NAME[@REVISION][:FILE]"));
}

absl::StatusOr<HubClient> HubClient::Create(HubOptions options) {
  options.endpoint = std::string(absl::StripSuffix(options.endpoint, "/"));
  RETURN_IF_ERROR(ParseUrl(options.endpoint, nullptr).status());
  return HubClient(std::move(options));
}

absl::StatusOr<HubClient::Url> HubClient::ParseUrl(const std::string& url, const Url* base) {
  const size_t scheme = url.find("://");
  if (scheme == std::string::npos) {
    if (base != nullptr && absl::StartsWith(url, "/")) return Url{base->origin, url};
    return absl::InvalidArgumentError(absl::StrCat("not an http address: ", url));
  }
  const std::string name = url.substr(0, scheme);
  if (name != "http" && name != "https") {
    return absl::InvalidArgumentError(absl::StrCat("not an http address: ", url));
  }
  const size_t path = url.find('/', scheme + 3);
  if (path == std::string::npos) return Url{url, ""};
  return Url{url.substr(0, path), url.substr(path)};
}

absl::StatusOr<HubClient::Response> HubClient::Get(const std::string& url) const {
  ASSIGN_OR_RETURN(const Url parsed, ParseUrl(url, nullptr));
  httplib::Client client = ClientFor(parsed.origin, options_.timeout);
  httplib::Headers headers = {{"Accept", "application/json"}};
  if (!options_.token.empty()) headers.emplace("Authorization", "Bearer " + options_.token);
  Response response;
  const httplib::Result result =
      client.Get(parsed.path.c_str(), headers, [&](const char* data, size_t size) {
        response.body.append(data, size);
        return static_cast<int64_t>(response.body.size()) <= kMaxListingBytes;
      });
  if (!result) {
    return absl::UnavailableError(absl::StrCat("the hub cannot be reached: ", parsed.origin, " (",
                                               httplib::to_string(result.error()),
                                               ")\ncheck HF_ENDPOINT and the network"));
  }
  response.status = result->status;
  response.next = NextLink(result->get_header_value("Link"));
  return response;
}

absl::StatusOr<std::vector<HubFile>> HubClient::List(const HubAddress& address) const {
  absl::StatusOr<std::vector<HubFile>> files = ListTree(address);
  // Simple mirrors have the older listing only.
  if (absl::IsNotFound(files.status())) return ListSiblings(address);
  return files;
}

absl::StatusOr<std::vector<HubFile>> HubClient::ListTree(const HubAddress& address) const {
  std::vector<HubFile> files;
  std::string url = absl::StrCat(options_.endpoint, "/api/models/", EscapePath(address.repository),
                                 "/tree/", EscapePath(address.revision), "?recursive=true");
  while (!url.empty()) {
    ASSIGN_OR_RETURN(const Response response, Get(url));
    if (response.status != 200) return StatusOfHttp(response.status, address.repository);
    ASSIGN_OR_RETURN(const nlohmann::json listing, ParseJson(response.body));
    if (!listing.is_array()) return absl::InternalError("the hub's listing is not a list");
    for (const nlohmann::json& entry : listing) {
      if (!entry.is_object() || TextOf(entry, "type") != "file") continue;
      HubFile file;
      file.path = TextOf(entry, "path");
      file.size = SizeOf(entry);
      if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
        file.sha256 = TextOf(*lfs, "oid");
        file.size = SizeOf(*lfs);
      } else {
        file.git_sha1 = TextOf(entry, "oid");
      }
      if (IsSafePath(file.path)) files.push_back(std::move(file));
    }
    // A page elsewhere would get our token.
    url = absl::StartsWith(response.next, options_.endpoint + "/") ? response.next : "";
  }
  return files;
}

absl::StatusOr<std::vector<HubFile>> HubClient::ListSiblings(const HubAddress& address) const {
  const std::string url =
      absl::StrCat(options_.endpoint, "/api/models/", EscapePath(address.repository), "/revision/",
                   EscapePath(address.revision));
  ASSIGN_OR_RETURN(const Response response, Get(url));
  if (response.status != 200) {
    return StatusOfHttp(response.status, absl::StrCat(address.repository, "@", address.revision));
  }
  ASSIGN_OR_RETURN(const nlohmann::json model, ParseJson(response.body));
  std::vector<HubFile> files;
  const auto siblings = model.find("siblings");
  if (siblings == model.end() || !siblings->is_array()) {
    return absl::InternalError("the hub's description of the model has no list of files");
  }
  for (const nlohmann::json& sibling : *siblings) {
    HubFile file;
    if (sibling.is_object()) file.path = TextOf(sibling, "rfilename");
    if (IsSafePath(file.path)) files.push_back(std::move(file));
  }
  return files;
}

// One file on its way: what is there, what is expected.
struct HubClient::Transfer {
  HubFile file;  // hashes and size are completed from the answer's headers
  std::string part;
  int fd = -1;
  int64_t done = 0;
  Progress progress;
  absl::Status status;  // of writing, or of an answer that cannot be used

  absl::Status Truncate() {
    if (ftruncate(fd, 0) != 0 || lseek(fd, 0, SEEK_SET) != 0) {
      return absl::InternalError(absl::StrCat("cannot empty ", part, ": ", std::strerror(errno)));
    }
    done = 0;
    return absl::OkStatus();
  }

  void LearnFrom(const httplib::Response& response) {
    for (const char* name : {"X-Linked-Etag", "ETag"}) {
      std::string tag = response.get_header_value(name);
      tag.erase(std::remove(tag.begin(), tag.end(), '"'), tag.end());
      if (!file.sha256.empty() || !file.git_sha1.empty()) break;
      if (IsHex(tag, 64)) file.sha256 = tag;
      if (IsHex(tag, 40)) file.git_sha1 = tag;
    }
    int64_t size = 0;
    if (file.size < 0 && absl::SimpleAtoi(response.get_header_value("X-Linked-Size"), &size)) {
      file.size = size;
    }
  }

  bool Write(const char* data, size_t size) {
    while (size > 0) {
      const ssize_t count = write(fd, data, size);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) {
        status = absl::ResourceExhaustedError(
            absl::StrCat("cannot write ", part, ": ", std::strerror(errno),
                         "\nmake room and run this again: it goes on where it stopped"));
        return false;
      }
      data += count;
      size -= count;
      done += count;
    }
    if (progress) progress(done, file.size);
    return true;
  }
};

// One attempt, redirects followed by hand: the token must not go to another host, and the hashes
// are in the first answer's headers.
absl::Status HubClient::Fetch(const Url& first, Transfer& transfer) const {
  Url url = first;
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    httplib::Client client = ClientFor(url.origin, options_.timeout);
    // Compressed on the way, ranges and sizes would mean something else.
    httplib::Headers headers = {{"Accept-Encoding", "identity"}};
    if (!options_.token.empty() && url.origin == first.origin) {
      headers.emplace("Authorization", "Bearer " + options_.token);
    }
    if (transfer.done > 0) headers.emplace("Range", absl::StrCat("bytes=", transfer.done, "-"));
    int status = 0;
    std::string location;
    const httplib::Result result = client.Get(
        url.path.c_str(), headers,
        [&](const httplib::Response& response) {
          status = response.status;
          location = response.get_header_value("Location");
          if (redirects == 0) transfer.LearnFrom(response);
          if (status == 200 && transfer.done > 0) {
            // The server does not know ranges: from the beginning.
            transfer.status = transfer.Truncate();
          }
          if (status == 206 && !absl::StartsWith(response.get_header_value("Content-Range"),
                                                 absl::StrCat("bytes ", transfer.done, "-"))) {
            transfer.status = transfer.Truncate();
            if (transfer.status.ok()) {
              transfer.status = absl::UnavailableError("the server answered another range");
            }
          }
          return (status == 200 || status == 206) && transfer.status.ok();
        },
        [&](const char* data, size_t size) { return transfer.Write(data, size); });
    RETURN_IF_ERROR(transfer.status);
    if (IsRedirect(status)) {
      ASSIGN_OR_RETURN(url, ParseUrl(location, &url));
      continue;
    }
    if (status == 416 && transfer.done > 0) {
      // Either all is there already, or what is there is not of this file.
      if (transfer.done == transfer.file.size) return absl::OkStatus();
      RETURN_IF_ERROR(transfer.Truncate());
      return absl::UnavailableError("the part that was there does not fit");
    }
    if (status != 0 && status != 200 && status != 206) {
      return StatusOfHttp(status, transfer.file.path);
    }
    if (!result) {
      return absl::UnavailableError(
          absl::StrCat("the connection broke off (", httplib::to_string(result.error()), ")"));
    }
    if (transfer.file.size >= 0 && transfer.done < transfer.file.size) {
      return absl::UnavailableError("the connection broke off");
    }
    return absl::OkStatus();
  }
  return absl::InternalError("the hub redirects in a circle");
}

absl::Status HubClient::Download(const HubAddress& address, const HubFile& file,
                                 const std::string& target, const Progress& progress) const {
  ASSIGN_OR_RETURN(
      const Url url,
      ParseUrl(absl::StrCat(options_.endpoint, "/", EscapePath(address.repository), "/resolve/",
                            EscapePath(address.revision), "/", EscapePath(file.path)),
               nullptr));
  Transfer transfer;
  transfer.file = file;
  transfer.part = target + ".part";
  transfer.progress = progress;
  transfer.fd = open(transfer.part.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (transfer.fd < 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", transfer.part, ": ", std::strerror(errno)));
  }
  const absl::Cleanup close_part = [&transfer] { close(transfer.fd); };
  transfer.done = lseek(transfer.fd, 0, SEEK_END);
  if (file.size >= 0 && transfer.done > file.size) RETURN_IF_ERROR(transfer.Truncate());
  absl::Duration pause = options_.first_pause;
  for (int attempt = 1;; ++attempt) {
    const int64_t before = transfer.done;
    transfer.status = absl::OkStatus();
    absl::Status fetched;
    if (file.size < 0 || transfer.done < file.size || file.size == 0) {
      fetched = Fetch(url, transfer);
    }
    if (fetched.ok()) break;
    if (transfer.done > before) {
      attempt = 0;
      pause = options_.first_pause;
    }
    if (!absl::IsUnavailable(fetched) || attempt >= options_.attempts) {
      if (!absl::IsUnavailable(fetched)) return fetched;
      return absl::UnavailableError(
          absl::StrCat(fetched.message(), " at byte ", transfer.done, " of ", file.path,
                       "\nrun the same command again: it goes on where it stopped"));
    }
    absl::SleepFor(pause);
    pause = std::min(pause * 2, absl::Seconds(10));
  }
  if (fsync(transfer.fd) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot write ", transfer.part, ": ", std::strerror(errno)));
  }
  ASSIGN_OR_RETURN(const bool right, HasExpectedHash(transfer.part, transfer.file));
  if (!right) {
    unlink(transfer.part.c_str());
    return absl::DataLossError(
        absl::StrCat("what was downloaded has another hash than the hub names: ", file.path,
                     "\nit was removed; run the same command again"));
  }
  if (std::rename(transfer.part.c_str(), target.c_str()) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot rename ", transfer.part, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> HasExpectedHash(const std::string& path, const HubFile& file) {
  if (file.size >= 0) {
    struct stat info = {};
    if (stat(path.c_str(), &info) != 0) {
      return absl::NotFoundError(absl::StrCat("no such file: ", path));
    }
    if (info.st_size != file.size) return false;
  }
  if (!file.sha256.empty()) {
    ASSIGN_OR_RETURN(const std::string hash, Sha256OfFile(path));
    return absl::EqualsIgnoreCase(hash, file.sha256);
  }
  if (!file.git_sha1.empty()) {
    ASSIGN_OR_RETURN(const std::string hash, GitBlobSha1OfFile(path));
    return absl::EqualsIgnoreCase(hash, file.git_sha1);
  }
  return true;
}

}  // namespace mneme::cli
