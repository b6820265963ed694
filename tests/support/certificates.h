// Certificates made at test time: an authority, and what it signs.
#pragma once

#include <openssl/types.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {

// Paths of PEM files.
struct CertificateFiles {
  std::string certificate;
  std::string key;
};

// Its files live as long as the object. A machine where OpenSSL cannot do this ends the process.
class CertificateAuthority {
 public:
  CertificateAuthority();
  ~CertificateAuthority();

  const std::string& certificate_file() const { return certificate_file_; }

  // Signs a certificate for `names`, in OpenSSL's own form ("DNS:localhost,IP:127.0.0.1"), that is
  // valid from two hours before until `valid_for` after now; negative: it has expired.
  CertificateFiles Issue(absl::string_view names, absl::Duration valid_for = absl::Hours(1));

 private:
  struct Deleter {
    void operator()(X509* certificate) const;
    void operator()(EVP_PKEY* key) const;
  };
  using Certificate = std::unique_ptr<X509, Deleter>;
  using Key = std::unique_ptr<EVP_PKEY, Deleter>;

  // Signed by this authority, or by itself where that does not exist yet.
  Certificate Sign(EVP_PKEY* key, absl::string_view name, absl::string_view extension_name,
                   absl::string_view extension, absl::Duration valid_for);
  CertificateFiles Write(const X509* certificate, EVP_PKEY* key, absl::string_view name);

  TempFolder folder_;
  Key key_;
  Certificate certificate_;  // null while it is made
  std::string certificate_file_;
  int num_issued_ = 0;
};

}  // namespace mneme::testing
