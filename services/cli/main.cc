// `mneme`: the command and the local supervisor.
#include <clocale>
#include <cstdio>
#include <string>
#include <vector>

#include "services/cli/commands.h"

int main(int argc, char** argv) {
  using namespace mneme::cli;  // NOLINT(google-build-using-namespace): the table below
  // So that the width of characters on the terminal is known.
  std::setlocale(LC_CTYPE, "C.UTF-8");
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words[0] == "--version") {
    std::printf("mneme %s\n", MNEME_VERSION);
    return 0;
  }
  return RunSubcommand(
      "mneme", "Serves language models whose memory does not grow with the conversation.",
      {{"up", "starts every service on this machine and watches over them", UpCommand},
       {"down", "stops what `mneme up` started", DownCommand},
       {"status", "shows what runs and whether it is well", StatusCommand},
       {"chat", "talks to a model", ChatCommand},
       {"sessions", "lists, shows and deletes sessions", SessionsCommand},
       {"compare", "shows what memory policies cost and lose on a text", CompareCommand},
       {"models", "lists, adds and fetches models", ModelsCommand},
       {"keys", "the API keys that the server accepts", KeysCommand},
       {"doctor", "finds what is wrong with this machine or a Redis", DoctorCommand}},
      words);
}
