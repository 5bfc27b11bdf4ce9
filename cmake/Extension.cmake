# The extension module cpploop._native.
include_guard(GLOBAL)

set(Python_FIND_VIRTUALENV FIRST)
find_package(Python 3.11 QUIET COMPONENTS Interpreter Development.Module)
if(NOT Python_Interpreter_FOUND)
  message(FATAL_ERROR "cpploop: no Python 3.11 or newer found; on Debian: apt-get install python3 python3-venv")
elseif(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "cpploop: Python.h is missing for ${Python_EXECUTABLE}; "
                      "on Debian: apt-get install python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-dev")
endif()
# Asked of the interpreter itself, because CMake 3.25 does not know free-threaded builds' suffix.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
  OUTPUT_VARIABLE extension_suffix OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

cpploop_glob(binding_sources binding "*.cc")
cpploop_glob(binding_headers binding "*.h")
Python_add_library(_native MODULE WITH_SOABI ${binding_sources} ${binding_headers})
set_target_properties(_native PROPERTIES PREFIX "" SUFFIX "${extension_suffix}" DEBUG_POSTFIX "")
# As system headers: their macros expand in our code, and their conversions are not ours to mend.
target_include_directories(_native SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
target_link_libraries(_native PRIVATE cpploop_core cpploop_options)
target_compile_definitions(_native PRIVATE
  "CPPLOOP_VERSION=\"${CPPLOOP_VERSION}\""
  "CPPLOOP_BUILD_TYPE=\"$<CONFIG>\""
  "CPPLOOP_SANITIZERS=\"${CPPLOOP_SANITIZE}\""
  "CPPLOOP_LTO=$<BOOL:${CPPLOOP_LTO_USED}>"
  "CPPLOOP_PGO=\"${CPPLOOP_PGO}\"")
if(CPPLOOP_SANITIZE)
  # Free lists would hide a use after free from the sanitizer.
  target_compile_definitions(_native PRIVATE CPPLOOP_SANITIZED)
endif()
cpploop_enable_lto(_native)
if(CPPLOOP_STATIC_LIBSTDCXX)
  target_link_options(_native PRIVATE -static-libstdc++ -static-libgcc)
endif()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # Every symbol is looked up when the module is loaded, and the table is read-only from then on. A
  # symbol that is missing is then an ImportError, and not the end of a server at its first use.
  target_link_options(_native PRIVATE -Wl,-z,relro -Wl,-z,now)
  # The tests call a function of libkqueue's (tests/python/portable.py), which is never shipped.
  if(NOT CPPLOOP_NEEDS_LIBKQUEUE)
    target_link_options(_native PRIVATE
      "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
    set_property(TARGET _native APPEND PROPERTY
      LINK_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map")
  endif()
endif()

# The debug symbols of a release stay findable (build id and .gnu_debuglink) without being shipped:
#   cmake --install BUILD --component debug
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT CPPLOOP_SANITIZE AND CMAKE_OBJCOPY AND NOT APPLE)
  target_link_options(_native PRIVATE -Wl,--build-id)
  add_custom_command(TARGET _native POST_BUILD
    COMMAND "${CMAKE_OBJCOPY}" --only-keep-debug "$<TARGET_FILE:_native>" "$<TARGET_FILE:_native>.debug"
    COMMAND "${CMAKE_OBJCOPY}" --strip-debug --strip-unneeded
            "--add-gnu-debuglink=$<TARGET_FILE:_native>.debug" "$<TARGET_FILE:_native>"
    COMMENT "Moving the debug symbols of _native into a side file" VERBATIM)
  install(FILES "$<TARGET_FILE:_native>.debug" DESTINATION cpploop COMPONENT debug EXCLUDE_FROM_ALL)
endif()

install(TARGETS _native LIBRARY DESTINATION cpploop)
