#include "tests/support/certificates.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace mneme::testing {
namespace {

constexpr long kVersion3 = 2;

void Check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "a test certificate cannot be made: %s\n", what);
  std::abort();
}

}  // namespace

void CertificateAuthority::Deleter::operator()(X509* certificate) const { X509_free(certificate); }
void CertificateAuthority::Deleter::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }

CertificateAuthority::CertificateAuthority()
    : key_(EVP_EC_gen("P-256")),
      certificate_(Sign(key_.get(), "test authority", "basicConstraints", "critical,CA:TRUE",
                        absl::Hours(1))),
      certificate_file_(Write(certificate_.get(), key_.get(), "authority").certificate) {}

CertificateAuthority::~CertificateAuthority() = default;

CertificateFiles CertificateAuthority::Issue(absl::string_view names, absl::Duration valid_for) {
  const Key key(EVP_EC_gen("P-256"));
  const std::string name = absl::StrCat("issued", ++num_issued_);
  const Certificate certificate = Sign(key.get(), name, "subjectAltName", names, valid_for);
  return Write(certificate.get(), key.get(), name);
}

CertificateAuthority::Certificate CertificateAuthority::Sign(EVP_PKEY* key, absl::string_view name,
                                                             absl::string_view extension_name,
                                                             absl::string_view extension,
                                                             absl::Duration valid_for) {
  Certificate certificate(X509_new());
  Check(key != nullptr && certificate != nullptr, "no key");
  X509_set_version(certificate.get(), kVersion3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), num_issued_ + 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -2 * 3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()),
                  static_cast<long>(absl::ToInt64Seconds(valid_for)));
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* const subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.data()),
                             static_cast<int>(name.size()), -1, 0);
  X509* const issuer = certificate_ != nullptr ? certificate_.get() : certificate.get();
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer));
  X509_EXTENSION* const made = X509V3_EXT_conf(
      nullptr, nullptr, std::string(extension_name).c_str(), std::string(extension).c_str());
  Check(made != nullptr && X509_add_ext(certificate.get(), made, -1) == 1, "an extension");
  X509_EXTENSION_free(made);
  Check(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0, "no signature");
  return certificate;
}

CertificateFiles CertificateAuthority::Write(const X509* certificate, EVP_PKEY* key,
                                             absl::string_view name) {
  CertificateFiles files{folder_.File(absl::StrCat(name, ".crt")),
                         folder_.File(absl::StrCat(name, ".key"))};
  std::FILE* file = std::fopen(files.certificate.c_str(), "w");
  Check(file != nullptr && PEM_write_X509(file, const_cast<X509*>(certificate)) == 1, "no file");
  std::fclose(file);
  file = std::fopen(files.key.c_str(), "w");
  Check(file != nullptr &&
            PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr) == 1,
        "no file");
  std::fclose(file);
  return files;
}

}  // namespace mneme::testing
