# Flags shared by every target of the tree: link to infer_options.
#
# -ffp-contract=off: an FMA happens only where the source asks for one. All
# kernel tables must give the same bits (native/core/kernels.h).
add_library(infer_options INTERFACE)
target_compile_options(infer_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wvla
  -ffp-contract=off -fno-math-errno -fno-strict-aliasing)
target_compile_definitions(infer_options INTERFACE _GNU_SOURCE)
if(REDIS_INFER_WERROR)
  target_compile_options(infer_options INTERFACE -Werror)
endif()

# The oldest CPU that everything outside the kernel folders runs on.
string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
if(processor MATCHES "^(x86_64|amd64)$")
  set(INFER_X86 TRUE)
  target_compile_options(infer_options INTERFACE -march=x86-64-v2)
elseif(processor MATCHES "^(aarch64|arm64)$")
  set(INFER_ARM64 TRUE)
endif()

# infer_kernel_library(avx2 FILES a.c b.c FLAGS -mavx2 ...)
# One instruction set: FILES are compiled with FLAGS; the file <name>_table.c, which
# asks the CPU whether the table may be used, is compiled for the baseline.
#
# Debug builds get -Og: without optimization some intrinsics do not compile.
function(infer_kernel_library name)
  cmake_parse_arguments(ARG "" "" "FILES;FLAGS" ${ARGN})
  add_library(infer_kernels_${name} OBJECT ${ARG_FILES} ${name}_table.c)
  set_source_files_properties(${ARG_FILES} PROPERTIES COMPILE_OPTIONS "${ARG_FLAGS}")
  target_compile_options(infer_kernels_${name} PRIVATE $<$<CONFIG:Debug>:-Og>)
  target_include_directories(infer_kernels_${name} PRIVATE ${PROJECT_SOURCE_DIR}/native/core)
  target_link_libraries(infer_kernels_${name} PRIVATE infer_options)
endfunction()
