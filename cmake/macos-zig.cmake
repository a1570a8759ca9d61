# Cross-compilation for macOS with zig's clang, its copy of Apple's headers and its linker: PyPI's
# ziglang is all it takes. What comes out is compiled and linked, and runs on a Mac only.
#
#   cmake -B build/macos-arm64 -G Ninja --toolchain cmake/macos-zig.cmake -DCMAKE_SYSTEM_PROCESSOR=arm64
#
# python on PATH is the one that has ziglang. Processors: arm64, x86_64.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CMAKE_SYSTEM_PROCESSOR)
if(NOT CMAKE_SYSTEM_PROCESSOR)
  message(FATAL_ERROR "name the processor: -DCMAKE_SYSTEM_PROCESSOR=arm64 or x86_64")
endif()
string(REPLACE arm64 aarch64 zig_processor ${CMAKE_SYSTEM_PROCESSOR})
# zig names processors and their extensions in its own way.
set(CMAKE_C_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig-cc)
set(CMAKE_C_COMPILER_TARGET ${zig_processor}-macos.11.0)
# Apple's linker wants members of archives aligned, which ar of Linux does not do.
set(CMAKE_C_ARCHIVE_CREATE "python -m ziglang ar qcs <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_FINISH "")
set(CMAKE_FIND_ROOT_PATH /nonexistent) # nothing of this machine
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  # zig's compiler runtime, unlike Apple's, lacks what __builtin_cpu_supports looks at.
  foreach(kind IN ITEMS EXE MODULE)
    set(CMAKE_${kind}_LINKER_FLAGS_INIT "-Wl,-undefined,dynamic_lookup")
  endforeach()
endif()
