# Build settings every target shares, and helpers that give each target the same shape.
include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(LONGVIEW_CCACHE ccache)
if(LONGVIEW_CCACHE)
    foreach(language C CXX CUDA)
        set(CMAKE_${language}_COMPILER_LAUNCHER "${LONGVIEW_CCACHE}" CACHE STRING "")
    endforeach()
endif()

find_package(Threads REQUIRED)

# Interface target: warnings, sanitizers and the include root (all includes are written from it).
add_library(longview_settings INTERFACE)
target_include_directories(longview_settings INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(longview_settings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
        # Parameter structs are filled by name; what is left out keeps its stated default.
        -Wno-missing-field-initializers
        # GCC 12 raises false alarms inside std::string and std::vector (its bugs 105651, 105329);
        # sanitizers make it raise more.
        $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
        $<$<CXX_COMPILER_ID:GNU>:-Wno-stringop-overflow>
        $<$<CXX_COMPILER_ID:GNU>:-Wno-error=maybe-uninitialized>
        $<$<CXX_COMPILER_ID:GNU>:-Wno-error=array-bounds>>
    $<$<AND:$<BOOL:${LONGVIEW_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
if(LONGVIEW_SANITIZE)
    target_compile_options(longview_settings INTERFACE
        -fsanitize=${LONGVIEW_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(longview_settings INTERFACE -fsanitize=${LONGVIEW_SANITIZE})
endif()
if(LONGVIEW_FUZZ)
    target_compile_options(longview_settings INTERFACE -fsanitize=fuzzer-no-link)
endif()

# longview_add_library(NAME SOURCES a.cpp... LINK lib... [PRIVATE_LINK lib...])
function(longview_add_library name)
    cmake_parse_arguments(arg "" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(${name} PUBLIC longview_settings ${arg_LINK} PRIVATE ${arg_PRIVATE_LINK})
endfunction()

# longview_add_executable(NAME SOURCES a.cpp... LINK lib...)
function(longview_add_executable name)
    cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
    add_executable(${name} ${arg_SOURCES})
    target_link_libraries(${name} PRIVATE longview_settings ${arg_LINK})
endfunction()

# longview_add_test(AREA SUBJECT [LINK lib...] [LABELS label...] [TIMEOUT s] [SOURCES extra.cpp...])
# builds <subject>_test.cpp (Qt Test) of the current folder and registers it as area.subject.
function(longview_add_test area subject)
    cmake_parse_arguments(arg "" "TIMEOUT" "LINK;LABELS;SOURCES" ${ARGN})
    string(REPLACE "/" "_" target "${area}_${subject}_test")
    add_executable(${target} ${subject}_test.cpp ${arg_SOURCES})
    set_target_properties(${target} PROPERTIES AUTOMOC ON)
    target_link_libraries(${target} PRIVATE longview_settings Qt6::Test ${arg_LINK})
    target_compile_definitions(${target} PRIVATE
        LONGVIEW_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
        LONGVIEW_DEMO_MODEL="${PROJECT_SOURCE_DIR}/resources/demo-model")
    if(LONGVIEW_SANITIZE)
        target_compile_definitions(${target} PRIVATE LONGVIEW_SANITIZED)
    endif()
    add_test(NAME ${area}.${subject} COMMAND ${target})
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 120)
    endif()
    if(LONGVIEW_SANITIZE)
        # ASan and UBSan together cost up to four times the time.
        math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
    endif()
    set(labels ${area} ${arg_LABELS})
    set_tests_properties(${area}.${subject} PROPERTIES
        LABELS "${labels}" TIMEOUT ${arg_TIMEOUT}
        ENVIRONMENT "QT_QPA_PLATFORM=offscreen;QTEST_FUNCTION_TIMEOUT=1200000;UBSAN_OPTIONS=print_stacktrace=1")
endfunction()

# longview_add_fuzzer(NAME LINK lib... [CORPUS folder] [MAX_LEN bytes]): <name>_fuzz.cpp of the current
# folder with LLVMFuzzerTestOneInput. The ctest form runs LONGVIEW_FUZZ_SECONDS (60) from the seeds in
# the given folder (corpus/<name> where that exists) and keeps what it learns in the build folder.
set(LONGVIEW_FUZZ_SECONDS 60 CACHE STRING "Seconds each fuzz target runs under ctest")
function(longview_add_fuzzer name)
    cmake_parse_arguments(arg "" "CORPUS;MAX_LEN" "LINK" ${ARGN})
    if(NOT LONGVIEW_FUZZ)
        return()
    endif()
    add_executable(${name}_fuzz ${name}_fuzz.cpp)
    if(NOT TARGET fuzzers)
        add_custom_target(fuzzers)
    endif()
    add_dependencies(fuzzers ${name}_fuzz)
    target_link_libraries(${name}_fuzz PRIVATE longview_settings ${arg_LINK})
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
    set(work "${CMAKE_CURRENT_BINARY_DIR}/${name}_corpus")
    file(MAKE_DIRECTORY "${work}")
    if(NOT arg_CORPUS AND IS_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/corpus/${name}")
        set(arg_CORPUS "corpus/${name}")
    endif()
    if(arg_CORPUS)
        get_filename_component(arg_CORPUS "${arg_CORPUS}" ABSOLUTE)
    endif()
    if(NOT arg_MAX_LEN)
        set(arg_MAX_LEN 65536)
    endif()
    math(EXPR limit "${LONGVIEW_FUZZ_SECONDS} + 120")
    add_test(NAME fuzz.${name} COMMAND ${name}_fuzz -max_total_time=${LONGVIEW_FUZZ_SECONDS}
        -max_len=${arg_MAX_LEN} -rss_limit_mb=3000 -timeout=10 -print_final_stats=1 "${work}" ${arg_CORPUS})
    set_tests_properties(fuzz.${name} PROPERTIES LABELS fuzz TIMEOUT ${limit}
        ENVIRONMENT "UBSAN_OPTIONS=print_stacktrace=1")
endfunction()
