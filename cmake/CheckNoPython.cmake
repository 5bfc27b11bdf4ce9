# cmake -D SOURCE_DIR=core -D ARCHIVE=libcpploop_core.a -D NM=nm -P CheckNoPython.cmake
# Fails when the engine's sources include one of Python's headers, or its objects need one of
# Python's symbols.
cmake_minimum_required(VERSION 3.25)

file(GLOB_RECURSE files "${SOURCE_DIR}/*.h" "${SOURCE_DIR}/*.cc")
if(NOT files)
  message(FATAL_ERROR "no source found below ${SOURCE_DIR}")
endif()
set(problems "")
foreach(file IN LISTS files)
  file(STRINGS "${file}" includes REGEX
    "^[ \t]*#[ \t]*include[ \t]*[<\"](.*/)?(Python|pyconfig|structmember|patchlevel|cpython)[./a-z]*[>\"]")
  file(STRINGS "${file}" upward REGEX "^[ \t]*#[ \t]*include[ \t]*[<\"]binding/")
  foreach(line IN LISTS includes upward)
    list(APPEND problems "${file}: ${line}")
  endforeach()
endforeach()

if(NM AND ARCHIVE)
  execute_process(COMMAND "${NM}" --undefined-only "${ARCHIVE}"
    OUTPUT_VARIABLE symbols ERROR_VARIABLE ignored RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(APPEND problems "${NM} cannot read ${ARCHIVE}")
  endif()
  string(REGEX MATCHALL "[ \t]U[ \t]+_*Py[A-Za-z_0-9]*" needed "${symbols}")
  foreach(symbol IN LISTS needed)
    list(APPEND problems "${ARCHIVE} needs${symbol}")
  endforeach()
endif()

if(problems)
  list(JOIN problems "\n  " text)
  message(FATAL_ERROR "the engine knows about Python:\n  ${text}")
endif()
list(LENGTH files count)
message(STATUS "${count} files of the engine, and none of them knows Python")
