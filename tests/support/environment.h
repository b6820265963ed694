// Settings of tests that come from the environment.
#pragma once

namespace mneme::testing {

// Returns the number above 0 that a variable holds; `otherwise` where it holds none.
int NumberFrom(const char* variable, int otherwise);

}  // namespace mneme::testing
