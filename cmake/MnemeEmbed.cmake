# mneme_embed(VARIABLE FILE page/index.html HEADER services/gateway/chat_page.h
#             NAMESPACE mneme::gateway FUNCTION ChatPage)
# Puts a text file of this folder into a library when it is built: sets VARIABLE to a source, to be
# listed among the library's, that defines `absl::string_view FUNCTION()`, which HEADER declares.
set(MNEME_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_DIR}/embed_file.cmake)

function(mneme_embed variable)
  cmake_parse_arguments(arg "" "FILE;HEADER;NAMESPACE;FUNCTION" "" ${ARGN})
  get_filename_component(stem ${arg_HEADER} NAME_WE)
  set(file ${CMAKE_CURRENT_SOURCE_DIR}/${arg_FILE})
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${stem}.embedded.cc)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -D FILE=${file} -D OUTPUT=${output} -D HEADER=${arg_HEADER}
      -D NAMESPACE=${arg_NAMESPACE} -D FUNCTION=${arg_FUNCTION} -P ${MNEME_EMBED_SCRIPT}
    DEPENDS ${file} ${MNEME_EMBED_SCRIPT}
    VERBATIM)
  set(${variable} ${output} PARENT_SCOPE)
endfunction()
