// The commands of `mneme`. Each takes the words after its name and returns the exit code: 0, 1
// after an error that was printed, 2 for a wrong use.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace mneme::cli {

int UpCommand(const std::vector<std::string>& words);
int DownCommand(const std::vector<std::string>& words);
int StatusCommand(const std::vector<std::string>& words);
int ChatCommand(const std::vector<std::string>& words);
int SessionsCommand(const std::vector<std::string>& words);
int CompareCommand(const std::vector<std::string>& words);
int ModelsCommand(const std::vector<std::string>& words);
int KeysCommand(const std::vector<std::string>& words);
int DoctorCommand(const std::vector<std::string>& words);

// A command, or what comes after one ("list" of `mneme sessions list`).
struct CommandEntry {
  std::string name;
  std::string summary;
  std::function<int(const std::vector<std::string>& words)> run;
};

// Runs the command that the first word names; prints the list for --help or a word that is none.
int RunSubcommand(absl::string_view command, absl::string_view summary,
                  const std::vector<CommandEntry>& entries, const std::vector<std::string>& words);

}  // namespace mneme::cli
