#include "services/cli/file_hash.h"

#include <openssl/evp.h>
#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace mneme::cli {
namespace {

absl::StatusOr<std::string> HashOfFile(const std::string& path, const EVP_MD* kind, bool as_blob) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  const absl::Cleanup close_file = [file] { std::fclose(file); };
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  if (context == nullptr || EVP_DigestInit_ex(context.get(), kind, nullptr) != 1) {
    return absl::InternalError("OpenSSL does not offer this hash");
  }
  if (as_blob) {
    struct stat info = {};
    if (fstat(fileno(file), &info) != 0) {
      return absl::InternalError(absl::StrCat("cannot read ", path));
    }
    const std::string header = absl::StrCat("blob ", info.st_size);
    EVP_DigestUpdate(context.get(), header.c_str(), header.size() + 1);  // with its zero byte
  }
  std::vector<char> buffer(1 << 20);
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), file)) {
    EVP_DigestUpdate(context.get(), buffer.data(), count);
  }
  if (std::ferror(file) != 0) return absl::DataLossError(absl::StrCat("cannot read ", path));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context.get(), digest, &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

}  // namespace

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  return HashOfFile(path, EVP_sha256(), /*as_blob=*/false);
}

absl::StatusOr<std::string> GitBlobSha1OfFile(const std::string& path) {
  return HashOfFile(path, EVP_sha1(), /*as_blob=*/true);
}

}  // namespace mneme::cli
