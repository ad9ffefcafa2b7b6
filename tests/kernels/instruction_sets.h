// Runs a test on every instruction set that the kernels were built for and this machine has, so
// that the forms other machines choose are tested here too.
#pragma once

#include <hwy/highway.h>

#include <QCoreApplication>
#include <QtTest>
#include <cstdio>

namespace longview::testing {

/// Calls body(name) with one instruction set chosen after the other, then returns to the best.
template <class Body>
void on_each_instruction_set(const Body& body) {
    for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
        hwy::SetSupportedTargetsForTest(target);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
        body(hwy::TargetName(target));
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace longview::testing

/// main() of a test whose every case runs on each instruction set this machine has.
#define LONGVIEW_KERNEL_TEST_MAIN(Test)                                      \
    int main(int argc, char** argv) {                                        \
        QCoreApplication application(argc, argv);                            \
        int failures = 0;                                                    \
        ::longview::testing::on_each_instruction_set([&](const char* name) { \
            std::printf("Instruction set %s\n", name);                       \
            std::fflush(stdout);                                             \
            Test test;                                                       \
            failures += QTest::qExec(&test, argc, argv);                     \
        });                                                                  \
        return failures;                                                     \
    }
