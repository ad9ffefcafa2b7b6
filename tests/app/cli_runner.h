// Runs longview-cli as a person calls it: a process with arguments, standard input and the three
// things that come back.
#pragma once

#include <QByteArray>
#include <QJsonDocument>
#include <QJsonObject>
#include <QProcess>
#include <QProcessEnvironment>
#include <QStringList>

namespace longview::test {

struct CliResult {
    int status = -1;  // -1: did not start, did not end or died of a signal
    QByteArray out;
    QByteArray err;

    QJsonObject json() const { return QJsonDocument::fromJson(out).object(); }
};

inline CliResult run_cli(
    const QStringList& arguments, const QByteArray& input = {},
    const QProcessEnvironment& environment = QProcessEnvironment::systemEnvironment()) {
    QProcess process;
    QProcessEnvironment clean = environment;
    if (!clean.contains("KEEP_LONGVIEW_MODEL")) clean.remove("LONGVIEW_MODEL");
    process.setProcessEnvironment(clean);
    process.start(LONGVIEW_CLI, arguments);
    if (!process.waitForStarted()) return {};
    process.write(input);
    process.closeWriteChannel();
    if (!process.waitForFinished(300'000)) {
        process.kill();
        process.waitForFinished();
        return {};
    }
    CliResult result;
    if (process.exitStatus() == QProcess::NormalExit) result.status = process.exitCode();
    result.out = process.readAllStandardOutput();
    result.err = process.readAllStandardError();
    return result;
}

}  // namespace longview::test
