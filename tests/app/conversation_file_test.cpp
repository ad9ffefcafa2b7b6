// Conversations in files: what is saved comes back, what is damaged is refused.
#include "app/core/conversation_file.h"

#include <QFile>
#include <QTemporaryDir>
#include <QTest>
#include <string>

#include "app/core/files.h"
#include "app/core/messages_json.h"
#include "kernels/runtime/error.h"

using namespace longview;
using namespace longview::app;

namespace {

vision::Image gradient(int width, int height) {
    vision::Image image{width, height, {}};
    for (int i = 0; i < width * height * 3; ++i) {
        image.rgb.push_back(static_cast<std::uint8_t>(i * 7 + i / 11));
    }
    return image;
}

Conversation sample() {
    Conversation conversation{"demo", "0123abcd", {}};
    conversation.messages.push_back({llm::Role::kSystem, {llm::text_part("Be brief.")}, ""});
    conversation.messages.push_back(
        {llm::Role::kUser,
         {llm::image_part(gradient(31, 17)), llm::image_part(gradient(1, 1)),
          llm::text_part("What is \"this\"?\n\xF0\x9F\x98\x80 <image>")},
         ""});
    conversation.messages.push_back({llm::Role::kAssistant, {llm::text_part("A picture.")}, ""});
    conversation.messages.push_back({llm::Role::kFunction, {llm::text_part("{}")}, "look"});
    return conversation;
}

Category refusal_of(const std::string& text) {
    try {
        decode_conversation(text, "file");
    } catch (const Error& error) {
        return error.category();
    }
    return Category::kBug;
}

}  // namespace

class ConversationFileTest : public QObject {
    Q_OBJECT

  private slots:
    void bringsBackTextsAndPixels();
    void savesToAFileAndLoadsIt();
    void refusesWhatIsNoConversation_data();
    void refusesWhatIsNoConversation();
    void survivesEveryTruncation();
    void readsMessagesWordForWord();
    void refusesMessagesThatDoNotFitTheirPictures();
};

void ConversationFileTest::bringsBackTextsAndPixels() {
    const Conversation before = sample();
    const Conversation after = decode_conversation(encode_conversation(before), "file");
    QCOMPARE(after.model, before.model);
    QCOMPARE(after.fingerprint, before.fingerprint);
    QCOMPARE(after.messages.size(), before.messages.size());
    for (std::size_t m = 0; m < before.messages.size(); ++m) {
        QVERIFY(after.messages[m].role == before.messages[m].role);
        QCOMPARE(after.messages[m].name, before.messages[m].name);
        QCOMPARE(after.messages[m].parts.size(), before.messages[m].parts.size());
        for (std::size_t p = 0; p < before.messages[m].parts.size(); ++p) {
            const llm::Part& a = before.messages[m].parts[p];
            const llm::Part& b = after.messages[m].parts[p];
            QVERIFY(a.kind == b.kind);
            QCOMPARE(b.text, a.text);
            if (a.kind == llm::Part::Kind::kText) continue;
            QCOMPARE(b.image->width, a.image->width);
            QCOMPARE(b.image->height, a.image->height);
            QVERIFY(b.image->rgb == a.image->rgb);
        }
    }
}

void ConversationFileTest::savesToAFileAndLoadsIt() {
    const QTemporaryDir folder;
    const std::string path = folder.filePath("talk.json").toStdString();
    save_conversation(sample(), path);
    QCOMPARE(load_conversation(path).messages.size(), sample().messages.size());
    QCOMPARE(state_path(path).string(), path + ".state");
    QVERIFY_EXCEPTION_THROWN(load_conversation(path + ".missing"), Error);
}

void ConversationFileTest::refusesWhatIsNoConversation_data() {
    QTest::addColumn<QByteArray>("text");
    QTest::addColumn<int>("category");
    const auto row = [](const char* name, const QByteArray& text, Category category) {
        QTest::newRow(name) << text << static_cast<int>(category);
    };
    const QByteArray head = R"({"format":"longview-conversation","version":1,"model":"m",)"
                            R"("fingerprint":"f","messages":)";
    row("empty", "", Category::kInput);
    row("no JSON", "hello", Category::kInput);
    row("list", "[]", Category::kInput);
    row("another format", R"({"format":"x","version":1})", Category::kInput);
    row("newer", R"({"format":"longview-conversation","version":2})", Category::kUnsupported);
    row("version as text", R"({"format":"longview-conversation","version":"1"})", Category::kInput);
    row("no messages", head + "1}", Category::kInput);
    row("message is no object", head + "[1]}", Category::kInput);
    row("unknown role", head + R"([{"role":"root","content":[]}]})", Category::kInput);
    row("content is text", head + R"([{"role":"user","content":"x"}]})", Category::kInput);
    row("unknown part", head + R"([{"role":"user","content":[{"type":"video"}]}]})",
        Category::kInput);
    row("picture is no base64",
        head + R"([{"role":"user","content":[{"type":"image","png":"?"}]}]})", Category::kInput);
    row("picture is no picture",
        head +
            R"([{"role":"user","content":[{"type":"image","png":"aGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8h"}]}]})",
        Category::kUnsupported);
    row("deep", QByteArray(100000, '['), Category::kInput);
    row("not UTF-8", head + "[{\"role\":\"\xFF\"}]}", Category::kInput);
}

void ConversationFileTest::refusesWhatIsNoConversation() {
    QFETCH(QByteArray, text);
    QFETCH(int, category);
    QCOMPARE(static_cast<int>(refusal_of(text.toStdString())), category);
}

void ConversationFileTest::survivesEveryTruncation() {
    std::string text = encode_conversation(sample());
    text.erase(text.find_last_of('}') + 1);  // the line end at the end may be missing
    for (std::size_t length = 0; length < text.size(); ++length) {
        QCOMPARE(refusal_of(text.substr(0, length)), Category::kInput);
    }
}

void ConversationFileTest::readsMessagesWordForWord() {
    const auto json = parse_json(
        R"([{"role":"user","content":"{document}\n\nWhy {document}?"},
            {"role":"assistant","content":[{"type":"text","text":"So."}]}])",
        "cases");
    const std::string document = "TEXT {document}";
    const auto messages = parse_messages(json, {}, &document, "cases");
    QCOMPARE(messages.size(), std::size_t{2});
    QCOMPARE(messages[0].parts[0].text, std::string("TEXT {document}\n\nWhy {document}?"));
    QVERIFY(messages[1].role == llm::Role::kAssistant);
    QCOMPARE(parse_messages(json, {}, nullptr, "cases")[0].parts[0].text,
             std::string("{document}\n\nWhy {document}?"));
}

void ConversationFileTest::refusesMessagesThatDoNotFitTheirPictures() {
    const auto json =
        parse_json(R"([{"role":"user","content":[{"type":"image"},{"type":"image"}]}])", "cases");
    const std::string picture = LONGVIEW_TEST_DATA "/golden/02_square/image_0.png";
    QVERIFY_EXCEPTION_THROWN(parse_messages(json, {picture}, nullptr, "cases"), Error);
    QCOMPARE(parse_messages(json, {picture, picture}, nullptr, "cases")[0].parts.size(),
             std::size_t{2});
    QVERIFY_EXCEPTION_THROWN(parse_messages(json, {picture, picture, picture}, nullptr, "cases"),
                             Error);
}

QTEST_GUILESS_MAIN(ConversationFileTest)
#include "conversation_file_test.moc"
