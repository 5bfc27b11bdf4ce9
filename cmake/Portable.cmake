# CPPLOOP_PORTABLE leaves out everything that only Linux has, which is what other systems get anyway
# (core/os/platform.h says what stands in its place). On Linux the kqueue is then libkqueue's: for
# tests, linked statically, never shipped.
include_guard(GLOBAL)

if(CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
  option(CPPLOOP_PORTABLE "For tests: kqueue and plain POSIX in place of what only Linux has" OFF)
else()
  set(CPPLOOP_PORTABLE ON)
endif()

set(CPPLOOP_NEEDS_LIBKQUEUE OFF)
if(CPPLOOP_PORTABLE AND CMAKE_HOST_SYSTEM_NAME STREQUAL "Linux")
  if(SKBUILD AND CMAKE_BUILD_TYPE STREQUAL "Release")
    message(FATAL_ERROR "cpploop: a wheel for Linux is not built with CPPLOOP_PORTABLE")
  endif()
  if(CPPLOOP_FAULTS)
    message(FATAL_ERROR "cpploop: CPPLOOP_FAULTS knows the calls of Linux; not with CPPLOOP_PORTABLE")
  endif()
  set(CPPLOOP_NEEDS_LIBKQUEUE ON)
  execute_process(COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/scripts/libkqueue.sh"
    OUTPUT_VARIABLE libkqueue_folder OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "cpploop: CPPLOOP_PORTABLE needs libkqueue on Linux; see the line above")
  endif()
  message(STATUS "cpploop: portable, with the kqueue of ${libkqueue_folder}")
endif()

# Tells a target, and what uses it, which of the two it is part of.
function(cpploop_use_portable target)
  if(CPPLOOP_PORTABLE)
    target_compile_definitions(${target} PUBLIC CPPLOOP_PORTABLE)
  endif()
  if(CPPLOOP_NEEDS_LIBKQUEUE)
    target_include_directories(${target} SYSTEM PUBLIC "${libkqueue_folder}/include")
    target_link_libraries(${target} PUBLIC "${libkqueue_folder}/libkqueue.a")
  endif()
endfunction()
