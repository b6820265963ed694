#include "tests/support/environment.h"

#include <cstdlib>

#include "absl/strings/numbers.h"

namespace mneme::testing {

int NumberFrom(const char* variable, int otherwise) {
  const char* const text = std::getenv(variable);
  int number = 0;
  return text != nullptr && absl::SimpleAtoi(text, &number) && number > 0 ? number : otherwise;
}

}  // namespace mneme::testing
