# Cross-compilation for 64-bit ARM Linux with Debian's gcc-aarch64-linux-gnu; ctest runs under qemu-user.
#
#   cmake -B build/aarch64 -G Ninja --toolchain cmake/aarch64-linux-gnu.cmake -DREDIS_INFER_TESTS=ON
#
# The environment variable QEMU_CPU picks the processor: max has every extension, cortex-a72 none.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
