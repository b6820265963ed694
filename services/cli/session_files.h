// `mneme sessions export`, `import` and `forget-tenant`: what takes longer than a look-up.
#pragma once

#include <string>
#include <vector>

namespace mneme::cli {

// Each takes the words after its name and returns the exit code.
int ExportSession(const std::vector<std::string>& words);
int ImportSession(const std::vector<std::string>& words);
int ForgetTenant(const std::vector<std::string>& words);

}  // namespace mneme::cli
