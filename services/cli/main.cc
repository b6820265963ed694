// `mneme`: the command and the local supervisor.
#include <clocale>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"

namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const std::vector<std::string>& words);
};

const Command kCommands[] = {
    {"up", "starts every service on this machine and watches over them", mneme::cli::UpCommand},
    {"down", "stops what `mneme up` started", mneme::cli::DownCommand},
    {"status", "shows what runs and whether it is well", mneme::cli::StatusCommand},
};

std::string Help() {
  std::vector<std::vector<std::string>> rows;
  for (const Command& command : kCommands) {
    rows.push_back({absl::StrCat("  ", command.name), command.summary});
  }
  return absl::StrCat(
      "Serves language models whose memory does not grow with the conversation.\n\n"
      "usage: mneme COMMAND [options]\n\n",
      mneme::cli::Table(rows),
      "\n`mneme COMMAND --help` says more; `mneme --version` shows the version.\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "C.UTF-8");
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::fputs(Help().c_str(), words.empty() ? stderr : stdout);
    return words.empty() ? mneme::cli::kExitUsage : mneme::cli::kExitOk;
  }
  if (words[0] == "--version") {
    std::printf("mneme %s\n", MNEME_VERSION);
    return mneme::cli::kExitOk;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (words[0] == command.name) return command.run({words.begin() + 1, words.end()});
    names.push_back(command.name);
  }
  const std::string nearest = mneme::cli::NearestWord(words[0], names);
  mneme::cli::PrintErrorLine(
      absl::StrCat("mneme: no such command: ", words[0],
                   nearest.empty() ? "" : absl::StrCat(": did you mean ", nearest, "?"),
                   "\nsee `mneme --help` for the commands"));
  return mneme::cli::kExitUsage;
}
