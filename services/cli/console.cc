#include "services/cli/console.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cwchar>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/json_util.h"
#include "services/cli/commands.h"
#include "services/cli/utf8.h"

namespace mneme::cli {

std::optional<int> ParseOrExit(Arguments& arguments, const std::vector<std::string>& words) {
  const absl::Status parsed = arguments.Parse(words);
  if (!parsed.ok()) {
    Fail(parsed);
    return kExitUsage;
  }
  if (!arguments.help_wanted()) return std::nullopt;
  std::fputs(arguments.Help().c_str(), stdout);
  return kExitOk;
}

int RunSubcommand(absl::string_view command, absl::string_view summary,
                  const std::vector<CommandEntry>& entries, const std::vector<std::string>& words) {
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> names;
  for (const CommandEntry& entry : entries) {
    if (!words.empty() && words[0] == entry.name)
      return entry.run({words.begin() + 1, words.end()});
    rows.push_back({absl::StrCat("  ", entry.name), entry.summary});
    names.push_back(entry.name);
  }
  const std::string help =
      absl::StrCat(summary, "\n\nusage: ", command, " COMMAND [options]\n\n", Table(rows), "\n`",
                   command, " COMMAND --help` says more.\n");
  if (words.empty()) {
    std::fputs(help.c_str(), stderr);
    return kExitUsage;
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::fputs(help.c_str(), stdout);
    return kExitOk;
  }
  const std::string nearest = NearestWord(words[0], names);
  PrintErrorLine(absl::StrCat("mneme: no such command: ", command, " ", words[0],
                              nearest.empty() ? "" : absl::StrCat(": did you mean ", nearest, "?"),
                              "\nsee `", command, " --help`"));
  return kExitUsage;
}

int Fail(const absl::Status& status) {
  PrintErrorLine(absl::StrCat("mneme: ", status.message()));
  return kExitError;
}

void PrintLine(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

void PrintErrorLine(absl::string_view text) {
  const std::string line = absl::StrCat(text, "\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::string ToJsonLine(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto printed = google::protobuf::util::MessageToJsonString(message, &json, options);
  return printed.ok() ? json : "{}";
}

std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string table;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, row[i]);
      if (i + 1 < row.size()) line.append(widths[i] - DisplayWidth(row[i]) + 2, ' ');
    }
    absl::StrAppend(&table, line, "\n");
  }
  return table;
}

size_t DisplayWidth(absl::string_view text) {
  size_t width = 0;
  while (!text.empty()) {
    const Utf8Character character = NextCharacter(text);
    width += character.width;
    text.remove_prefix(character.bytes);
  }
  return width;
}

std::string WithoutControls(absl::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const Utf8Character character = NextCharacter(text);
    const char32_t code = character.code;
    const bool control =
        (code < 0x20 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0);
    if (!control) absl::StrAppend(&clean, text.substr(0, character.bytes));
    text.remove_prefix(character.bytes);
  }
  return clean;
}

}  // namespace mneme::cli
