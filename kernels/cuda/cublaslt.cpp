#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>

#include "kernels/cuda/check.h"

namespace longview::kernels::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;  // of each stream
constexpr std::uint32_t kMostAlignment = 256;                   // what cudaMalloc gives
constexpr int kCandidates = 8;

/// The functions in use, with the types of the header. The library stays loaded.
struct Library {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetStatusString) status_string;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;

    Library() {
        void* library = nullptr;
        std::string reasons;
        for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
            library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
            if (library != nullptr) break;
            const char* const reason = dlerror();
            reasons += (reasons.empty() ? "" : "; ") + std::string(reason ? reason : name);
        }
        if (library == nullptr) {
            throw Error(Category::kDevice,
                        "cuBLASLt was not found; install NVIDIA's libcublas of CUDA 12 or 13, or "
                        "compute on the CPU",
                        {{"tried", reasons}});
        }
        find(library, "cublasLtCreate", create);
        find(library, "cublasLtDestroy", destroy);
        find(library, "cublasLtGetStatusString", status_string);
        find(library, "cublasLtMatmul", matmul);
        find(library, "cublasLtMatmulAlgoGetHeuristic", heuristic);
        find(library, "cublasLtMatmulDescCreate", desc_create);
        find(library, "cublasLtMatmulDescDestroy", desc_destroy);
        find(library, "cublasLtMatmulDescSetAttribute", desc_set);
        find(library, "cublasLtMatrixLayoutCreate", layout_create);
        find(library, "cublasLtMatrixLayoutDestroy", layout_destroy);
        find(library, "cublasLtMatmulPreferenceCreate", preference_create);
        find(library, "cublasLtMatmulPreferenceDestroy", preference_destroy);
        find(library, "cublasLtMatmulPreferenceSetAttribute", preference_set);
    }

    template <class Function>
    static void find(void* library, const char* name, Function& function) {
        function = reinterpret_cast<Function>(dlsym(library, name));
        if (function == nullptr)
            throw Error(Category::kDevice, "the installed cuBLASLt is too old",
                        {{"missing function", name}});
    }

    void check_status(cublasStatus_t status, const char* what) const {
        if (status == CUBLAS_STATUS_SUCCESS) return;
        throw Error(Category::kDevice, "a matrix product failed on the GPU",
                    {{"call", what}, {"status", status_string(status)}});
    }
};

/// What the choice of a kernel depends on.
struct Key {
    std::int64_t m, n, k, lda, ldb, ldc, ldd;
    std::array<std::uint32_t, 5> alignment;  // of W, x, c, y, bias
    bool out_f32, bias, adds;
    auto operator<=>(const Key&) const = default;
};

using Algorithm = std::optional<cublasLtMatmulAlgo_t>;

std::uint32_t alignment_of(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t lowest = address & (~address + 1);
    return lowest == 0
               ? kMostAlignment
               : static_cast<std::uint32_t>(std::min<std::uintptr_t>(lowest, kMostAlignment));
}

/// Row counts share a kernel with their neighbours, since those of experts take every value.
std::int64_t rounded_rows(std::int64_t n) {
    const std::int64_t step = n <= 16 ? 1 : n <= 128 ? 16 : n <= 1024 ? 64 : 256;
    return (n + step - 1) / step * step;
}

Key make_key(const MatmulParams& p) {
    // Row-major y [n, out] is column-major [out, n]: W is transposed, x is not, m = out, n = rows.
    const bool adds = p.beta != 0.0F;
    const std::int64_t m = p.weight.rows;
    const std::int64_t k = p.weight.cols;
    const std::int64_t ldd = std::max(p.y.stride, m);
    return {.m = m,
            .n = p.x.rows,
            .k = k,
            .lda = k,
            .ldb = std::max(p.x.stride, k),
            .ldc = adds ? std::max(p.c.stride, m) : ldd,
            .ldd = ldd,
            .alignment = {alignment_of(p.weight.data), alignment_of(p.x.data),
                          alignment_of(adds ? p.c.data : p.y.data), alignment_of(p.y.data),
                          alignment_of(p.bias)},
            .out_f32 = p.y.dtype == DType::kF32,
            .bias = p.bias != nullptr,
            .adds = adds};
}

/// Descriptors of one product, made for a call.
class Problem {
  public:
    Problem(const Library& library, const Key& key) : library_(library) {
        const cudaDataType_t out = key.out_f32 ? CUDA_R_32F : CUDA_R_16BF;
        try {
            library.check_status(library.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                                 "cublasLtMatmulDescCreate");
            const cublasOperation_t transposed = CUBLAS_OP_T;
            set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
            if (key.bias) {
                const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
                set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
                const auto type = static_cast<std::int32_t>(CUDA_R_16BF);
                set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
            }
            layout(a, CUDA_R_16BF, key.k, key.m, key.lda);
            layout(b, CUDA_R_16BF, key.k, key.n, key.ldb);
            layout(c, out, key.m, key.n, key.ldc);
            layout(d, out, key.m, key.n, key.ldd);
        } catch (...) {
            release();
            throw;
        }
    }
    ~Problem() { release(); }
    Problem(const Problem&) = delete;
    Problem& operator=(const Problem&) = delete;

    template <class T>
    void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
        library_.check_status(library_.desc_set(desc, attribute, &value, sizeof(value)),
                              "cublasLtMatmulDescSetAttribute");
    }

    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, d = nullptr;

  private:
    void layout(cublasLtMatrixLayout_t& to, cudaDataType_t type, std::int64_t rows,
                std::int64_t cols, std::int64_t stride) {
        library_.check_status(library_.layout_create(&to, type, static_cast<std::uint64_t>(rows),
                                                     static_cast<std::uint64_t>(cols), stride),
                              "cublasLtMatrixLayoutCreate");
    }
    void release() {
        for (cublasLtMatrixLayout_t l : {a, b, c, d})
            if (l != nullptr) library_.layout_destroy(l);
        if (desc != nullptr) library_.desc_destroy(desc);
    }

    const Library& library_;
};

}  // namespace

struct CublasLt::Impl {
    Library library;
    cublasLtHandle_t handle = nullptr;
    std::byte* workspace = nullptr;  // of the main stream, then of the side streams
    SideStreams side_streams;
    std::map<Key, Algorithm> algorithms;
    bool refuses = false;

    ~Impl() {
        if (workspace != nullptr) cudaFree(workspace);
        if (handle != nullptr) library.destroy(handle);
    }

    /// Only kernels whose result does not depend on timing: sums over parts of k go through the
    /// workspace in fp32, never through counters on the output.
    cublasLtMatmulPreference_t make_preference(const Key& key) const {
        cublasLtMatmulPreference_t preference = nullptr;
        library.check_status(library.preference_create(&preference),
                             "cublasLtMatmulPreferenceCreate");
        const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
            return library.preference_set(preference, attribute, &value, sizeof(value));
        };
        const cublasStatus_t results[] = {
            set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspaceBytes}),
            set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)),
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignment[0]),
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignment[1]),
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignment[2]),
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignment[3])};
        for (const cublasStatus_t status : results) {
            if (status == CUBLAS_STATUS_SUCCESS) continue;
            library.preference_destroy(preference);
            library.check_status(status, "cublasLtMatmulPreferenceSetAttribute");
        }
        return preference;
    }

    Algorithm choose(const Key& key, const __nv_bfloat16* bias) const {
        Problem problem(library, key);
        if (bias != nullptr) problem.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        const cublasLtMatmulPreference_t preference = make_preference(key);
        std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found{};
        int count = 0;
        const cublasStatus_t status =
            library.heuristic(handle, problem.desc, problem.a, problem.b, problem.c, problem.d,
                              preference, kCandidates, found.data(), &count);
        library.preference_destroy(preference);
        if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
            library.check_status(status, "cublasLtMatmulAlgoGetHeuristic");
        for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count; ++i) {
            const cublasLtMatmulHeuristicResult_t& f = found[static_cast<std::size_t>(i)];
            if (f.state == CUBLAS_STATUS_SUCCESS && f.workspaceSize <= kWorkspaceBytes)
                return f.algo;
        }
        return std::nullopt;
    }

    const Algorithm& algorithm(const Key& key, const __nv_bfloat16* bias) {
        const auto known = algorithms.find(key);
        if (known != algorithms.end()) return known->second;
        return algorithms.emplace(key, choose(key, bias)).first->second;
    }

    void* workspace_of(cudaStream_t stream) const {
        for (int i = 0; i < SideStreams::kCount; ++i)
            if (side_streams.get(i) == stream)
                return workspace + static_cast<std::size_t>(i + 1) * kWorkspaceBytes;
        return workspace;
    }

    cublasStatus_t run(cudaStream_t stream, const MatmulParams& p, const Problem& problem,
                       const cublasLtMatmulAlgo_t& algorithm) const {
        const void* const c = p.beta != 0.0F ? p.c.data : p.y.data;
        return library.matmul(handle, problem.desc, &p.alpha, p.weight.data, problem.a, p.x.data,
                              problem.b, &p.beta, c, problem.c, p.y.data, problem.d, &algorithm,
                              workspace_of(stream), kWorkspaceBytes, stream);
    }
};

CublasLt::CublasLt() : impl_(std::make_unique<Impl>()) {
    impl_->library.check_status(impl_->library.create(&impl_->handle), "cublasLtCreate");
    void* workspace = nullptr;
    check(cudaMalloc(&workspace, (SideStreams::kCount + 1) * kWorkspaceBytes),
          "cudaMalloc of cuBLASLt's workspace");
    impl_->workspace = static_cast<std::byte*>(workspace);
}

CublasLt::~CublasLt() = default;

void CublasLt::refuse_all() {
    impl_->refuses = true;
}

SideStreams& CublasLt::side_streams() {
    return impl_->side_streams;
}

bool CublasLt::matmul(const Context& context, const MatmulParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kBF16 && p.weight.dtype == DType::kBF16,
                   "cuBLASLt multiplies bf16");
    LONGVIEW_CHECK(p.weight.cols == p.x.cols && p.y.rows == p.x.rows && p.y.cols == p.weight.rows,
                   "a product writes [rows, outputs]");
    LONGVIEW_CHECK(
        p.beta == 0.0F || (p.c.dtype == p.y.dtype && p.c.rows == p.y.rows && p.c.cols == p.y.cols),
        "what is added has the shape and type of the result");
    LONGVIEW_CHECK(
        p.beta == 0.0F || p.c.data != p.y.data || p.c.rows <= 1 || p.c.stride == p.y.stride,
        "in place, rows lie where they lay");
    LONGVIEW_CHECK(p.bias == nullptr || p.y.dtype == DType::kBF16, "the bias is of y's type");
    if (p.y.rows == 0 || p.y.cols == 0) return true;
    if (p.x.cols == 0 || impl_->refuses) return false;

    const Key exact = make_key(p);
    Key rounded = exact;
    rounded.n = rounded_rows(exact.n);
    Problem problem(impl_->library, exact);
    if (p.bias != nullptr) problem.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    for (const Key& key : {rounded, exact}) {
        const Algorithm& algorithm = impl_->algorithm(key, p.bias);
        if (!algorithm) continue;
        const cublasStatus_t status = impl_->run(context.stream, p, problem, *algorithm);
        if (status == CUBLAS_STATUS_SUCCESS) return true;
        if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE)
            impl_->library.check_status(status, "cublasLtMatmul");
    }
    return false;
}

}  // namespace longview::kernels::cuda
