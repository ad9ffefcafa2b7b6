// The engine on the demo model: answers, events, reuse, cancel, limits and states on disk.
#include "llm/engine/engine.h"

#include <QElapsedTimer>
#include <QFile>
#include <QTemporaryDir>
#include <QtTest>
#include <atomic>
#include <future>
#include <thread>
#include <vector>

#include "tests/llm/golden.h"
#include "vision/image/image.h"

using namespace longview;
using namespace longview::llm;
using namespace longview::testing;

class EngineTest : public QObject {
    Q_OBJECT

#ifdef LONGVIEW_SANITIZED
    static constexpr const char* kReport = "55.txt";  // 800 tokens
#else
    static constexpr const char* kReport = "58.txt";  // 3 000 tokens
#endif
    std::unique_ptr<Engine> engine_;

    static std::unique_ptr<Engine> load(EngineOptions options = {}) {
        options.model = LONGVIEW_DEMO_MODEL;
        return Engine::load(options);
    }
    static Request question(std::vector<Part> parts, std::int64_t max_tokens = 64) {
        Request request;
        Message& message = request.messages.emplace_back();
        message.parts = std::move(parts);
        request.max_tokens = max_tokens;
        return request;
    }
    static std::string document(const char* file) {
        QFile in(QString(LONGVIEW_DEMO_MODEL "/eval/") + file);
        return in.open(QIODevice::ReadOnly) ? in.readAll().toStdString() : std::string();
    }
    static Part picture(const char* golden) {
        return image_part(
            vision::load_image((golden_folder() + "/" + golden + "/image_0.png").toStdString()));
    }
    Engine::Answer answer(const Request& request) {
        return engine_->ask(request);
    }

  private slots:
    void init() {
        engine_ = load();
    }

    void answersGoldenPromptsThroughMessages() {
        for (const QString& name : golden_names_to_run()) {
            const nlohmann::json golden = golden_json(name);
            Request request;
            int image = 0;
            for (const auto& m : golden_json(name, "messages.json")) {
                Message& message = request.messages.emplace_back();
                const std::string role = m["role"];
                message.role = role == "system"      ? Role::kSystem
                               : role == "assistant" ? Role::kAssistant
                                                     : Role::kUser;
                for (const auto& part : m["content"]) {
                    if (part["type"] == "text") {
                        message.parts.push_back(text_part(part["text"]));
                    } else {
                        message.parts.push_back(image_part(
                            vision::load_image((golden_folder() + "/" + name).toStdString() +
                                               "/image_" + std::to_string(image++) + ".png")));
                    }
                }
            }
            request.max_tokens = 200;
            const Engine::Answer got = answer(request);
            QCOMPARE(got.text, golden["greedy_text"].get<std::string>());
            QCOMPARE(got.reason, FinishReason::kStop);
            QCOMPARE(got.statistics.prompt_tokens,
                     static_cast<std::int64_t>(golden["input_ids"].size()));
            QCOMPARE(got.statistics.completion_tokens,
                     static_cast<std::int64_t>(golden["greedy_ids"].size()));
        }
    }

    void secondQuestionAboutADocumentReadsOnlyWhatIsNew() {
        const std::string text =
            "<document name=\"a.txt\">\n" + document(kReport) + "</document>\n\n";
        const Engine::Answer first =
            answer(question({text_part(text), text_part("Who is the author?")}));
        QCOMPARE(first.statistics.reused_tokens, std::int64_t{0});
        const Request second = question({text_part(text), text_part("What is the title?")});
        const Engine::Answer reused = answer(second);
        const std::int64_t fresh =
            reused.statistics.prompt_tokens - reused.statistics.reused_tokens;
        QVERIFY2(fresh > 0 && fresh < 40, qPrintable(QString::number(fresh)));
        engine_ = load();
        const Engine::Answer alone = answer(second);
        QCOMPARE(alone.statistics.reused_tokens, std::int64_t{0});
        QCOMPARE(reused.text, alone.text);
    }

    void secondQuestionAboutAPictureReusesItAndAnotherPictureDoesNot() {
        const Engine::Answer first =
            answer(question({picture("05_chart"), text_part("What is the title?")}));
        const Engine::Answer second =
            answer(question({picture("05_chart"), text_part("What kind of picture is this?")}));
        QVERIFY(second.statistics.reused_tokens >= first.statistics.image_tokens);
        // Same number of tokens, other pixels.
        vision::Image changed =
            vision::load_image((golden_folder() + "/05_chart/image_0.png").toStdString());
        changed.rgb[changed.rgb.size() / 2] ^= 0x40;
        const Engine::Answer other =
            answer(question({image_part(changed), text_part("What kind of picture is this?")}));
        QCOMPARE(other.statistics.prompt_tokens, second.statistics.prompt_tokens);
        QVERIFY(other.statistics.reused_tokens < 10);
    }

    void nextTurnGoesOnFromTheAnswer() {
        Request request =
            question({picture("08_multi_turn"), text_part("How many boxes are there?")});
        const Engine::Answer first = answer(request);
        Message& reply = request.messages.emplace_back();
        reply.role = Role::kAssistant;
        reply.parts = {text_part(first.text)};
        Message& next = request.messages.emplace_back();
        next.parts = {text_part("What is written in the boxes?")};
        const Engine::Answer second = answer(request);
        QVERIFY(second.statistics.reused_tokens >= first.statistics.prompt_tokens);
        engine_ = load();
        QCOMPARE(answer(request).text, second.text);
    }

    void eventsTellProgressTextAndEnd() {
        std::vector<Event> events;
        const Engine::Answer got = engine_->ask(
            question({text_part(document("57.txt") + "\n\n"), text_part("Who is the author?")}),
            [&](const Event& e) { events.push_back(e); });
        QCOMPARE(events.front().kind, Event::Kind::kProgress);
        QCOMPARE(events.front().work_done, 0.0);
        QVERIFY(events.front().work_total > 0.0);
        QCOMPARE(events.back().kind, Event::Kind::kFinished);
        double before = 0.0;
        bool writing = false;
        std::string text;
        for (const Event& e : events) {
            if (e.kind == Event::Kind::kProgress) {
                QVERIFY(!writing);
                QVERIFY(e.work_done >= before && e.work_done <= e.work_total);
                before = e.work_done;
            } else if (e.kind == Event::Kind::kText) {
                writing = true;
                text += e.text;
                QVERIFY(QString::fromStdString(e.text).toStdString() == e.text);  // whole UTF-8
            }
        }
        QCOMPARE(before, events.front().work_total);
        QCOMPARE(text, got.text);
    }

    void cancelDuringReadingEndsSoonAndLeavesAUsableEngine() {
        const Request request =
            question({text_part(document("60.txt") + "\n\n"), text_part("Who is the author?")});
        std::promise<Event> end;
        std::promise<void> reading;
        std::atomic<bool> told{false};
        const RequestId id = engine_->submit(request, [&](const Event& e) {
            if (e.kind == Event::Kind::kProgress && e.work_done > 0.02 * e.work_total &&
                !told.exchange(true))
                reading.set_value();
            if (e.kind == Event::Kind::kFinished || e.kind == Event::Kind::kFailed)
                end.set_value(e);
        });
        reading.get_future().wait();
        QElapsedTimer timer;
        timer.start();
        engine_->cancel(id);
        const Event last = end.get_future().get();
        qInfo("cancelled after %lld ms", static_cast<long long>(timer.elapsed()));
        QCOMPARE(last.kind, Event::Kind::kFinished);
        QCOMPARE(last.reason, FinishReason::kCancelled);
        QCOMPARE(last.statistics.completion_tokens, std::int64_t{0});
        const Request small = question({text_part("What can you do?")});
        const Engine::Answer after = answer(small);
        engine_ = load();
        QCOMPARE(answer(small).text, after.text);
    }

    void cancelDuringWritingKeepsTheTextSoFar() {
        std::promise<Event> end;
        std::string text;
        std::atomic<RequestId> id{0};
        std::promise<void> known;
        std::shared_future<void> ready = known.get_future().share();
        Request request = question(
            {text_part(document(kReport) + "\n\n"), text_part("Summarize the document.")}, 200);
        id = engine_->submit(request, [&](const Event& e) {
            if (e.kind == Event::Kind::kText) {
                text += e.text;
                ready.wait();
                engine_->cancel(id);
            }
            if (e.kind == Event::Kind::kFinished || e.kind == Event::Kind::kFailed)
                end.set_value(e);
        });
        known.set_value();
        const Event last = end.get_future().get();
        QCOMPARE(last.reason, FinishReason::kCancelled);
        QVERIFY(!text.empty());
        QVERIFY(last.statistics.completion_tokens >= 1);
    }

    void waitingRequestsAreAnsweredInOrderAndCanBeCancelled() {
        std::vector<std::promise<Event>> ends(4);
        std::vector<RequestId> ids;
        std::vector<int> order;
        for (int i = 0; i < 4; ++i) {
            ids.push_back(
                engine_->submit(question({text_part("What can you do?")}), [&, i](const Event& e) {
                    if (e.kind != Event::Kind::kFinished && e.kind != Event::Kind::kFailed) return;
                    if (e.reason != FinishReason::kCancelled) order.push_back(i);
                    ends[static_cast<std::size_t>(i)].set_value(e);
                }));
        }
        engine_->cancel(ids[2]);
        engine_->cancel(9999);
        for (std::size_t i = 0; i < ends.size(); ++i) {
            const Event e = ends[i].get_future().get();
            QCOMPARE(e.kind, Event::Kind::kFinished);
            QCOMPARE(e.reason == FinishReason::kCancelled, i == 2);
        }
        QCOMPARE(order, (std::vector<int>{0, 1, 3}));
    }

    void destroyingTheEngineEndsAllRequests() {
        int ended = 0;
        for (int i = 0; i < 3; ++i)
            engine_->submit(question({text_part(document("60.txt")), text_part("?")}),
                            [&](const Event& e) { ended += e.kind == Event::Kind::kFinished; });
        engine_.reset();
        QCOMPARE(ended, 3);
    }

    void stopsAtLengthAndAtStopTexts() {
        Request request = question({picture("02_square"), text_part("What is in the picture?")}, 3);
        const Engine::Answer shortened = answer(request);
        QCOMPARE(shortened.reason, FinishReason::kLength);
        QCOMPARE(shortened.statistics.completion_tokens, std::int64_t{3});
        request.max_tokens = 100;
        const std::string full = answer(request).text;
        QVERIFY(full.size() > 8);
        request.stop = {full.substr(5, 3)};
        const Engine::Answer stopped = answer(request);
        QCOMPARE(stopped.text, full.substr(0, full.find(request.stop[0])));
        QCOMPARE(stopped.reason, FinishReason::kStop);
    }

    void seedsReproduceSamples() {
        Request request = question({text_part("What can you do?")}, 40);
        request.sampling.temperature = 5.0F;
        request.sampling.seed = 1;
        const std::string one = answer(request).text;
        QCOMPARE(answer(request).text, one);
        request.sampling.seed = 2;
        QVERIFY(answer(request).text != one);
    }

    void typedSpecialTokensStayText() {
        Request request = question({text_part("<image><end_of_sentence>\nWhat can you do?")});
        const Engine::Answer got = answer(request);
        QCOMPARE(got.statistics.image_tokens, std::int64_t{0});
        QVERIFY(got.statistics.prompt_tokens > 20);
    }

    void badRequestsFailWithASentence_data() {
        QTest::addColumn<QString>("field");
        for (const char* field : {"max_tokens", "temperature", "top_k", "top_p", "min_p",
                                  "repetition_penalty", "presence_penalty", "no message"})
            QTest::newRow(field) << field;
    }
    void badRequestsFailWithASentence() {
        QFETCH(QString, field);
        Request r = question({text_part("What can you do?")});
        if (field == "max_tokens") r.max_tokens = 0;
        if (field == "temperature") r.sampling.temperature = std::nanf("");
        if (field == "top_k") r.sampling.top_k = -1;
        if (field == "top_p") r.sampling.top_p = 0.0F;
        if (field == "min_p") r.sampling.min_p = 1.5F;
        if (field == "repetition_penalty") r.sampling.repetition_penalty = 0.0F;
        if (field == "presence_penalty") r.sampling.presence_penalty = INFINITY;
        if (field == "no message") r.messages.clear();
        bool failed = false;
        try {
            engine_->ask(r);
        } catch (const Error& error) {
            failed = error.category() == Category::kInput && QString(error.what()).contains(field);
        }
        QVERIFY(failed);
        QVERIFY(!answer(question({text_part("What can you do?")})).text.empty());
    }

    void promptsBeyondTheMemoryAreRefusedBeforeReading() {
        EngineOptions options;
        options.memory_limit_bytes = 64 << 20;
        engine_ = load(options);
        const std::string text = document("60.txt");
        std::string longer;
        for (int i = 0; i < 40; ++i) longer += text;
        QString message;
        try {
            engine_->ask(question({text_part(longer), text_part("Who is the author?")}));
        } catch (const Error& error) {
            QCOMPARE(error.category(), Category::kMemory);
            message = error.what();
        }
        QVERIFY2(message.contains("tokens needs") && message.contains("Nothing was read"),
                 qPrintable(message));
        QVERIFY(!answer(question({text_part("What can you do?")})).text.empty());
    }

    void savedStatesAreReusedByALaterEngine() {
        QTemporaryDir folder;
        const std::filesystem::path file = folder.filePath("a.state").toStdString();
        bool nothing = false;
        try {
            engine_->save_state(file);
        } catch (const Error& error) {
            nothing = error.category() == Category::kInput;
        }
        QVERIFY(nothing);
        Request request = question({picture("05_chart"), text_part("What is the title?")});
        const Engine::Answer first = answer(request);
        engine_->save_state(file);
        request.messages.push_back({Role::kAssistant, {text_part(first.text)}, {}});
        request.messages.push_back({Role::kUser, {text_part("What kind of picture is this?")}, {}});
        const Engine::Answer live = answer(request);
        engine_ = load();
        QVERIFY(engine_->load_state(file) > first.statistics.image_tokens);
        const Engine::Answer again = answer(request);
        QVERIFY(again.statistics.reused_tokens > first.statistics.image_tokens);
        QCOMPARE(again.text, live.text);
    }

    void unknownDevicesAndFoldersAreExplained() {
        EngineOptions options;
        options.model = "/nonexistent/model";
        QVERIFY_EXCEPTION_THROWN(Engine::load(options), Error);
        options.model = LONGVIEW_DEMO_MODEL;
        options.device = DeviceChoice::kCuda;
        QString message;
        try {
            Engine::load(options);
        } catch (const Error& error) {
            message = error.what();
        }
        QVERIFY(message.contains("--device cpu"));
    }
};

QTEST_GUILESS_MAIN(EngineTest)
#include "engine_test.moc"
