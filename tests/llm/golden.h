// The golden prompts of the demo model, made by the independent reference (tests/data/golden).
#pragma once

#include <QByteArray>
#include <QDir>
#include <QFile>
#include <QString>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace longview::testing {

inline QString golden_folder() {
    return QStringLiteral(LONGVIEW_TEST_DATA "/golden");
}

inline QStringList golden_names() {
    return QDir(golden_folder()).entryList(QDir::Dirs | QDir::NoDotAndDotDot, QDir::Name);
}

/// Those that a test runs the whole model on: sanitizers make it some thirty times slower, so their
/// builds leave out the two longest prompts.
inline QStringList golden_names_to_run() {
    QStringList names = golden_names();
#ifdef LONGVIEW_SANITIZED
    names.removeAll(QStringLiteral("07_document_4k"));
    names.removeAll(QStringLiteral("09_resized"));
#endif
    return names;
}

inline nlohmann::json golden_json(const QString& name, const char* file = "golden.json") {
    std::ifstream in((golden_folder() + "/" + name + "/" + file).toStdString());
    return nlohmann::json::parse(in);
}

inline std::vector<float> golden_logits(const QString& name) {
    QFile file(golden_folder() + "/" + name + "/logits.f32");
    if (!file.open(QIODevice::ReadOnly)) return {};
    const QByteArray bytes = file.readAll();
    std::vector<float> values(static_cast<std::size_t>(bytes.size()) / sizeof(float));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
    return values;
}

}  // namespace longview::testing
