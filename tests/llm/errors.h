// Catches longview::Error in tests, so that category and sentence can be compared.
#pragma once

#include <QString>
#include <string>

#include "kernels/runtime/error.h"

namespace longview::test {

/// "<category>: <sentence>" of the Error that `call` throws; "no error" when it returns.
template <typename Call>
QString error_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return QString::fromStdString(std::string(category_name(error.category())) + ": " +
                                      error.what());
    }
    return QStringLiteral("no error");
}

}  // namespace longview::test

/// Fails the test unless `call` throws an Error whose "<category>: <sentence>" contains all pieces
/// of the QStringList.
#define LONGVIEW_VERIFY_ERROR(call, pieces)                                          \
    do {                                                                             \
        const QString caught = longview::test::error_of([&] { (void)(call); });      \
        for (const QString& piece : QStringList pieces) {                            \
            QVERIFY2(caught.contains(piece),                                         \
                     qPrintable("expected \"" + piece + "\" in \"" + caught + '"')); \
        }                                                                            \
    } while (false)
