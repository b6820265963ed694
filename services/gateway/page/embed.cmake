# Writes OUTPUT, a C++ source that holds the file PAGE.
file(READ ${PAGE} html)
string(LENGTH "${html}" length)
# Compilers need not take literals over 64 KiB.
set(literals)
set(at 0)
while(at LESS length)
  string(SUBSTRING "${html}" ${at} 8000 part)
  string(APPEND literals "    R\"embedded(${part})embedded\"\n")
  math(EXPR at "${at} + 8000")
endwhile()
file(WRITE ${OUTPUT} "// Made from page/index.html.
#include \"services/gateway/chat_page.h\"

namespace mneme::gateway {
namespace {

constexpr char kPage[] =
${literals};

}  // namespace

absl::string_view ChatPage() { return absl::string_view(kPage, sizeof(kPage) - 1); }

}  // namespace mneme::gateway
")
