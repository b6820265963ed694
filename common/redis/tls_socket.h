// TLS on top of Socket, with the same promise: every call ends by its deadline.
#pragma once

#include <openssl/types.h>

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/options.h"
#include "common/redis/socket.h"
#include "common/redis/transport.h"

namespace mneme::redis {

class TlsSocket final : public Transport {
 public:
  // Encrypts `socket` and verifies the server's certificate: that it is valid now, that an
  // authority we trust has signed it, and that it is for options.server_name, or else for `host`,
  // either of which may be an IP address. FAILED_PRECONDITION: one of these does not hold, a file
  // cannot be used, or the server wants a certificate of ours; the message names the setting.
  static absl::StatusOr<std::unique_ptr<TlsSocket>> Connect(Socket socket,
                                                            const TlsOptions& options,
                                                            const std::string& host,
                                                            absl::Time deadline);
  ~TlsSocket() override;

  absl::Status Write(absl::Span<const absl::string_view> pieces, absl::Time deadline) override;
  absl::StatusOr<size_t> Read(char* buffer, size_t size, absl::Time deadline) override;
  bool IsQuiet() override;

 private:
  struct SslDeleter {
    void operator()(SSL* ssl) const;
  };

  explicit TlsSocket(Socket socket) : socket_(std::move(socket)) {}
  absl::Status Prepare(const TlsOptions& options, const std::string& host);
  absl::Status Handshake(absl::Time deadline);
  absl::Status WriteRecords(absl::string_view bytes, absl::Time deadline);
  // Called after an OpenSSL call that returned `result` <= 0: waits until it can be repeated, or
  // returns why it never can.
  absl::Status WaitOrExplain(int result, absl::Time deadline);
  absl::Status Explain(int error) const;
  // Returns a better reason for a write that failed with `status`, if there is one.
  absl::Status WhyRefused(const absl::Status& status);
  absl::Status ExplainVerification(long result) const;
  // Called when the server asks for a certificate and we have none.
  static int NoteMissingCertificate(SSL* ssl, X509** certificate, EVP_PKEY** key);

  Socket socket_;
  std::unique_ptr<SSL, SslDeleter> ssl_;
  std::string name_;  // that the certificate must be for
  std::string ca_file_;
  std::string outgoing_;  // small pieces on their way into one record
  bool certificate_missing_ = false;
  bool has_heard_data_ = false;
};

}  // namespace mneme::redis
