# Run by mneme_embed (MnemeEmbed.cmake): writes OUTPUT, a C++ source whose FUNCTION in NAMESPACE,
# declared in HEADER, returns the content of FILE.
file(READ ${FILE} content)
string(LENGTH "${content}" length)
get_filename_component(name ${FILE} NAME)
# Compilers need not take literals over 64 KiB. Pieces end with a line where they can, so that no
# character is cut.
set(literals)
set(at 0)
while(at LESS length)
  string(SUBSTRING "${content}" ${at} 8000 part)
  math(EXPR end "${at} + 8000")
  string(FIND "${part}" "\n" newline REVERSE)
  if(end LESS length AND newline GREATER 0)
    math(EXPR size "${newline} + 1")
    string(SUBSTRING "${part}" 0 ${size} part)
    math(EXPR end "${at} + ${size}")
  endif()
  string(APPEND literals "    R\"embedded(${part})embedded\"\n")
  set(at ${end})
endwhile()
file(WRITE ${OUTPUT} "// Made from ${name}.
#include \"${HEADER}\"

namespace ${NAMESPACE} {
namespace {

constexpr char kContent[] =
${literals};

}  // namespace

absl::string_view ${FUNCTION}() { return absl::string_view(kContent, sizeof(kContent) - 1); }

}  // namespace ${NAMESPACE}
")
