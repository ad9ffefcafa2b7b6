// Owners of CUDA streams, events and graphs. Destructors never throw: after a lost device there is
// nothing left to release.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <utility>

namespace longview::kernels::cuda {

/// Selects a device for the calling thread, which CUDA keeps per thread.
void select_device(int device);

class Stream {
  public:
    Stream();  // does not wait for the legacy default stream
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }
    /// Waits for all work queued so far and throws what went wrong in it.
    void synchronize() const;

  private:
    cudaStream_t stream_ = nullptr;
};

class Event {
  public:
    enum class Timing { kOff, kOn };
    explicit Event(Timing timing = Timing::kOff);
    ~Event();
    Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    cudaEvent_t get() const { return event_; }
    void record(const Stream& stream);
    /// False while work before the event is unfinished; true also when never recorded.
    bool done() const;

  private:
    cudaEvent_t event_ = nullptr;
};

/// Streams beside a main one: the last blocks of one product and the first of the next then share
/// the device. Their work begins after what the main stream held at fork(), and what the main
/// stream gets after join() begins after theirs.
class SideStreams {
  public:
    static constexpr int kCount = 4;

    void fork(cudaStream_t main);
    void join(cudaStream_t main);
    cudaStream_t get(int i) const { return streams_[static_cast<std::size_t>(i % kCount)].get(); }

  private:
    std::array<Stream, kCount> streams_;
    Event forked_;
    std::array<Event, kCount> finished_;
};

/// A recorded sequence of launches, made ready to run. Recording again updates it in place where
/// only parameters changed, which is several times cheaper than making a new one.
class Graph {
  public:
    Graph() = default;
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    /// Records what `queue_work` queues on `stream`; nothing runs. When it throws, recording is
    /// abandoned and the exception goes on.
    template <typename F>
    void record(const Stream& stream, F&& queue_work) {
        begin(stream);
        try {
            queue_work();
        } catch (...) {
            abandon(stream);
            throw;
        }
        finish(stream);
    }
    bool ready() const { return executable_ != nullptr; }
    void launch(const Stream& stream) const;
    void reset() noexcept;

  private:
    static void begin(const Stream& stream);
    static void abandon(const Stream& stream) noexcept;
    void finish(const Stream& stream);

    cudaGraphExec_t executable_ = nullptr;
};

}  // namespace longview::kernels::cuda
