#include "services/cli/session_files.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "mneme/gateway/v1/admin.grpc.pb.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {
namespace {

namespace gw = gateway::v1;

constexpr size_t kPieceBytes = 1 << 20;
constexpr absl::Duration kTransferTimeout = absl::Hours(1);
constexpr absl::Duration kForgetTimeout = absl::Minutes(2);

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

// "-" is the terminal's own stream.
absl::StatusOr<File> Open(const std::string& path, const char* mode, FILE* standard) {
  if (path == "-") return File(standard, [](FILE* file) { return fflush(file); });
  File file(fopen(path.c_str(), mode), fclose);
  if (file != nullptr) return file;
  return absl::NotFoundError(absl::StrCat("cannot be opened: ", path, ": ", strerror(errno)));
}

// Writes to a file of another name first: what has the right name is whole.
absl::Status ExportTo(const ServerOptions& options, const gw::ExportSessionRequest& request,
                      const std::string& path, int64_t* num_bytes) {
  ASSIGN_OR_RETURN(const ServerConnection server, ServerConnection::Open(options));
  const std::string partial = path == "-" ? path : path + ".part";
  ASSIGN_OR_RETURN(File file, Open(partial, "wb", stdout));
  const auto stub = gw::SessionService::NewStub(server.channel());
  grpc::ClientContext context;
  server.Prepare(kTransferTimeout, &context);
  const auto reader = stub->ExportSession(&context, request);
  gw::ExportSessionResponse response;
  bool written = true;
  while (reader->Read(&response)) {
    const std::string& piece = response.piece();
    written = fwrite(piece.data(), 1, piece.size(), file.get()) == piece.size();
    if (!written) break;
    *num_bytes += static_cast<int64_t>(piece.size());
  }
  if (!written) context.TryCancel();
  const grpc::Status status = reader->Finish();
  written = written && fflush(file.get()) == 0;
  file.reset();
  absl::Status result;
  if (!written) {
    result =
        absl::UnavailableError(absl::StrCat("cannot be written: ", path, ": ", strerror(errno)));
  } else if (!status.ok()) {
    result = server.Explain(status);
  }
  if (path == "-") return result;
  if (!result.ok()) {
    remove(partial.c_str());
  } else if (rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot be written: ", path, ": ", strerror(errno)));
  }
  return result;
}

absl::StatusOr<gw::Session> ImportFrom(const ServerOptions& options, const std::string& path,
                                       const std::string& session_id) {
  ASSIGN_OR_RETURN(const ServerConnection server, ServerConnection::Open(options));
  ASSIGN_OR_RETURN(const File file, Open(path, "rb", stdin));
  const auto stub = gw::SessionService::NewStub(server.channel());
  gw::ImportSessionResponse response;
  grpc::ClientContext context;
  server.Prepare(kTransferTimeout, &context);
  const auto writer = stub->ImportSession(&context, &response);
  gw::ImportSessionRequest part;
  part.mutable_header()->set_session_id(session_id);
  std::string buffer(kPieceBytes, '\0');
  bool wanted = writer->Write(part);
  while (wanted) {
    const size_t count = fread(buffer.data(), 1, buffer.size(), file.get());
    if (count == 0) break;
    part.set_piece(buffer.substr(0, count));
    wanted = writer->Write(part);
  }
  const bool read_failed = ferror(file.get()) != 0;
  if (read_failed) {
    context.TryCancel();
  } else {
    writer->WritesDone();
  }
  const grpc::Status status = writer->Finish();
  if (read_failed) return absl::UnavailableError(absl::StrCat("cannot be read: ", path));
  if (!status.ok()) return server.Explain(status);
  return response.session();
}

}  // namespace

int ExportSession(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> names;
  bool text_only = false;
  Arguments arguments("mneme sessions export",
                      "Writes a session with its memory to one file, which `mneme sessions import` "
                      "reads.");
  arguments.Positional("ID [FILE]", 1, 2, &names,
                       "the session; the file (default ID.mneme; - for standard output)");
  arguments.Flag("text-only", &text_only, "leaves the key/value memory out: it is computed again");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::ExportSessionRequest request;
  request.set_session_id(names[0]);
  request.set_without_snapshot(text_only);
  const std::string path = names.size() > 1 ? names[1] : names[0] + ".mneme";
  int64_t num_bytes = 0;
  const absl::Status status = ExportTo(options, request, path, &num_bytes);
  if (!status.ok()) return Fail(status);
  PrintErrorLine(absl::StrCat("exported: ", names[0], ", ", num_bytes, " bytes to ", path));
  return kExitOk;
}

int ImportSession(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> names;
  bool json = false;
  Arguments arguments("mneme sessions import",
                      "Makes a session from a file that `mneme sessions export` wrote.");
  arguments.Positional("FILE [ID]", 1, 2, &names,
                       "the file (- for standard input); what the session is called (default: as "
                       "before)");
  arguments.Flag("json", &json, "prints the session as one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<gw::Session> made =
      ImportFrom(options, names[0], names.size() > 1 ? names[1] : "");
  if (!made.ok()) return Fail(made.status());
  PrintLine(json ? ToJsonLine(*made)
                 : absl::StrCat("imported: ", made->session_id(), ", version ", made->version()));
  return kExitOk;
}

int ForgetTenant(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> tenants;
  bool yes = false;
  Arguments arguments("mneme sessions forget-tenant",
                      "Destroys a tenant's key, and with it everything the tenant has; needs a key "
                      "made with `mneme keys add --admin`.");
  arguments.Positional("TENANT", 1, 1, &tenants, "the tenant");
  arguments.Flag("yes", &yes, "there is no way back: this must be given");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  if (!yes) {
    PrintErrorLine("mneme: this cannot be undone; add --yes");
    return kExitUsage;
  }
  const absl::StatusOr<ServerConnection> server = ServerConnection::Open(options);
  if (!server.ok()) return Fail(server.status());
  gw::ForgetTenantRequest request;
  request.set_tenant(tenants[0]);
  gw::ForgetTenantResponse response;
  grpc::ClientContext context;
  server->Prepare(kForgetTimeout, &context);
  const grpc::Status status =
      gw::AdminService::NewStub(server->channel())->ForgetTenant(&context, request, &response);
  if (!status.ok()) return Fail(server->Explain(status));
  PrintLine(absl::StrCat("forgotten: ", tenants[0], ", ", response.sessions(), " sessions"));
  return kExitOk;
}

}  // namespace mneme::cli
