#include "kernels/runtime/cuda/handles.h"

#include "kernels/runtime/cuda/check.h"

namespace longview::kernels::cuda {

void select_device(int device) {
    check(cudaSetDevice(device), "choosing the device");
}

Stream::Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}
Stream::~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
}
void Stream::synchronize() const {
    check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

Event::Event(Timing timing) {
    check(cudaEventCreateWithFlags(
              &event_, timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming),
          "creating an event");
}
Event::~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
}
void Event::record(const Stream& stream) {
    check(cudaEventRecord(event_, stream.get()), "recording an event");
}
bool Event::done() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
        cudaGetLastError();
        return false;
    }
    check(status, "waiting for the GPU");
    return true;
}

void SideStreams::fork(cudaStream_t main) {
    check(cudaEventRecord(forked_.get(), main), "recording an event");
    for (const Stream& side : streams_)
        check(cudaStreamWaitEvent(side.get(), forked_.get(), 0), "ordering streams");
}

void SideStreams::join(cudaStream_t main) {
    for (std::size_t i = 0; i < streams_.size(); ++i) {
        finished_[i].record(streams_[i]);
        check(cudaStreamWaitEvent(main, finished_[i].get(), 0), "ordering streams");
    }
}

Graph::~Graph() {
    reset();
}
void Graph::reset() noexcept {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    executable_ = nullptr;
}

void Graph::begin(const Stream& stream) {
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
          "recording a graph");
}

void Graph::abandon(const Stream& stream) noexcept {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
}

void Graph::finish(const Stream& stream) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream.get(), &graph), "recording a graph");
    cudaError_t status = cudaErrorGraphExecUpdateFailure;
    if (executable_ != nullptr) {
        cudaGraphExecUpdateResultInfo info{};
        status = cudaGraphExecUpdate(executable_, graph, &info);
        if (status != cudaSuccess) {
            cudaGetLastError();  // its shape changed: made anew below
            cudaGraphExecDestroy(executable_);
            executable_ = nullptr;
        }
    }
    if (status != cudaSuccess) status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a graph ready");
}

void Graph::launch(const Stream& stream) const {
    check(cudaGraphLaunch(executable_, stream.get()), "running a graph");
}

}  // namespace longview::kernels::cuda
