// The commands of `mneme`. Each takes the words after its name and returns the exit code: 0, 1
// after an error that was printed, 2 for a wrong use.
#pragma once

#include <string>
#include <vector>

namespace mneme::cli {

int UpCommand(const std::vector<std::string>& words);
int DownCommand(const std::vector<std::string>& words);
int StatusCommand(const std::vector<std::string>& words);

}  // namespace mneme::cli
