// Runs a test on every instruction set that the kernels were built for and this machine has, so
// that the forms other machines choose are tested here too.
#pragma once

#include <hwy/highway.h>

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
