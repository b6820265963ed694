#include "common/redis/tls_socket.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

constexpr size_t kRecordBytes = 16 << 10;  // TLS' largest

struct ContextDeleter {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using Context = std::unique_ptr<SSL_CTX, ContextDeleter>;

// OpenSSL's own BIO of a socket writes with write(2): a peer that has gone would end the process
// with SIGPIPE.
int SendBytes(BIO* bio, const char* bytes, int size) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  BIO_clear_retry_flags(bio);
  const ssize_t count = send(fd, bytes, static_cast<size_t>(size), MSG_NOSIGNAL);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(count);
}

int ReceiveBytes(BIO* bio, char* buffer, int size) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  BIO_clear_retry_flags(bio);
  const ssize_t count = recv(fd, buffer, static_cast<size_t>(size), 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  if (count == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return static_cast<int>(count);
}

long ControlBytes(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO* NewBio(int fd) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "redis socket");
    BIO_meth_set_write(made, &SendBytes);
    BIO_meth_set_read(made, &ReceiveBytes);
    BIO_meth_set_ctrl(made, &ControlBytes);
    return made;
  }();
  BIO* const bio = BIO_new(method);
  if (bio == nullptr) return nullptr;
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(fd)));
  BIO_set_init(bio, 1);
  return bio;
}

bool IsIpAddress(const std::string& host) {
  in6_addr address;
  return inet_pton(AF_INET, host.c_str(), &address) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

// The first error that OpenSSL has queued, "" if there is none. Clears the queue.
std::string QueuedError() {
  const unsigned long error = ERR_get_error();
  ERR_clear_error();
  if (error == 0) return "";
  const char* const reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : absl::StrCat("OpenSSL error ", error);
}

absl::Status BadFile(absl::string_view field, const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(field, " cannot be used: ", path, ": ", QueuedError()));
}

absl::StatusOr<Context> MakeContext(const TlsOptions& options) {
  ERR_clear_error();
  Context context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr) return absl::InternalError("OpenSSL makes no context");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE |
                                      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
  // Whoever cuts the connection without saying so can only cut replies short, which shows.
  SSL_CTX_set_options(context.get(), SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_RENEGOTIATION);
  if (options.ca_file.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
  } else if (SSL_CTX_load_verify_file(context.get(), options.ca_file.c_str()) != 1) {
    return BadFile("redis.tls_ca_file", options.ca_file);
  }
  if (options.certificate.empty() != options.key.empty()) {
    return absl::FailedPreconditionError(
        "redis.tls_certificate and redis.tls_key go together: set both or none");
  }
  if (options.certificate.empty()) return context;
  if (SSL_CTX_use_certificate_chain_file(context.get(), options.certificate.c_str()) != 1) {
    return BadFile("redis.tls_certificate", options.certificate);
  }
  if (SSL_CTX_use_PrivateKey_file(context.get(), options.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context.get()) != 1) {
    return BadFile("redis.tls_key", options.key);
  }
  return context;
}

// What the alerts of a server that refuses us mean; "" for those that say nothing about settings.
absl::string_view FixOfAlert(int reason) {
  switch (reason) {
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return "Redis wants a certificate of this client: set redis.tls_certificate and "
             "redis.tls_key";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
      return "Redis does not accept the certificate in redis.tls_certificate: have it signed by an "
             "authority of Redis' tls-ca-cert-file";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
      return "the certificate in redis.tls_certificate is no longer valid: renew it";
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_UNSUPPORTED_PROTOCOL:
      return "Redis speaks no TLS of version 1.2 or later: raise its tls-protocols";
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_HTTP_REQUEST:
      return "what listens there speaks no TLS: leave redis.tls out, or give Redis' tls-port";
    default:
      return "";
  }
}

}  // namespace

void TlsSocket::SslDeleter::operator()(SSL* ssl) const { SSL_free(ssl); }

absl::StatusOr<std::unique_ptr<TlsSocket>> TlsSocket::Connect(Socket socket,
                                                              const TlsOptions& options,
                                                              const std::string& host,
                                                              absl::Time deadline) {
  std::unique_ptr<TlsSocket> connection(new TlsSocket(std::move(socket)));
  RETURN_IF_ERROR(connection->Prepare(options, host));
  RETURN_IF_ERROR(connection->Handshake(deadline));
  return connection;
}

TlsSocket::~TlsSocket() {
  // Tells the server, if that needs no waiting.
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

absl::Status TlsSocket::Prepare(const TlsOptions& options, const std::string& host) {
  ASSIGN_OR_RETURN(const Context context, MakeContext(options));
  ssl_.reset(SSL_new(context.get()));  // shares the ownership of the context
  name_ = options.server_name.empty() ? host : options.server_name;
  ca_file_ = options.ca_file;
  BIO* const bio = NewBio(socket_.fd());
  if (ssl_ == nullptr || bio == nullptr) {
    BIO_free(bio);
    return absl::InternalError("OpenSSL makes no connection");
  }
  SSL_set_bio(ssl_.get(), bio, bio);
  SSL_set_app_data(ssl_.get(), this);
  SSL_CTX_set_client_cert_cb(SSL_get_SSL_CTX(ssl_.get()), &NoteMissingCertificate);
  bool is_set = false;
  if (IsIpAddress(name_)) {
    is_set = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_.get()), name_.c_str()) == 1;
  } else {
    SSL_set_hostflags(ssl_.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    is_set = SSL_set1_host(ssl_.get(), name_.c_str()) == 1 &&
             SSL_set_tlsext_host_name(ssl_.get(), name_.c_str()) == 1;
  }
  if (is_set) return absl::OkStatus();
  ERR_clear_error();
  return absl::FailedPreconditionError(
      absl::StrCat("redis.tls_server_name or the host of the address is no name: ", name_));
}

int TlsSocket::NoteMissingCertificate(SSL* ssl, X509**, EVP_PKEY**) {
  static_cast<TlsSocket*>(SSL_get_app_data(ssl))->certificate_missing_ = true;
  return 0;  // goes on without one: the server may only have offered
}

absl::Status TlsSocket::Handshake(absl::Time deadline) {
  while (true) {
    ERR_clear_error();
    const int result = SSL_connect(ssl_.get());
    if (result == 1) return absl::OkStatus();
    RETURN_IF_ERROR(WaitOrExplain(result, deadline));
  }
}

absl::Status TlsSocket::Write(absl::Span<const absl::string_view> pieces, absl::Time deadline) {
  outgoing_.clear();
  for (absl::string_view piece : pieces) {
    while (!piece.empty()) {
      if (outgoing_.empty() && piece.size() >= kRecordBytes) {
        const size_t whole = piece.size() - piece.size() % kRecordBytes;
        RETURN_IF_ERROR(WriteRecords(piece.substr(0, whole), deadline));
        piece.remove_prefix(whole);
        continue;
      }
      const size_t count = std::min(piece.size(), kRecordBytes - outgoing_.size());
      outgoing_.append(piece.data(), count);
      piece.remove_prefix(count);
      if (outgoing_.size() < kRecordBytes) continue;
      RETURN_IF_ERROR(WriteRecords(outgoing_, deadline));
      outgoing_.clear();
    }
  }
  const absl::Status status = WriteRecords(outgoing_, deadline);
  outgoing_.clear();
  return status;
}

absl::Status TlsSocket::WriteRecords(absl::string_view bytes, absl::Time deadline) {
  while (!bytes.empty()) {
    ERR_clear_error();
    const int size = static_cast<int>(std::min<size_t>(bytes.size(), INT_MAX));
    const int result = SSL_write(ssl_.get(), bytes.data(), size);
    if (result > 0) {
      bytes.remove_prefix(static_cast<size_t>(result));
      if (!bytes.empty() && absl::Now() >= deadline) {
        return absl::DeadlineExceededError("no answer in time");
      }
      continue;
    }
    const absl::Status status = WaitOrExplain(result, deadline);
    if (!status.ok()) return has_heard_data_ ? status : WhyRefused(status);
  }
  return absl::OkStatus();
}

absl::Status TlsSocket::WhyRefused(const absl::Status& status) {
  // In TLS 1.3 a server judges our certificate after we have begun to write: its alert may lie
  // unread behind the end of the connection.
  if (!absl::IsUnavailable(status)) return status;
  ERR_clear_error();
  char byte;
  const int result = SSL_read(ssl_.get(), &byte, 1);
  if (result > 0 || SSL_get_error(ssl_.get(), result) != SSL_ERROR_SSL) return status;
  return Explain(SSL_ERROR_SSL);
}

absl::StatusOr<size_t> TlsSocket::Read(char* buffer, size_t size, absl::Time deadline) {
  while (true) {
    ERR_clear_error();
    const int result =
        SSL_read(ssl_.get(), buffer, static_cast<int>(std::min<size_t>(size, INT_MAX)));
    if (result > 0) {
      has_heard_data_ = true;
      return static_cast<size_t>(result);
    }
    RETURN_IF_ERROR(WaitOrExplain(result, deadline));
  }
}

bool TlsSocket::IsQuiet() {
  // What arrived may be no data, but a session ticket: only OpenSSL can tell.
  ERR_clear_error();
  char byte;
  const int result = SSL_peek(ssl_.get(), &byte, 1);
  const bool is_quiet = result <= 0 && SSL_get_error(ssl_.get(), result) == SSL_ERROR_WANT_READ;
  ERR_clear_error();
  return is_quiet;
}

absl::Status TlsSocket::WaitOrExplain(int result, absl::Time deadline) {
  const int system_error = errno;
  switch (const int error = SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return socket_.WaitFor(POLLIN, deadline);
    case SSL_ERROR_WANT_WRITE:
      return socket_.WaitFor(POLLOUT, deadline);
    default:
      errno = system_error;
      return Explain(error);
  }
}

absl::Status TlsSocket::Explain(int error) const {
  const int system_error = errno;
  const int reason = ERR_GET_REASON(ERR_peek_error());
  const std::string words = QueuedError();
  const long verified = SSL_get_verify_result(ssl_.get());
  if (verified != X509_V_OK) return ExplainVerification(verified);
  if (error == SSL_ERROR_SSL && !FixOfAlert(reason).empty()) {
    return absl::FailedPreconditionError(absl::StrCat(FixOfAlert(reason), ": ", words));
  }
  // The alert that says so may have been lost with the connection, or be a general one.
  if (certificate_missing_ && !has_heard_data_) {
    return absl::FailedPreconditionError(FixOfAlert(SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED));
  }
  if (error == SSL_ERROR_ZERO_RETURN || (error == SSL_ERROR_SYSCALL && system_error == 0)) {
    return absl::UnavailableError("the server closed the connection");
  }
  return absl::UnavailableError(absl::StrCat(
      "TLS: ", error == SSL_ERROR_SYSCALL ? std::strerror(system_error) : words.c_str()));
}

absl::Status TlsSocket::ExplainVerification(long result) const {
  const std::string words = X509_verify_cert_error_string(result);
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return absl::FailedPreconditionError(absl::StrCat(
          "Redis' certificate has expired: renew it, or set this machine's clock right: ", words));
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return absl::FailedPreconditionError(absl::StrCat(
          "Redis' certificate is not valid yet: set this machine's clock right: ", words));
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return absl::FailedPreconditionError(absl::StrCat(
          "Redis' certificate is for another host than ", name_,
          ": correct the address, or set redis.tls_server_name to a name in the certificate"));
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
      return absl::FailedPreconditionError(absl::StrCat(
          "Redis' certificate is signed by an authority that is not trusted: set redis.tls_ca_file "
          "to the authority's certificate (now: ",
          ca_file_.empty() ? "what the system trusts" : ca_file_, "): ", words));
    default:
      return absl::FailedPreconditionError(
          absl::StrCat("Redis' certificate cannot be verified: ", words));
  }
}

}  // namespace mneme::redis
