# What the module shows and needs: run with -DMODULE= -DNM= -DREADELF=
#
# It may export its two entry points only (a module shares the process with others), link
# nothing but the C library's parts, and leave no symbol to be found at load time
# but the C library's own.
function(lines result)
  execute_process(COMMAND ${ARGN} OUTPUT_VARIABLE out RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${ARGN}: ${failed}")
  endif()
  string(STRIP "${out}" out)
  string(REPLACE "\n" ";" out "${out}")
  set(${result} "${out}" PARENT_SCOPE)
endfunction()

lines(defined ${NM} -D --defined-only --format=posix ${MODULE})
set(exported)
foreach(line IN LISTS defined)
  string(REGEX REPLACE " .*" "" name "${line}")
  list(APPEND exported ${name})
endforeach()
list(SORT exported)
if(NOT exported STREQUAL "RedisModule_OnLoad;RedisModule_OnUnload")
  message(FATAL_ERROR "exported symbols: ${exported}")
endif()

lines(undefined ${NM} -D --undefined-only --format=posix ${MODULE})
foreach(line IN LISTS undefined)
  if(NOT line MATCHES "@" AND NOT line MATCHES " w( |$)") # weak ones may stay undefined
    message(FATAL_ERROR "undefined symbol: ${line}")
  endif()
endforeach()

lines(dynamic ${READELF} -d ${MODULE})
foreach(line IN LISTS dynamic)
  if(line MATCHES "NEEDED.*\\[(.*)\\]" AND
     NOT CMAKE_MATCH_1 MATCHES "^(libc|libm|libpthread)\\.so|^ld-linux.*\\.so")
    message(FATAL_ERROR "needs ${CMAKE_MATCH_1}")
  endif()
endforeach()
