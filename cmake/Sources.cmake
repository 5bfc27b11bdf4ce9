# Finds sources by folder, so that a new file needs no list to be edited.
include_guard(GLOBAL)

# cpploop_glob(OUT FOLDER PATTERN...): the matching files below FOLDER that belong to this build.
# What is for another kernel is named after its mechanism, which is how it is left out.
function(cpploop_glob out folder)
  set(patterns "${ARGN}")
  list(TRANSFORM patterns PREPEND "${PROJECT_SOURCE_DIR}/${folder}/")
  file(GLOB_RECURSE found CONFIGURE_DEPENDS ${patterns})
  if(CPPLOOP_PORTABLE)
    list(FILTER found EXCLUDE REGEX "/(epoll|io_uring)_[^/]*$")
  else()
    list(FILTER found EXCLUDE REGEX "/kqueue_[^/]*$")
  endif()
  list(SORT found)
  set(${out} "${found}" PARENT_SCOPE)
endfunction()
