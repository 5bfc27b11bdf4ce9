# Says in one line what is missing, before CMake says it in forty.
include_guard(GLOBAL)

if(NOT CMAKE_HOST_SYSTEM_NAME MATCHES "^(Linux|Darwin)$")
  message(FATAL_ERROR "cpploop: ${CMAKE_HOST_SYSTEM_NAME} is not supported; it builds on Linux and macOS")
endif()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR "cpploop: no C++ compiler found; on Debian: apt-get install g++")
endif()

# Called once the language is enabled, when the compiler's identity is known.
function(cpploop_check_compiler)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
    message(FATAL_ERROR "cpploop: GCC ${CMAKE_CXX_COMPILER_VERSION} is too old, 12 or newer is needed; "
                        "on Debian: apt-get install g++-12")
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 16)
    message(FATAL_ERROR "cpploop: Clang ${CMAKE_CXX_COMPILER_VERSION} is too old, 16 or newer is needed; "
                        "on Debian: apt-get install clang-16")
  endif()
endfunction()
