# Compilation for another system, or for older versions of this one, with zig's clang: PyPI's ziglang brings
# compiler, linker, Apple's headers and those of every glibc.
#
#   ZIG_TARGET=aarch64-macos.11.0 cmake -B build/macos-arm64 -G Ninja --toolchain cmake/zig.cmake
#   ZIG_TARGET=x86_64-linux-gnu.2.28 CMAKE_TOOLCHAIN_FILE=$PWD/cmake/zig.cmake pip wheel .
#
# python on PATH is the one that has ziglang.
set(zig_target $ENV{ZIG_TARGET})
if(NOT zig_target MATCHES "^(x86_64|aarch64)-(macos|linux)")
  message(FATAL_ERROR "ZIG_TARGET is '${zig_target}': name a target such as x86_64-linux-gnu.2.28")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(CMAKE_SYSTEM_NAME Linux)
if(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  string(REPLACE aarch64 arm64 CMAKE_SYSTEM_PROCESSOR ${CMAKE_SYSTEM_PROCESSOR}) # Apple's name
endif()
set(CMAKE_C_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig-cc)
set(CMAKE_C_COMPILER_TARGET ${zig_target})
# Apple's linker wants the members of archives aligned, which only zig's ar does.
set(CMAKE_C_ARCHIVE_CREATE "python -I -m ziglang ar qcs <TARGET> <OBJECTS>")
set(CMAKE_C_ARCHIVE_FINISH "")
set(CMAKE_FIND_ROOT_PATH /nonexistent) # nothing of this machine
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
