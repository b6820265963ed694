// `mneme down`: stops what `mneme up` started.
#include <csignal>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {
namespace {

absl::Status Down(const DataFolder& folder, absl::Duration timeout) {
  const pid_t pid = folder.RunningPid();
  if (pid == 0) {
    PrintErrorLine(absl::StrCat("mneme: nothing is running on ", folder.path()));
    return absl::OkStatus();
  }
  if (kill(pid, SIGTERM) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot stop process ", pid, ": it is another user's"));
  }
  const absl::Time deadline = absl::Now() + timeout;
  while (folder.RunningPid() == pid) {
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("process ", pid, " is still stopping after ", absl::FormatDuration(timeout),
                       "\nwait longer, or end it: kill -9 ", pid, " (its services end with it)"));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

}  // namespace

int DownCommand(const std::vector<std::string>& words) {
  std::string data;
  std::optional<double> timeout_s = 60;
  Arguments arguments("mneme down", "Stops what `mneme up` started; running answers may finish.");
  arguments.Option("data", "DIR", &data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Option("timeout", "SECONDS", &timeout_s, "how long to wait (default 60)");
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::Status status = Down(DataFolder(data), absl::Seconds(*timeout_s));
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace mneme::cli
