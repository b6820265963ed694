#include "services/cli/arguments.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::cli {
namespace {

// Number of single-character edits between two words.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

template <typename T>
std::function<absl::Status(const std::string&)> SetNumber(T* target, absl::string_view kind,
                                                          bool (*parse)(absl::string_view,
                                                                        typename T::value_type*)) {
  return [target, kind = std::string(kind), parse](const std::string& text) {
    typename T::value_type number;
    if (!parse(text, &number)) {
      return absl::InvalidArgumentError(absl::StrCat("is not ", kind, ": ", text));
    }
    *target = number;
    return absl::OkStatus();
  };
}

}  // namespace

std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates) {
  // An abbreviation ("--temp"); two dashes and a letter would fit everything.
  for (const std::string& candidate : candidates) {
    if (word.size() >= 4 && absl::StartsWith(candidate, word)) return candidate;
  }
  std::string nearest;
  // A third of the word may be wrong; beyond that a suggestion confuses.
  size_t best = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

void Arguments::Add(absl::string_view name, absl::string_view value, absl::string_view help,
                    std::function<absl::Status(const std::string&)> set) {
  known_.push_back({std::string(name), std::string(value), std::string(help), std::move(set)});
}

void Arguments::Flag(absl::string_view name, bool* target, absl::string_view help) {
  Add(name, "", help, [target](const std::string&) {
    *target = true;
    return absl::OkStatus();
  });
}

void Arguments::Option(absl::string_view name, absl::string_view value, std::string* target,
                       absl::string_view help) {
  Add(name, value, help, [target](const std::string& text) {
    *target = text;
    return absl::OkStatus();
  });
}

void Arguments::Option(absl::string_view name, absl::string_view value,
                       std::optional<std::string>* target, absl::string_view help) {
  Add(name, value, help, [target](const std::string& text) {
    *target = text;
    return absl::OkStatus();
  });
}

void Arguments::Option(absl::string_view name, absl::string_view value, std::optional<int>* target,
                       absl::string_view help) {
  Add(name, value, help, SetNumber(target, "a whole number", absl::SimpleAtoi<int>));
}

void Arguments::Option(absl::string_view name, absl::string_view value,
                       std::optional<double>* target, absl::string_view help) {
  Add(name, value, help, SetNumber(target, "a number", absl::SimpleAtod));
}

void Arguments::Option(absl::string_view name, absl::string_view value,
                       std::optional<uint64_t>* target, absl::string_view help) {
  Add(name, value, help,
      SetNumber(target, "a whole number that is not negative", absl::SimpleAtoi<uint64_t>));
}

void Arguments::Positional(absl::string_view value, size_t least, size_t most,
                           std::vector<std::string>* target, absl::string_view help) {
  positional_value_ = std::string(value);
  positional_least_ = least;
  positional_most_ = most;
  positional_ = target;
  positional_help_ = std::string(help);
}

const Arguments::Known* Arguments::Find(absl::string_view name) const {
  const auto found = std::find_if(known_.begin(), known_.end(),
                                  [name](const Known& known) { return known.name == name; });
  return found == known_.end() ? nullptr : &*found;
}

absl::Status Arguments::Wrong(absl::string_view message) const {
  return absl::InvalidArgumentError(
      absl::StrCat(message, "\nsee `", command_, " --help` for what it takes"));
}

absl::Status Arguments::Parse(const std::vector<std::string>& words) {
  size_t num_positional = 0;
  bool options_ended = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (options_ended || !absl::StartsWith(word, "-") || word == "-") {
      if (num_positional >= positional_most_) {
        return Wrong(absl::StrCat("unexpected argument: ", word));
      }
      positional_->push_back(word);
      ++num_positional;
      continue;
    }
    if (word == "--") {
      options_ended = true;
      continue;
    }
    if (word == "--help" || word == "-h") {
      help_wanted_ = true;
      return absl::OkStatus();
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const Known* known = absl::StartsWith(name, "--") ? Find(name.substr(2)) : nullptr;
    if (known == nullptr) {
      std::vector<std::string> names = {"--help"};
      for (const Known& other : known_) names.push_back("--" + other.name);
      const std::string nearest = NearestWord(name, names);
      return Wrong(
          absl::StrCat("unknown option ", name,
                       nearest.empty() ? "" : absl::StrCat(": did you mean ", nearest, "?")));
    }
    std::string value;
    if (known->value.empty()) {
      if (equals != std::string::npos) return Wrong(absl::StrCat(name, " takes no value"));
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else {
      if (i + 1 >= words.size()) return Wrong(absl::StrCat(name, " needs a value: ", known->value));
      value = words[++i];
    }
    if (const absl::Status set = known->set(value); !set.ok()) {
      return Wrong(absl::StrCat(name, " ", set.message()));
    }
  }
  if (num_positional < positional_least_) {
    return Wrong(absl::StrCat("missing argument: ", positional_value_));
  }
  return absl::OkStatus();
}

std::string Arguments::Usage() const {
  std::string usage = absl::StrCat("usage: ", command_, known_.empty() ? "" : " [options]");
  if (positional_most_ > 0) {
    const std::string shown = absl::StrCat(positional_value_, positional_most_ > 1 ? " …" : "");
    absl::StrAppend(&usage, positional_least_ == 0 ? " [" : " ", shown,
                    positional_least_ == 0 ? "]" : "");
  }
  return usage;
}

std::string Arguments::Help() const {
  std::string help = absl::StrCat(summary_, "\n\n", Usage(), "\n");
  std::vector<std::pair<std::string, std::string>> rows;
  if (!positional_help_.empty()) rows.emplace_back(positional_value_, positional_help_);
  for (const Known& known : known_) {
    rows.emplace_back(
        absl::StrCat("--", known.name, known.value.empty() ? "" : absl::StrCat(" ", known.value)),
        known.help);
  }
  rows.emplace_back("--help", "shows this");
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.first.size());
  absl::StrAppend(&help, "\n");
  for (const auto& [left, right] : rows) {
    absl::StrAppend(&help, "  ", left, std::string(width - left.size() + 2, ' '), right, "\n");
  }
  if (!footer_.empty()) absl::StrAppend(&help, "\n", footer_, "\n");
  return help;
}

}  // namespace mneme::cli
