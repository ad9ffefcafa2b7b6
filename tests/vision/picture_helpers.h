// What several picture tests share: files, hashes, and pictures made of numbers.
#pragma once

#include <QCryptographicHash>
#include <QFile>
#include <QJsonArray>
#include <QJsonDocument>
#include <QJsonObject>
#include <QTest>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/runtime/error.h"
#include "vision/image/tiling.h"

namespace longview::test {

inline QByteArray read_file(const QString& path) {
    QFile file(path);
    if (!file.open(QIODevice::ReadOnly)) qFatal("cannot open %s", qPrintable(path));
    return file.readAll();
}

inline QString data_path(const QString& name) {
    return QStringLiteral(LONGVIEW_TEST_DATA "/") + name;
}

inline QJsonObject read_json(const QString& path) {
    return QJsonDocument::fromJson(read_file(path)).object();
}

template <typename T>
QString sha256(const std::vector<T>& values) {
    const QByteArray bytes = QByteArray::fromRawData(reinterpret_cast<const char*>(values.data()),
                                                     static_cast<int>(values.size() * sizeof(T)));
    return QString::fromLatin1(QCryptographicHash::hash(bytes, QCryptographicHash::Sha256).toHex());
}

inline std::span<const std::byte> as_bytes(const QByteArray& data) {
    return {reinterpret_cast<const std::byte*>(data.data()), static_cast<std::size_t>(data.size())};
}

/// The picture of tests/vision/make_resize_golden.py.
inline vision::Image made_up_picture(int width, int height, std::uint32_t seed) {
    vision::Image image{width, height, {}};
    const std::size_t row_bytes = static_cast<std::size_t>(width) * 3;
    image.rgb.resize(row_bytes * static_cast<std::size_t>(height));
    std::uint32_t state = seed;
    for (std::size_t i = 0; i < image.rgb.size(); ++i) {
        state = state * 1664525U + 1013904223U;
        const bool extreme = (i / row_bytes) % 3 == 0;
        image.rgb[i] = extreme ? (state >> 31 ? 255 : 0) : static_cast<std::uint8_t>(state >> 24);
    }
    return image;
}

/// The preprocessing of the demo model (168) and of MiniMax-VL-01 (336).
inline vision::PreprocessConfig preprocess_config(int tile_size) {
    vision::PreprocessConfig config;
    config.tile_size = tile_size;
    config.patch_size = 14;
    config.mean = {0.48145466F, 0.4578275F, 0.40821073F};
    config.std = {0.26862954F, 0.26130258F, 0.27577711F};
    const int most_rows[] = {6, 6, 6, 4, 3, 3};
    for (int i = 1; i <= 6; ++i)
        for (int j = 1; j <= most_rows[i - 1]; ++j)
            config.grids.push_back({tile_size * i, tile_size * j});
    return config;
}

/// The error that `action` ends with, if any.
inline std::optional<Error> error_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

}  // namespace longview::test
