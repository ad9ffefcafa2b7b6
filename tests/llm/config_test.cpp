#include "llm/checkpoint/config.h"

#include <QFile>
#include <QTemporaryDir>
#include <QTest>
#include <nlohmann/json.hpp>

#include "tests/llm/errors.h"
#include "tests/llm/fake_checkpoint.h"

namespace llm = longview::llm;
namespace test = longview::test;
using nlohmann::json;

namespace {

json read_json(const char* path) {
    QFile file(QString::fromUtf8(path));
    if (!file.open(QIODevice::ReadOnly)) qFatal("cannot read %s", path);
    return json::parse(file.readAll().toStdString());
}

/// The published configuration with one value changed.
class Changed {
  public:
    void set(const char* file, const char* pointer, const char* value) {
        json& document = QLatin1String(file) == QLatin1String("config") ? config_ : preprocessor_;
        const json::json_pointer place(pointer);
        if (QLatin1String(value) == QLatin1String("removed")) {
            document.at(place.parent_pointer()).erase(place.back());
        } else {
            document[place] = json::parse(value);
        }
    }
    llm::ModelConfig parse() const {
        return llm::parse_config(config_.dump(), preprocessor_.dump(), "/models/vl");
    }

  private:
    json config_ = read_json(LONGVIEW_TEST_DATA "/minimax-vl-01/config.json");
    json preprocessor_ = read_json(LONGVIEW_TEST_DATA "/minimax-vl-01/preprocessor_config.json");
};

}  // namespace

class ConfigTest : public QObject {
    Q_OBJECT

  private slots:
    void readsThePublishedConfiguration();
    void readsTheDemoModel();
    void namesEveryMissingKey_data();
    void namesEveryMissingKey();
    void keysWithoutEffectMayBeAbsent();
    void refusesBadValues_data();
    void refusesBadValues();
    void refusesWhatItDoesNotCompute_data();
    void refusesWhatItDoesNotCompute();
    void acceptsBothFormsOfSize();
    void valuesInTheTwoFilesMustAgree();
    void headCountMattersOnlyForLightningLayers();
    void missingFilesAreNotFound();
    void truncatedTextIsRefusedAtEveryByte();
    void generatedConfigurationsReadBack();
};

void ConfigTest::readsThePublishedConfiguration() {
    const llm::ModelConfig config = test::published_config();
    const llm::TextConfig& text = config.text;
    QCOMPARE(text.hidden_size, 6144);
    QCOMPARE(text.num_hidden_layers, 80);
    QCOMPARE(text.num_attention_heads, 64);
    QCOMPARE(text.num_key_value_heads, 8);
    QCOMPARE(text.head_dim, 128);
    QCOMPARE(text.rotary_dim, 64);
    QCOMPARE(text.rope_theta, 1e7);
    QCOMPARE(text.intermediate_size, 9216);
    QCOMPARE(text.num_local_experts, 32);
    QCOMPARE(text.num_experts_per_tok, 2);
    QCOMPARE(text.vocab_size, 200064);
    QCOMPARE(text.rms_norm_eps, 1e-5F);
    QCOMPARE(text.count(llm::AttentionKind::kLightning), 70);
    QCOMPARE(text.count(llm::AttentionKind::kSoftmax), 10);
    QVERIFY(text.attn_type_list[7] == llm::AttentionKind::kSoftmax);
    QCOMPARE(text.layernorm_mlp_alpha, 3.5565588200778455F);
    QCOMPARE(text.layernorm_mlp_beta, 1.0F);
    QCOMPARE(config.vision.hidden_size, 1024);
    QCOMPARE(config.vision.intermediate_size, 4096);
    QCOMPARE(config.vision.num_hidden_layers, 24);
    QCOMPARE(config.vision.num_attention_heads, 16);
    QCOMPARE(config.vision.layer_norm_eps, 1e-5F);
    QCOMPARE(config.vision.text_hidden_size, 6144);
    QCOMPARE(config.preprocess.tile_size, 336);
    QCOMPARE(config.preprocess.patches_per_tile(), 576);
    QCOMPARE(config.preprocess.grids.size(), std::size_t{28});
    QVERIFY(config.preprocess.grids[1] == (longview::vision::Size{336, 672}));
    QCOMPARE(config.preprocess.mean[2], 0.40821073F);
    QCOMPARE(config.preprocess.std[0], 0.26862954F);
    QCOMPARE(config.image_token_index, 200025);
}

void ConfigTest::readsTheDemoModel() {
    const llm::ModelConfig config = llm::load_config(LONGVIEW_DEMO_MODEL);
    const json document = read_json(LONGVIEW_DEMO_MODEL "/config.json");
    const json& text = document.at("text_config");
    QCOMPARE(config.text.hidden_size, text.at("hidden_size").get<int>());
    QCOMPARE(config.text.layernorm_full_attention_alpha,
             text.at("layernorm_full_attention_alpha").get<float>());
    QCOMPARE(config.text.layernorm_full_attention_beta,
             text.at("layernorm_full_attention_beta").get<float>());
    QCOMPARE(config.text.layernorm_linear_attention_alpha,
             text.at("layernorm_linear_attention_alpha").get<float>());
    QCOMPARE(config.text.layernorm_linear_attention_beta,
             text.at("layernorm_linear_attention_beta").get<float>());
    QCOMPARE(config.text.layernorm_mlp_alpha, text.at("layernorm_mlp_alpha").get<float>());
    QCOMPARE(config.text.layernorm_mlp_beta, text.at("layernorm_mlp_beta").get<float>());
    QCOMPARE(config.image_token_index, document.at("image_token_index").get<int>());
}

void ConfigTest::namesEveryMissingKey_data() {
    QTest::addColumn<QByteArray>("file");
    QTest::addColumn<QByteArray>("pointer");
    for (const char* key : {"model_type", "image_grid_pinpoints", "image_token_index",
                            "projector_hidden_act", "process_image_mode", "vision_feature_layer",
                            "vision_feature_select_strategy", "text_config", "vision_config"}) {
        QTest::newRow(key) << QByteArray("config") << QByteArray("/") + key;
    }
    for (const char* key : {"model_type",
                            "attn_type_list",
                            "head_dim",
                            "hidden_act",
                            "hidden_size",
                            "intermediate_size",
                            "layernorm_full_attention_alpha",
                            "layernorm_full_attention_beta",
                            "layernorm_linear_attention_alpha",
                            "layernorm_linear_attention_beta",
                            "layernorm_mlp_alpha",
                            "layernorm_mlp_beta",
                            "num_attention_heads",
                            "num_experts_per_tok",
                            "num_hidden_layers",
                            "num_key_value_heads",
                            "num_local_experts",
                            "postnorm",
                            "rms_norm_eps",
                            "rope_theta",
                            "rotary_dim",
                            "shared_intermediate_size",
                            "vocab_size"}) {
        const QByteArray pointer = QByteArray("/text_config/") + key;
        QTest::newRow(pointer.constData()) << QByteArray("config") << pointer;
    }
    for (const char* key : {"model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "num_channels", "image_size", "patch_size",
                            "hidden_act", "layer_norm_eps"}) {
        const QByteArray pointer = QByteArray("/vision_config/") + key;
        QTest::newRow(pointer.constData()) << QByteArray("config") << pointer;
    }
    for (const char* key : {"size", "image_mean", "image_std"}) {
        QTest::newRow(key) << QByteArray("preprocessor_config") << QByteArray("/") + key;
    }
}

void ConfigTest::namesEveryMissingKey() {
    QFETCH(QByteArray, file);
    QFETCH(QByteArray, pointer);
    Changed changed;
    changed.set(file, pointer, "removed");
    const QString name = QString::fromUtf8(pointer.mid(1)).replace('/', '.');
    const QString path = "/models/vl/" + QString::fromUtf8(file) + ".json";
    LONGVIEW_VERIFY_ERROR(changed.parse(), ({"input: " + path + ": " + name + " is missing;"}));
}

void ConfigTest::keysWithoutEffectMayBeAbsent() {
    Changed changed;
    for (const char* key : {"ignore_index", "image_seq_length", "tie_word_embeddings",
                            "torch_dtype", "architectures"}) {
        changed.set("config", (QByteArray("/") + key).constData(), "removed");
    }
    for (const char* key :
         {"attention_dropout", "bos_token_id", "eos_token_id", "initializer_range",
          "max_position_embeddings", "output_router_logits", "router_aux_loss_coef",
          "router_jitter_noise", "shared_moe_mode", "sliding_window", "tie_word_embeddings",
          "use_cache", "block", "torch_dtype"}) {
        changed.set("config", (QByteArray("/text_config/") + key).constData(), "removed");
    }
    for (const char* key : {"process_image_mode", "patch_size", "image_grid_pinpoints"}) {
        changed.set("preprocessor", (QByteArray("/") + key).constData(), "removed");
    }
    changed.set("config", "/text_config/a_key_of_the_future", "[1, 2]");
    QCOMPARE(changed.parse().preprocess.grids.size(), std::size_t{28});
}

void ConfigTest::refusesBadValues_data() {
    QTest::addColumn<QByteArray>("file");
    QTest::addColumn<QByteArray>("pointer");
    QTest::addColumn<QByteArray>("value");
    QTest::addColumn<QString>("cause");
    const auto text = [](const char* key, const char* value, const char* cause) {
        QTest::addRow("%s = %s", key, value)
            << QByteArray("config") << QByteArray("/text_config/") + key << QByteArray(value)
            << "input: /models/vl/config.json: text_config." + QString(key) + " " + cause;
    };
    text("head_dim", "\"128\"", "is \"128\"; a whole number from 1 to 1024 is expected");
    text("head_dim", "128.0", "is 128.0; a whole number");
    text("head_dim", "null", "is null; a whole number");
    text("head_dim", "[128]", "is [128]; a whole number");
    text("head_dim", "true", "is true; a whole number");
    text("head_dim", "0", "is 0; a whole number");
    text("head_dim", "-128", "is -128; a whole number");
    text("hidden_size", "4294973440", "is 4294973440; a whole number from 1 to 65536");
    text("hidden_size", "18446744073709551617", "is 1.8446744073709552e+19; a whole number");
    text("num_hidden_layers", "1000000", "is 1000000; a whole number from 1 to 1024");
    text("num_key_value_heads", "7", "is 7, which does not divide num_attention_heads, 64");
    text("num_key_value_heads", "128", "is 128, which does not divide");
    text("rotary_dim", "130", "is 130; an even number up to head_dim, 128, is expected");
    text("rotary_dim", "63", "is 63; an even number");
    text("num_experts_per_tok", "33", "is 33; a whole number from 1 to 32 is expected");
    text("num_local_experts", "2000", "is 2000; a whole number from 1 to 1024");
    text("num_local_experts", "1024", "times num_hidden_layers is 81920 experts; at most 80000");
    text("vocab_size", "2000000000", "is 2000000000; a whole number");
    text("intermediate_size", "-1", "is -1; a whole number");
    text("attn_type_list", "7", "is 7; a list is expected");
    text("attn_type_list", "[]", "has 0 entries, but num_hidden_layers is 80");
    text("rms_norm_eps", "0", "is 0; a number above 0.0 and below 1.0 is expected");
    text("rms_norm_eps", "1e-60", "is too close to 0.0 for 32-bit arithmetic");
    text("rms_norm_eps", "\"1e-5\"", "is \"1e-5\"; a number");
    text("rope_theta", "-1", "is -1; a number");
    text("layernorm_mlp_alpha", "1e300", "is 1e+300; a number");
    text("layernorm_full_attention_beta", "-1.0", "is -1.0; a number");
    const auto row = [](const char* file, const char* pointer, const char* value,
                        const char* cause) {
        QTest::addRow("%s = %s", pointer, value)
            << QByteArray(file) << QByteArray(pointer) << QByteArray(value)
            << "input: /models/vl/" + QString(file) + ".json: " + cause;
    };
    row("config", "/text_config", "[]", "text_config is a list of 0; an object is expected");
    row("config", "/text_config/num_hidden_layers", "81",
        "text_config.attn_type_list has 80 entries, but num_hidden_layers is 81");
    row("config", "/text_config/attn_type_list/3", "2",
        "text_config.attn_type_list has 2 for layer 3; 0 (lightning) or 1 (softmax) is expected");
    row("config", "/text_config/attn_type_list/79", "\"1\"",
        "text_config.attn_type_list has \"1\" for layer 79");
    row("config", "/vision_config/num_attention_heads", "15",
        "vision_config.num_attention_heads is 15, which does not divide hidden_size, 1024");
    row("config", "/vision_config/patch_size", "15",
        "vision_config.image_size is 336; a multiple of patch_size, 15,");
    row("config", "/vision_config/patch_size", "1", "vision_config.image_size is 336; a multiple");
    row("config", "/vision_config/layer_norm_eps", "2", "vision_config.layer_norm_eps is 2;");
    row("config", "/image_token_index", "200064",
        "image_token_index is 200064; a whole number from 0 to 200063 is expected");
    row("config", "/image_token_index", "-1", "image_token_index is -1;");
    row("config", "/image_grid_pinpoints", "[]", "image_grid_pinpoints has 0 entries");
    row("config", "/image_grid_pinpoints/2", "[336, 1000]",
        "image_grid_pinpoints entry 2 is wrong");
    row("config", "/image_grid_pinpoints/2", "[336, 0]", "image_grid_pinpoints entry 2 is wrong");
    row("config", "/image_grid_pinpoints/2", "[336, 336, 336]", "image_grid_pinpoints entry 2");
    row("config", "/image_grid_pinpoints/2", "[336, 33600000]", "image_grid_pinpoints entry 2");
    row("config", "/image_grid_pinpoints/2", "{\"a\": 1}", "image_grid_pinpoints entry 2");
    row("preprocessor_config", "/size", "[336, 224]", "size is not 336 x 336");
    row("preprocessor_config", "/size", "336", "size is not 336 x 336");
    row("preprocessor_config", "/size", "{\"shortest_edge\": 336}", "size.width is missing");
    row("preprocessor_config", "/image_mean", "[0.5, 0.5]", "image_mean has 2 values; 3 are");
    row("preprocessor_config", "/image_std", "[0.5, 0.5, 0]", "image_std holds 0; numbers above");
    row("preprocessor_config", "/image_std", "[0.5, \"a\", 0.5]", "image_std holds \"a\"; numbers");
    row("preprocessor_config", "/patch_size", "16", "patch_size is 16, but");
}

void ConfigTest::refusesBadValues() {
    QFETCH(QByteArray, file);
    QFETCH(QByteArray, pointer);
    QFETCH(QByteArray, value);
    QFETCH(QString, cause);
    Changed changed;
    changed.set(file, pointer, value);
    LONGVIEW_VERIFY_ERROR(changed.parse(), ({cause}));
}

void ConfigTest::refusesWhatItDoesNotCompute_data() {
    QTest::addColumn<QByteArray>("pointer");
    QTest::addColumn<QByteArray>("value");
    QTest::addColumn<QString>("cause");
    const auto row = [](const char* pointer, const char* value, const char* cause) {
        QTest::addRow("%s = %s", pointer, value)
            << QByteArray(pointer) << QByteArray(value) << QString(cause);
    };
    row("/model_type", "\"llava\"", "this program computes \"minimax_vl_01\" only");
    row("/model_type", "\"minimax_text_01\"", "a model without pictures");
    row("/projector_hidden_act", "\"quick_gelu\"",
        "is \"quick_gelu\"; this program computes \"gelu\"");
    row("/process_image_mode", "\"resize\"", "computes \"anyres\" only");
    row("/vision_feature_layer", "-2", "is -2; this program computes -1 only");
    row("/vision_feature_select_strategy", "\"full\"", "computes \"default\" only");
    row("/tie_word_embeddings", "true", "computes false only");
    row("/quantization_config", "{\"quant_method\": \"gptq\"}",
        "is an object; models that use it are not supported");
    row("/text_config/quantization_config", "{}", "is an object; models that use it");
    row("/text_config/model_type", "\"minimax_m1\"", "computes \"minimax_text_01\" only");
    row("/text_config/hidden_act", "\"gelu\"", "computes \"silu\" only");
    row("/text_config/postnorm", "false", "is false; this program computes true only");
    row("/text_config/shared_intermediate_size", "[9216]",
        "is [9216]; this program computes [0] only");
    row("/text_config/tie_word_embeddings", "true", "computes false only");
    row("/text_config/sliding_window", "4096", "is 4096; models that use it");
    row("/text_config/rope_scaling", "{\"type\": \"yarn\"}", "models that use it");
    row("/text_config/scoring_func", "\"sigmoid\"", "computes \"softmax\" only");
    row("/text_config/use_qk_norm", "true", "computes false only");
    row("/text_config/num_attention_heads", "48", "a power of two of heads only");
    row("/vision_config/model_type", "\"siglip_vision_model\"", "\"clip_vision_model\" only");
    row("/vision_config/hidden_act", "\"quick_gelu\"", "computes \"gelu\" only");
    row("/vision_config/num_channels", "1", "computes 3 only");
}

void ConfigTest::refusesWhatItDoesNotCompute() {
    QFETCH(QByteArray, pointer);
    QFETCH(QByteArray, value);
    QFETCH(QString, cause);
    Changed changed;
    changed.set("config", pointer, value);
    const QString name = QString::fromUtf8(pointer.mid(1)).replace('/', '.');
    LONGVIEW_VERIFY_ERROR(changed.parse(),
                          ({"unsupported: /models/vl/config.json: " + name + " ", cause}));
}

void ConfigTest::acceptsBothFormsOfSize() {
    Changed changed;
    changed.set("preprocessor", "/size", R"({"height": 336, "width": 336})");
    QCOMPARE(changed.parse().preprocess.tile_size, 336);
}

void ConfigTest::valuesInTheTwoFilesMustAgree() {
    Changed order;
    order.set("preprocessor", "/image_grid_pinpoints/0", "[336, 672]");
    order.set("preprocessor", "/image_grid_pinpoints/1", "[336, 336]");
    LONGVIEW_VERIFY_ERROR(order.parse(),
                          ({"input: /models/vl/preprocessor_config.json: image_grid_pinpoints "
                            "differs from image_grid_pinpoints in config.json"}));
    Changed mode;
    mode.set("preprocessor", "/process_image_mode", "\"resize\"");
    LONGVIEW_VERIFY_ERROR(mode.parse(), ({"unsupported:", "process_image_mode"}));
    Changed resample;
    resample.set("preprocessor", "/resample", "2");
    LONGVIEW_VERIFY_ERROR(resample.parse(), ({"unsupported:", "resample is 2;"}));
}

void ConfigTest::headCountMattersOnlyForLightningLayers() {
    llm::ModelConfig config = test::tiny_config(1);
    config.text.num_attention_heads = 6;
    config.text.attn_type_list = {llm::AttentionKind::kSoftmax};
    const auto parse = [&] {
        return llm::parse_config(test::config_json(config), test::preprocessor_json(config), "");
    };
    QCOMPARE(parse().text.num_attention_heads, 6);
    config.text.attn_type_list = {llm::AttentionKind::kLightning};
    LONGVIEW_VERIFY_ERROR(parse(), ({"unsupported: config.json: text_config.num_attention_heads"}));
    config.text.num_attention_heads = 4;
    LONGVIEW_VERIFY_ERROR(parse(),
                          ({"unsupported: config.json: text_config.num_hidden_layers is 1"}));
}

void ConfigTest::missingFilesAreNotFound() {
    const QTemporaryDir folder;
    const std::filesystem::path path = folder.path().toStdString();
    LONGVIEW_VERIFY_ERROR(llm::load_config(path), ({"not found:", "config.json does not exist"}));
    test::write_file(path / "config.json", test::config_json(test::tiny_config()));
    LONGVIEW_VERIFY_ERROR(llm::load_config(path),
                          ({"not found:", "/preprocessor_config.json does not exist"}));
    std::filesystem::create_directory(path / "preprocessor_config.json");
    LONGVIEW_VERIFY_ERROR(llm::load_config(path),
                          ({"input:", "/preprocessor_config.json is a folder"}));
}

void ConfigTest::truncatedTextIsRefusedAtEveryByte() {
    const llm::ModelConfig config = test::tiny_config();
    const std::string text = test::config_json(config);
    const std::string preprocessor = test::preprocessor_json(config);
    for (std::size_t size = 0; size < text.size(); ++size) {
        LONGVIEW_VERIFY_ERROR(llm::parse_config(text.substr(0, size), preprocessor, ""),
                              ({"input: config.json"}));
    }
    for (std::size_t size = 0; size < preprocessor.size(); ++size) {
        LONGVIEW_VERIFY_ERROR(llm::parse_config(text, preprocessor.substr(0, size), ""),
                              ({"input: preprocessor_config.json"}));
    }
}

void ConfigTest::generatedConfigurationsReadBack() {
    const llm::ModelConfig config = test::tiny_config(4);
    const llm::ModelConfig read =
        llm::parse_config(test::config_json(config), test::preprocessor_json(config), "");
    QCOMPARE(test::config_json(read), test::config_json(config));
    QCOMPARE(test::preprocessor_json(read), test::preprocessor_json(config));
    QCOMPARE(read.vision.text_hidden_size, config.vision.text_hidden_size);
}

QTEST_GUILESS_MAIN(ConfigTest)
#include "config_test.moc"
