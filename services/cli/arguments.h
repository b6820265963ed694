// The arguments of one command: typed options, help made from them, and an error with a suggestion
// for what is not known.
//
//   Arguments arguments("mneme down", "Stops what `mneme up` started.");
//   arguments.Option("data", "DIR", &data, "data folder");
//   RETURN_IF_ERROR(arguments.Parse(words));
//   if (arguments.help_wanted()) ...
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace mneme::cli {

// Targets must outlive Parse. Not thread-safe.
class Arguments {
 public:
  Arguments(std::string command, std::string summary)
      : command_(std::move(command)), summary_(std::move(summary)) {}

  // --name: sets the target to true.
  void Flag(absl::string_view name, bool* target, absl::string_view help);
  // --name VALUE or --name=VALUE. A number's text must be a number within the type's range.
  void Option(absl::string_view name, absl::string_view value, std::string* target,
              absl::string_view help);
  void Option(absl::string_view name, absl::string_view value, std::optional<std::string>* target,
              absl::string_view help);
  void Option(absl::string_view name, absl::string_view value, std::optional<int>* target,
              absl::string_view help);
  void Option(absl::string_view name, absl::string_view value, std::optional<double>* target,
              absl::string_view help);
  void Option(absl::string_view name, absl::string_view value, std::optional<uint64_t>* target,
              absl::string_view help);
  // What is not an option; between `least` and `most` of them. `help` says what they are; it may be
  // empty where `most` is 0.
  void Positional(absl::string_view value, size_t least, size_t most,
                  std::vector<std::string>* target, absl::string_view help);
  // Text at the end of the help.
  void Footer(absl::string_view text) { footer_ = std::string(text); }

  // INVALID_ARGUMENT with what is wrong and how to get help. `--` ends the options; --help stops
  // the parsing.
  absl::Status Parse(const std::vector<std::string>& words);

  bool help_wanted() const { return help_wanted_; }
  std::string Help() const;

 private:
  struct Known {
    std::string name;   // without the dashes
    std::string value;  // what the help calls its value; empty: a flag
    std::string help;
    std::function<absl::Status(const std::string& value)> set;
  };

  void Add(absl::string_view name, absl::string_view value, absl::string_view help,
           std::function<absl::Status(const std::string&)> set);
  const Known* Find(absl::string_view name) const;
  absl::Status Wrong(absl::string_view message) const;
  std::string Usage() const;

  std::string command_;
  std::string summary_;
  std::string footer_;
  std::vector<Known> known_;
  std::string positional_value_;
  std::string positional_help_;
  size_t positional_least_ = 0;
  size_t positional_most_ = 0;
  std::vector<std::string>* positional_ = nullptr;
  bool help_wanted_ = false;
};

// Returns the candidate that `word` is most likely a misspelling of, "" where none is near.
std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace mneme::cli
